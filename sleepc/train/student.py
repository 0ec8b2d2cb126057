"""A converted program that learns: it reads pieces window by window, sleeps between them, and gives the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sleepc.backends.contract import TrainingBackend
from sleepc.backends.table import find_trainer
from sleepc.backends.training_steps import Tensors, TrainingSteps
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.parameters import parameter_in
from sleepc.tasks.lessons import NOTHING
from sleepc.train.abreast import can_be_abreast, read_abreast
from sleepc.train.divergence import BeforeHead, alone, divergence
from sleepc.train.first_window import begins_alike, borders, learns_later
from sleepc.train.losses import kl_sum, relative_error_sum, surprise_sum
from sleepc.train.parameters import linear_keys, tied_keys
from sleepc.train.settings import TAUGHT, StageName
from sleepc.train.weighing import Weighing

LOW = torch.bfloat16
TOGETHER = 1024  # tokens in whole windows that are read at once: as fast as more, and masks of more take memory
Found = tuple[Tensor | int, Tensor | int, Tensors]
"""Of a window: its loss, labels that each row has missed [B], and the state after it."""


@dataclass(frozen=True)
class Segment:
    """Some tokens of a batch's pieces, in order: tokens [B,T], `lengths` [B] how many of them are real, `labels` [B,T]
    what is to be said after each, or NOTHING. `last`: the pieces end here; `asks`: there are labels.
    """

    tokens: Tensor
    lengths: Tensor
    labels: Tensor
    last: bool
    asks: bool

    def real(self) -> Tensor:
        """bool [B,T]: which tokens are."""
        return torch.arange(self.tokens.shape[1], device=self.lengths.device) < self.lengths[:, None]

    def cut(self, first: int, size: int) -> Iterator[Segment]:
        """The same, `first` tokens of it, then `size` at a time."""
        length = self.tokens.shape[1]
        return self.at([0, *range(first, length, size), length])

    def at(self, borders: Sequence[int]) -> Iterator[Segment]:
        """The same from border to border, without what is empty."""
        length = self.tokens.shape[1]
        for start, end in pairwise(sorted({min(border, length) for border in borders})):
            labels, real = self.labels[:, start:end], (self.lengths - start).clamp(0, end - start)
            asks, last = bool((labels != NOTHING).any()), self.last and end == length
            yield Segment(self.tokens[:, start:end], real, labels, last=last, asks=asks)

    def to(self, device: torch.device) -> Segment:
        """The same on a device."""
        tokens, lengths, labels = (each.to(device) for each in (self.tokens, self.lengths, self.labels))
        return replace(self, tokens=tokens, lengths=lengths, labels=labels)


def joined(segments: Sequence[Segment]) -> Segment:
    """Segments that follow each other as one."""
    if len(segments) == 1:
        return segments[0]
    tokens, labels = (torch.cat([getattr(each, name) for each in segments], 1) for name in ("tokens", "labels"))
    lengths = torch.stack([each.lengths for each in segments]).sum(0)
    return Segment(tokens, lengths, labels, last=segments[-1].last, asks=any(each.asks for each in segments))


def parts_of(tokens: Tensor, lengths: Tensor, labels: Tensor, window: int, windows: int = 0) -> Iterator[Segment]:
    """Pieces tokens [B,T] with lengths [B] and labels [B,T], so many windows at a time, 0 for all.

    What is left over comes first, so that gradients of what pieces end with go back through all windows that they may.
    """
    every = max(-(-tokens.shape[1] // window), 1)
    windows = min(windows, every) or every
    first = (every - 1) % windows + 1
    return Segment(tokens, lengths, labels, last=True, asks=True).cut(first * window, windows * window)


@dataclass
class Carry:
    """What is carried from part to part: the states of student and teacher, and how many labels each row has missed [B]
    (the most likely token was another one). `fresh`: nothing has been read.
    """

    state: Tensors
    taught: Tensors | None
    missed: Tensor
    fresh: bool = True

    def detached(self) -> Carry:
        """The same values; gradients end here."""
        return replace(self, state={name: value.detach() for name, value in self.state.items()})


@dataclass(frozen=True)
class Computing:
    """How a student computes. With `low`, weights of linear maps are used in bfloat16 (docs/decisions/0007). With
    `checkpointing` a window's activations are computed again in the backward pass.
    """

    backend: TrainingBackend | None = None
    device: str | torch.device = "cpu"
    low: bool = False
    checkpointing: bool = False


class Student:
    """Programs of the same parameters (one for each eviction) on float32 masters, and the teacher that they follow.

    `masters` by key are what an optimiser changes; all else is frozen. Logits of student and teacher are compared over
    the first `shared` tokens, all by default; `weigh` is how much more a token counts that the teacher knows better.
    """

    def __init__(
        self,
        programs: Mapping[str, ProgramGraphs],
        keys: Sequence[str],
        teacher: TrainingSteps | None,
        how: Computing | None = None,
        *,
        shared: int | None = None,
        weigh: float = 0.0,
    ) -> None:
        how = how or Computing()
        self.shared, self.weigh = shared, weigh
        self.program = next(iter(programs.values()))
        self.teacher, self.device, self.checkpointing = teacher, torch.device(how.device), how.checkpointing
        frozen, backend = materialise(self.program, str(how.device)), how.backend or find_trainer()
        self.dtypes = {key: value.dtype for key, value in frozen.items()}
        lowered = linear_keys(self.program) if how.low and self.program.dtype == torch.float32 else set()
        self.dtypes |= dict.fromkeys(lowered, LOW)
        self.tied = tied_keys(self.program, keys)
        self.masters = {key: _master(frozen[key]) for key in keys}
        mine = {key for ties in self.tied.values() for key in ties}
        self.frozen = {key: value.to(self.dtypes[key]) for key, value in frozen.items() if key not in mine}
        self.steps = {
            name: backend.steps_on(graphs, frozen, device=self.device, train=True, low=LOW if lowered else None)
            for name, graphs in programs.items()
        }
        self.begins_alike = {
            name: teacher is not None and learns_later(graphs, mine) and begins_alike(self.bound(name), teacher)
            for name, graphs in programs.items()
        }
        self.abreast = not how.checkpointing and can_be_abreast(self.program)
        self.memories = [i for i, block in enumerate(self.program.layout) if _has_new(self.program, block.params)]

    def values(self) -> dict[str, Tensor]:
        """The masters' values, in the dtypes that the program's files have them in."""
        return {
            key: master.detach().to(self.program.params[key].dtype)
            for first, master in self.masters.items()
            for key in self.tied[first]
        }

    def bound(self, name: str) -> TrainingSteps:
        """The steps of one program, on the masters as they are now."""
        steps = self.steps[name]
        trained = {key: m.to(self.dtypes[key]) for first, m in self.masters.items() for key in self.tied[first]}
        steps.bind({**self.frozen, **trained})
        return steps

    def begin(self, rows: int) -> Carry:
        """The states of rows that have read nothing."""
        steps = next(iter(self.steps.values()))
        taught = self.teacher.new_state(rows) if self.teacher else None
        return Carry(steps.new_state(rows), taught, torch.zeros(rows, dtype=torch.int64, device=self.device))

    def read(
        self, goal: StageName, name: str, part: Segment, carry: Carry, passes: int | None = None
    ) -> tuple[Tensor, Carry]:
        """Read a part, with a sleep (of so many `passes`) after every window of it -> (the loss, summed over its tokens
        or labels, what goes on).
        """
        steps = self.bound(name)
        loss, state, taught, missed = torch.zeros((), device=self.device), carry.state, carry.taught, carry.missed
        alike = carry.fresh and goal == "distil" and self.begins_alike[name]
        ahead: Any = None  # what the teacher has shown of the next segment already
        segments = [segment.to(self.device) for segment in self._windows(goal, steps, part, alike, passes)]
        for at, segment in enumerate(segments):
            if alike and at == 0:  # nothing is to be learned of it but what it leaves for later windows
                size, both = segment.tokens.shape[1], joined(segments[: 2 if self._alone(steps) else 1])
                border, taught = self._teach("align", both, taught)
                state = _as_taught(steps, segment, [h[:, :size] for h in border], state, passes)
                ahead = {"h": border[-1][:, size:]} if both is not segment else None
                continue
            lesson, ahead = ahead, None
            if goal in TAUGHT and lesson is None:
                lesson, taught = self._teach(goal, segment, taught)
            found, more, state = self._maybe_again(_GOALS[goal], self, steps, segment, lesson, state, passes)
            loss = loss + found
            missed = missed + more
        return loss, Carry(state, taught, missed, fresh=False)

    def _windows(
        self, goal: StageName, steps: TrainingSteps, part: Segment, alike: bool, passes: int | None
    ) -> Iterator[Segment]:
        """A part as it is read: the first window by itself if it is as the teacher's (`alike`), whole windows together
        where that can be, and what is left over.
        """
        size, length = steps.window, part.tokens.shape[1]
        apart = not self.abreast or passes is not None
        if apart or goal == "align" or (goal == "distil" and not self._alone(steps)):
            return part.cut(size, size)
        first, whole = size if alike else 0, length // size * size
        return part.at([0, *range(first, whole, max(TOGETHER // size, 1) * size), whole, length])

    def _alone(self, steps: TrainingSteps) -> bool:
        return alone(steps) and self.teacher is not None and alone(self.teacher)

    def _maybe_again(self, run: Any, *args: Any) -> Found:
        found: Found = (
            checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False) if self.checkpointing else run(*args)
        )
        return found

    @torch.no_grad()
    def _teach(self, goal: StageName, segment: Segment, state: Tensors | None) -> tuple[Any, Tensors]:
        """What the teacher shows of a window: what its head reads, or what goes into every block and comes out."""
        assert self.teacher is not None
        assert state is not None
        if goal == "distil":
            return self.teacher.wake_blocks(state, segment.tokens, segment.lengths)
        return borders(self.teacher, state, segment.tokens, segment.lengths)


def _distil(
    student: Student, steps: TrainingSteps, segment: Segment, lesson: Any, state: Tensors, passes: int | None
) -> Found:
    """KL from the teacher on all logits, weighted by token if the student weighs them."""
    teacher, shared, real, weighing = student.teacher, student.shared, segment.real(), None
    assert teacher is not None
    if student.weigh:
        weighing = Weighing(segment.labels[real], student.weigh)
    values, slept = _read(steps, segment, state, passes)
    if alone(steps) and alone(teacher) and real.any() and not student.checkpointing:
        return divergence(BeforeHead(steps, values), BeforeHead(teacher, lesson), real, shared, weighing), 0, slept
    logits = steps.logits(values, segment.lengths, "all")
    with torch.no_grad():
        wanted = teacher.logits(lesson, segment.lengths, "all")
    assert logits is not None
    assert wanted is not None
    return kl_sum(wanted[..., :shared], logits[..., :shared], real, weighing), 0, slept


def _surprise(
    student: Student, steps: TrainingSteps, segment: Segment, lesson: Any, state: Tensors, passes: int | None
) -> Found:
    """Surprise at the labels; the head reads nothing but what they are asked after."""
    values, slept = _read(steps, segment, state, passes)
    if not segment.asks:
        return 0, 0, slept
    places = segment.labels != NOTHING
    logits, labels = steps.logits_at(values, places), segment.labels[places]
    wrong = torch.zeros_like(segment.labels).masked_scatter(places, (logits.detach().argmax(-1) != labels).long())
    return surprise_sum(logits, labels), wrong.sum(1), slept


def _align(
    student: Student, steps: TrainingSteps, segment: Segment, lesson: Any, state: Tensors, passes: int | None
) -> Found:
    """Every block with a memory alone, on what goes into it in the teacher: the error of what comes out, their mean.
    Of blocks without one those write their windows that others read.
    """
    values, new = steps.begin(state, segment.tokens, segment.lengths)
    real, losses = segment.real(), []
    read = {ring for i in student.memories if (ring := steps.program.layout[i].ring) is not None}
    read = read.difference(student.memories)
    for i in read:
        new.update(steps.note_block(i, {**values, "h": lesson[i]}, state))
    for i in student.memories:
        found, changed = steps.wake_block(i, {**values, "h": lesson[i]}, state)
        losses.append(relative_error_sum(found, lesson[i + 1], lesson[i], real))
        new.update(changed)
    loss = torch.stack(losses).mean()
    if segment.last or segment.tokens.shape[1] < steps.window:
        return loss, 0, new
    clock, slept = steps.begin_sleep(new)
    for i in (*read, *student.memories):
        slept.update(steps.sleep_block(i, clock, new))
    return loss, 0, slept


_GOALS = {"align": _align, "distil": _distil, "lengthen": _surprise, "solve": _surprise}


def _read(steps: TrainingSteps, segment: Segment, state: Tensors, passes: int | None) -> tuple[Any, Tensors]:
    """A window or less, or several whole ones -> (what the head reads, the state after their sleeps)."""
    if segment.tokens.shape[1] > steps.window:
        windows = [(each.tokens, each.lengths) for each in segment.cut(steps.window, steps.window)]
        return read_abreast(steps, state, windows, last=segment.last)
    values, state = steps.wake_blocks(state, segment.tokens, segment.lengths)
    return values, sleep_after(steps, segment, state, passes)


def _as_taught(
    steps: TrainingSteps, segment: Segment, border: Sequence[Tensor], state: Tensors, passes: int | None
) -> Tensors:
    """The state after a first window whose hidden states are the teacher's: `border`, each [B,T,d]."""
    values, new = steps.begin(state, segment.tokens, segment.lengths)
    for i, h in enumerate(border[:-1]):
        new.update(steps.note_block(i, {**values, "h": h}, state))
    return sleep_after(steps, segment, new, passes)


def sleep_after(steps: TrainingSteps, segment: Segment, state: Tensors, passes: int | None = None) -> Tensors:
    """After a whole window, unless the pieces end here. A row that has ended before sleeps too, which nobody reads."""
    if segment.last or segment.tokens.shape[1] < steps.window:
        return state
    return steps.sleep_tensors(state, passes)


def _master(value: Tensor) -> Tensor:
    wide = torch.promote_types(value.dtype, torch.float32)
    return value.detach().to(wide).clone().requires_grad_()


def _has_new(program: ProgramGraphs, params: Mapping[str, str]) -> bool:
    return any(program.params[key].new and parameter_in(key) is not None for key in params.values())
