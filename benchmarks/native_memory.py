"""Memory of `export --to hf` of a 7B shape: a random dense Qwen3 in bfloat16, three of four layers native.

Anonymous memory at its peak, over that after importing torch and transformers, with few layers and with all: what is
held must not grow with them. Nothing is left out of the export: it compares logits with transformers, in bfloat16, from
the files that it has written. 32 layers are 7B, and take 35 GB of disk.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import Row, arguments, console, machine, numbers, report
from convert_memory import watched

from sleepc.ir.tensorfile import Planned, write_planned

COLUMNS = ("layers", "seconds", "anonymous_mib", "peak_rss_mib", "at_peak", "weights", "logits", "bound")
SHAPE: dict[str, Any] = {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 11008}
SHAPE |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096}
TINY: dict[str, Any] = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096}
POOL = (1 << 25) + 37  # random numbers, which weights are cut from: no row of a matrix is that of another
RECIPE = {
    "strategy": "replace",
    "layout": "native",
    "layers": "all",
    "window": 256,
    "overrides": [{"layers": "every:4", "strategy": "leave", "window": "none"}],
}
CONVERT = """
import json, sys, sleepc
from sleepc.verify.memory_values import shaken
program = sleepc.convert(sys.argv[1], json.loads(sys.argv[3]))
program.graphs = shaken(program.graphs)  # memories that answer: what a conversion makes is silent
program.save(sys.argv[2])
"""
EXPORT = """
import sys, torch, transformers
print("imported", flush=True)
input()
import sleepc
say = lambda what, share: print(what, flush=True)
tokens = [i * 7919 % int(sys.argv[3]) for i in range(320)]
sleepc.load(sys.argv[1]).export(sys.argv[2], to="hf", tokens=tokens, progress=say)
print("done", flush=True)
input()
"""


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--layers", type=numbers, default="8,32", help="how many layers, one run for each")
    parser.add_argument("--scratch", type=Path, help="where there is room for three times the weights")
    options = parser.parse_args()
    rows = [machine()]
    for layers in (4, 8) if options.tiny else options.layers:
        with TemporaryDirectory(prefix="sleepc-bench-", dir=options.scratch) as scratch:
            rows.append(measured(Path(scratch), {**(TINY if options.tiny else SHAPE), "num_hidden_layers": layers}))
    report(rows, as_json=options.json, title="export --to hf, MiB", columns=COLUMNS)


def measured(scratch: Path, shape: Row) -> Row:
    """The row of a shape."""
    console.log(f"{shape['num_hidden_layers']} layers: random weights")
    model, artifact, out = make_random(scratch / "model", shape), scratch / "artifact", scratch / "out"
    console.log("convert")
    subprocess.run([sys.executable, "-c", CONVERT, model, artifact, json.dumps(RECIPE)], check=True)
    found = watched(EXPORT, artifact, out, shape["vocab_size"])
    checks = json.loads((out / "native.json").read_text())["report"]["checks"]
    worst = max(checks, key=lambda row: row["value"] / row["bound"])
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    shutil.rmtree(scratch)
    scratch.mkdir()
    told = {"weights": size, "logits": worst["value"], "bound": worst["bound"], "checks": checks}
    return {"kind": "native_memory", "layers": shape["num_hidden_layers"], **found, **told}


def make_random(folder: Path, shape: Row) -> Path:
    """A Qwen3 in bfloat16, its layers in files of their own."""
    folder.mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16"}
    config |= {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False, "rope_theta": 1e6}
    (folder / "config.json").write_text(json.dumps(config | shape))
    torch.manual_seed(0)
    pool = torch.randn(POOL).to(torch.bfloat16)
    index, at = {}, 0
    for i, shard in enumerate(shards(shape)):
        file, planned = f"model-{i + 1:05}.safetensors", {}
        for name, dims in shard.items():
            planned[name] = Planned(torch.bfloat16, dims, Cut(pool, at, dims))
            at = (at + 7919 * 104729) % len(pool)
        write_planned(planned, folder / file)
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


class Cut:
    """Numbers of the pool from a place on, again and again, of a size that keeps that of what they are multiplied by;
    of a norm's weights 1 to 1.1.
    """

    def __init__(self, pool: torch.Tensor, at: int, dims: tuple[int, ...]) -> None:
        self.pool, self.at, self.dims = pool, at, dims

    def __call__(self) -> torch.Tensor:
        """The tensor."""
        count = torch.Size(self.dims).numel()
        parts, left, at = [], count, self.at
        while left:
            parts.append(self.pool[at : at + left])
            left, at = left - len(parts[-1]), 0
        flat = torch.cat(parts)
        if len(self.dims) == 1:
            return 1 + 0.1 * flat.abs().clamp(max=1)
        return (flat * self.dims[1] ** -0.5).reshape(self.dims)


def shards(shape: Row) -> list[dict[str, tuple[int, ...]]]:
    """Shapes by name, file by file."""
    d, ff, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    width = shape["head_dim"]
    q, kv = (width * shape[f"num_{name}_heads"] for name in ("attention", "key_value"))
    block = {
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
        "self_attn.q_proj": (q, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, q),
        "self_attn.q_norm": (width,),
        "self_attn.k_norm": (width,),
        "mlp.gate_proj": (ff, d),
        "mlp.up_proj": (ff, d),
        "mlp.down_proj": (d, ff),
    }
    found: list[dict[str, tuple[int, ...]]] = [
        {f"model.layers.{i}.{name}.weight": dims for name, dims in block.items()}
        for i in range(shape["num_hidden_layers"])
    ]
    ends = {"model.embed_tokens.weight": (vocab, d), "model.norm.weight": (d,), "lm_head.weight": (vocab, d)}
    return [ends, *found]


if __name__ == "__main__":
    main()
