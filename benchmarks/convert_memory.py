"""Memory and seconds of `convert` and `save`.

Case `model`: anonymous memory at its peak, over that after importing torch and transformers (pages of mapped weight
files are not anonymous: the kernel drops them when it needs room). Case `7b`: the shape of a 7B Llama in bfloat16,
whose files are sparse (13.5 GB of zeros, no room on the disk): seconds, and all resident memory at its peak, pages of
mapped files included. Its weights are zero, so it is converted and saved, not verified.

Each case runs in a process of its own, whose memory is read from /proc every 20 ms.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import TINY, Row, arguments, checkpoint_of, console, machine, report, some_of

COLUMNS = ("case", "seconds", "anonymous_mib", "peak_rss_mib", "at_peak")
SAMPLE = 0.02  # seconds
# Says what it does, and goes on when it is told to: so it can be measured in between.
CHILD = """
import sys, torch, transformers
print("imported", flush=True)
input()
import sleepc
say = lambda what, share: print(what, flush=True)
program = sleepc.convert(sys.argv[1], progress=say)
program.save(sys.argv[2], progress=say)
print("done", flush=True)
input()
"""
LLAMA_7B = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}


CASES = ("model", "7b")


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--cases", type=some_of(CASES), default=",".join(CASES), help=f"which of {', '.join(CASES)}")
    options = parser.parse_args()
    rows = [machine()]
    with TemporaryDirectory(prefix="sleepc-bench-") as scratch:
        if "model" in options.cases:
            with checkpoint_of(options) as checkpoint:
                rows.append({"kind": "convert_memory", "case": "model"} | watch(checkpoint.folder, Path(scratch)))
        if "7b" in options.cases:
            shape = TINY if options.tiny else LLAMA_7B
            folder = make_sparse(Path(scratch) / "sparse", shape)
            size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            rows.append({"kind": "convert_memory", "case": "7b", "weights": size} | watch(folder, Path(scratch)))
    report(rows, as_json=options.json, title="convert and save, MiB", columns=COLUMNS)


def watch(model: Path, scratch: Path) -> Row:
    """Convert `model` in a child and watch its memory."""
    return watched(CHILD, model, scratch / f"{model.name}.sleep")


def watched(code: str, *arguments: object) -> Row:
    """Run a child such as CHILD and watch its memory. MiB, seconds from after the imports until it is done."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
        _until(child, "imported")
        base = _memory(child.pid)
        started = time.perf_counter()
        _go_on(child)
        peak, rss, where = _sample(child)
        seconds = time.perf_counter() - started
        high = _status(child.pid, "VmHWM")
        _go_on(child)
    return {
        "seconds": seconds,
        "anonymous_mib": peak - base["Anonymous"],
        "anonymous_before_mib": base["Anonymous"],
        "peak_rss_mib": max(high, rss),
        "rss_before_mib": base["Rss"],
        "at_peak": where,
    }


def _sample(child: subprocess.Popen[bytes]) -> tuple[float, float, str]:
    """The peaks of anonymous and resident memory until the child is done, and what it did at the first of them."""
    assert child.stdout is not None
    import selectors

    ready = selectors.DefaultSelector()
    ready.register(child.stdout, selectors.EVENT_READ)
    peak = rss = 0.0
    doing = where = "import"
    while doing != "done":
        now = _memory(child.pid)
        rss = max(rss, now["Rss"])
        if now["Anonymous"] > peak:
            peak, where = now["Anonymous"], doing
        if ready.select(SAMPLE):
            was, doing = doing, _line(child)
            if was != doing:
                console.log(f"{now['Anonymous']:.0f} MiB anonymous, {now['Rss']:.0f} resident; {doing}")
    return peak, rss, where


def _until(child: subprocess.Popen[bytes], wanted: str) -> None:
    while _line(child) != wanted:
        pass


def _line(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline().decode().strip()
    if not line:
        raise SystemExit(f"the child ended with status {child.wait()}")
    return line


def _go_on(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.write(b"\n")


def _memory(pid: int) -> dict[str, float]:
    """MiB by name, all mappings together."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(rest.split()[0]) / 1024 for name, _, rest in (line.partition(":") for line in lines)}


def _status(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def make_sparse(folder: Path, shape: dict[str, int]) -> Path:
    """A Llama in bfloat16 whose weights are zeros that take no room: headers, and files made longer."""
    folder.mkdir()
    config: Row = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
    config |= {"rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config | shape))
    shards: list[dict[str, tuple[int, ...]]] = [{}, {}, {}]
    tensors = _llama_tensors(shape)
    for i, (name, dims) in enumerate(tensors.items()):
        shards[i * len(shards) // len(tensors)][name] = dims
    index: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        _write_sparse(folder / file, shard)
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def _llama_tensors(shape: dict[str, int]) -> dict[str, tuple[int, ...]]:
    d, ff, vocab = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    kv = d * shape["num_key_value_heads"] // shape["num_attention_heads"]
    block = {
        "input_layernorm": (d,),
        "self_attn.q_proj": (d, d),
        "self_attn.k_proj": (kv, d),
        "self_attn.v_proj": (kv, d),
        "self_attn.o_proj": (d, d),
        "post_attention_layernorm": (d,),
        "mlp.gate_proj": (ff, d),
        "mlp.up_proj": (ff, d),
        "mlp.down_proj": (d, ff),
    }
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, d)}
    for i in range(shape["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}.weight": dims for name, dims in block.items()}
    return found | {"model.norm.weight": (d,), "lm_head.weight": (vocab, d)}


def _write_sparse(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header, place = {}, 0
    for name, dims in tensors.items():
        end = place + 2 * dims[0] * (dims[1] if len(dims) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [place, end]}
        place = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + place)


if __name__ == "__main__":
    main()
