"""Everything that is measured on a GPU: decode and prefill of a converted model, by PyTorch and by ONNX Runtime.

Rows are made for what is found: PyTorch with CUDA, ONNX Runtime with CUDA (sleepc's extra `onnx-gpu`). For what
is not there, a row says why, and the exit status is 0. `max_error` is against eager float32 on the CPU: logits of a
prefill across two sleeps and of the tokens after it. The row `kernels` compares the committed table of CUDA kernels
with what the installed ONNX Runtime registers. `--device cpu` runs the same on the CPU. ONNX Runtime is named here, and
not asked of the table of targets: its precisions, its providers and its kernels are what is measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import Row, add_letters, arguments, checkpoint_of, console, machine, numbers, report

import sleepc
from sleepc.backends.table import find_target
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps

COLUMNS = ("system", "precision", "batch", "context", "ms", "ms_with_sleep", "prefill_ms_per_token", "max_error")
WARM = 3
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--contexts", type=numbers, default="1024,16384", help="lengths of context in tokens")
    parser.add_argument("--batches", type=numbers, default="1,8", help="rows of a batch")
    parser.add_argument("--tokens", type=int, default=64, help="tokens measured at each context")
    parser.add_argument("--eager", default="float32,bfloat16", help="dtypes; float32 is among them")
    parser.add_argument("--exports", default="fp32,fp16,int4", help="precisions")
    parser.add_argument("--write-table", type=Path, help="a file for the installed ONNX Runtime's kernels")
    parser.add_argument("--device", default="cuda", choices=sorted(PROVIDERS))
    options = parser.parse_args()
    if options.tiny:
        options.contexts, options.batches, options.tokens = [300], [1, 2], 8
        options.eager, options.exports = "float32", "fp32"
    report(rows(options), as_json=options.json, title=f"decode, {options.device}", columns=COLUMNS)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The machine, and what there is to measure on it."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    yield machine() | {"gpu": gpu}
    reasons = {"eager": no_eager(options.device), "onnx": no_onnx(options.device)}
    yield from ({"kind": "skipped", "what": what, "reason": why} for what, why in reasons.items() if why)
    if all(reasons.values()):
        return
    with checkpoint_of(options) as checkpoint, TemporaryDirectory(prefix="sleepc-gpu-") as scratch:
        if options.tiny:
            add_letters(checkpoint.folder)
        programs = {dtype: sleepc.convert(checkpoint.folder, {"dtype": dtype}) for dtype in options.eager.split(",")}
        program = programs["float32"]
        console.log("converted")
        expected = logits_of(program.steps())
        if not reasons["eager"]:
            for dtype, each in programs.items():
                steps = each.steps(device=options.device)
                yield from measured(steps, expected, options, system="eager", precision=dtype)
        if not reasons["onnx"]:
            yield kernels(PROVIDERS[options.device], options.write_table)
            for precision in options.exports.split(","):
                steps = exported(program, Path(scratch) / precision, precision, options.device)
                yield from measured(steps, expected, options, system="onnx", precision=precision)


def no_eager(device: str) -> str | None:
    """Why PyTorch cannot be measured."""
    missing = device == "cuda" and not torch.cuda.is_available()
    return f"torch {torch.__version__} finds no CUDA device" if missing else None


def no_onnx(device: str) -> str | None:
    """Why ONNX Runtime cannot be measured."""
    target = find_target("onnx")
    reason = target.missing()
    if reason is None and PROVIDERS[device] not in target.about():
        return f"{target.about()}. Uninstall it, and install sleepc with its extra onnx-gpu"
    return reason


def exported(program: Any, folder: Path, precision: str, device: str) -> Steps:
    """The program's export for CUDA; on the device its state is there too."""
    console.log(f"export, {precision}")
    program.export(folder, precision=precision, ep="cuda")
    return find_target("onnx").open(folder).steps(device=device)


def kernels(provider: str, write: Path | None) -> Row:
    """Operators whose kernels are not those of the committed table; what there is instead goes into a file."""
    import onnxruntime

    from sleepc.backends.onnx.kernels import cuda_table
    from sleepc.backends.onnx.registry import as_text, registered

    table = cuda_table()
    found = registered(
        provider, {domain: list(ops) for domain, ops in table.kernels.items()}, find_target("onnx").about()
    )
    if write is not None:
        write.write_text(as_text(found))
    other = [op for d, ops in table.kernels.items() for op, known in ops.items() if found.kernels[d][op] != known]
    row = {"kind": "kernels", "table": table.runtime, "installed": onnxruntime.__version__, "provider": provider}
    return row | {"operators": sum(map(len, table.kernels.values())), "different": other}


def measured(
    steps: Steps, expected: np.ndarray, options: argparse.Namespace, *, system: str, precision: str
) -> Iterator[Row]:
    """A row for each batch and context."""
    error = float(np.abs(logits_of(steps) - expected).max())
    for batch in options.batches:
        for context in options.contexts:
            row = {"kind": "gpu", "system": system, "precision": precision, "batch": batch, "context": context}
            row |= speeds(steps, batch, context, options.tokens) | {"max_error": error}
            console.log(f"{system} {precision} batch {batch} context {context}: {row['ms']:.2f} ms per step")
            yield row


def speeds(steps: Steps, batch: int, context: int, count: int) -> Row:
    """Milliseconds: of a step of one token per row, with and without its share of a sleep; of a token of a prefill."""
    tokens = np.random.default_rng(0).integers(0, steps.vocab, (batch, context + WARM + count))
    Session(steps, batch).feed(tokens[:, :context])  # the first call allocates, and chooses kernels
    session = Session(steps, batch)
    prefill = timed(lambda: session.feed(tokens[:, :context]))
    times = [timed(lambda at=at: session.feed(tokens[:, at : at + 1])) for at in range(context, tokens.shape[1])]
    ms = median(times[WARM:])
    asleep = median([timed(lambda: session.sleep()) for _ in range(3) if session.feed(tokens[:, :1]) is not None])
    return {
        "ms": ms,
        "ms_with_sleep": ms + asleep / steps.window,
        "sleep_ms": asleep,
        "prefill_ms_per_token": prefill / (batch * context),
    }


def timed(call: Any) -> float:
    """Milliseconds. A step ends with its logits on the host, and so with the device idle."""
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def logits_of(steps: Steps) -> np.ndarray:
    """Logits of a prefill across two sleeps, and of tokens after it."""
    length = 2 * steps.window + 9
    tokens = np.random.default_rng(1).integers(0, steps.vocab, (1, length + 8))
    session = Session(steps)
    found = [session.feed(tokens[:, :length], logits="all")[0]]
    found += [session.feed(tokens[:, at : at + 1]) for at in range(length, length + 8)]
    return np.concatenate(found).astype(np.float32)


if __name__ == "__main__":
    main()
