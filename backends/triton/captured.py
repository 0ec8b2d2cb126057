"""One-token steps in few launches: the classes of blocks are compiled by PyTorch's inductor, the memory's kernels being
calls in its code, and a step is captured once as a CUDA graph, which is then started as a whole.

A graph reads and writes the tensors that it was captured with. A session's state is therefore `Held`: tensors that stay
where they are, with the graphs for them. Whatever leaves a session is a copy (`select_rows`), so that nothing else sees
them. All other steps are eager's, and what they compute is copied into these tensors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sleepc.backends.contract import Kernels
from sleepc.backends.eager.compiled import in_place
from sleepc.backends.eager.executor import Executor
from sleepc.backends.eager.native import Function, kept_in_cache
from sleepc.backends.eager.steps import EagerSteps, State
from sleepc.ops import functional
from sleepc.progress import Progress
from sleepc.runtime.steps import BoolArray, Logits

ours = torch.ops.sleepc
Run: TypeAlias = Callable[[], "Tensor | None"]
Compile: TypeAlias = Callable[[Function], Callable[..., Any]]
Capture: TypeAlias = Callable[[Run], "Recording"]


@dataclass(frozen=True)
class Recording:
    """A captured step: what starts it, and where its logits are then."""

    start: Callable[[], None]
    out: Tensor | None


@dataclass(frozen=True)
class Captured:
    """A recording and the tensors that it reads its tokens [B, 1] and lengths [B] from."""

    recording: Recording
    tokens: Tensor
    lengths: Tensor


class Held(dict[str, Tensor]):
    """A state whose tensors stay where they are, and the recordings for it."""

    def __init__(self, state: State) -> None:
        super().__init__({name: x.clone(memory_format=torch.contiguous_format) for name, x in state.items()})
        self.asked: dict[Logits, Captured] = {}

    def take(self, new: State) -> None:
        """Become `new`, in place."""
        for name, value in new.items():
            if value is not self[name]:
                self[name].copy_(value)


def one_graph(function: Function) -> torch.fx.GraphModule:
    """A function as torch.export traces it, which has one graph or fails, without what nothing reads: that may be a
    number (the type that two types promote to), at which torch.compile would break it.
    """
    made = function.traced().module()
    assert isinstance(made, torch.fx.GraphModule)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made


def by_inductor(function: Function) -> Callable[..., Any]:
    """It is compiled for its sizes, at the first call."""
    made: Callable[..., Any] = torch.compile(one_graph(function), fullgraph=True, dynamic=False)
    return made


def on_gpu(run: Run) -> Recording:
    """`run` as a CUDA graph, after it ran twice: kernels are compiled and chosen by then."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return Recording(graph.replay, out)


class CapturedSteps(EagerSteps):
    """EagerSteps on a GPU whose one-token steps are captured for the number of rows of a session, at its first token.

    `compile` and `capture` are what a test without a GPU gives others for.
    """

    def __init__(
        self,
        program: Any,
        parameters: Mapping[str, Tensor],
        kernels: Kernels,
        progress: Progress,
        *,
        device: str | torch.device,
        compile: Compile = by_inductor,
        capture: Capture = on_gpu,
    ) -> None:
        super().__init__(program, parameters, kernels, device=device)
        single = {**kernels, ours.write_slots.default: functional.write_slot_}
        self._embed_one = Executor(program.embed, single, self.device)
        self._wake_one = {name: Executor(each.wake, single, self.device) for name, each in program.classes.items()}
        self._progress, self._compile, self._capture = progress, compile, capture
        self._functions: dict[str, Callable[..., Any]] = {}  # by class and sizes

    def wake_tensors(
        self, state: State, tokens: Tensor, lengths: Tensor, logits: Logits
    ) -> tuple[Tensor | None, State]:
        """See `EagerSteps.wake_tensors`."""
        if tokens.shape[1] != 1 or logits == "all":
            out, new = super().wake_tensors(dict(state), tokens, lengths, logits)
            return out, _kept(state, new)
        held = state if isinstance(state, Held) else Held(state)
        asked = held.asked.get(logits) or self._record(held, len(tokens), logits)
        asked.tokens.copy_(tokens)
        asked.lengths.copy_(lengths)
        asked.recording.start()
        out = asked.recording.out
        return None if out is None else out.clone(), held

    def sleep(self, state: State, rows: BoolArray) -> State:
        """See `Steps.sleep`."""
        return _kept(state, super().sleep(dict(state), rows))

    def begin(self, state: State, tokens: Tensor, lengths: Tensor) -> tuple[dict[str, Any], State]:
        """See `EagerSteps.begin`: for one token nothing asks for a value of a tensor."""
        many, self._embed = self._embed, self._embed_one if tokens.shape[1] == 1 else self._embed
        try:
            return super().begin(state, tokens, lengths)
        finally:
            self._embed = many

    def wake_block(self, i: int, values: Mapping[str, Any], state: State) -> tuple[Tensor, State]:
        """See `EagerSteps.wake_block`."""
        if values["h"].shape[1] != 1:
            return super().wake_block(i, values, state)
        cls, parameters, names = self._blocks[i]
        graph = self.program.classes[cls].wake
        inputs = {**values, **parameters, **{local: state[full] for local, full in names.items()}}
        function = Function(self._wake_one[cls], inputs, {}, in_place(graph))
        key = f"{cls} {function.shapes()}"
        if key not in self._functions:
            self._functions[key] = self._compile(function)
        results = dict(zip(function.results, self._functions[key](*function.inputs), strict=True))
        h: Tensor = results.pop("h")
        written = {name: inputs[name] for name in function.in_place}
        return h, {names[local]: value for local, value in {**results, **written}.items()}

    def _record(self, held: Held, rows: int, logits: Logits) -> Captured:
        """Capture the step for this state, which stays as it was."""
        started, before = time.perf_counter(), {name: x.clone() for name, x in held.items()}
        tokens = torch.zeros(rows, 1, dtype=torch.int64, device=self.device)
        lengths = torch.ones(rows, dtype=torch.int64, device=self.device)

        def run() -> Tensor | None:
            out, new = super(CapturedSteps, self).wake_tensors(held, tokens, lengths, logits)
            held.take(new)
            return out

        with kept_in_cache():
            recording = self._capture(run)
        held.take(before)
        held.asked[logits] = Captured(recording, tokens, lengths)
        what = f"a token of a session of {rows}: captured, {len(self._functions)} compiled so far"
        self._progress(f"{what}, {time.perf_counter() - started:.1f} s", None)
        return held.asked[logits]


def _kept(state: State, new: State) -> State:
    """`new`, in the tensors of a state that is held."""
    if not isinstance(state, Held):
        return new
    state.take(new)
    return state
