"""Verification: the nine invariants of a converted program, measured on real tokens, and perplexity by distance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sleepc.backends.eager.backend import load as load_eager
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe
from sleepc.runtime.steps import IntArray, Steps
from sleepc.verify import invariants
from sleepc.verify.distance import follow, perplexities
from sleepc.verify.invariants import Bench, Logits
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.report import INVARIANTS, TOLERANCES, Check, PerplexityRow, Tolerance, VerifyReport
from sleepc.verify.shake import is_silent, new_parameters, shaken, with_parameters, without_memories
from sleepc.verify.streams import Stream
from sleepc.verify.surprise import surprise
from sleepc.verify.trained import has_low_rank, with_weights_of

__all__ = ["Check", "PerplexityRow", "VerifyReport", "verify_program"]

Progress = Callable[[str, float | None], None]
SHORT = 16  # tokens between two sleeps, where a window is too long to read several of them
SMALL = 32  # windows up to here are read whole, and that of a program rebuilt where the real one is too long
LONG = 512  # windows up to here are read to their end, and beyond


def _silent(what: str, share: float | None) -> None:
    del what, share


@dataclass(frozen=True)
class Subject:
    """What is verified, and what with."""

    step: ProgramGraphs
    canonical: ProgramGraphs | None
    recipe: Recipe
    tokens: IntArray
    original: Logits | None
    load: Callable[[ProgramGraphs], Steps]
    other_weights: bool = False  # than the original's: trained, or with low-rank maps

    @property
    def tolerance(self) -> Tolerance:
        """What the program's dtype allows."""
        return TOLERANCES[self.step.dtype]

    def oracle(self, step: ProgramGraphs) -> Oracle | None:
        """The oracle with the memories' parameters of `step`."""
        if self.canonical is None:
            return None
        return Oracle(self.canonical, self.recipe, parameters_of(self.canonical, step))


def verify_program(
    step: ProgramGraphs,
    canonical: ProgramGraphs | None,
    recipe: Recipe,
    tokens: Sequence[int],
    *,
    original: Logits | None = None,
    load: Callable[[ProgramGraphs], Steps] = load_eager,
    trained: bool = False,
    perplexity: bool = True,
    progress: Progress = _silent,
) -> VerifyReport:
    """Measure a program at level STEP on real tokens.

    `canonical` is the program before rewriting (the oracle reads it); `original`, tokens [B,T] -> logits [B,T,V],
    another instance of the model, with eager attention. Without them the checks that need them say so. `load` makes
    steps of a program: a backend. With `trained` the program may have other weights than the original: the oracle then
    reads those, low-rank maps merged into them. `perplexity=False` leaves out the longest stream.

    Checked is the given program itself: with several sleeps (by hand, where the window is long), past its real window
    where that has up to 512 tokens, and otherwise also a program rebuilt with a small window. Memories are checked with
    shaken parameters (shake.py), since a new conversion hides them. Raises UsageError where tokens are missing or not
    of this model.
    """
    other = False
    if canonical is not None and (trained or has_low_rank(step)):
        canonical, other = with_weights_of(canonical, step)
    subject = Subject(step, canonical, recipe, _checked(tokens, step.vocab), original, load, other)
    report = VerifyReport()
    started = time.perf_counter()
    _check_short(subject, report, progress)
    _check_inside(subject, report, progress)
    if recipe.window > LONG and canonical is not None:
        _check_rebuilt(subject, report, progress)
    _check_long(subject, report, perplexity, progress)
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

    Tokens are taken from the beginning, and again where there are too few.
    """
    cuts = [0]
    while cuts[-1] < 3 * window:
        cuts.append(cuts[-1] + (max(window // 2, 1) if len(cuts) == 2 else window))
    lengths = (3 * window + 3, window + window // 2 + 1, max(window // 2, 1))
    return tuple(  # type: ignore[return-value]
        Stream(np.resize(np.roll(tokens, -b), n), tuple(c for c in cuts[1:] if c <= n)) for b, n in enumerate(lengths)
    )


def _check_short(subject: Subject, report: VerifyReport, progress: Progress) -> None:
    """Everything that takes several sleeps, on the given program with shaken memories."""
    window = subject.recipe.window
    by_hand = window > SMALL
    program = shaken(subject.step)
    streams = make_streams(subject.tokens, SHORT if by_hand else window)
    bench = Bench(subject.load(program), subject.oracle(program), streams)
    how = f"{len(streams[0].tokens)} tokens, asleep {'by hand ' if by_hand else ''}after {list(streams[0].cuts)}"
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


def _check_inside(subject: Subject, report: VerifyReport, progress: Progress) -> None:
    measure = Measure(report, progress)
    recipe, original, step = subject.recipe, subject.original, subject.step
    if original is None:
        measure.skip(2, "not measured: the original was not given")
        return
    strategies = {plan.strategy for plan in recipe.plan(len(step.layout))}
    if "replace" in strategies:
        measure.skip(2, "does not apply: layers without attention are another model")
        return
    if subject.other_weights:
        measure.skip(2, "does not apply: the model's own weights have been trained")
        return
    if "insert" in strategies and not is_silent(step):
        measure.skip(2, "does not apply: the inserted mixers have been trained")
        return
    count = min(recipe.window, LONG, len(subject.tokens), step.upto or LONG)
    stream = Stream(subject.tokens[:count], (count,))
    tolerance = subject.tolerance.absolute
    measure(2, lambda: invariants.inside(subject.load(step), stream, original), tolerance, f"logits of {count} tokens")
    if "insert" not in strategies:
        count = min(count, SMALL)
        short = Stream(subject.tokens[:count], (count,))
        steps = subject.load(shaken(step))
        text = f"logits of {count} tokens, whatever the memories' parameters are"
        measure(2, lambda: invariants.inside(steps, short, original), tolerance, text)


def _check_rebuilt(subject: Subject, report: VerifyReport, progress: Progress) -> None:
    """A window that is too long to be read past its end: the same passes and parameters with a small one."""
    assert subject.canonical is not None
    recipe = subject.recipe.model_copy(update={"window": SMALL, "sinks": min(subject.recipe.sinks, SMALL)})
    step = run_stages(subject.canonical, rewrite_stages(recipe, len(subject.canonical.layout)))
    program = shaken(with_parameters(step, new_parameters(subject.step)))
    small = Subject(program, subject.canonical, recipe, subject.tokens, None, subject.load)
    bench = Bench(subject.load(program), small.oracle(program), make_streams(subject.tokens, SMALL))
    text = f"rebuilt with a window of {SMALL}, half-lives as given: {subject.recipe.window} tokens take too long"
    measure = Measure(report, progress)
    measure(4, lambda: invariants.definition(bench), subject.tolerance.scaled, text)


def _check_long(subject: Subject, report: VerifyReport, perplexity: bool, progress: Progress) -> None:
    """As converted, past the end of the real windows: against the oracle, and perplexity with and without memories."""
    recipe, count = subject.recipe, len(subject.tokens)
    if recipe.window > LONG or count < recipe.window + 2:
        return
    oracle = subject.oracle(subject.step)
    upto = min(count, 2 * recipe.window + max(recipe.sinks, 4) + 4)
    tokens = subject.tokens[: max(upto, min(count, 4 * recipe.window, 1024)) if perplexity else upto]

    def measurement() -> float:
        wanted = _logits_between(oracle, tokens[:upto]) if oracle else None
        converted, error = follow(subject.load(subject.step), tokens, wanted, upto)
        if perplexity:
            progress("verify: perplexity", 0.9)
            sliding, _ = follow(subject.load(without_memories(subject.step)), tokens)
            report.perplexity += perplexities(recipe.window, _full(subject, tokens), sliding, converted)
        return error if bool(converted.isfinite().all()) else math.inf

    text = f"{upto} tokens in windows of {recipe.window}, as converted"
    if oracle is None:
        Measure(report, progress)(9, measurement, 0.0, f"{text}: finite logits")
    else:
        Measure(report, progress)(4, measurement, subject.tolerance.scaled, f"{text}, against the oracle")


def _logits_between(oracle: Oracle, tokens: IntArray) -> Callable[[int, int], Tensor]:
    with torch.no_grad():
        stream = oracle(torch.from_numpy(tokens)[None])

    def between(start: int, end: int) -> Tensor:
        with torch.no_grad():
            return stream.logits(start, end)[0]

    return between


def _full(subject: Subject, tokens: IntArray) -> Tensor | None:
    """The original's surprise, as far as its positions go."""
    if subject.original is None:
        return None
    known = tokens[: subject.step.max_positions]
    logits = subject.original(torch.from_numpy(known)[None])[0].double()
    return torch.from_numpy(surprise(logits.numpy(), known))


class Measure:
    """Runs measurements and notes them in a report, in order; says what is being done."""

    def __init__(self, report: VerifyReport, progress: Progress) -> None:
        self.report, self.progress = report, progress

    def __call__(self, invariant: int, measurement: Callable[[], float], tolerance: float, detail: str) -> None:
        """Note one measurement. A program that breaks while it runs has failed, and the report says how."""
        name = INVARIANTS[invariant]
        self.progress(f"verify: {name}", invariant / len(INVARIANTS))
        try:
            value = measurement()
        except (SleepcError, RuntimeError, ValueError, IndexError, KeyError) as error:
            text = f"{type(error).__name__}: {error}"
            self.report.checks.append(Check(name, invariant, False, None, tolerance, text))
            return
        self.report.checks.append(Check(name, invariant, value <= tolerance, value, tolerance, detail))

    def skip(self, invariant: int, why: str) -> None:
        """Note that an invariant was not measured."""
        self.report.checks.append(Check(INVARIANTS[invariant], invariant, True, None, None, why))
