"""A converted program that learns: it reads pieces window by window, sleeps between them, and gives the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sleepc.backends.eager.backend import materialise
from sleepc.backends.eager.steps import EagerSteps, State
from sleepc.ir.program import ProgramGraphs
from sleepc.train.losses import kl_sum, relative_error_sum, surprise_sum
from sleepc.train.parameters import linear_keys, tied_keys
from sleepc.train.settings import StageName

LOW = torch.bfloat16


@dataclass(frozen=True)
class Part:
    """Some tokens of a batch's pieces, in order: tokens [B,T], `following` [B,T] the tokens one place later, `lengths`
    [B] how many of the tokens are real, `known` [B] how many of those that follow. `last`: the pieces end here.
    """

    tokens: Tensor
    following: Tensor
    lengths: Tensor
    known: Tensor
    last: bool

    def real(self, counts: Tensor) -> Tensor:
        """bool [B,T]: the first `counts` [B] places of every row."""
        return torch.arange(self.tokens.shape[1], device=counts.device) < counts[:, None]


def parts_of(tokens: Tensor, lengths: Tensor, size: int) -> Iterator[Part]:
    """Pieces tokens [B,T] with lengths [B], `size` tokens at a time."""
    following = torch.cat([tokens[:, 1:], torch.zeros_like(tokens[:, :1])], 1)
    for start in range(0, tokens.shape[1], size):
        end = min(start + size, tokens.shape[1])
        real, known = ((n - start).clamp(0, end - start) for n in (lengths, lengths - 1))
        yield Part(tokens[:, start:end], following[:, start:end], real, known, last=end == tokens.shape[1])


@dataclass
class Carry:
    """What goes on from part to part: the states of student and teacher."""

    state: State
    taught: State | None

    def detached(self) -> Carry:
        """The same values; gradients end here."""
        return Carry({name: value.detach() for name, value in self.state.items()}, self.taught)


class Student:
    """Programs of the same parameters (one for each eviction) on float32 masters, and the teacher that they follow.

    `masters` by key are what an optimiser changes; all else is frozen. With `low`, weights of linear maps are used in
    bfloat16 (docs/decisions/0007). With `checkpointing` a window's activations are computed again in the backward pass.
    """

    def __init__(
        self,
        programs: Mapping[str, ProgramGraphs],
        keys: Sequence[str],
        teacher: EagerSteps | None,
        *,
        device: str | torch.device = "cpu",
        low: bool = False,
        checkpointing: bool = False,
    ) -> None:
        self.program = next(iter(programs.values()))
        self.teacher, self.device, self.checkpointing = teacher, torch.device(device), checkpointing
        frozen = materialise(self.program, str(device))
        self.dtypes = {key: value.dtype for key, value in frozen.items()}
        lowered = linear_keys(self.program) if low and self.program.dtype == torch.float32 else set()
        self.dtypes |= dict.fromkeys(lowered, LOW)
        self.tied = tied_keys(self.program, keys)
        self.masters = {key: _master(frozen[key]) for key in keys}
        mine = {key for ties in self.tied.values() for key in ties}
        self.frozen = {key: value.to(self.dtypes[key]) for key, value in frozen.items() if key not in mine}
        self.steps = {
            name: EagerSteps(graphs, frozen, device=self.device, train=True, low=LOW if lowered else None)
            for name, graphs in programs.items()
        }
        self.memories = [i for i, block in enumerate(self.program.layout) if _has_new(self.program, block.params)]

    def values(self) -> dict[str, Tensor]:
        """The masters' values, in the dtypes that the program's files have them in."""
        return {
            key: master.detach().to(self.program.params[key].dtype)
            for first, master in self.masters.items()
            for key in self.tied[first]
        }

    def bound(self, name: str) -> EagerSteps:
        """The steps of one program, on the masters as they are now."""
        steps = self.steps[name]
        trained = {key: m.to(self.dtypes[key]) for first, m in self.masters.items() for key in self.tied[first]}
        steps.bind({**self.frozen, **trained})
        return steps

    def begin(self, rows: int) -> Carry:
        """The states of rows that have read nothing."""
        steps = next(iter(self.steps.values()))
        return Carry(steps.new_state(rows), self.teacher.new_state(rows) if self.teacher else None)

    def read(self, goal: StageName, name: str, part: Part, carry: Carry) -> tuple[Tensor, Carry]:
        """Read a part, with a sleep after every window of it -> (the loss, summed over its tokens, what goes on)."""
        steps = self.bound(name)
        losses, state, taught = [], carry.state, carry.taught
        for window in _windows(part, steps.window):
            lesson: Any = None
            if goal != "lengthen":
                lesson, taught = self._teach(goal, window, taught)
            loss, state = self._maybe_again(_GOALS[goal], self, steps, window, lesson, state)
            losses.append(loss)
        return torch.stack(losses).sum(), Carry(state, taught)

    def _maybe_again(self, run: Any, *args: Any) -> tuple[Tensor, State]:
        found: tuple[Tensor, State] = (
            checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False) if self.checkpointing else run(*args)
        )
        return found

    @torch.no_grad()
    def _teach(self, goal: StageName, window: Part, state: State | None) -> tuple[Any, State]:
        """What the teacher shows of a window: what its head reads, or what goes into every block and comes out."""
        assert self.teacher is not None
        assert state is not None
        if goal == "distil":
            return self.teacher.hidden(state, window.tokens, window.lengths)
        values, new = self.teacher.begin(state, window.tokens, window.lengths)
        border = [values["h"]]
        for i in range(len(self.teacher.program.layout)):
            values["h"], changed = self.teacher.wake_block(i, values, state)
            border.append(values["h"])
            new.update(changed)
        return border, new


def _distil(student: Student, steps: EagerSteps, window: Part, lesson: Any, state: State) -> tuple[Tensor, State]:
    """KL from the teacher on all logits."""
    assert student.teacher is not None
    logits, state = steps.wake_tensors(state, window.tokens, window.lengths, "all")
    with torch.no_grad():
        wanted = student.teacher.logits(lesson, window.lengths, "all")
    assert logits is not None
    assert wanted is not None
    return kl_sum(wanted, logits, window.real(window.lengths)), _sleep(steps, window, state)


def _lengthen(student: Student, steps: EagerSteps, window: Part, lesson: Any, state: State) -> tuple[Tensor, State]:
    """Surprise at the tokens that follow."""
    logits, state = steps.wake_tensors(state, window.tokens, window.lengths, "all")
    assert logits is not None
    return surprise_sum(logits, window.following, window.real(window.known)), _sleep(steps, window, state)


def _align(student: Student, steps: EagerSteps, window: Part, lesson: Any, state: State) -> tuple[Tensor, State]:
    """Every block with a memory alone, on what goes into it in the teacher: the error of what comes out, their mean."""
    values, new = steps.begin(state, window.tokens, window.lengths)
    real, losses = window.real(window.lengths), []
    for i in student.memories:
        found, changed = steps.wake_block(i, {**values, "h": lesson[i]}, state)
        losses.append(relative_error_sum(found, lesson[i + 1], lesson[i], real))
        new.update(changed)
    loss = torch.stack(losses).mean()
    if window.last or window.tokens.shape[1] < steps.window:
        return loss, new
    clock, slept = steps.begin_sleep(new)
    for i in student.memories:
        slept.update(steps.sleep_block(i, clock, new))
    return loss, slept


_GOALS = {"align": _align, "distil": _distil, "lengthen": _lengthen}


def _sleep(steps: EagerSteps, window: Part, state: State) -> State:
    """After a whole window, unless the pieces end here. A row that has ended before sleeps too, which nobody reads."""
    if window.last or window.tokens.shape[1] < steps.window:
        return state
    return steps.sleep_tensors(state)


def _windows(part: Part, size: int) -> Iterator[Part]:
    for start in range(0, part.tokens.shape[1], size):
        end = min(start + size, part.tokens.shape[1])
        real, known = ((n - start).clamp(0, end - start) for n in (part.lengths, part.known))
        ended = part.last and end == part.tokens.shape[1]
        yield Part(part.tokens[:, start:end], part.following[:, start:end], real, known, last=ended)


def _master(value: Tensor) -> Tensor:
    wide = torch.promote_types(value.dtype, torch.float32)
    return value.detach().to(wide).clone().requires_grad_()


def _has_new(program: ProgramGraphs, params: Mapping[str, str]) -> bool:
    return any(program.params[key].new and ".memory." in key for key in params.values())
