"""Verification: the nine invariants of a converted program, measured on real tokens, and perplexity by distance."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from sleepc.backends.table import find_backend
from sleepc.capture.own_run import require_finite
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.pipeline import rewritten
from sleepc.progress import Progress, silent
from sleepc.recipe import Recipe
from sleepc.runtime.steps import IntArray, Steps
from sleepc.verify import invariants
from sleepc.verify.beyond import judge
from sleepc.verify.far import LONG, Far
from sleepc.verify.invariants import Bench, Logits
from sleepc.verify.memory_values import is_silent, new_parameters, shaken, with_parameters
from sleepc.verify.older import refuse_far_sinks
from sleepc.verify.report import INVARIANTS, Beyond, Check, PerplexityRow, VerifyReport
from sleepc.verify.rounding import explained, in_wider
from sleepc.verify.streams import Stream
from sleepc.verify.subject import Subject
from sleepc.verify.trained import has_low_rank, with_weights_of

__all__ = ["Beyond", "Check", "Measuring", "PerplexityRow", "VerifyReport", "verify_program"]

T = TypeVar("T")
SHORT = 8  # tokens between two sleeps, if a window is too long to read several of them
ROUNDED = {1, 2, 3, 4, 5, 8, 9}  # invariants that compare two ways to compute the same
SMALL = 32  # windows up to here are read whole, and that of a program rebuilt if the real one is too long


@dataclass(frozen=True)
class Measuring:
    """How a program is verified. `load` makes steps of a program: those of a backend, by default the first of
    the table.

    With `trained` the program may have other weights than the original: the oracle then reads those, LoRA matrices
    merged into them. `perplexity=False` leaves out what is far beyond the window; else the report judges that too (see
    beyond.judge), and `accept_quality` lets a program pass that is useless there.
    """

    load: Callable[[ProgramGraphs], Steps] | None = None
    trained: bool = False
    perplexity: bool = True
    accept_quality: bool = False
    progress: Progress = silent


def verify_program(
    step: ProgramGraphs,
    canonical: ProgramGraphs | None,
    recipe: Recipe,
    tokens: Sequence[int],
    *,
    original: Logits | None = None,
    measuring: Measuring | None = None,
) -> VerifyReport:
    """Measure a program at level STEP on real tokens.

    `canonical` is the program before rewriting (the oracle reads it); `original`, tokens [B,T] -> logits [B,T,V],
    another instance of the model, with its own attention. Without them the checks that need them say so.

    Checked is the given program itself: with several sleeps (forced, if the window is long), past its real window
    if that has up to 512 tokens, and otherwise also a program rebuilt with a small window. Memories are checked with
    shaken parameters (memory_values.py), since a new conversion hides them. Raises UsageError if tokens are missing or
    not of this model, CannotRun if the original itself fails at them, SleepcError for a program that an older version
    made with a known fault.
    """
    how = measuring or Measuring()
    if canonical is not None:
        refuse_far_sinks(step, canonical, recipe)
    other = False
    if canonical is not None and (how.trained or has_low_rank(step)):
        canonical, other = with_weights_of(canonical, step)
    subject = Subject(
        step, canonical, recipe, _checked(tokens, step.vocab), original, how.load or find_backend().steps, other
    )
    report = VerifyReport()
    started = time.perf_counter()
    far = Far(subject, inside=not _not_inside(subject), perplexity=how.perplexity)
    if far.inside:
        require_finite(lambda: far.original, "the original")
    _check_sleeps(far, report, how.progress)
    _check_inside(far, report, how.progress)
    if report.failed:
        _check_in_wider(far, report, how.progress)
    if how.perplexity:
        _judge_beyond(far, report, how.accept_quality, how.progress)
    report.checks.sort(key=lambda check: check.invariant)
    report.seconds = time.perf_counter() - started
    return report


def _checked(tokens: Sequence[int], vocab: int) -> IntArray:
    ids = np.array(tokens, dtype=np.int64)
    if not len(ids):
        raise UsageError("there are no tokens to verify with", fix="Give a text of a few hundred tokens.")
    if ids.min() < 0 or ids.max() >= vocab:
        found = int(ids.max() if ids.max() >= vocab else ids.min())
        raise UsageError(f"token {found} is not in the vocabulary of {vocab}", fix="Use the model's own tokenizer.")
    return ids


def make_streams(tokens: IntArray, window: int) -> tuple[Stream, Stream, Stream]:
    """Three streams that sleep after a whole window, half of one, a whole one ..: over two windows, over one, none.

    Tokens are taken from the beginning, and again if there are too few.
    """
    lengths = (3 * window + 3, window + window // 2 + 1, max(window // 2, 1))
    cuts = [0]
    while cuts[-1] < lengths[0]:
        cuts.append(cuts[-1] + (max(window // 2, 1) if len(cuts) == 2 else window))
    return tuple(  # type: ignore[return-value]
        Stream(np.resize(np.roll(tokens, -b), n), tuple(c for c in cuts[1:] if c <= n)) for b, n in enumerate(lengths)
    )


def _check_sleeps(far: Far, report: VerifyReport, progress: Progress) -> None:
    """Everything but the original."""
    subject = far.subject
    _check_short(subject, report, progress)
    if subject.recipe.window > LONG and subject.canonical is not None:
        _check_rebuilt(subject, report, progress)
    _check_far(far, report, progress)


def _check_in_wider(far: Far, report: VerifyReport, progress: Progress) -> None:
    """What rounding may explain is measured where it explains nothing: ways to compute the same then agree, or the
    program is wrong.
    """
    wrong = [check for check in report.checks if not check.ok]
    found = explained(far.subject.step, wrong) if report.failed <= ROUNDED else None
    if found is None:
        return
    dtype, why = found
    wide, again = in_wider(far.subject, dtype, with_original=2 in report.failed), VerifyReport()
    try:
        wide.load(wide.step)
    except UsageError:  # a backend without that dtype: what was measured stands
        return
    inside = Far(wide, inside=not _not_inside(wide), perplexity=False)
    _check_sleeps(inside, again, progress)
    _check_inside(inside, again, progress)
    measured = ROUNDED if wide.original is not None else ROUNDED - {2}
    text = f"in {str(dtype).removeprefix('torch.')}: {why}"
    report.checks[:] = [
        *(check for check in report.checks if check.invariant not in measured),
        *(replace(check, detail=f"{check.detail}; {text}") for check in again.checks if check.invariant in measured),
    ]


def _check_short(subject: Subject, report: VerifyReport, progress: Progress) -> None:
    """Everything that takes several sleeps, on the given program with shaken memories."""
    window = subject.recipe.window
    forced = window > SMALL
    program = shaken(subject.step)
    streams = make_streams(subject.tokens, SHORT if forced else window)
    bench = Bench(subject.load(program), subject.oracle(program), streams)
    how = f"{len(streams[0].tokens)} tokens, {'forced ' if forced else ''}sleeps after {list(streams[0].cuts)}"
    scaled = subject.tolerance.scaled
    measure = Measure(report, progress)
    measure(1, lambda: invariants.chunking(bench), scaled, f"one token at a time and in random pieces; {how}")
    if bench.oracle is None:
        measure.skip(4, "not measured: the program before rewriting was not given")
    else:
        text = f"logits, memories and windows against the oracle; {how}"
        measure(4, lambda: invariants.definition(bench), scaled, text)
    _state_plain(subject, report)
    measure(5, lambda: invariants.padding(bench), scaled, "rows of three lengths, padded on either side and inside")
    measure(6, lambda: invariants.state_bytes(bench), 0.0, "bytes of the state after each sleep")
    measure(7, lambda: invariants.saving(bench), 0.0, "three rows, saved after two thirds, bit for bit")
    measure(8, lambda: invariants.permuting(bench), scaled, "three rows in another order")
    measure(9, lambda: invariants.lengths(bench), scaled, "no token, one token, one token repeated")


def _state_plain(subject: Subject, report: VerifyReport) -> None:
    """3 follows from 4: with one pass the oracle is the plain hybrid, which has no loop over passes to run."""
    four = next(check for check in report.checks if check.invariant == 4)
    if subject.recipe.passes > 1:
        text = f"does not apply: N = {subject.recipe.passes}"
        report.checks.append(Check(INVARIANTS[3], 3, True, None, None, text))
        return
    text = "with one pass the oracle is the plain hybrid" if four.value is not None else four.detail
    report.checks.append(Check(INVARIANTS[3], 3, four.ok, four.value, four.tolerance, text))


def _check_inside(far: Far, report: VerifyReport, progress: Progress) -> None:
    """Before the first sleep, against the original."""
    subject, measure = far.subject, Measure(report, progress)
    why = _not_inside(subject)
    if why:
        measure.skip(2, why)
        return
    text = f"logits of {far.inside} tokens"
    measure(2, lambda: far.followed.inside, subject.tolerance.absolute, text)
    if "insert" not in subject.strategies:
        count = min(far.inside, SMALL)
        steps = subject.load(shaken(subject.step))
        short = Stream(subject.tokens[:count], (count,))
        text = f"logits of {count} tokens, whatever the memories' parameters are"
        measure(2, lambda: invariants.inside(steps, short, far.known), subject.tolerance.absolute, text)


def _not_inside(subject: Subject) -> str:
    """Why the program cannot be compared with the original; empty if it can."""
    if subject.original is None:
        return "not measured: the original was not given"
    if "replace" in subject.strategies:
        return "does not apply: layers without attention are another model"
    if subject.other_weights:
        return "does not apply: the model's own weights have been trained"
    if "insert" in subject.strategies and not is_silent(subject.step):
        return "does not apply: the inserted mixers have been trained"
    return ""


def _check_rebuilt(subject: Subject, report: VerifyReport, progress: Progress) -> None:
    """A window that is too long to be read past its end: the same passes and parameters with a small one."""
    assert subject.canonical is not None
    recipe = subject.recipe.model_copy(update={"window": SMALL, "sinks": min(subject.recipe.sinks, SMALL)})
    step = rewritten(subject.canonical, recipe)
    program = shaken(with_parameters(step, new_parameters(subject.step)))
    small = Subject(program, subject.canonical, recipe, subject.tokens, None, subject.load)
    bench = Bench(subject.load(program), small.oracle(program), make_streams(subject.tokens, SMALL))
    text = f"rebuilt with a window of {SMALL}, half-lives unchanged: {subject.recipe.window} tokens take too long"
    measure = Measure(report, progress)
    measure(4, lambda: invariants.definition(bench), subject.tolerance.scaled, text)


def _check_far(far: Far, report: VerifyReport, progress: Progress) -> None:
    """As converted, past the end of the real windows, if those are not too long, against the oracle."""
    if not far.upto:
        return
    measure = Measure(report, progress)
    text = f"{far.upto} tokens in windows of {far.subject.recipe.window}, as converted"
    if far.subject.canonical is None:
        measure(9, lambda: far.followed.oracle, 0.0, f"{text}: finite logits")
    else:
        measure(4, lambda: far.followed.oracle, far.subject.tolerance.scaled, f"{text}, against the oracle")


def _judge_beyond(far: Far, report: VerifyReport, accept: bool, progress: Progress) -> None:
    """Perplexity by distance, and what is to be made of it."""
    rows: list[PerplexityRow] | None = []
    if report.failed & {2, 4, 9}:
        rows = None
    elif len(far.tokens) > far.subject.recipe.window + 1:
        progress("verify: perplexity", 0.9)
        rows = Measure(report, progress).attempt(9, far.perplexity)
    if rows is None:
        report.beyond = Beyond("not measured", "beyond the window: not measured: a check has failed")
        return
    report.perplexity += rows
    report.beyond = judge(far.subject, rows, len(far.tokens), accept=accept)


class Measure:
    """Runs measurements and notes them in a report, in order; says what is being done."""

    def __init__(self, report: VerifyReport, progress: Progress) -> None:
        self.report, self.progress = report, progress

    def __call__(self, invariant: int, measurement: Callable[[], float], tolerance: float, detail: str) -> None:
        """Note one measurement."""
        name = INVARIANTS[invariant]
        self.progress(f"verify: {name}", invariant / len(INVARIANTS))
        value = self.attempt(invariant, measurement, tolerance)
        if value is not None:
            self.report.checks.append(Check(name, invariant, value <= tolerance, value, tolerance, detail))

    def attempt(self, invariant: int, work: Callable[[], T], tolerance: float | None = None) -> T | None:
        """What `work` gives. A program that breaks while it runs has failed: the report says how, and this is None."""
        try:
            return work()
        except (SleepcError, RuntimeError, ValueError, IndexError, KeyError) as error:
            text = f"{type(error).__name__}: {error}"
            self.report.checks.append(Check(INVARIANTS[invariant], invariant, False, None, tolerance, text))
            return None

    def skip(self, invariant: int, why: str) -> None:
        """Note that an invariant was not measured."""
        self.report.checks.append(Check(INVARIANTS[invariant], invariant, True, None, None, why))
