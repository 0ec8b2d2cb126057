"""A program tuned for this machine: every form that it has here, measured beside the reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np

from sleepc.backends.contract import Backend, Target
from sleepc.backends.export import Export
from sleepc.backends.table import DEFAULT, find_runner, runners
from sleepc.backends.tunable import Setting
from sleepc.errors import SleepcError, UsageError
from sleepc.exporting import ENOUGH, Exportable, Request, export_program
from sleepc.hf.gguf import cache_folder
from sleepc.ir.parameters import dtypes_of
from sleepc.ir.program import ProgramGraphs
from sleepc.progress import Progress
from sleepc.recipe import Recipe
from sleepc.runtime.steps import Steps
from sleepc.tune.choose import EQUAL, Selection, choose, equal, fits, nearest, regrets_of
from sleepc.tune.here import Device, this_cpu
from sleepc.tune.measure import CALL, Runs, difference, figures, finals
from sleepc.tune.record import Entry, Figures, Key, Limits, WrongLogits, current, keep, key_of, places, read_records
from sleepc.tune.schedules import Schedules
from sleepc.tune.space import Candidate, RunForm, Space, space_of
from sleepc.whole_folder import draft_beside, put_right

DEVICE = "cpu"
SLOWER = (
    "its settings were not tried: with its defaults it takes more than four times as long as the best in everything"
)
BEST = 4  # how many are measured anew at most, beside the defaults: the weights of all lie in memory then
SHARE = 0.3  # of the time, which is kept for that
SLOW = 4.0  # what a change of a setting does not make good: on a busy machine fewer threads were three times as fast
FAILURES = (SleepcError, OSError, RuntimeError, MemoryError, ValueError)  # of a candidate, which is then left out


class Tunes(Exportable, Protocol):
    """What is tuned (sleepc.api.Program is one)."""

    recipe: Recipe


@dataclass
class Tuned:
    """What is known of a program on this machine. `measured`: the entries that are new."""

    device: Device
    entries: list[Entry]
    choice: Selection
    place: Path | None
    measured: list[Entry] = field(default_factory=list)
    left_out: Sequence[tuple[Candidate, str]] = ()
    not_tried: int = 0
    schedules: Schedules | None = None


class Tuning:
    """Candidates of one program, measured one after another until `deadline` (time.monotonic)."""

    def __init__(self, program: Tunes, deadline: float, progress: Progress, tell: Callable[[str], None]) -> None:
        self.program, self.deadline, self.progress, self.tell = program, deadline, progress, tell
        self.device = this_cpu()
        self.runners = {name: find_runner(name) for name in runners()}
        self.existing = dict(_exports(program, self.runners))
        self.space = self._space()
        self.paths = places(program.path, program.identity, self.device)
        self.keys: dict[str, Key] = {}
        self.limits = Limits()
        self.known: dict[str, Entry] = {}
        self.measured: list[Entry] = []
        self._place: Path | None = None
        self._scratch = ExitStack()
        self._opened: dict[str, Export] = {}
        self._reference: Runs | None = None
        self._held: dict[str, Runs] = {}  # the best, which are measured anew
        self._first: dict[str, Runs] = {}  # of forms that are rounded: those that others of the same rounding equal

    def __enter__(self) -> Tuning:
        """Itself, until whose end files that it wrote for measuring stay. Those of tunings that were killed go now."""
        self._scratch.__enter__()
        put_right(cache_folder())
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.clear()
        self._held.clear()
        self._scratch.close()

    def run(self, limits: Limits, *, again: bool = False) -> Tuned:
        """Measure what the record does not know yet, or all of it `again`, and choose."""
        record = read_records(self.paths, self.tell)
        self.limits = limits
        if not again:
            found = current(record.entries, self.program.identity, self.device)
            self.known = {each.candidate.words(): each for each in found if each.candidate in self.space}
        missed, end = 0, self.deadline - SHARE * (self.deadline - time.monotonic())
        for candidate in self.candidates(limits):
            if time.monotonic() < end:
                self._add(candidate, limits)
            else:
                missed += 1
        self._settle(again=limits != record.limits)
        self._replay()
        if not self.measured and limits != record.limits:
            self._place = keep(self.paths, [], limits, self.tell)
        slow = [default for form in self.space.forms if self.is_slow(default := form.candidate())]
        left_out = [*self.space.left_out, *((each, SLOWER) for each in slow if self.known[each.words()].figures)]
        choice = choose(self._equals(), limits)
        return Tuned(self.device, list(self.known.values()), choice, self._place, self.measured, left_out, missed)

    def _equals(self) -> list[Entry]:
        """Of what is known, what computes the same."""
        return [each for each in self.known.values() if equal(each)]

    def _best(self) -> Entry | None:
        """The choice so far."""
        return choose(self._equals(), self.limits).entry

    def _settle(self, *, again: bool = False) -> None:
        """Measure the best anew beside each other and the defaults, if that was not done or is wanted `again`: of many
        that are equally fast, noise had picked them.
        """
        while time.monotonic() < self.deadline and (found := self._unsettled(again=again)):
            again = False
            self.progress("the best beside each other: " + ", ".join(each.candidate.words() for each in found), None)
            if not self._measure_anew(found):
                return

    def _unsettled(self, *, again: bool) -> list[Entry]:
        """The best that are not the defaults, if the choice is none that was measured beside others, or what was
        measured after it is near.
        """
        best, default = self._best(), self.default()
        if best is None:
            return []
        near = nearest([each for each in self._equals() if each.figures and fits(each.figures, self.limits)])
        newer = any(not each.beside and each.at > best.at for each in near)
        found = [best, *(each for each in near if each is not best)] if again or newer or not best.beside else []
        return [each for each in found if each.candidate != default][:BEST]

    def _measure_anew(self, entries: Sequence[Entry]) -> bool:
        """All of them in turns with each other and the defaults; these figures replace those before. Is that done?"""
        default = self.known.get(self.default().words())
        if default is None or default.figures is None:
            return False
        taken = [default, *self._held_open(entries)]
        try:
            every = [self.reference(), *self._held.values()]
            found = finals(every, default.figures, self.deadline - time.monotonic())
        except FAILURES as error:
            self.tell(f"the best could not be measured beside each other: {_reason(error)}")
            return False
        for each, new in zip(taken, found, strict=True):
            assert each.figures is not None
            replayed = ("sleeps", "pause_p99_ms", "memory") if each.figures.sleeps else ()
            kept = {name: getattr(each.figures, name) for name in ("error", *replayed)}
            beside = tuple(other.candidate.words() for other in taken if other is not each)
            change = {"figures": new.model_copy(update=kept), "beside": beside, "at": time.time()}
            self._keep(each.model_copy(update=change))
        return True

    def _held_open(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those that can be opened, which are held then; of others the reason is kept."""
        self._held, found = {}, []
        for each in entries:
            try:
                self._held[each.candidate.words()] = self.runs(each.candidate)
                found.append(each)
            except FAILURES as error:  # what is known of it may be of another day
                self._failed(each, error)
        return found

    def _failed(self, entry: Entry, error: BaseException) -> None:
        """Keep why what is known cannot run now."""
        self._keep(
            entry.model_copy(update={"figures": None, "reason": _reason(error), "beside": (), "at": time.time()})
        )

    def _replay(self) -> None:
        """Let the choice read on and sleep, if there are limits: what breaks them then is not chosen, and the next is
        looked at; so it is if it cannot run.
        """
        while self.limits != Limits() and (best := self._best()) is not None:
            assert best.figures is not None
            if best.figures.sleeps:
                return
            words = best.candidate.words()
            if time.monotonic() >= self.deadline:
                self.tell(f"{words} is not replayed, as --time had passed: the same command does it")
                return
            self.progress(f"{words}: a replay", None)
            try:
                runs = self._held.get(words) or self.runs(best.candidate)
                pauses, state = runs.replay()
            except FAILURES as error:
                self._failed(best, error)
                continue
            pause = 1e3 * float(np.quantile(pauses, 0.99))
            memory = runs.memory - self.program.graphs.state_bytes() + state
            change = {"sleeps": len(pauses), "pause_p99_ms": pause, "memory": memory}
            self._keep(best.model_copy(update={"figures": best.figures.model_copy(update=change), "at": time.time()}))

    def _keep(self, entry: Entry) -> None:
        """Note an entry in place of the one before, in the record too: nothing is lost, whatever comes."""
        self.known[entry.candidate.words()] = entry
        self.measured[:] = [each for each in self.measured if each.candidate != entry.candidate] + [entry]
        self._place = keep(self.paths, [entry], self.limits, self.tell)

    def _key(self, runner: str) -> Key:
        """What figures of a runner depend on."""
        if runner not in self.keys:
            self.keys[runner] = key_of(self.runners[runner], self.program.identity, self.device)
        return self.keys[runner]

    def candidates(self, limits: Limits) -> Iterator[Candidate]:
        """The defaults of every form and their single changes, then single changes of what is best, until nothing is
        better; those alone that are not known. What comes depends on what was measured meanwhile: a form whose
        defaults are slow is left at that.
        """
        yield from (each for each in (form.candidate() for form in self.space.forms) if each.words() not in self.known)
        for form in sorted(self.space.forms, key=self._promise):
            default = form.candidate()
            if not self.is_slow(default):
                yield from (each for each in form.changes(default) if each.words() not in self.known)
        tried: set[str] = set()
        while True:
            best = choose(self._equals(), limits).entry
            of = self.space.form_of(best.candidate) if best is not None else None
            if best is None or of is None or best.candidate.words() in tried:
                return
            tried.add(best.candidate.words())
            yield from (each for each in of.changes(best.candidate) if each.words() not in self.known)

    def _promise(self, form: RunForm) -> float:
        """The regret of a form's defaults: changes of the fastest are measured first. Infinite if it is not known."""
        known = [each for each in self.known.values() if each.figures is not None]
        by_words = {each.candidate.words(): regret for each, (regret, _) in zip(known, regrets_of(known), strict=True)}
        return by_words.get(form.candidate().words(), float("inf"))

    def default(self) -> Candidate:
        """The default backend with its defaults, which all are compared with."""
        return self.space.forms[0].candidate()

    def is_slow(self, candidate: Candidate) -> bool:
        """Does it take more than SLOW times as long as the best, for a token and for reading? Or has it failed?"""
        known = [each.figures for each in self.known.values() if each.figures is not None and equal(each)]
        entry = self.known.get(candidate.words())
        if entry is None or not known:
            return False
        if entry.figures is None:
            return True
        decode, read = min(each.decode_ms for each in known), min(each.read_ms for each in known)
        return entry.figures.decode_ms > SLOW * decode and entry.figures.read_ms > SLOW * read

    def _space(self) -> Space:
        """What is declared; of targets in the precision that is their default, and in that of the artifact's export."""
        every = list(self.runners.values())
        found = space_of(every, DEVICE)
        more = space_of(
            [self.runners[name] for name in self.existing],
            DEVICE,
            {name: _fixed(self.runners[name], options) for name, (_, options) in self.existing.items()},
        )
        declared = [*found.forms, *(form for form in more.forms if form not in found.forms)]
        asked = [(form, self._refused(form)) for form in declared]
        forms = [form for form, reason in asked if reason is None]
        default = next((form for form in forms if form.runner == DEFAULT), None)
        if default is None:
            raise UsageError(f"the backend {DEFAULT}, which others are compared with, does not run here", where="tune")
        forms.sort(key=lambda form: form != default)  # the reference is measured first
        unfit = ((form.candidate(), reason) for form, reason in asked if reason is not None)
        return Space(tuple(forms), (*found.left_out, *unfit))

    def _refused(self, form: RunForm) -> str | None:
        """Why files cannot be written that way of this program; None if they can."""
        runner = self.runners[form.runner]
        try:
            if isinstance(runner, Target):
                runner.lowering(self.program.graphs, runner.options(**form.options))
        except SleepcError as error:
            return error.what
        return None

    def _add(self, candidate: Candidate, limits: Limits) -> None:
        """Measure a candidate, and keep that at once."""
        self.limits = limits
        self.progress(f"{candidate.words()} ({len(self.measured)} measured)", None)
        found, reason, wrong = None, "", False
        try:
            found = self._figures(candidate)
        except FAILURES as error:
            wrong = isinstance(error, WrongLogits)
            reason = _reason(error)
        entry = Entry(key=self._key(candidate.runner), candidate=candidate, figures=found, reason=reason, wrong=wrong)
        self._keep(entry.model_copy(update={"at": time.time()}))

    def _figures(self, candidate: Candidate) -> Figures:
        """Raises SleepcError if it does not compute what the reference does."""
        default = self.known.get(self.default().words())
        runs, reference = self.runs(candidate), self.reference()
        form = self.space.form_of(candidate)
        assert form is not None
        if _rounded(self.runners[form.runner], form):
            off = difference(runs, self._rounded_reference(form, candidate, runs))
        else:
            off = difference(runs, reference)
        if off > self._bound():
            raise WrongLogits(f"its logits differ by {off:.2g} of their scale: at most {self._bound():g} is right")
        level = default.figures if default is not None else None
        return figures(runs, reference, level).model_copy(update={"error": difference(runs, reference)})

    def _rounded_reference(self, form: RunForm, candidate: Candidate, runs: Runs) -> Runs:
        """A form's defaults, which its other settings have to equal: opened again, if an earlier tuning measured them.
        Raises as `runs`.
        """
        name, default = repr(form), form.candidate()
        if name not in self._first:
            self._first[name] = runs if candidate == default else self._open(default)
        return self._first[name]

    def _bound(self) -> float:
        """What rounding may do to a program's logits."""
        return EQUAL if self.program.graphs.dtype.itemsize > 2 else 5e-2

    def reference(self) -> Runs:
        """The default backend with its defaults."""
        if self._reference is None:
            self._reference = self._open(self.default())
        return self._reference

    def runs(self, candidate: Candidate) -> Runs:
        """A candidate, opened. Raises whatever it raises if it cannot run."""
        return self.reference() if candidate == self.default() else self._open(candidate)

    def _open(self, candidate: Candidate) -> Runs:
        runner, graphs = self.runners[candidate.runner], self.program.graphs
        tokens = self.program.some_tokens(None)[: CALL * 2]
        steps: Steps
        if isinstance(runner, Backend):
            steps = runner.tuned_steps(graphs, candidate.settings, progress=self.progress)
            weights = weight_bytes(graphs)
        else:
            export = self._export(runner, candidate)
            steps, weights = export.tuned_steps(candidate.settings), export.nbytes()
        return Runs(steps, tokens, weights + graphs.state_bytes())

    def _export(self, target: Target, candidate: Candidate) -> Export:
        """The artifact's own export if it has these options, or one that is written for this and removed in the end."""
        if target.name in self.existing and self.existing[target.name][1] == candidate.options:
            return self.existing[target.name][0]
        name = repr((target.name, candidate.options))
        if name not in self._opened:
            cache_folder().mkdir(parents=True, exist_ok=True)
            folder = self._scratch.enter_context(draft_beside(cache_folder() / "tuning-export"))
            tokens = self.program.some_tokens(None)[:ENOUGH]
            place = folder / "written" / target.name  # not in the folder itself, which is locked
            asked = Request(place, target.name, candidate.options, None, tokens, force=False)
            self.progress(f"writing {candidate.words()}", None)
            export_program(self.program, asked, self.progress)
            self._opened[name] = target.open(place)
        return self._opened[name]


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:2000]


def weight_bytes(graphs: ProgramGraphs) -> int:
    """Of all parameters, as they are loaded."""
    return sum(dtype.itemsize * prod(graphs.params[key].shape) for key, dtype in dtypes_of(graphs).items())


def _exports(
    program: Exportable, every: Mapping[str, Backend | Target]
) -> Iterator[tuple[str, tuple[Export, dict[str, Setting]]]]:
    """Exports in the artifact that are of what it is now, with their options."""
    for name, runner in every.items():
        if isinstance(runner, Backend) or program.path is None:
            continue
        try:
            export = runner.open(program.path)
        except SleepcError:  # there is none, or none that could run: tuning writes its own
            continue
        if export.identity == program.identity:
            yield name, (export, dict(runner.options_of(export)))


def _fixed(runner: Backend | Target, options: Mapping[str, Setting]) -> dict[str, Setting]:
    """Those of the options that change what is computed."""
    assert isinstance(runner, Target)
    return runner.fixed(options)


def _rounded(runner: Backend | Target, form: RunForm) -> bool:
    return isinstance(runner, Target) and runner.rounds(form.options)
