"""Captured steps without a GPU: what is captured runs in Triton's interpreter each time it is started. That shows what
is traced, that eager's numbers come out, and that no tensor of a graph leaves its session; not that a GPU captures it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

import sleepc
from examples.nanogpt import GPT
from sleepc.api import Program
from sleepc.backends.eager.native import Function
from sleepc.backends.triton.backend import BACKEND, fused
from sleepc.backends.triton.captured import CapturedSteps, Held, Recording, Run, one_graph
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.session import Session
from sleepc.verify.memory_values import shaken
from tests.conformance import test_kept_pairs as kept
from tests.conformance.test_invariants import hold_invariants

VOCAB, WINDOW = 31, 8
Steps = tuple[CapturedSteps, list[torch.fx.GraphModule], list[str]]


def convert(**recipe: Any) -> Program:
    torch.manual_seed(0)
    made = sleepc.convert(
        GPT(vocab=VOCAB, width=16, heads=1, blocks=2, context=64), {"window": WINDOW, "sinks": 2, **recipe}
    )
    made.graphs = shaken(made.graphs)
    return made


@pytest.fixture(scope="module")
def program() -> Program:
    """With windows, memories, records and kept pairs."""
    return convert(write="sleep", passes=2, keep=3)


def again(run: Run) -> Recording:
    """A capture that computes anew, into the same place, each time it is started."""
    run()
    out = run()

    def start() -> None:
        made = run()
        if out is not None and made is not None:
            out.copy_(made)

    return Recording(start, out)


def captured(program: ProgramGraphs) -> Steps:
    """Steps, the graphs that were traced for them, and what was said."""
    graphs: list[torch.fx.GraphModule] = []
    said: list[str] = []

    def traced(function: Function) -> Callable[..., Any]:
        graphs.append(one_graph(function))
        return graphs[-1]

    program = fused(program)
    parameters, kernels = materialise(program, "cpu"), BACKEND.kernels(train=False)
    options: dict[str, Any] = {"device": "cpu", "compile": traced, "capture": again}
    tell = lambda what, share: said.append(what)  # noqa: E731
    return CapturedSteps(program, parameters, kernels, tell, **options), graphs, said


def test_a_session_equals_eager(program: Program) -> None:
    """Two rows on their own clocks, across sleeps; a row now and then reads nothing."""
    steps, graphs, said = captured(program.graphs)
    sessions = [Session(program.steps(), 2), Session(steps, 2)]
    for session in sessions:
        session.feed([list(range(1, 6)), list(range(3, 7))])
    for step in range(WINDOW + 3):
        want, got = (session.feed([[step], [step + 5] if step % 3 else []]) for session in sessions)
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    states = [session.steps.to_named_arrays(session.snapshot().state) for session in sessions]
    for name, value in states[0].items():
        assert np.abs(states[1][name].astype(float) - value).max() <= 1e-5 * max(1, np.abs(value).max()), name
    assert len(graphs) == len(program.graphs.classes)
    assert [line.rsplit(",", 1)[0] for line in said] == [
        f"a token of a session of 2: captured, {len(graphs)} compiled so far"
    ]


@pytest.mark.parametrize(("write", "name"), [("sleep", "recall"), ("online", "step")])
def test_one_graph_with_the_memory_s_kernel_in_it(write: str, name: str) -> None:
    """No break: an export has one graph. The kernel is one call in it, and nothing asks for a tensor's value."""
    program = convert(write=write)
    eager, (steps, graphs, _) = program.steps(), captured(program.graphs)
    want, got = (Session(each).feed([[3]]) for each in (eager, steps))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    for module in graphs:
        targets = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        assert targets.count(f"sleepc_triton.{name}.default") == 1
        assert not [each for each in targets if "scalar_dense" in each or "nonzero" in each or ".item" in each]


def test_compiled_code_takes_what_is_traced(program: Program) -> None:
    """As torch.compile prepares it, without a compiler behind."""
    steps, graphs, _ = captured(program.graphs)
    inputs: list[Any] = []
    compile_ = steps._compile
    steps._compile = lambda function: (inputs.append(function.inputs), compile_(function))[1]  # type: ignore[func-returns-value]
    Session(steps, 1).feed([[3]])
    with torch.no_grad():
        explained = torch._dynamo.explain(graphs[0])(*(x.clone() for x in inputs[0]))
        want = graphs[0](*(x.clone() for x in inputs[0]))
        got = torch.compile(graphs[0], backend="aot_eager", fullgraph=True, dynamic=False)(
            *(x.clone() for x in inputs[0])
        )
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def _places(state: dict[str, torch.Tensor]) -> set[int]:
    return {x.untyped_storage().data_ptr() for x in state.values()}


def test_no_tensor_of_a_graph_leaves_its_session(program: Program) -> None:
    """Sessions of the same steps do not see each other; snapshots and copies hold what they held."""
    steps, _, said = captured(program.graphs)
    one, other = Session(steps, 1), Session(steps, 1)
    one.feed([[1, 2, 3]])
    one.feed([[4]])
    other.feed([[9]])
    held = one._state
    assert isinstance(held, Held)
    places = _places(held)
    assert not places & _places(other._state)
    saved, copy = one.snapshot(), one.select_rows([0])
    assert not places & (_places(saved.state) | _places(copy._state))
    wanted = [one.feed([[token]]) for token in range(5, 5 + WINDOW)]  # across a sleep
    assert one._state is held
    assert _places(held) == places  # where the graph reads and writes
    other.feed([[8]])
    for session in (one, copy):
        if session is one:
            session.restore(saved)
        got = [session.feed([[token]]) for token in range(5, 5 + WINDOW)]
        np.testing.assert_array_equal(got, wanted)
    assert len(said) == 4  # a capture for each state: one, other, what was restored, the copy


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("options", [{"write": "sleep", "passes": 2}, {"write": "online"}], ids=str)
def test_every_invariant_of_captured_steps(options: dict[str, Any]) -> None:
    """In float32, of which only the second of three layers has a memory."""
    made = kept.convert("llama", torch.float32, keep={"slots": 2, "score": "probe"}, layers="1", **options)
    hold_invariants(kept.bench("llama", captured(made[0])[0], made), 2e-5)
