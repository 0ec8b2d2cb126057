"""A native checkpoint in other runtimes, each in an environment of its own: mlx-lm's CPU wheel and llama.cpp.

A random dense Qwen3 (YaRN, irregular layers for llama.cpp), some of whose layers are native, is exported for each; the
tokens that it writes, greedily, and their logits are compared with the program's, and those of rounded files with
transformers' on the numbers of the file. Processor milliseconds per token stand beside those of our own sessions;
llama.cpp also runs the dense Qwen3, which says how exact it is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import llamacpp
import numpy as np
import peers
import torch
from common import Row, arguments, machine, report
from llamacpp_rounding import round_activations

import sleepc
from sleepc.api import Program
from sleepc.backends.gguf.check import GgufTensors
from sleepc.backends.gguf.tensors import placed
from sleepc.ir.tensorfile import Planned
from sleepc.runtime.session import Session
from sleepc.verify.memory_values import shaken

PACKAGES = ("mlx[cpu]==0.32.*", "mlx-lm==0.32.*")
COLUMNS = ("runtime", "layers", "weights", "tokens_equal", "largest_error", "rounded_error", "twice_error")
COLUMNS += ("ms_per_token", "why")
SHAPE = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512}
ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
PROMPT, WRITTEN = 40, 32
KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0")


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--mlx-env", type=Path, default=Path("build/mlx-env"), help="where mlx-lm is installed")
    parser.add_argument("--llama-env", type=Path, default=Path("build/llama-env"), help="where llama.cpp is built")
    options = parser.parse_args()
    rows = [machine()]
    with TemporaryDirectory(prefix="sleepc-bench-") as scratch:
        for row in measured(options, Path(scratch)):
            rows.append({"kind": "native", **row})
    report(rows, as_json=options.json, title="native checkpoints", columns=COLUMNS)


def measured(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """A row for each runtime and kind of weights."""
    ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], PROMPT).tolist()
    module = dense(scratch / "model", 4)
    regular = converted(scratch / "model", "every:4")
    found = ours(regular, ids)
    rows: list[Row] = [{"runtime": "sleepc", "ms_per_token": found.ms}]
    try:
        python = peers.environment(options.mlx_env, *PACKAGES)
        folder = regular.export(scratch / "mlx", to="hf", tokens=ids * 2, runtime="mlx").path
        rows.append({"runtime": "mlx", "weights": "f32", **theirs(python, "mlx", folder, ids, found)})
    except peers.CannotBuild as error:
        rows.append({"runtime": "mlx", "why": f"skipped: {error}"})
    try:
        python = llamacpp.python_of(options.llama_env)
    except peers.CannotBuild as error:
        return [*rows, {"runtime": "llama.cpp", "why": f"skipped: {error}"}]
    dense_file = write_dense(module, scratch / "dense.gguf")
    level = theirs(python, "llama.cpp", dense_file, ids, in_transformers(module, ids))
    rows.append({"runtime": "llama.cpp, dense Qwen3", "weights": "f32", **level})
    for layers in (2, 4):
        model = scratch / f"model-{layers}"
        dense(model, layers)
        rows += in_llama(python, converted(model, "1"), ids, scratch / f"files-{layers}")
    return rows


def in_llama(python: Path, program: Program, ids: list[int], scratch: Path) -> Iterator[Row]:
    """A row for each kind of weights. `rounded`: beside transformers with the file's weights, and activations rounded
    as llama.cpp rounds them; `twice`: that in float32 beside the same in float64. Both differ where a number lies so
    near the middle of two that the order of a sum decides what it is rounded to, and from then on.
    """
    checkpoint = program.export(scratch / "hf", to="hf", tokens=ids * 2).path
    for kind in KINDS:
        file = program.export(scratch / kind, to="gguf", tokens=ids * 2, dtype=kind).path / "model.gguf"
        model, kinds = of_file(checkpoint, file)
        wanted = ours(program, ids) if kind in ("f32", "f16") else in_transformers(model, ids)
        rounded = round_activations(model, kinds)
        exact = in_transformers(rounded, ids)
        row = {"runtime": "llama.cpp", "layers": len(program.graphs.layout), "weights": kind}
        try:
            found = answers(python, "llama.cpp", file, ids)
        except Failed as error:
            yield {**row, "why": f"failed: {error}"}
            continue
        row |= {**compared(found, wanted), "rounded_error": compared(found, exact)["largest_error"]}
        yield {**row, "twice_error": compared(in_transformers(rounded.float(), ids), exact)["largest_error"]}


def dense(folder: Path, layers: int) -> Any:
    """A random Qwen3."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    module = Qwen3ForCausalLM(Qwen3Config(**SHAPE, num_hidden_layers=layers, rope_parameters=ROPE))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(std=parameter.shape[-1] ** -0.5)
    module.save_pretrained(folder)
    return module.train(False)


def converted(model: Path, attends: str) -> Program:
    """A program whose memories answer, which keeps attention in these layers."""
    kept = [{"layers": attends, "strategy": "leave", "window": "none"}]
    recipe = {"window": 32, "strategy": "replace", "layout": "native", "overrides": kept}
    program = sleepc.convert(model, recipe)
    program.graphs = shaken(program.graphs)
    place = model.with_name(f"{model.name}-{attends.replace(':', '-')}")
    program.save(place)
    return sleepc.load(place)


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, their logits [n,V], and processor milliseconds of a token."""

    tokens: list[int]
    logits: np.ndarray
    ms: float = 0.0


class Failed(Exception):
    """A runtime ended without an answer: its last line."""


def ours(program: Program, ids: list[int]) -> Answer:
    """Those of our own session."""
    session = Session(program.steps(), 1)
    read, tokens, every, seconds = ids, [], [], []
    for _ in range(WRITTEN):
        started = time.process_time()
        every.append(session.feed(read)[0])
        seconds.append(time.process_time() - started)
        tokens.append(int(every[-1].argmax()))
        read = tokens[-1:]
    return Answer(tokens, np.stack(every), 1e3 * median(seconds[1:]))


@torch.no_grad()
def in_transformers(module: Any, ids: list[int]) -> Answer:
    """Those of transformers, which reads the whole text for each token."""
    tokens: list[int] = []
    every = []
    for _ in range(WRITTEN):
        every.append(module(input_ids=torch.tensor([ids + tokens]), use_cache=False).logits[0, -1].numpy())
        tokens.append(int(every[-1].argmax()))
    return Answer(tokens, np.stack(every))


def of_file(checkpoint: Path, file: Path) -> tuple[Any, dict[str, str]]:
    """The checkpoint in transformers, with the numbers that a GGUF file has, and the kinds of these by name."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=False).train(False)
    named = {name: Planned(value.dtype, tuple(value.shape), value.clone) for name, value in model.named_parameters()}
    places = placed(named, model.config.to_dict(), file.parent.name.upper())
    model.load_state_dict({name: each.make() for name, each in GgufTensors(file).of_class(places)}, strict=False)
    return model, {name: place.kind for name, place in places.items()}


def write_dense(module: Any, path: Path) -> Path:
    """The dense Qwen3 as a GGUF file in float32."""
    import gguf

    writer = gguf.GGUFWriter(path, "qwen3")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, module.config.num_hidden_layers)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(SHAPE["vocab_size"])
    writer.add_block_count(module.config.num_hidden_layers)
    writer.add_context_length(SHAPE["max_position_embeddings"])
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_key_length(SHAPE["head_dim"])
    writer.add_value_length(SHAPE["head_dim"])
    writer.add_layer_norm_rms_eps(module.config.rms_norm_eps)
    writer.add_rope_freq_base(ROPE["rope_theta"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(ROPE["factor"])
    writer.add_rope_scaling_orig_ctx_len(ROPE["original_max_position_embeddings"])
    for name, value in module.named_parameters():
        writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", value.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def theirs(python: Path, runtime: str, path: Path, ids: list[int], wanted: Answer) -> Row:
    """The same tokens from another runtime, compared; or why not."""
    try:
        return compared(answers(python, runtime, path, ids), wanted)
    except Failed as error:
        return {"why": f"failed: {error}"}


def answers(python: Path, runtime: str, path: Path, ids: list[int]) -> Answer:
    """Those of another runtime. Raises Failed."""
    worker = Path(__file__).with_name("native_worker.py")
    command = [str(python), str(worker), runtime, str(path), str(WRITTEN), ",".join(map(str, ids))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["no word"])[-1])
    found = json.loads(done.stdout)
    return Answer(found["tokens"], np.array(found["logits"]), median(found["ms"]))


def compared(found: Answer, wanted: Answer) -> Row:
    """How many tokens are the same, and the largest error of logits up to the first that is not."""
    pairs = list(zip(found.tokens, wanted.tokens, strict=True))
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), WRITTEN - 1) + 1
    error = np.abs(found.logits[:same] - wanted.logits[:same]).max() / np.abs(wanted.logits).max()
    equal = f"{sum(a == b for a, b in pairs)} of {WRITTEN}"
    return {"tokens_equal": equal, "largest_error": float(error), "ms_per_token": found.ms}


if __name__ == "__main__":
    main()
