"""Exports against onnxruntime-genai and llama.cpp on CPU: milliseconds per token, prefill, loading, memory.

The same checkpoint, exported by sleepc and by genai's own builder, in fp32 also for IREE if it is installed ("iree",
whose `iree_ratio` is to ONNX Runtime's time), and by llama.cpp if it came as a GGUF file: in 4 bits that file and one
in blocks of Q4_0. Each runs in a process of its own on as many threads (`--threads`, two by default). They take turns,
a few tokens at a time, and medians are compared, with those of the fastest peer in each row (`ratio`); all read the
whole context, of random tokens. `_cpu_ms` is processor time. genai and llama.cpp live in environments of their own,
made under build/ the first time (`--genai-env` and `--llama-env` name others); llama.cpp is built from source there,
which takes a quarter of an hour. What is left out is said, with the reason. `keep` is the same model converted with
`--keep` and its pairs in int8 (`--slots`, 0 for none); its `keep_ratio` is to sleepc's time without, sleeps included.

`sleepc_ms_with_sleep` has the share of a sleep that every token pays for. RSS counts everything that is resident,
mapped weights too. Targets are what this backend was built to reach; they are for two cores and SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import genai
import llamacpp
from common import Row, add_letters, arguments, checkpoint_of, console, machine, numbers, report
from peers import CannotBuild

from sleepc.backends.table import find_target
from sleepc.hf.resolve import Checkpoint, is_gguf

COLUMNS = (
    *("precision", "context", "sleepc_ms", "sleepc_ms_with_sleep", "genai_ms", "llama_ms", "llama_q4_0_ms", "ratio"),
    *("target", "sleepc_rss_mb", "genai_rss_mb", "llama_rss_mb", "keep_ms_with_sleep", "keep_ratio", "keep_target"),
    *("iree_ms", "iree_ms_with_sleep", "iree_ratio", "iree_target", "iree_rss_mb"),
)
ROOT = Path(__file__).resolve().parents[1]
BURST = 8  # tokens of one before the other's turn
FOUR_BITS = ("int4", "source")
DECODE = {
    **{(precision, context): of for precision in FOUR_BITS for context, of in ((256, 0.9), (4096, 0.32), (8000, 0.2))},
    **{("fp32", 256): 1.0, ("fp32", 4096): 0.58, ("fp32", 8000): 0.43},
}
PREFILL = {(precision, 4096): 0.55 for precision in (*FOUR_BITS, "fp32")}
RSS_MB = dict.fromkeys(FOUR_BITS, 300)
IREE_DECODE = 1.5  # of ONNX Runtime's
KEEP_DECODE = 1.25  # of the time without
GENAI = {"fp32": "fp32", "int4": "int4", "int8": "int8", "source": "int4"}  # its builder's precision beside ours
LLAMA = {"fp32": "F32", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_0", "source": "Q4_0"}  # and llama.cpp's


class Worker:
    """A process that reads tokens when it is asked to."""

    def __init__(self, python: str, kind: str, folder: Path, threads: int, vocab: int) -> None:
        environment = os.environ | ({"PYTHONPATH": str(ROOT)} if kind == "sleepc" else {"PYTHONPATH": ""})
        command = [python, str(Path(__file__).with_name("onnx_worker.py")), kind, str(folder), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.vocab = vocab
        self.loaded = self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.communicate()  # it ends where its input does

    def ask(self, do: str, **values: Any) -> Row:
        """Its answer, after it has done it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, "vocab": self.vocab, **values}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Row:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended early; its last words are above")
        found: Row = json.loads(line)
        return found


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--contexts", type=numbers, default="256,1024,4096,8000", help="lengths of context in tokens")
    parser.add_argument("--precisions", default="int4,source,fp32", help="fp32, fp16, int8, int4, source")
    parser.add_argument("--tokens", type=int, default=32, help="tokens measured at each context")
    parser.add_argument("--prefill", type=int, default=4096, help="tokens of the prefill")
    parser.add_argument("--window", type=int, default=128, help="of the conversion; the demo's by default")
    parser.add_argument("--slots", type=int, default=340, help="pairs that the model with keep keeps; 0 for none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "onnx_cpu", help="a folder for the models")
    parser.add_argument("--genai-env", type=Path, default=ROOT / "build" / "genai")
    parser.add_argument("--no-genai", action="store_true", help="leave genai out")
    parser.add_argument("--llama-env", type=Path, default=ROOT / "build" / "llama")
    parser.add_argument("--no-llama", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--keep", action="store_true", help="take exports of an earlier run, where there are some")
    options = parser.parse_args()
    if options.tiny:
        options.contexts, options.prefill, options.tokens, options.slots = [300, 600], 600, 8, 0
        options.precisions, options.no_genai, options.no_llama = "fp32", True, True
    report(rows(options), as_json=options.json, title="exports, CPU", columns=COLUMNS)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Everything, precision after precision."""
    yield machine() | {"threads": options.threads}
    with checkpoint_of(options) as checkpoint:
        if options.tiny:
            add_letters(checkpoint.folder)
        artifacts = converted(options, checkpoint)
        for precision in options.precisions.split(","):
            if precision == "source" and not is_gguf(checkpoint.name):
                yield {"kind": "skipped", "precision": precision, "reason": f"{checkpoint.name} is no GGUF file"}
                continue
            yield from measured(options, checkpoint, artifacts, precision)


def converted(options: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Path]:
    """The artifacts, by what they are called here."""
    recipes: dict[str, tuple[str, ...]] = {"sleepc": ()}
    if options.slots:
        recipes["keep"] = ("--keep", str(options.slots), "--keep-dtype", "int8")
    found = {}
    for name, recipe in recipes.items():
        found[name] = options.work / "-".join(["artifact", str(options.window), *recipe[1::2]])
        if not (options.keep and found[name].is_dir()):
            window = ("--window", str(options.window))
            sleepc("convert", checkpoint.name, "-o", str(found[name]), *window, *recipe, "--force", "--no-verify")
    return found


def measured(
    options: argparse.Namespace, checkpoint: Checkpoint, artifacts: dict[str, Path], precision: str
) -> Iterator[Row]:
    """The rows of a precision: the exports, what they hold when loaded, prefill, decode at each context."""
    vocab = checkpoint.config["vocab_size"]
    made: Row = {}
    with ExitStack() as stack:
        workers = {}
        for name, (artifact, how) in ours(artifacts, precision).items():
            folder = options.work / f"{name}-{precision}-{options.window}"
            if not (options.keep and folder.is_dir()):
                made |= sleepc("export", str(artifact), *how, "-o", str(folder), "--force", name=name)
            workers[name] = Worker(sys.executable, "sleepc", folder, options.threads, vocab)
        for find in (with_genai, with_llama):
            try:
                found, row = find(options, checkpoint, precision)
            except CannotBuild as error:
                yield {"kind": "skipped", "precision": precision, "system": find.__name__, "reason": str(error)}
            else:
                workers |= {name: Worker(*how, options.threads, vocab) for name, how in found.items()}
                made |= row
        for worker in workers.values():
            stack.enter_context(worker)
        yield {"kind": "export", "precision": precision, **made}
        for name, worker in workers.items():
            yield {"kind": "loaded", "precision": precision, "system": name, **worker.loaded}
        yield prefill(workers, precision, options.prefill)
        yield from decode(workers, precision, options.contexts, options.tokens)
        for name, worker in workers.items():
            yield peak(worker, name, precision)


Peers = tuple[dict[str, tuple[str, str, Path]], Row]  # interpreter, kind and model of each; what they took to make


def with_genai(options: argparse.Namespace, checkpoint: Checkpoint, precision: str) -> Peers:
    """genai's own export of the same weights."""
    if options.no_genai or precision not in GENAI:
        return {}, {}
    python, folder = genai.python_of(options.genai_env), options.work / f"genai-{GENAI[precision]}"
    row = genai.build(python, checkpoint, GENAI[precision], folder)
    return {"genai": (str(python), "genai", folder)}, row


def with_llama(options: argparse.Namespace, checkpoint: Checkpoint, precision: str) -> Peers:
    """In 4 bits the GGUF file that the model came as, and one of Q4_0; else the same weights in that precision."""
    if options.no_llama:
        return {}, {}
    if not is_gguf(checkpoint.name):
        raise CannotBuild(f"{checkpoint.name} is no GGUF file")
    python = llamacpp.python_of(options.llama_env)
    made, row = llamacpp.requantised(python, Path(checkpoint.name), LLAMA[precision], options.work)
    files = {"llama": Path(checkpoint.name), "llama_q4_0": made} if precision in FOUR_BITS else {"llama": made}
    return {name: (str(python), "llama", file) for name, file in files.items()}, row


def ours(artifacts: dict[str, Path], precision: str) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """The artifact of each export of a precision, and how it is asked for, by what they are called here."""
    found: dict[str, tuple[Path, tuple[str, ...]]] = {
        name: (artifact, ("--to", "onnx", "--precision", precision)) for name, artifact in artifacts.items()
    }
    if precision == "fp32":
        reason = find_target("mlir").missing()
        if reason is None:
            found["iree"] = (artifacts["sleepc"], ("--to", "mlir"))
        else:
            console.log(f"IREE is left out: {reason}")
    return found


def prefill(workers: dict[str, Worker], precision: str, tokens: int) -> Row:
    """Seconds to read `tokens` at once."""
    row: Row = {"kind": "prefill", "precision": precision, "tokens": tokens}
    for name, worker in workers.items():
        worker.ask("start", room=tokens)
        answer = worker.ask("read", tokens=tokens)
        row |= {f"{name}_s": answer["ms"][0] / 1e3, f"{name}_cpu_s": answer["cpu_ms"] / 1e3}
        console.log(f"{name} read {tokens} tokens, {row[f'{name}_s']:.1f} s")
    return row | _ratio(row, "s", PREFILL.get((precision, tokens)))


def decode(workers: dict[str, Worker], precision: str, contexts: list[int], count: int) -> Iterator[Row]:
    """Milliseconds per token after each context, in turns; a context goes on from the one before."""
    for worker in workers.values():
        worker.ask("start", room=contexts[-1] + count + BURST)
    asleep = {name: worker.ask("sleep")["ms"] for name, worker in workers.items() if "window" in worker.loaded}
    for name in asleep:
        workers[name].ask("start", room=0)
    window = workers["sleepc"].loaded["window"]
    read = 0
    for context in contexts:
        row: Row = {"kind": "onnx_cpu", "precision": precision, "context": context, "tokens": count}
        for worker in workers.values():
            worker.ask("read", tokens=context - read)
        times: dict[str, list[float]] = {name: [] for name in workers}
        processor: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(0, count, BURST):
            for name, worker in workers.items():
                answer = worker.ask("step", tokens=min(BURST, count))
                times[name] += answer["ms"]
                processor[name].append(answer["cpu_ms"])
                row[f"{name}_rss_mb"] = answer["rss_mb"]
        read = context + len(times["sleepc"])
        row |= {f"{name}_ms": median(found) for name, found in times.items()}
        row |= {f"{name}_cpu_ms": median(found) for name, found in processor.items()}
        row["sleep_ms"] = asleep
        row |= {f"{name}_ms_with_sleep": row[f"{name}_ms"] + ms / window for name, ms in asleep.items()}
        yield row | _ratio(row, "ms", DECODE.get((precision, context)))


def _ratio(row: Row, unit: str, target: float | None) -> Row:
    """Of sleepc's time to that of its fastest peer, and of IREE's and of what keep takes to sleepc's."""
    peers = [
        row[key] for key in row if key.endswith(f"_{unit}") and key.startswith(("genai", "llama")) and "cpu" not in key
    ]
    iree = row.get(f"iree_{unit}")
    found: Row = {"ratio": row[f"sleepc_{unit}"] / min(peers) if peers else None, "target": target}
    if iree:
        found |= {"iree_ratio": iree / row[f"sleepc_{unit}"], "iree_target": IREE_DECODE if unit == "ms" else None}
    if "keep_ms_with_sleep" in row:
        found |= {
            "keep_ratio": row["keep_ms_with_sleep"] / row["sleepc_ms_with_sleep"],
            "keep_target": KEEP_DECODE,
        }
    return found


def peak(worker: Worker, name: str, precision: str) -> Row:
    """The most that a system held."""
    target = RSS_MB.get(precision) if name == "sleepc" else None
    return {"kind": "memory", "precision": precision, "system": name, "target": target, **worker.ask("start", room=1)}


def sleepc(*arguments: str, name: str = "sleepc") -> Row:
    """Run sleepc's command line; seconds, and resident memory at its peak, as those of `name`."""
    console.log("sleepc " + " ".join(arguments[:1]))
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-m", "sleepc", *arguments], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"sleepc {arguments[0]} exited with {child.returncode}; what it said is above")
    processor = usage.ru_utime + usage.ru_stime
    seconds = {f"{name}_seconds": time.perf_counter() - started, f"{name}_cpu_seconds": processor}
    return seconds | {f"{name}_peak_mb": usage.ru_maxrss * 1024 / 1e6}


if __name__ == "__main__":
    main()
