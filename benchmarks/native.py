"""A native checkpoint in another runtime: mlx-lm's CPU wheel, in an environment of its own.

A random dense Qwen3, three of four layers of which are native, is exported for it; greedy tokens and logits are
compared with the program's, and processor milliseconds per token are printed beside those of our own sessions.
llama.cpp is not run: its converter takes known tokenizers only, and its package has to be compiled.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import peers
import torch
from common import Row, arguments, machine, report

import sleepc
from sleepc.api import Program
from sleepc.runtime.session import Session
from sleepc.verify.memory_values import shaken

PACKAGES = ("mlx[cpu]==0.32.*", "mlx-lm==0.32.*")
COLUMNS = ("runtime", "tokens_equal", "largest_error", "ms_per_token", "why")
SHAPE = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512}
PROMPT, WRITTEN = 40, 32


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--mlx-env", type=Path, default=Path("build/mlx-env"), help="where mlx-lm is installed")
    options = parser.parse_args()
    rows = [machine()]
    with TemporaryDirectory(prefix="sleepc-bench-") as scratch:
        program = converted(Path(scratch))
        ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], PROMPT).tolist()
        tokens, logits, ms = ours(program, ids)
        rows.append({"kind": "native", "runtime": "sleepc", "ms_per_token": ms})
        folder = program.export(Path(scratch) / "mlx", to="hf", tokens=ids * 2, runtime="mlx").path
        rows.append({"kind": "native", "runtime": "mlx", **theirs(options.mlx_env, folder, ids, tokens, logits)})
    report(rows, as_json=options.json, title="native checkpoints", columns=COLUMNS)


def converted(folder: Path) -> Program:
    """A program whose memories answer, of a random Qwen3."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    module = Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(std=parameter.shape[-1] ** -0.5)
    module.save_pretrained(folder / "model")
    kept = [{"layers": "every:4", "strategy": "leave", "window": "none"}]
    recipe = {"window": 32, "strategy": "replace", "layout": "native", "overrides": kept}
    program = sleepc.convert(folder / "model", recipe)
    program.graphs = shaken(program.graphs)
    program.save(folder / "artifact")
    return sleepc.load(folder / "artifact")


def ours(program: Program, ids: list[int]) -> tuple[list[int], np.ndarray, float]:
    """Greedy tokens, their logits, and processor milliseconds of a token."""
    session = Session(program.steps(), 1)
    read, tokens, every, seconds = ids, [], [], []
    for _ in range(WRITTEN):
        started = time.process_time()
        every.append(session.feed(read)[0])
        seconds.append(time.process_time() - started)
        tokens.append(int(every[-1].argmax()))
        read = tokens[-1:]
    return tokens, np.stack(every), 1e3 * median(seconds[1:])


def theirs(env: Path, folder: Path, ids: list[int], tokens: list[int], logits: np.ndarray) -> Row:
    """The same from mlx-lm, or why not."""
    try:
        python = peers.environment(env, *PACKAGES)
    except peers.CannotBuild as error:
        return {"why": f"skipped: {error}"}
    worker = Path(__file__).with_name("native_worker.py")
    command = [str(python), str(worker), str(folder), str(WRITTEN), ",".join(map(str, ids))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"why": f"failed: {done.stderr.strip().splitlines()[-1]}"}
    found = json.loads(done.stdout)
    error = np.abs(np.array(found["logits"]) - logits).max() / np.abs(logits).max()
    equal = sum(a == b for a, b in zip(found["tokens"], tokens, strict=True))
    return {
        "tokens_equal": f"{equal} of {WRITTEN}",
        "largest_error": float(error),
        "ms_per_token": median(found["ms"]),
    }


if __name__ == "__main__":
    main()
