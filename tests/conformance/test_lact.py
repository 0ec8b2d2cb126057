"""Rule `lact`: a SwiGLU memory that is written once a window (LaCT). Its checks are those of the notes on the paper:
gradients, order within a window, singular values, rates of 0, rows, causality; and what every rule has to hold.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import sleepc
from examples.nanogpt import GPT
from sleepc.backends.onnx.installed import missing_exporter
from sleepc.errors import UsageError
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.parameters import key_of, of_gate, of_learned
from sleepc.memory.registry import RULES, register
from sleepc.memory.rule import DECAY, States, Tokens
from sleepc.memory.rules import lact
from sleepc.ops import functional
from sleepc.recipe import Recipe
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken, with_parameters, without_memories
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.cli.models import run_here, save_model
from tests.conformance.backends import TRAINER, load, runs
from tests.families import VOCAB, WINDOW, family

RULE = RULES["lact"]
TOKENS = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
RECIPES: dict[str, dict[str, Any]] = {
    "parallel": {},
    "insert": {"strategy": "insert", "write": "sleep", "features": "dpfp1", "eviction": "hard"},
    "recurrent": {"consolidation": "recurrent", "passes": 2, "loop": "0:1"},
    "kept": {"keep": {"slots": 3, "score": "key", "budgets": "equal"}},
    "gradient": {"consolidation": "gradient", "gradient": {"lr": 2.0, "rank": 5}},
}


@cache
def converted(name: str, dtype: torch.dtype = torch.float64) -> tuple[ProgramGraphs, Recipe]:
    program, recipe = family("llama", dtype).convert(rule="lact", **RECIPES[name])
    return shaken(program), recipe


def bench(name: str, steps: Any, dtype: torch.dtype = torch.float64) -> Bench:
    canonical, (program, recipe) = family("llama", dtype).canonical, converted(name, dtype)
    return Bench(steps, Oracle(canonical, recipe, parameters_of(canonical, program)), make_streams(TOKENS, WINDOW))


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_what_its_reference_says(name: str) -> None:
    made = bench(name, load(converted(name)[0]))
    assert invariants.definition(made) < 1e-9
    assert invariants.chunking(made) < 1e-9
    assert invariants.padding(made) < 1e-9
    assert invariants.saving(made) == 0
    assert invariants.permuting(made) < 1e-9
    memories = [s for s in converted(name)[0].all_states() if s.role == "memory" and s.block == 0]
    assert [s.part for s in memories] == ["W0", "W1", "W2"]
    assert all(made.alone[0].state[s.name].any() for s in memories)


@pytest.mark.parametrize(
    ("style", "name"),
    [
        ("ort", "parallel"),
        ("portable", "recurrent"),
        pytest.param("ort", "insert", marks=pytest.mark.slow),
        pytest.param("mlir", "parallel", marks=pytest.mark.slow),
    ],
)
def test_in_an_export_it_is_what_its_oracle_says(style: str, name: str) -> None:
    """Five steps make 500 of what rounding leaves of singular values that are nearly 0: in float32 3e-5, in all."""
    subject = runs(style)
    made = bench(name, subject.load(converted(name, subject.dtype)[0]), subject.dtype)
    assert invariants.definition(made) < 3 * subject.tolerance
    assert invariants.padding(made) < 3 * subject.tolerance


# -- the rule alone


def drawn(
    rows: int = 2, heads: int = 3, count: int = 11, dk: int = 6, dv: int = 5
) -> tuple[dict[str, Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator, dtype=torch.float64)

    tokens = {"k": normal(heads, count, dk), "v": normal(heads, count, dv)}
    tokens |= {name: normal(heads, count).abs() for name in RULE.gates}
    learned = (torch.randn(*each.shape(heads, dk, dv), generator=generator).double() for each in RULE.learned.values())
    return tokens, [*(normal(*shape) for shape in RULE.shapes(heads, dk, dv).values()), *learned]


def test_gradients_are_those_of_the_inner_product() -> None:
    """Of sum_t eta_t <f(k_t), v_t> by each matrix, with its own rates, by central differences."""
    tokens, states = drawn()
    found = lact.gradients(tokens, states)
    for i, (rate, gradient) in enumerate(zip(RULE.gates, found, strict=True)):
        way = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)

        def inner(step: float, i: int = i, rate: str = rate, way: Tensor = way) -> Tensor:
            moved = [w + step * way if j == i else w for j, w in enumerate(states)]
            return (tokens[rate] * (RULE.naive_read(moved, tokens["k"]) * tokens["v"]).sum(-1)).sum()

        slope = (inner(1e-5) - inner(-1e-5)) / 2e-5
        assert torch.isclose(slope, (gradient * way).sum(), rtol=1e-7)


def test_the_order_of_tokens_in_a_window_does_not_matter() -> None:
    tokens, states = drawn()
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    other = {name: x[:, :, order] for name, x in tokens.items()}
    for one, two in zip(RULE.step(tokens, states), RULE.step(other, states), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (32, 64)])
def test_five_steps_bring_singular_values_near_1(shape: tuple[int, int]) -> None:
    """Whatever the gradient's size; and none stays none."""
    g = torch.randn(10, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for size in (1e-12, 1.0, 1e6):
        values = torch.linalg.svdvals(lact.orthogonal(size * g))
        assert values.min() > 0.6
        assert values.max() < 1.4
    assert not lact.orthogonal(torch.zeros(2, *shape)).any()


def test_rates_of_0_change_nothing_and_rows_keep_their_lengths() -> None:
    tokens, states = drawn()
    still = {name: x * 0 if name in RULE.gates else x for name, x in tokens.items()}
    assert all(map(torch.equal, RULE.step(still, states), states[:3]))
    written = lact.whole([*RULE.step(tokens, states), *states[3:]])
    for new, old in zip(written, lact.whole(states), strict=True):
        assert not torch.allclose(new, old)
        torch.testing.assert_close(new.norm(dim=-1), old.norm(dim=-1), rtol=1e-12, atol=0)


def test_a_window_that_writes_nothing_has_finite_slopes() -> None:
    """In float32, as a short row of a batch has them in training."""
    tokens, states = drawn()
    given = {name: (x * 0).float() for name, x in tokens.items()}
    leaves = [x.float().requires_grad_() for x in states]
    rates = given["eta0"].requires_grad_()
    new = RULE.step(given, leaves)
    found = torch.autograd.grad(torch.stack([x.square().sum() for x in new]).sum(), [*leaves, rates])
    assert all(x.isfinite().all() for x in found)


def test_it_is_not_written_token_by_token() -> None:
    (t, states), none = drawn(), torch.zeros(2, 3, 11)
    rates = [t[name] for name in RULE.gates]
    with pytest.raises(ValueError, match="writes a window at once"):
        functional.delta_rule(t["k"], t["k"], t["v"], none, none, states, rates, rule="lact", scale=1.0)


# -- in a program


def logits(program: ProgramGraphs, tokens: Any = TOKENS) -> Any:
    return Session(load(program)).feed([np.asarray(tokens).tolist()], logits="all")[0]


def test_rates_of_0_make_outputs_independent_of_earlier_windows() -> None:
    """With emptied windows, a window's logits are those after any other one."""
    program = shaken(family("llama").convert(rule="lact", eviction="hard", sinks=0)[0])
    biases = {key_of(i, of_gate(gate).bias) for i in range(3) for gate in RULE.gates.values()}
    weights = {key_of(i, of_gate(gate).weight) for i in range(3) for gate in RULE.gates.values()}
    quiet = {key: torch.full_like(program.params[key].materialise(), -1e4) for key in biases}
    quiet |= {key: torch.zeros_like(program.params[key].materialise()) for key in weights}
    other = np.concatenate([TOKENS[WINDOW : 2 * WINDOW], TOKENS[WINDOW:]])
    for each, same in ((with_parameters(program, quiet), True), (program, False)):
        assert np.allclose(logits(each)[WINDOW:], logits(each, other)[WINDOW:], rtol=0, atol=1e-12) is same


@pytest.mark.parametrize("at", [WINDOW - 1, WINDOW + 2])
def test_a_token_changes_the_memory_when_its_window_is_over(at: int) -> None:
    """And no output before it."""
    program, other = converted("parallel")[0], TOKENS.copy()
    other[at] = (other[at] + 1) % VOCAB
    one, two = logits(program), logits(program, other)
    assert np.array_equal(one[:at], two[:at])
    assert not np.allclose(one[at:], two[at:])
    over = (at // WINDOW + 1) * WINDOW
    for length, same in ((over - 1, True), (over, False)):
        found = []
        for tokens in (TOKENS, other):
            session = Session(load(program))
            session.feed([tokens[:length].tolist()])
            found.append(session.steps.to_named_arrays(session.snapshot().state)["2.W0"])
        assert np.array_equal(found[0], found[1]) is same


def test_training_reaches_what_memories_start_from_and_their_rates() -> None:
    """Through two sleeps, against finite differences."""
    program, ids = shaken(family("nanogpt").convert(rule="lact")[0]), torch.from_numpy(TOKENS)[None]
    values = {key: value.detach().clone() for key, value in materialise(program, "cpu").items()}
    keys = [key_of(0, of_learned(*each)) for each in RULE.learned.items()]
    keys += [key_of(0, getattr(of_gate(RULE.gates[g]), part)) for g, part in (("eta0", "weight"), ("eta1", "bias"))]

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
        ends = [loss({key: values[key] + step * way}).detach() for step in (1e-6, -1e-6)]
        slope = (gradient * way).sum()
        assert abs(slope) > 1e-7, key
        assert torch.isclose((ends[0] - ends[1]) / 2e-6, slope, rtol=1e-4), key


def test_a_new_memory_is_small_beside_attention() -> None:
    """An untrained conversion computes nearly what it computes without its memory, beyond the first sleep too."""
    program, _ = family("llama").convert(rule="lact")
    plain = logits(without_memories(program))
    assert np.array_equal(logits(program)[:WINDOW], plain[:WINDOW])
    assert 0 < np.abs(logits(program) - plain).max() < 0.05 * np.abs(plain).max()


def _raw(t: Tokens, state: States) -> list[Tensor]:
    return [added + g for added, g in zip(state, lact.gradients(t, state), strict=False)]


def _first_rate(t: Tokens, state: States) -> list[Tensor]:
    return RULE.step({**t, "eta2": t["eta0"]}, state)


@pytest.mark.parametrize("step", [_raw, _first_rate])
def test_a_wrong_step_is_found(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "lact", replace(RULE, step=step))
    assert invariants.definition(bench("parallel", load(converted("parallel")[0]))) > 1e-3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"write": "online"}, "writes a whole window at once"),
        ({"strategy": "insert"}, "insert with write sleep"),
        ({"strategy": "replace"}, "writes a whole window at once"),
        ({"passes": 2}, "does not correct"),
        ({"decay": "channel"}, "has no decay"),
        ({"consolidation": "hebbian"}, "a matrix from keys to values"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        family("llama").convert(**{"rule": "lact", **options})


def test_a_rule_by_window_has_no_time() -> None:
    with pytest.raises(UsageError, match="has no order"):
        register(replace(RULE, name="new", gates={**RULE.gates, "g": DECAY}))
    assert "new" not in RULES


@pytest.mark.slow
def test_a_new_model_is_trained_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From scratch, by a command; what memories start from moves."""
    torch.manual_seed(0)
    program = sleepc.convert(GPT(vocab=5, width=16, heads=2, blocks=2, context=16), {"window": 4, "rule": "lact"})
    artifact = program.save(tmp_path / "artifact")
    task = ("--task", "rule110", "--set", "width=4", "--set", "states=2", "--set", "steps=1")
    how = ("--scratch", "--steps", 2, "--batch", 8, "--device", "cpu", "-o", tmp_path / "trained")
    code, _, err = run_here(capsys, "train", artifact, *task, *how)
    assert code == 0, err
    trained, key = sleepc.load(tmp_path / "trained"), key_of(0, of_learned("start_1", RULE.learned["start_1"]))
    assert not torch.equal(trained.graphs.params[key].materialise(), program.graphs.params[key].materialise())


def test_from_a_checkpoint_to_a_checked_export(tmp_path: Path) -> None:
    if reason := missing_exporter():
        pytest.skip(reason)
    model = save_model(tmp_path / "model")
    program = sleepc.convert(model, {"window": 8, "sinks": 2, "rule": "lact"})
    program.save(tmp_path / "artifact")
    assert program.export().report["ok"]
    assert program.verify(against=model).ok
