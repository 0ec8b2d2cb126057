"""The backend with these kernels, in Triton's interpreter on one tiny model, with what a sleep keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

import sleepc
from examples.nanogpt import GPT
from sleepc.api import Program
from sleepc.backends import table
from sleepc.backends.triton import delta_rule as kernels
from sleepc.backends.triton import launch
from sleepc.backends.triton.backend import BACKEND
from sleepc.backends.triton.choices import Problem
from sleepc.errors import SleepcWarning, UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Array, FloatArray
from sleepc.verify.memory_values import shaken
from tests.hybrids import Hybrid

VOCAB, WINDOW = 31, 8


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The kernels that were started."""
    names: set[str] = set()
    start = launch.start

    def counting(kernel: Any, *arguments: Any) -> None:
        names.add(kernel.fn.__name__)
        start(kernel, *arguments)

    monkeypatch.setattr(launch, "start", counting)
    return names


def read_by(program: Program, backend: str) -> tuple[FloatArray, dict[str, Array]]:
    """Logits and state of two rows that sleep on their own clocks, of ten tokens."""
    steps = program.steps(backend=backend)
    session = Session(steps, 2)
    logits = [session.feed([[n % 10 for n in range(1, 12)], [n % 10 for n in range(3, 16)]])]
    logits += [session.feed([[step], [step + 5]]) for step in range(WINDOW // 2)]
    return np.stack(logits), steps.to_named_arrays(session.snapshot().state)


AROUND = {"masked_l2norm", "gates", "mixed"}


@pytest.mark.parametrize(
    ("write", "used"), [("online", {"step", "carry", "read", *AROUND}), ("sleep", {"recall", "replay", *AROUND})]
)
def test_a_session_equals_eager(started: set[str], write: str, used: set[str]) -> None:
    """Logits and states, with kept pairs, across sleeps."""
    torch.manual_seed(0)
    recipe = {"window": WINDOW, "sinks": 2, "passes": 3, "write": write, "keep": 3}
    program = sleepc.convert(GPT(vocab=VOCAB, width=16, heads=2, blocks=1, context=64), recipe)
    program.graphs = shaken(program.graphs)
    (want, states), (got, others) = (read_by(program, backend) for backend in ("eager", "triton"))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    assert states.keys() == others.keys()
    for name, value in states.items():
        assert np.abs(others[name].astype(float) - value).max() <= 1e-5 * max(1, np.abs(value).max()), name
    assert used <= started


def test_a_mixer_in_attentions_place_equals_eager(started: set[str]) -> None:
    """Its output norm by a kernel, which a program that trains does not see."""
    torch.manual_seed(0)
    recipe = {"window": WINDOW, "sinks": 2, "strategy": "replace", "rule": "delta"}
    program = sleepc.convert(GPT(vocab=VOCAB, width=16, heads=2, blocks=1, context=64), recipe)
    program.graphs = shaken(program.graphs)
    logits = []
    for backend in ("eager", "triton"):
        session = program.session(batch=2, backend=backend)
        logits += [session.feed([[1, 2, 3], [4]]), session.feed([[5], [6]])]
    for want, got in zip(logits[:2], logits[2:], strict=True):
        assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    assert {"masked_l2norm", "gates", "gated_norm", "convolve"} <= started
    assert BACKEND.steps_on(program.graphs, materialise(program.graphs, "cpu"), train=True).program is program.graphs


def test_a_narrow_program_computes_as_eager_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16, across a sleep; what chunks multiply is bfloat16, and the memory is float32."""
    given: set[tuple[str, torch.dtype]] = set()
    start = launch.start

    def noting(kernel: Any, it: Problem, blocks: int, *arguments: Any) -> None:
        given.update((kernel.fn.__name__, x.dtype) for x in arguments[:1])
        start(kernel, it, blocks, *arguments)

    monkeypatch.setattr(launch, "start", noting)
    torch.manual_seed(0)
    recipe = {"window": WINDOW, "sinks": 2, "write": "online", "dtype": "bfloat16", "passes": 2}
    program = sleepc.convert(GPT(vocab=VOCAB, width=16, heads=1, blocks=1, context=64), recipe)
    program.graphs = shaken(program.graphs)
    logits, states = [], []
    for backend in ("eager", "triton"):
        steps = program.steps(backend=backend)
        session = Session(steps, 1)
        session.feed([list(range(1, 11))])
        logits.append(session.feed([[5]]))
        states.append(steps.to_named_arrays(session.snapshot().state)["0.S"])
    assert np.abs(logits[1] - logits[0]).max() < 0.05 * np.abs(logits[0]).max()
    assert np.abs(states[1] - states[0]).max() < 0.02 * np.abs(states[0]).max()
    assert {("carry", torch.bfloat16), ("replay", torch.bfloat16), ("step", torch.float32)} <= given


def test_a_hybrid_equals_eager(started: set[str]) -> None:
    """What a model's own layers carry, with passes over it that run blocks again."""
    torch.manual_seed(0)
    recipe = {"window": WINDOW, "sinks": 2, "consolidation": "recurrent", "passes": 2}
    with pytest.warns(SleepcWarning, match="passes"):
        program = sleepc.convert(Hybrid(), recipe)
    program.graphs = shaken(program.graphs)
    (want, states), (got, others) = (read_by(program, backend) for backend in ("eager", "triton"))
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    assert {"0.own.0", "0.tail.0"} <= states.keys() == others.keys()
    for name, value in states.items():
        assert np.abs(others[name].astype(float) - value).max() <= 1e-5 * max(1, np.abs(value).max()), name
    assert {"step", "carry", "read"} <= started


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UsageError, match="the backend triton runs on a GPU"):
        BACKEND.check_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no CUDA device"):
        BACKEND.check_device("cuda")


def test_it_trains_and_captures_on_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table.find_trainer("triton") is BACKEND
    with pytest.raises(UsageError, match="a step is captured on a GPU only"):
        BACKEND.compiled_steps(ProgramGraphs(Graph("embed"), Graph("head")))


def test_the_kernels_are_those_of_this_folder() -> None:
    made = BACKEND.kernels(train=False)
    for name in ("delta_rule", "delta_rule_read", "replay"):
        made_of: Any = made[getattr(torch.ops.sleepc, name).default]
        assert made_of.func is getattr(kernels, name)
