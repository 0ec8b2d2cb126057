"""Consolidation `in_place`: sleeps write MLPs (In-Place TTT). Its checks are those of the notes on the paper: unchanged
at first, windows one by one as their prefix sums, causal, rows apart; and what every consolidation has to hold.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, cross_entropy

from sleepc.errors import UsageError
from sleepc.inspection import inspect_program
from sleepc.ir.interp import run
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.parameters import TARGET, TARGET_TAPS, key_of
from sleepc.passes.consolidation import add_fast_down
from sleepc.recipe import Recipe, make_recipe
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken, without_memories
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import TRAINER, load, runs
from tests.families import VOCAB, WINDOW, family

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"passes": 2}),
    "every-block": ("llama", {"mlps": "all", "eviction": "hard", "strategy": "insert", "sinks": 0}),
    "flipped": ("gpt2", {"mlps": "1-2", "strategy": "replace", "layers": "1"}),
    "kept": ("llama", {"mlps": "2", "keep": {"slots": 3, "score": "key", "budgets": "equal"}}),
    "hybrid": ("qwen3-5", {"mlps": "0,1"}),
    "plain": ("nanogpt", {"mlps": "0"}),  # whose norms are float64
}


@cache
def converted(name: str, dtype: torch.dtype = torch.float64) -> tuple[ProgramGraphs, Recipe]:
    model, options = FAMILIES[name]
    return family(model, dtype).convert(consolidation="in_place", **options)


@cache
def seen(name: str, dtype: torch.dtype = torch.float64) -> ProgramGraphs:
    return shaken(converted(name, dtype)[0])


def bench(name: str, steps: Steps, dtype: torch.dtype = torch.float64) -> Bench:
    canonical = family(FAMILIES[name][0], dtype).canonical
    oracle = Oracle(canonical, converted(name, dtype)[1], parameters_of(canonical, seen(name, dtype)))
    return Bench(steps, oracle, make_streams(TOKENS, WINDOW))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("hybrid", "plain") else []) for n in FAMILIES]
)
def test_it_is_what_its_oracle_says(name: str) -> None:
    made = bench(name, load(seen(name)))
    small = 1e-5 if name == "hybrid" else 1e-9  # whose own convolutions and norms are float32
    assert invariants.definition(made) < small
    assert invariants.chunking(made) < small
    assert invariants.padding(made) < small
    assert invariants.saving(made) == 0
    assert invariants.permuting(made) < small
    written = [s.name for s in seen(name).all_states() if s.role == "fast"]
    assert written
    assert all(made.alone[0].state[each].any() for each in written)


@pytest.mark.parametrize(
    ("style", "name"),
    [("ort", "llama"), ("portable", "flipped"), pytest.param("mlir", "llama", marks=pytest.mark.slow)],
)
def test_in_an_export_it_is_what_its_oracle_says(style: str, name: str) -> None:
    subject = runs(style)
    made = bench(name, subject.load(seen(name, subject.dtype)), subject.dtype)
    assert invariants.definition(made) < subject.tolerance
    assert invariants.padding(made) < subject.tolerance


def _other_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_fast_down, "RATE", 2.9)


def _other_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_fast_down, "TAPS_AROUND", 3)


@pytest.mark.parametrize("fault", [_other_rate, _other_taps])
def test_another_update_is_found(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(monkeypatch)
    program = shaken(family("llama").convert(consolidation="in_place", passes=2)[0])
    assert invariants.definition(bench("llama", load(program))) > 1e-4


def logits(program: ProgramGraphs, tokens: Any = TOKENS) -> Any:
    return Session(load(program)).feed([np.asarray(tokens).tolist()], logits="all")[0]


def test_a_conversion_changes_nothing_until_it_is_trained() -> None:
    """To the bit, beyond the first sleep too; and neither do silenced ones, whatever W_target is."""
    plain, _ = family("llama").convert(passes=2)
    assert np.array_equal(logits(converted("llama")[0]), logits(plain))
    assert np.array_equal(logits(without_memories(seen("llama"))), logits(without_memories(plain)))
    assert not np.allclose(logits(seen("llama")), logits(shaken(plain)))


def test_windows_one_by_one_are_their_prefix_sums() -> None:
    """D after n windows is the sum of 3 Zᵀ V; what windows read is chunk-wise linear attention with q = k = z."""
    program, windows = seen("llama"), 4
    cls = program.classes[program.layout[0].cls]
    assert cls.sleep is not None
    generator = torch.Generator().manual_seed(5)
    z, x = (torch.randn(2, windows, WINDOW, n, generator=generator, dtype=torch.float64) for n in (48, 32))
    taps, target = (program.params[key_of(0, p)].materialise() for p in (TARGET_TAPS, TARGET))
    mixed = conv1d(x.flatten(0, 1).mT, taps[:, None], padding=2, groups=32).mT.reshape(x.shape)
    v = mixed @ target.T
    parameters = {port: program.params[key].materialise() for port, key in program.layout[0].params.items()}
    given = {s.name: s.first(2) for s in cls.states} | parameters
    given |= {name: _none(node.meta["type"]) for name, node in cls.sleep.ports("input").items()}
    read, sums = [], torch.einsum("bnlf,bnlo->bnfo", z, v).cumsum(1)
    for n in range(windows):
        read.append(z[:, n] @ given["fast.down"])
        given |= {"record.z": z[:, n, None], "record.x": x[:, n, None]}
        given["fast.down"] = run(cls.sleep, given)["fast.down"]
        assert torch.allclose(given["fast.down"], 3 * sums[:, n], rtol=1e-12, atol=1e-12)
    earlier = torch.arange(windows).repeat_interleave(WINDOW)
    sees = (earlier[:, None] > earlier[None]).double()
    attended = 3 * (z.flatten(1, 2) @ z.flatten(1, 2).mT * sees) @ v.flatten(1, 2)
    assert torch.allclose(torch.cat(read, 1), attended, rtol=1e-10, atol=1e-10)


def _none(type_: Any) -> Tensor:
    return torch.zeros([2 if dim == "B" else int(dim) for dim in type_.dims], dtype=type_.dtype)


@pytest.mark.parametrize("at", [WINDOW - 1, WINDOW])
def test_no_token_is_seen_before_it_is_read(at: int) -> None:
    """The convolution looks two tokens ahead, within a window that is over."""
    other = TOKENS.copy()
    other[at] = (other[at] + 1) % VOCAB
    one, two = logits(seen("llama")), logits(seen("llama"), other)
    assert np.array_equal(one[:at], two[:at])
    assert not np.allclose(one[at:], two[at:])


def test_a_document_begins_with_nothing_of_the_one_before() -> None:
    """One session that is put back between two documents reads the second as a session of its own does."""
    first, second = TOKENS.tolist(), TOKENS[::-1].tolist()
    session = Session(load(seen("llama")))
    begun = session.snapshot()
    session.feed([first])
    session.restore(begun)
    put_back = session.feed([second], logits="all")[0]
    assert np.array_equal(put_back, logits(seen("llama"), second))
    both = logits(seen("llama"), first + second)[len(first) :]
    assert not np.allclose(put_back, both)


def test_training_reaches_targets_through_sleeps() -> None:
    """The gradient of a later window's loss, against finite differences."""
    program, ids = seen("plain"), torch.from_numpy(TOKENS)[None]
    values = {key: value.detach().clone() for key, value in materialise(program, "cpu").items()}
    keys = [key_of(0, TARGET_TAPS), key_of(0, TARGET)]

    def loss(own: dict[str, Tensor]) -> Tensor:
        steps = TRAINER.steps_on(program, values | own, train=True)
        state = steps.new_state(1)
        for start in (0, WINDOW):
            window = ids[:, start : start + WINDOW]
            _, state = steps.wake_tensors(state, window, torch.tensor([WINDOW]), "none")
            state = steps.sleep_tensors(state)
        last, _ = steps.wake_tensors(state, ids[:, 2 * WINDOW :], torch.tensor([3]), "all")
        assert last is not None
        return cross_entropy(last[0, :-1], ids[0, 2 * WINDOW + 1 :])

    leaves = {key: values[key].clone().requires_grad_() for key in keys}
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
    for key, gradient in zip(keys, gradients, strict=True):
        way = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ends = [loss({key: values[key] + step * way}).detach() for step in (1e-5, -1e-5)]
        slope = (gradient * way).sum()
        assert abs(slope) > 1e-6
        assert torch.isclose((ends[0] - ends[1]) / 2e-5, slope, rtol=1e-5)


def test_what_it_costs_is_said() -> None:
    program, recipe = converted("llama")
    plain, _ = family("llama").convert(passes=2)
    added, record = 48 * 32, WINDOW * (48 + 32)
    assert program.state_bytes() - plain.state_bytes() == 8 * (added + record)
    words = inspect_program(family("llama").canonical, program, recipe).sleep
    assert "2 passes of replay, and the MLPs of blocks 0 are written" in words


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("llama", {"consolidation": "replay", "mlps": "0"}, "consolidation replay writes no MLPs"),
        ("llama", {"mlps": "3"}, "layer 3 does not exist"),
        ("llama", {"mlps": "no"}, "cannot read layers 'no'"),
        ("llama", {"passes": 2, "rule": "linear"}, "rule linear does not correct"),
    ],
)
def test_what_does_not_fit_is_refused(model: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        family(model).convert(**{"consolidation": "in_place", **options})


def test_layers_as_a_number_get_a_hint() -> None:
    with pytest.raises(UsageError, match="mlps"):
        make_recipe({"mlps": 3})
