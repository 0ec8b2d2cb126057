"""Recurrent passes over a window while it is consolidated: what a sleep does after its pass 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sleepc.backends.eager.executor import Executor
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import TAKEN, name_of
from sleepc.ir.states import with_role

State = dict[str, Tensor]
# Of a block: its class, its parameters by port, and the full names of its states by their short ones.
BoundBlock = tuple[str, dict[str, Tensor], dict[str, str]]
TINY = 1e-30  # added to the size of a memory, which may be zero


class Recurrence:
    """The passes of a program's loop (semantics.md, section 4; arXiv 2605.26099, Algorithm 1)."""

    def __init__(
        self, program: ProgramGraphs, functions: Mapping[Any, Callable[..., Any]], device: torch.device
    ) -> None:
        assert program.loop is not None, "no block runs again"
        self.program, self.loop = program, program.loop
        hidden = program.loop_hidden()
        assert hidden is not None, "the program was checked"
        self._hidden = hidden.name
        self._kept = frozenset(s.name for s in with_role(program.all_states(), "kept"))
        self._given = Executor(program.loop.given, functions, device)
        self._again = {n: Executor(c.again, functions, device) for n, c in program.classes.items() if c.again}

    def __call__(
        self, blocks: Sequence[BoundBlock], parameters: Mapping[str, Tensor], old: State, new: State, passes: int
    ) -> State:
        """The window that `old` holds, refined in `passes` passes; `new` is the state after the first of them."""
        loop = self.loop
        values = self._window(parameters, old)
        run = self._settle if loop.settle else self._count
        h, new = run(blocks[loop.start : loop.end], self.hidden(old), _live(values, old), new, passes)
        after = blocks[loop.end :]
        return new | (self._run(after, h, values, new)[1] if passes > 1 else self._as_awake(after, h, values, new))

    def hidden(self, old: State) -> Tensor:
        """The hidden states of the window, from which passes start: h [B,L,d]."""
        return old[self._hidden][:, 0]

    def begin(self, parameters: Mapping[str, Tensor], old: State) -> dict[str, Any]:
        """What every block reads in a pass over the window that `old` holds, with h."""
        return self._window(parameters, old) | {"h": self.hidden(old), "slept": old["slept"]}

    def one(self, block: BoundBlock, values: Mapping[str, Any], state: State, *, inside: bool) -> tuple[Tensor, State]:
        """A pass of one block, `inside` the loop or behind it: (h', what it writes)."""
        return self._run([block], values["h"], _live(values, values) if inside else values, state)

    def _window(self, parameters: Mapping[str, Tensor], old: State) -> dict[str, Any]:
        """What blocks read in addition to h; kept pairs are seen as the window saw them."""
        return self._given({**parameters, **old}) | {name: old[name] for name in self._kept}

    def _count(
        self, blocks: Sequence[BoundBlock], h: Tensor, values: Mapping[str, Any], state: State, passes: int
    ) -> tuple[Tensor, State]:
        """Every row takes all passes: (h', state')."""
        for _ in range(passes - 1):
            h, written = self._run(blocks, h, values, state)
            state = state | written
        return h, state

    def _settle(
        self, blocks: Sequence[BoundBlock], h: Tensor, values: Mapping[str, Any], state: State, passes: int
    ) -> tuple[Tensor, State]:
        """A row whose memories a pass has hardly changed takes no further one, and keeps its h and memories."""
        moving, taken = torch.ones_like(state["slept"]), torch.ones_like(state["since"])
        for _ in range(passes - 1):
            refined, written = self._run(blocks, h, values, state)
            h, taken = _where(moving, refined, h), taken + moving
            written = {name: _where(moving, new, state[name]) for name, new in written.items()}
            moving = moving & (memory_change(state, written) > self.loop.settle)
            state = state | written
            if not torch.compiler.is_exporting() and not moving.any():  # what is exported asks for no value
                break
        return h, state | {TAKEN: taken}

    def _run(
        self, blocks: Sequence[BoundBlock], h: Tensor, values: Mapping[str, Any], state: State
    ) -> tuple[Tensor, State]:
        """Blocks once over the window: h [B,L,d] -> (h', what they write)."""
        written: State = {}
        for name, parameters, names in blocks:
            own = {local: values[full] if full in self._kept else state[full] for local, full in names.items()}
            results = self._again[name]({**values, "h": h, **parameters, **own})
            h = results.pop("h")
            written |= {names[local]: value for local, value in results.items()}
        return h, written

    def _as_awake(self, after: Sequence[BoundBlock], h: Tensor, values: Mapping[str, Any], state: State) -> State:
        """Blocks behind the loop if there was no pass over it: what wake wrote stays, and the next window starts
        from it. A memory that is written in a sleep only, and has no record, is written from h as wake left it.
        """
        kept: State = {}
        for name, _, names in after:
            for start in with_role(self.program.classes[name].states, "start"):
                memory = names[name_of("memory", start.part)]
                kept |= {names[start.name]: state[memory], memory: state[memory]}
        made = {names[local] for name, _, names in after for local in self._again[name].results if local != "h"}
        return kept if made <= kept.keys() else self._run(after, h, values, state)[1] | kept


def _live(values: Mapping[str, Any], old: Mapping[str, Tensor]) -> dict[str, Any]:
    """Pass 1 has been written, so in the loop a memory counts as live also in a row's first sleep."""
    return {**values, "live": torch.ones_like(old["slept"])}


def _where(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` [B,..] in the rows, bool [B], and `old` in the others."""
    return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), new, old)


@torch.no_grad()
def memory_change(old: State, new: State) -> Tensor:
    """|new - old| / |new| of each row [B], over all numbers of the tensors of `new`; 0 where both are 0."""
    apart: Tensor = torch.cat([_wide(new[name]) - _wide(old[name]) for name in new], 1).norm(dim=1)
    size: Tensor = torch.cat([_wide(value) for value in new.values()], 1).norm(dim=1)
    return apart / size.clamp(min=TINY)


def _wide(value: Tensor) -> Tensor:
    """[B,..] as rows of numbers, in float32 or wider."""
    return value.flatten(1).to(torch.promote_types(value.dtype, torch.float32))
