"""Wake and sleep of a program, run by PyTorch: what a session drives, and what training differentiates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from sleepc.backends.contract import Kernels
from sleepc.backends.eager.executor import Executor
from sleepc.backends.eager.recurrence import Recurrence, memory_change
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.graph import PARAMETERS, with_result, without_result
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import SKIPPED, TAKEN
from sleepc.ir.types import DTYPE_NAMES
from sleepc.passes.rewrite.kept_pairs import slots_of_heads
from sleepc.runtime.steps import Array, BoolArray, FloatArray, IntArray, Logits, Signature

State = dict[str, Tensor]
LINEAR = torch.ops.aten.linear.default


class EagerSteps:
    """The `Steps` of a program at level STEP. State is a dict of tensors by full name ("3.k").

    `parameters` (by key, on `device`, in the dtypes of their ports) may require gradients; `kernels` are a backend's
    functions of operators. With `train=True` nothing is
    written in place, and `wake_tensors` and `sleep_tensors` are differentiable in parameters and state. With `low`,
    linear maps whose weights are bound in that dtype, and those of the head, are computed in it; all else stays as the
    graphs say (docs/decisions/0007).
    """

    def __init__(
        self,
        program: ProgramGraphs,
        parameters: Mapping[str, Tensor],
        kernels: Kernels,
        *,
        device: str | torch.device = "cpu",
        train: bool = False,
        low: torch.dtype | None = None,
    ) -> None:
        assert program.clock is not None, "not a program at level STEP"
        self.program, self.device, self.train = program, torch.device(device), train
        self.threads = 0  # PyTorch's own number, or that of `wake` and `sleep`
        functions = last = kernels
        if low is not None:
            functions = {**kernels, LINEAR: mixed_linear}
            last = {**kernels, LINEAR: partial(mixed_linear, low=low)}
        self._embed = Executor(program.embed, functions, self.device)
        self._head = Executor(program.head, last, self.device)
        self._clock = Executor(program.clock, functions, self.device)
        made = partial(Executor, functions=functions, device=self.device, folds=not train)
        self._wake = {n: made(c.wake) for n, c in program.classes.items()}
        self._sleep = {n: made(c.sleep) for n, c in program.classes.items() if c.sleep}
        self._runs_on = functions, self.device
        self._notes: dict[str, Executor] = {}
        self._reads: dict[str, Executor] = {}
        self._recurrence = Recurrence(program, functions, self.device) if program.loop else None
        self._learn = Executor(program.learn.step, functions, self.device) if program.learn else None
        self._encode = Executor(program.encode.step, functions, self.device) if program.encode else None
        self._head_extras = set(program.head.ports("input")) - {"h"}
        self.bind(parameters)

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Use these parameters from now on."""
        self.parameters = dict(parameters)
        self._blocks = [self._bound(i, self.parameters) for i in range(len(self.program.layout))]

    def bind_block(self, i: int, parameters: Mapping[str, Tensor]) -> None:
        """Use these parameters in one block from now on: all that it has."""
        self._blocks[i] = self._bound(i, parameters)

    def _bound(self, i: int, parameters: Mapping[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, str]]:
        block = self.program.layout[i]
        own: dict[str, Any] = {port: parameters[key] for port, key in block.params.items()}
        for each in (self._wake, self._sleep):
            own |= each[block.cls].folded(own) if block.cls in each else {}
        return block.cls, own, self.program.state_names(i)

    @property
    def window(self) -> int:
        """L."""
        return self.program.window

    @property
    def vocab(self) -> int:
        """V."""
        return self.program.vocab

    @property
    def budgets(self) -> dict[int, tuple[int, ...]]:
        """See `Steps.budgets`."""
        return slots_of_heads(self.program)

    def new_state(self, batch: int) -> State:
        """The state of `batch` rows that have read nothing."""
        return {s.name: s.first(batch, self.device) for s in self.program.all_states()}

    def wake_tensors(
        self, state: State, tokens: Tensor, lengths: Tensor, logits: Logits
    ) -> tuple[Tensor | None, State]:
        """tokens [B,T] packed to the left, lengths [B] -> (logits [B,V], [B,T,V] or None, state')."""
        values, new = self.wake_blocks(state, tokens, lengths)
        return self.logits(values, lengths, logits), new

    def wake_blocks(self, state: State, tokens: Tensor, lengths: Tensor) -> tuple[dict[str, Any], State]:
        """tokens [B,T], lengths [B] -> (what the head reads, state')."""
        values, new = self.begin(state, tokens, lengths)
        for i in range(len(self._blocks)):
            values["h"], changed = self.wake_block(i, values, state)
            new.update(changed)
        return values, new

    def begin(self, state: State, tokens: Tensor, lengths: Tensor) -> tuple[dict[str, Any], State]:
        """tokens [B,T], lengths [B] -> (h [B,T,d] and what every block reads too, state' but for the blocks')."""
        values = self._embed({**self.parameters, **state, "tokens": tokens, "lengths": lengths})
        new = dict(state) | {s.name: values.pop(s.name) for s in self.program.states if s.name in values}
        return values, new

    def wake_block(self, i: int, values: Mapping[str, Any], state: State) -> tuple[Tensor, State]:
        """One block on `values["h"]` [B,T,d] -> (h' [B,T,d], what it changes of the state)."""
        name, _, names = self._blocks[i]
        results = self._wake[name](self._given(i, values, state))
        h: Tensor = results.pop("h")
        return h, {names[local]: value for local, value in results.items()}

    def note_block(self, i: int, values: Mapping[str, Any], state: State) -> State:
        """See `TrainingSteps.note_block`."""
        name, _, names = self._blocks[i]
        if name not in self._notes:
            self._notes[name] = Executor(without_result(self.program.classes[name].wake, "h"), *self._runs_on)
        noted = self._notes[name](self._given(i, values, state))
        return {names[local]: value for local, value in noted.items()}

    def read_block(self, i: int, values: Mapping[str, Any], state: State) -> Tensor:
        """See `TrainingSteps.read_block`."""
        name = self._blocks[i][0]
        if name not in self._reads:
            self._reads[name] = Executor(with_result(self.program.classes[name].wake, "h"), *self._runs_on)
        h: Tensor = self._reads[name](self._given(i, values, state))["h"]
        return h

    def _given(self, i: int, values: Mapping[str, Any], state: State) -> dict[str, Any]:
        """What a block's graph reads."""
        _, parameters, names = self._blocks[i]
        return {**values, **parameters, **{local: state[full] for local, full in names.items()}}

    def logits(self, values: dict[str, Any], lengths: Tensor, logits: Logits) -> Tensor | None:
        """The head on what `wake_blocks` gave -> [B,V], [B,T,V] or None."""
        if logits == "none":
            return None
        last = (lengths - 1).clamp(min=0)
        rows = torch.arange(len(lengths), device=self.device)
        early = logits == "last" and not self._head_extras
        if early:  # the head, over a large vocabulary, is for one token only
            values = {**values, "h": values["h"][rows, last].unsqueeze(1)}
        places = torch.arange(values["h"].shape[1], device=self.device) < lengths[:, None]
        if logits == "all" and not self._head_extras and 2 * int(places.sum()) < places.numel():  # mostly padding
            few = self.logits_at(values, places)
            return few.new_zeros(*places.shape, few.shape[-1]).index_put((places,), few)
        out: Tensor = self._head({**self.parameters, **values})["logits"]
        if logits == "all":
            return out
        return out[:, 0] if early else out[rows, last]

    def logits_at(self, values: dict[str, Any], places: Tensor) -> Tensor:
        """The head on what `wake_blocks` gave, at the places of bool [B,T] alone -> [n,V]."""
        if self._head_extras:
            every: Tensor = self._head({**self.parameters, **values})["logits"]
            return every[places]
        few: Tensor = self._head({**self.parameters, **values, "h": values["h"][places].unsqueeze(0)})["logits"]
        return few[0]

    def sleep_tensors(self, state: State, passes: int | None = None) -> State:
        """Consolidate and evict in every row of `state`; with `passes` in so many instead of the program's own, or in
        fewer if they settle.

        One pass is that of wake: no block runs again. Raises UsageError for `passes` if no block ever does.
        """
        loop = self._recurrence.loop if self._recurrence else None
        if passes is not None and (loop is None or passes < 1):
            raise UsageError(
                f"a sleep of {passes} passes" + ("" if loop else ": this program's sleeps run no block again"),
                where="passes",
                fix="Ask for 1 or more." if loop else "Convert with --consolidation recurrent and --passes 2 or more.",
            )
        new = self.sleep_first(state)
        if self._recurrence is None or loop is None:
            return new
        return self._recurrence(self._blocks, self.parameters, state, new, passes or loop.passes)

    def sleep_first(self, state: State) -> State:
        """Consolidate and evict in every row, in one pass: no block runs again."""
        clock, new = self.begin_sleep(state)
        new.update(self.learned(state))
        for i in range(len(self._blocks)):
            new.update(self.sleep_block(i, clock, state))
        return new

    def begin_refine(self, state: State) -> dict[str, Any]:
        """See `TrainingSteps.begin_refine`."""
        return self._looping().begin(self.parameters, state)

    def refine_block(self, i: int, values: Mapping[str, Any], state: State) -> tuple[Tensor, State]:
        """See `TrainingSteps.refine_block`."""
        looping = self._looping()
        return looping.one(self._blocks[i], values, state, inside=i < looping.loop.end)

    def moved(self, old: State, new: State) -> Tensor:
        """See `TrainingSteps.moved`."""
        return memory_change(old, new)

    def _looping(self) -> Recurrence:
        assert self._recurrence is not None, "no block runs again"
        return self._recurrence

    def begin_sleep(self, state: State) -> tuple[dict[str, Any], State]:
        """What every block's sleep reads, and the state with its counters as they are after the sleep."""
        clock = self._clock(state)
        if self._encode is not None:
            clock |= self._encode({**self.parameters, **state})
        return clock, dict(state) | {s.name: clock.pop(s.name) for s in self.program.states}

    def learned(self, state: State) -> State:
        """What steps of gradient descent make of the state that a window leaves; nothing if sleeps take none."""
        learn, new = self.program.learn, State()
        if learn is None or self._learn is None:
            return new
        ports = {name: node.meta["type"].dtype for kind in PARAMETERS for name, node in learn.step.ports(kind).items()}
        own = {key: self.parameters[key].to(dtype) for key, dtype in ports.items()}
        for _ in range(learn.steps):
            new = self._learn({**own, **state, **new})
        return new

    def sleep_block(self, i: int, clock: Mapping[str, Any], state: State) -> State:
        """One block consolidates and evicts: what it changes of the state. Recurrent passes are not in it."""
        name, _, names = self._blocks[i]
        given = {**clock, **self.program.soft_of(i, clock)}
        results = self._sleep[name](self._given(i, given, state))
        return {names[local]: value for local, value in results.items()}

    def wake(
        self, state: State, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, State]:
        """See `Steps.wake`."""
        with self._computing("wake"):
            out, state = self.wake_tensors(state, self._tensor(tokens), self._tensor(lengths), logits)
        if out is None:
            return None, state
        out = out.detach()
        return (out if out.dtype == torch.float64 else out.float()).cpu().numpy(), state

    def sleep(self, state: State, rows: BoolArray) -> State:
        """See `Steps.sleep`."""
        with self._computing("sleep"):
            if rows.all():
                return self.sleep_tensors(state)
            at = self._tensor(np.flatnonzero(rows))
            slept = self.sleep_tensors({name: value[at] for name, value in state.items()})
            return {name: value.index_copy(0, at, slept[name]) for name, value in state.items()}

    @contextmanager
    def _computing(self, step: str) -> Iterator[None]:
        """As the graphs say: a caller's autocast would change that, and only in the caller's thread."""
        plain = torch.autocast(self.device.type, enabled=False)
        with on_threads(self.threads), _told(step), torch.set_grad_enabled(self.train), plain:
            yield

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def select_rows(self, state: State, rows: IntArray) -> State:
        """See `Steps.select_rows`."""
        at = self._tensor(rows)
        return {name: value[at] for name, value in state.items()}

    def positions(self, state: State) -> IntArray:
        """See `Steps.positions`."""
        return _to_array(state["position"])

    def passes_taken(self, state: State) -> IntArray | None:
        """See `Steps.passes_taken`."""
        loop = self.program.loop
        if loop is None:
            return None
        if not loop.settle:
            return np.full(len(state["since"]), loop.passes, np.int64)
        return _to_array(state[TAKEN])

    def steps_skipped(self, state: State) -> IntArray | None:
        """See `Steps.steps_skipped`."""
        return _to_array(state[SKIPPED]) if SKIPPED in state else None

    def signature(self) -> Signature:
        """See `Steps.signature`."""
        return {s.name: (DTYPE_NAMES[s.dtype], s.dims) for s in self.program.all_states()}

    def to_named_arrays(self, state: State) -> dict[str, Array]:
        """See `Steps.to_named_arrays`."""
        return {name: _to_array(value) for name, value in state.items()}

    def from_named_arrays(self, arrays: dict[str, Array]) -> State:
        """See `Steps.from_named_arrays`."""
        dtypes = {s.name: s.dtype for s in self.program.all_states()}
        return {name: _from_array(arrays[name], dtype).to(self.device) for name, dtype in dtypes.items()}


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Within it PyTorch computes on so many threads; 0: as many as before."""
    before = torch.get_num_threads()
    if count in (0, before):
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _told(step: str) -> Iterator[None]:
    """An operator that cannot take what it is given, as it says so: types alone do not prove that it can."""
    try:
        yield
    except Exception as error:
        if type(error) not in (IndexError, KeyError, RuntimeError, TypeError, ValueError):  # a full memory is another
            raise
        first = str(error).splitlines()[0] if str(error) else ""
        raise SleepcError(
            f"the program cannot be run: {type(error).__name__}: {first}", where=step, fix="--debug shows the operator."
        ) from error


def mixed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, low: torch.dtype | None = None) -> Tensor:
    """x [.., in], weight [out, in], bias [out] -> [.., out] in x's dtype, computed in the weight's dtype or `low`."""
    dtype = low or weight.dtype
    if dtype == x.dtype:
        return linear(x, weight, bias)
    return linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)


def _to_array(value: Tensor) -> Array:
    value = value.detach().cpu().contiguous()
    if value.dtype == torch.bfloat16:
        return value.view(torch.uint16).numpy().copy()
    return value.numpy().copy()


def _from_array(array: Array, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor.to(dtype)
