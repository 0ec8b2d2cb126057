"""A hybrid's export against onnxruntime-genai on CPU: a random Qwen3.5, whose logits both have to agree on.

Three of four layers are gated delta rules, the fourth has attention: genai keeps all of its keys, sleepc a window of
them. Systems, threads and turns are those of onnx_cpu.py. `--layers` and `--width` are the model's. Where genai's
builder or runtime refuses, a row says why, and sleepc is measured alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import genai
import numpy as np
import torch
from common import Row, arguments, machine, numbers, report
from onnx_cpu import COLUMNS, GENAI, ROOT, Worker, decode, peak, prefill, sleepc
from peers import CannotBuild

from sleepc.hf.resolve import Checkpoint, resolve

DECODE = {256: 1.0, 16_000: 0.5}  # of genai's time for a token
COMPARED = 200  # tokens that both read, within the window
CLASS = "Qwen3_5ForConditionalGeneration"  # the name by which genai's builder knows it


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--contexts", type=numbers, default="256,4096,16000", help="lengths of context in tokens")
    parser.add_argument("--precisions", default="int4,fp32", help="fp32, int8, int4")
    parser.add_argument("--tokens", type=int, default=32, help="tokens measured at each context")
    parser.add_argument("--prefill", type=int, default=4096, help="tokens of the prefill")
    parser.add_argument("--window", type=int, default=256, help="of the conversion")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12, help="a multiple of four")
    parser.add_argument("--width", type=int, default=512, help="a multiple of 128")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "onnx_hybrid", help="a folder for the models")
    parser.add_argument("--genai-env", type=Path, default=ROOT / "build" / "genai")
    parser.add_argument("--no-genai", action="store_true", help="leave genai out")
    options = parser.parse_args()
    if options.tiny:
        options.contexts, options.prefill, options.tokens, options.no_genai = [300, 600], 600, 8, True
        options.precisions, options.layers, options.width = "fp32", 4, 128
    report(rows(options), as_json=options.json, title="a hybrid's exports, CPU", columns=COLUMNS)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Everything, precision after precision."""
    folder = options.work / "model"
    count = make_model(folder, options.layers, options.width)
    yield machine() | {"threads": options.threads, "parameters": count}
    artifact = options.work / "artifact"
    given = ("-o", str(artifact), "--window", str(options.window), "--force", "--no-verify")
    sleepc("convert", str(folder), *given)
    for precision in options.precisions.split(","):
        yield from measured(options, artifact, precision)


def make_model(folder: Path, layers: int, width: int) -> int:
    """Save a random Qwen3.5 with the proportions of a small one; its number of parameters.

    The vocabulary must not be as large as the output of any other layer: genai's builder takes that one for the head.
    """
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    heads, rope = width // 64, {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25}
    config = Qwen3_5TextConfig(
        vocab_size=32_000, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=2, head_dim=128, max_position_embeddings=32_768,
        linear_num_key_heads=heads, linear_num_value_heads=heads, linear_key_head_dim=64, linear_value_head_dim=64,
        rope_parameters={**rope, "mrope_section": [6, 5, 5], "mrope_interleaved": True}, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3_5ForCausalLM(config)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def measured(options: argparse.Namespace, artifact: Path, precision: str) -> Iterator[Row]:
    """The rows of a precision: exports, logits, prefill, decode at each context."""
    ours, theirs = (options.work / f"{name}-{precision}" for name in ("sleepc", "genai"))
    made: Row = {"kind": "export", "precision": precision}
    fast = ["--fast"] if precision == "int4" else []  # rounded as the peer's are, and random weights mean nothing
    made |= sleepc(
        *("export", str(artifact), "--to", "onnx", "--precision", precision, "-o", str(ours), "--force", *fast),
    )
    with ExitStack() as stack:
        checkpoint = resolve(str(options.work / "model"), lambda *_: None)
        vocab = checkpoint.config["vocab_size"]
        workers = {"sleepc": Worker(sys.executable, "sleepc", ours, options.threads, vocab)}
        stack.enter_context(workers["sleepc"])
        if not options.no_genai and precision in GENAI:
            try:
                made |= with_genai(options, checkpoint, precision, theirs)
                python = genai.python_of(options.genai_env)
                workers["genai"] = Worker(str(python), "genai", theirs, options.threads, vocab)
                stack.enter_context(workers["genai"])
            except (SystemExit, CannotBuild) as refused:
                made["skipped"] = str(refused)[-400:]
        yield made
        yield logits(workers, precision)
        yield prefill(workers, precision, options.prefill)
        for row in decode(workers, precision, options.contexts, options.tokens):
            yield row | {"kind": "onnx_hybrid", "target": DECODE.get(row["context"])}
        for name, worker in workers.items():
            yield peak(worker, name, precision) | {"target": None}


def with_genai(options: argparse.Namespace, checkpoint: Checkpoint, precision: str, folder: Path) -> Row:
    """genai's own export of the same weights."""
    named = replace(checkpoint, config={**checkpoint.config, "architectures": [CLASS]})
    return genai.build(genai.python_of(options.genai_env), named, precision, folder)


def logits(workers: dict[str, Worker], precision: str) -> Row:
    """How far apart the systems' logits after the same tokens are, within the window; and how large they are."""
    found: dict[str, Any] = {}
    for name, worker in workers.items():
        worker.ask("start", room=COMPARED)
        found[name] = np.array(worker.ask("logits", tokens=COMPARED)["logits"])
    row: Row = {"kind": "logits", "precision": precision, "tokens": COMPARED}
    row["largest"] = float(np.abs(found["sleepc"]).max())
    if "genai" in found:
        row["difference"] = float(np.abs(found["sleepc"] - found["genai"]).max())
        row["same_token"] = bool(found["sleepc"].argmax() == found["genai"].argmax())
    return row


if __name__ == "__main__":
    main()
