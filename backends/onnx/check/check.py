"""The check of an export: its files, then what ONNX Runtime computes with them, against the eager backend."""

from __future__ import annotations

import copy
import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from sleepc.backends.check.compare import compare
from sleepc.backends.check.reading import Found, Other, Shelf, StepsReader, tokens_needed
from sleepc.backends.check.sleeps import sleeps_of
from sleepc.backends.onnx.check.accurate import accurate
from sleepc.backends.onnx.check.files import check_files
from sleepc.backends.onnx.check.one_token import check_one_token
from sleepc.backends.onnx.check.quality import BOUNDS, TEXT, Quality, passages, read_again, read_text
from sleepc.backends.onnx.check.weights import check_weights, dequantised, source_facts
from sleepc.backends.onnx.installed import about
from sleepc.backends.onnx.kernels import check_kernels
from sleepc.backends.onnx.manifest import ExportManifest, Replaced, Unchanged
from sleepc.backends.onnx.steps import OnnxSteps
from sleepc.backends.onnx.weights import Weights
from sleepc.backends.report import Report
from sleepc.backends.table import find_trainer
from sleepc.errors import SleepcError
from sleepc.ir.parameters import dtypes_of
from sleepc.ir.program import ProgramGraphs
from sleepc.progress import Progress
from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, IntArray


@dataclass
class CheckedFiles:
    """What is checked, and what was found."""

    program: ProgramGraphs  # in float32
    folder: Path
    manifest: ExportManifest
    tokens: Sequence[int]
    progress: Progress
    report: Report = field(default_factory=Report)

    @property
    def quantised(self) -> bool:
        """Are weights in blocks? What they cost is then measured on a text."""
        return self.manifest.precision in BOUNDS


def check(subject: CheckedFiles, weights: Weights) -> Report:
    """Check files against the float32 program that they were made from. `weights` says what each weight is.

    Raises SleepcError if a file is not what was asked for; what they compute is in the report.
    """
    started, program, folder = time.perf_counter(), subject.program, subject.folder
    subject.progress("checking the files", None)
    _check_provider(subject)
    stored, facts = check_files(folder, [graph.file for graph in subject.manifest.graphs])
    check_weights(program, weights, stored)
    subject.report.facts |= {"runtime": about(), **facts, **source_facts(weights)}
    with tempfile.TemporaryDirectory(prefix=".check-", dir=folder) as shelf:
        expected = Shelf(Path(shelf))
        again = _read_text_eager(subject, expected) if subject.quantised else []
        _free()
        _read_eager(subject, dequantised(program, weights, stored), expected)
        _free()
        _read_onnx(subject, expected)
        if subject.quantised:
            _read_text_onnx(subject, expected, again)
    subject.report.seconds = time.perf_counter() - started
    return subject.report


def _check_provider(subject: CheckedFiles) -> None:
    """Nodes without a kernel would run elsewhere, and their values go back and forth."""
    if subject.manifest.ep == "cuda":
        missing = [line for graph in subject.manifest.graphs for line in check_kernels(subject.folder / graph.file)]
        if missing:
            raise SleepcError(f"CUDA has no kernel for {'; '.join(missing)}", where="--ep cuda", fix="Use --ep cpu.")


def _read_text_eager(subject: CheckedFiles, shelf: Shelf) -> list[FloatArray]:
    """Puts logits on the shelf; what passages surprise when they are read again."""
    subject.progress("reading a text with PyTorch", None)
    steps, tokens = find_trainer().steps(subject.program), _text(subject)
    session = read_text(steps, tokens, lambda at, x: shelf.put(f"text {at}", Found(x)))
    return read_again(session, tokens, passages(steps, len(tokens)))


def _read_eager(subject: CheckedFiles, in_blocks: dict[str, Tensor], shelf: Shelf) -> None:
    """Files in blocks are compared with a program whose weights have the same values, so that what quantisation costs
    does not hide what is wrong. The text is read with the weights as they were.
    """
    program, progress = subject.program, subject.progress
    whole = {key: dtype for key, dtype in dtypes_of(program).items() if key not in in_blocks}
    parameters = {key: program.params[key].materialise().to(dtype) for key, dtype in whole.items()} | in_blocks
    others: list[Other] = [
        (name, find_trainer().steps_on(p, parameters)) for name, p, _ in sleeps_of(program, subject.manifest.replays)
    ]
    reading = StepsReader(find_trainer().steps_on(program, parameters), _enough(subject), shelf.put)
    reading.read_all(others, lambda share: progress("reading with PyTorch", share))


def _free() -> None:
    """Free the memory of parameters that are no longer used, before the next ones come."""
    gc.collect()


def _read_onnx(subject: CheckedFiles, expected: Shelf) -> None:
    report, progress = subject.report, subject.progress
    states = subject.program.all_states()

    def compared(name: str, found: Found) -> None:
        report.rows += compare(name, found, expected.take(name), subject.manifest.precision, states)

    with _told(), accurate(subject.folder, subject.manifest) as manifest:
        steps = OnnxSteps(subject.folder, manifest)
        sleeps = sleeps_of(subject.program, manifest.replays)
        others: list[Other] = [(name, _sleeping(steps, passes)) for name, _, passes in sleeps]
        reading = StepsReader(steps, _enough(subject), compared)
        reading.read_all(others, lambda share: progress("reading with ONNX Runtime", share))
        del others, reading
        if subject.quantised and report.facts.get("kept"):
            exact = _quality(subject, steps, expected.look)[0]
            report.rows += exact.exact_rows(lossless=not report.facts["requantised"])
            report.perplexity["exact"] = exact.perplexity()["after"]
        del steps
        report.rows += check_one_token(subject.folder, manifest, _enough(subject), states)


def _read_text_onnx(subject: CheckedFiles, expected: Shelf, again: Sequence[FloatArray]) -> None:
    """With the files as they are. `again`: what passages surprised in float32."""
    report, steps = subject.report, OnnxSteps(subject.folder, subject.manifest)
    quality, session = _quality(subject, steps, expected.take)
    starts = passages(steps, len(quality.tokens))
    with _told():
        report.recall = quality.recall(starts, again, read_again(session, quality.tokens, starts))
    report.rows += quality.rows(subject.manifest.precision)
    report.perplexity |= quality.perplexity()


def _quality(subject: CheckedFiles, steps: OnnxSteps, expected: Callable[[str], Found]) -> tuple[Quality, Session]:
    """A text read with ONNX Runtime, against the logits of its pieces; the session is at its end."""
    subject.progress("reading a text with ONNX Runtime", None)
    quality = Quality(_text(subject))
    with _told():
        session = read_text(steps, quality.tokens, lambda at, x: quality.add(at, x, expected(f"text {at}").logits))
    return quality, session


def _text(subject: CheckedFiles) -> IntArray:
    return np.array(subject.tokens[:TEXT], np.int64)


@contextmanager
def _told() -> Iterator[None]:
    """ONNX Runtime's errors as ours: they have no class in common but the module that they come from."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SleepcError(f"ONNX Runtime cannot run the exported files: {text}") from error


def _enough(subject: CheckedFiles) -> IntArray:
    """Tokens for the checks, repeated if there are too few."""
    return np.resize(subject.tokens, tokens_needed(subject.program.window))


def _sleeping(steps: OnnxSteps, passes: int) -> OnnxSteps:
    """The same steps, with the same sessions, and other sleeps."""
    other, manifest = copy.copy(steps), steps.manifest
    if passes:
        other.manifest = manifest.model_copy(update={"passes": passes})
        return other
    outputs = {tensor.name for tensor in manifest.sleep_replay.outputs}
    kept = [
        state.model_copy(update={"sleep": Unchanged()})
        if isinstance(state.sleep, Replaced) and state.sleep.output not in outputs
        else state
        for state in manifest.states
    ]
    other.manifest = manifest.model_copy(update={"passes": 1, "sleep_recurrent": None, "states": kept})
    return other
