"""What slots drop goes into fast weights: memory and slots together hold every pair once, against oracle and sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.registry import RULES
from sleepc.memory.rule import Gate, States, Tokens
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe, make_recipe
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.streams import state_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import load
from tests.families import VOCAB, WINDOW, family

LONG = 2 * 64 + 5  # more than the positions that the models have
UNEQUAL = [[0, 3], [2, 5], [3, 0]]
Made = tuple[ProgramGraphs, Recipe]


def convert(name: str, keep: Any, **options: Any) -> Made:
    recipe = make_recipe({"window": WINDOW, "sinks": 2, "keep": keep, **options})
    canonical = family(name).canonical
    return shaken(run_stages(canonical, rewrite_stages(recipe, len(canonical.layout)))), recipe


def bench(name: str, program: ProgramGraphs, made: Made) -> Bench:
    canonical = family(name).canonical
    oracle = Oracle(canonical, made[1], parameters_of(canonical, made[0]))
    return Bench(load(program), oracle, make_streams(np.random.default_rng(3).integers(0, VOCAB, 4 * WINDOW), WINDOW))


def state_after(program: ProgramGraphs, tokens: int) -> dict[str, Tensor]:
    session = Session(load(program))
    session.feed([np.random.default_rng(5).integers(0, VOCAB, tokens).tolist()])
    return {name: torch.as_tensor(value) for name, value in state_of(session).items()}


def _forget(t: Tokens, state: States) -> list[Tensor]:
    return [t["f"][..., None, None] * state[0] + t["k"][..., None] * (t["beta"][..., None] * t["v"])[..., None, :]]


def _forget_naive(t: Tokens, state: States) -> list[Tensor]:
    return [
        torch.einsum("...,...kv->...kv", t["f"], state[0])
        + torch.einsum("...,...k,...v->...kv", t["beta"], t["k"], t["v"])
    ]


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule whose gate of time is not called a decay."""
    gate = Gate("sigmoid", weight="w_f", bias="b_f", start=2.0, at_padding=1.0, again=False)
    gates = {"beta": RULES["linear"].gates["beta"], "f": gate}
    rule = replace(RULES["linear"], name="forgetful", gates=gates, chunk=None, affine=False)
    monkeypatch.setitem(RULES, "forgetful", replace(rule, step=_forget, naive=_forget_naive))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"rule": "titans", "strategy": "insert", "write": "sleep", "passes": 2}),
        ("llama", {"decay": "channel", "eviction": "sliding"}),
        ("llama", {"rule": "forgetful"}),
    ],
)
def test_memories_are_what_their_oracle_says(name: str, options: dict[str, Any], forgetful: None) -> None:
    made = convert(name, {"budgets": UNEQUAL}, **options)
    subject = bench(name, made[0], made)
    assert invariants.definition(subject) < 1e-9
    assert invariants.padding(subject) < 1e-9


def test_slots_that_are_emptied_at_the_last_position_are_written_too() -> None:
    made = convert("gpt2", {"slots": 2}, passes=2)
    subject = bench("gpt2", made[0], made)
    tokens = np.random.default_rng(4).integers(0, VOCAB, LONG)
    subject.streams = (replace(subject.streams[0], tokens=tokens, cuts=tuple(range(WINDOW, LONG, WINDOW))),) * 3
    assert invariants.definition(subject) < 1e-9


@pytest.mark.parametrize(("name", "budgets"), [("llama", UNEQUAL), ("gpt2", [[1, 0, 9, 2]] * 3)])
def test_nothing_is_lost_and_nothing_is_written_twice(name: str, budgets: Any) -> None:
    """What a rule that only adds has written, and what slots still hold, are all pairs. The first block's are the same
    with slots and without.
    """
    (kept, _), (plain, _) = (convert(name, keep, rule="linear") for keep in ({"budgets": budgets}, None))
    state, every = state_after(kept, LONG), state_after(plain, LONG)["0.S"]
    k, v, beta = (state[f"0.kept.{part}"] for part in ("record.k", "v", "record.beta"))
    owner = torch.repeat_interleave(torch.arange(len(budgets[0])), torch.tensor(budgets[0]))
    held = torch.zeros_like(every)
    for slot, head in enumerate(owner.tolist()):
        held[0, head] += beta[0, slot] * torch.outer(k[0, slot], v[0, slot])
    assert held.abs().max() > 0.01
    torch.testing.assert_close(state["0.S"] + held, every, rtol=0, atol=1e-9)


def test_heads_without_slots_write_as_without_keep_and_heads_that_keep_all_write_nothing() -> None:
    (kept, _), (plain, _) = (convert("llama", keep, sinks=0) for keep in ({"budgets": [[0, 40], [0, 0], [0, 0]]}, None))
    state, without = state_after(kept, 4 * WINDOW + 3), state_after(plain, 4 * WINDOW + 3)
    assert torch.equal(state["0.S"][:, 0], without["0.S"][:, 0])
    assert without["0.S"][:, 1].any()
    assert not state["0.S"][:, 1].any()


@pytest.mark.parametrize("options", [{"write": "online"}, {"write": "online", "passes": 2}])
def test_memories_written_online_are_written_as_before(options: dict[str, Any]) -> None:
    (kept, _), (plain, _) = (convert("llama", keep, **options) for keep in ({"slots": 3}, None))
    assert torch.equal(state_after(kept, 3 * WINDOW)["0.S"], state_after(plain, 3 * WINDOW)["0.S"])
    assert not [spec.name for spec in kept.all_states() if "kept.record" in spec.name]


def _replays(program: ProgramGraphs) -> list[tuple[Emit, fx.Node]]:
    sleeps = [cls.sleep for cls in program.classes.values() if cls.sleep]
    nodes = [(graph, n) for graph in sleeps for n in graph.calls() if is_call(n, torch.ops.sleepc.replay.default)]
    return [(Emit(graph, "fault", node), node) for graph, node in nodes]


def _argument(program: ProgramGraphs, at: int, change: Callable[[Emit, Any], fx.Node]) -> None:
    for e, node in _replays(program):
        node.args = (*node.args[:at], change(e, node.args[at]), *node.args[at + 1 :])


def _no_decay(program: ProgramGraphs) -> None:
    """The window's decay is left out."""
    _argument(program, 2, lambda e, g: e.call(aten.zeros_like.default, g))


def _gates_of_the_window(program: ProgramGraphs) -> None:
    """Pairs are written as strongly as the window's tokens."""
    _argument(program, 3, lambda e, _: e.graph.ports()["record.beta"])


def _backwards(program: ProgramGraphs) -> None:
    """Dropped pairs are written newest first."""
    for cls in program.classes.values():
        assert cls.sleep is not None
        places = [n for n in cls.sleep.calls() if is_call(n, aten.index_select.default)][-1].args[2]
        assert isinstance(places, fx.Node)
        places.args = (Emit(cls.sleep, "fault", places).call(aten.flip.default, places.args[0], [1]), places.args[1])


def _whole_window(program: ProgramGraphs) -> None:
    """Kept pairs are written too."""
    for e, node in _replays(program):
        ports = e.graph.ports()
        node.args = (ports["record.k"], node.args[1], node.args[2], ports["record.beta"], *node.args[4:])


def _forgotten(program: ProgramGraphs) -> None:
    """Slots do not keep how strongly their pairs are to be written."""
    for cls in program.classes.values():
        assert cls.sleep is not None
        results = cls.sleep.results()
        beta = Emit(cls.sleep, "fault").call(aten.zeros_like.default, results["kept.record.beta"])
        cls.sleep.set_returns({**results, "kept.record.beta": beta})


@pytest.mark.parametrize("fault", [_no_decay, _gates_of_the_window, _backwards, _whole_window, _forgotten])
def test_a_fault_is_found(fault: Callable[[ProgramGraphs], None]) -> None:
    program, recipe = convert("llama", {"slots": 3})
    wrong = program.clone()
    fault(wrong)
    assert invariants.definition(bench("llama", wrong, (program, recipe))) > 1e-4
