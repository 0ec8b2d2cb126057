"""Consolidation `gradient`: sleeps take steps of gradient descent on MLPs. Its checks are those of the notes on
test-time training: nothing at rate 0, steps no longer than the rate, rows apart, training through them, and what
every consolidation has to hold.
"""

from __future__ import annotations

import math
import warnings
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
from sleepc.artifact import About, load_artifact, save_artifact
from sleepc.backends.onnx.target import OnnxTarget, Options
from sleepc.errors import SleepcWarning, UsageError
from sleepc.inspection import inspect_program
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import DRAWN, SKIPPED
from sleepc.manifest import Source
from sleepc.ops import functional
from sleepc.passes.adapt.add_low_rank import AddLowRank, low_rank_keys
from sleepc.passes.adapt.merge_low_rank import MergeLowRank
from sleepc.passes.base import Stage
from sleepc.passes.consolidation.drawn import draw, naive_draw
from sleepc.passes.runner import run_stages
from sleepc.recipe import Gradient, Recipe
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken, with_parameters, without_memories
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import TRAINER, load, runs
from tests.families import VOCAB, WINDOW, family

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
FAST: dict[str, Any] = {"lr": 2.0, "rank": 5}  # so that a step is seen
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"gradient": FAST, "passes": 2}),
    "steps": ("llama", {"gradient": {**FAST, "steps": 3, "clip": 0.05}, "mlps": "1-2", "eviction": "hard"}),
    "whole": ("llama-tied", {"gradient": {"lr": 1.0, "rank": 0}, "mlps": "1", "sinks": 0}),
    "every-block": ("llama", {"gradient": {**FAST, "weights": "down"}, "mlps": "all"}),
    "insert": ("llama", {"gradient": FAST, "strategy": "insert", "write": "sleep"}),
    "flipped": ("gpt2", {"gradient": FAST, "mlps": "1-2"}),  # positions of tokens, layer norms
    "kept": ("llama", {"gradient": FAST, "keep": {"slots": 3, "score": "key", "budgets": "equal"}}),
    "capped": ("gemma2", {"gradient": FAST, "own_windows": "leave"}),
    "hybrid": ("qwen3-5", {"gradient": FAST, "mlps": "1"}),
    "plain": ("nanogpt", {"gradient": FAST}),  # whose norms are float64
    "late": ("llama", {"gradient": {**FAST, "loss": "late", "weights": "down"}}),
    "span": ("llama", {"gradient": {**FAST, "loss": "span", "span": 3, "steps": 2, "weights": "down"}}),
    "prime": (
        "llama",
        {"gradient": {**FAST, "weights": "prime"}, "mlps": "1-2", "strategy": "insert", "write": "sleep"},
    ),
    "query": ("qwen3", {"gradient": {**FAST, "weights": "query"}, "mlps": "1-2"}),  # behind norms of q and k
    "query-kept": ("llama", {"gradient": {**FAST, "weights": "query"}, "keep": {"slots": 3, "budgets": "equal"}}),
}
SLOW = ("hybrid", "plain", "capped", "insert", "kept", "whole", "query-kept")


@cache
def converted(name: str, dtype: torch.dtype = torch.float64) -> tuple[ProgramGraphs, Recipe]:
    model, options = FAMILIES[name]
    return family(model, dtype).convert(consolidation="gradient", **options)


@cache
def seen(name: str, dtype: torch.dtype = torch.float64) -> ProgramGraphs:
    return shaken(converted(name, dtype)[0])


def bench(name: str, steps: Steps, dtype: torch.dtype = torch.float64) -> Bench:
    canonical = family(FAMILIES[name][0], dtype).canonical
    oracle = Oracle(canonical, converted(name, dtype)[1], parameters_of(canonical, seen(name, dtype)))
    return Bench(steps, oracle, make_streams(TOKENS, WINDOW))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else []) for n in FAMILIES])
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
    [
        ("ort", "llama"),
        pytest.param("portable", "steps", marks=pytest.mark.slow),
        pytest.param("ort", "flipped", marks=pytest.mark.slow),
        pytest.param("portable", "span", marks=pytest.mark.slow),
        pytest.param("ort", "prime", marks=pytest.mark.slow),
        pytest.param("mlir", "llama", marks=pytest.mark.slow),
    ],
)
def test_in_an_export_it_is_what_its_oracle_says(style: str, name: str) -> None:
    subject = runs(style)
    made = bench(name, subject.load(seen(name, subject.dtype)), subject.dtype)
    assert invariants.definition(made) < subject.tolerance
    assert invariants.padding(made) < subject.tolerance


@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_an_export_whose_weights_are_rounded_is_refused(precision: str) -> None:
    target = OnnxTarget()
    with pytest.raises(UsageError, match="there in float32"):
        target.lowering(converted("llama", torch.float32)[0], Options(precision=precision))


def _slept(program: ProgramGraphs, tokens: Any = TOKENS[:WINDOW], rows: int = 1) -> dict[str, Tensor]:
    """The state after one window of these tokens, the same in every row, and its sleep."""
    steps = TRAINER.steps_on(program, materialise(program, "cpu"), train=True)
    ids = torch.from_numpy(np.asarray(tokens)).expand(rows, -1)
    with torch.no_grad():
        _, state = steps.wake_tensors(steps.new_state(rows), ids, torch.tensor([ids.shape[1]] * rows), "none")
        return steps.sleep_tensors(state)


def _learned(state: dict[str, Tensor]) -> Tensor:
    """All that row 0 has learned, as one vector."""
    return torch.cat([x[0].flatten() for name, x in sorted(state.items()) if ".fast." in name])


def logits(program: ProgramGraphs, tokens: Any = TOKENS) -> Any:
    return Session(load(program)).feed([np.asarray(tokens).tolist()], logits="all")[0]


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"steps": 0}], ids=["rate", "steps"])
def test_without_steps_or_rate_it_is_replay(options: dict[str, Any]) -> None:
    """To the bit, beyond sleeps too, with the same new parameters; and so are silenced ones, whatever is learned."""
    program, _ = family("llama").convert(consolidation="gradient", passes=2, gradient={**FAST, **options})
    plain, _ = family("llama").convert(passes=2)
    assert np.array_equal(logits(program), logits(plain))
    assert not np.allclose(logits(converted("llama")[0]), logits(plain))
    assert np.array_equal(logits(without_memories(seen("llama"))), logits(without_memories(plain)))


def test_the_first_step_is_down_the_loss_by_finite_differences() -> None:
    """Of the mean surprise at the window's next tokens, read by the original model with the map's weight changed: what
    the state beside it stands for.
    """
    name = "blocks.2.mlp.2.weight"
    program, _ = family("nanogpt").convert(
        consolidation="gradient", gradient={"lr": 1.0, "clip": 1e6, "rank": 0, "weights": "down"}
    )
    found = -_slept(program)["2.fast.down"][0]  # [in,out]
    ids = torch.from_numpy(TOKENS[:WINDOW])

    def loss(change: Tensor) -> float:
        values = {key: value.detach().clone() for key, value in materialise(program, "cpu").items()}
        values[name] = values[name] + change.T
        steps = TRAINER.steps_on(program, values)
        out, _ = steps.wake_tensors(steps.new_state(1), ids[None], torch.tensor([WINDOW]), "all")
        assert out is not None
        return float(cross_entropy(out[0, :-1], ids[1:]))

    for seed in range(3):
        way = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = (loss(1e-5 * way) - loss(-1e-5 * way)) / 2e-5
        assert abs(slope) > 1e-3
        assert np.isclose(slope, float((found * way).sum()), rtol=1e-6)


def test_a_stretch_of_the_whole_window_is_all_of_it_and_others_differ() -> None:
    """And each step and sleep has another one."""

    def slept(**options: Any) -> Tensor:
        program, _ = family("llama").convert(consolidation="gradient", gradient={**FAST, **options}, mlps="2")
        return _learned(_slept(program))

    whole = slept()
    assert torch.equal(slept(loss="span", span=WINDOW), whole)
    assert not torch.allclose(slept(loss="span", span=3), whole)
    assert not torch.allclose(slept(loss="late"), whole)
    starts = [naive_draw(n) % (WINDOW - 3) for n in range(200)]
    assert starts == (draw(torch.arange(200)) % (WINDOW - 3)).tolist()
    assert {starts.count(n) > 20 for n in range(WINDOW - 3)} == {True}


def test_how_often_stretches_were_drawn_is_counted_over_sleeps() -> None:
    session = Session(load(seen("span")))
    session.feed([TOKENS.tolist()])
    assert session.steps.to_named_arrays(session.snapshot().state)[DRAWN].tolist() == [4]


@pytest.mark.parametrize(("clip", "wanted"), [(0.01, 0.01), (1e6, None)])
def test_a_step_is_no_longer_than_rate_times_clip(clip: float, wanted: float | None) -> None:
    program, _ = family("llama").convert(
        consolidation="gradient", gradient={"lr": 1.0, "clip": clip, "rank": 5}, mlps="1-2"
    )
    length = float(_learned(_slept(program)).norm())
    assert length > 0.01 if wanted is None else np.isclose(length, wanted, rtol=1e-12)


def test_several_steps_make_the_window_less_surprising() -> None:
    """Each lowers the loss of the same window, read anew by a row that has learned."""
    found = []
    for steps in (0, 1, 4):
        program, _ = family("llama").convert(
            consolidation="gradient", gradient={"lr": 0.5, "rank": 0, "steps": steps}, layers="0", eviction="hard"
        )
        state = _slept(program)
        trainer = TRAINER.steps_on(program, materialise(program, "cpu"))
        fresh = trainer.new_state(1) | {name: x for name, x in state.items() if ".fast." in name}
        ids = torch.from_numpy(TOKENS[:WINDOW])
        out, _ = trainer.wake_tensors(fresh, ids[None], torch.tensor([WINDOW]), "all")
        assert out is not None
        found.append(float(cross_entropy(out[0, :-1], ids[1:])))
    assert found[0] > found[1] > found[2]


def test_rows_share_nothing_that_they_learn() -> None:
    """Rows of other texts are what they are alone, to the bit, and differ."""
    program, texts = seen("steps"), [TOKENS[:WINDOW], TOKENS[WINDOW : 2 * WINDOW]]
    steps = TRAINER.steps_on(program, materialise(program, "cpu"))
    ids, lengths = torch.from_numpy(np.stack(texts)), torch.tensor([WINDOW] * 2)
    _, state = steps.wake_tensors(steps.new_state(2), ids, lengths, "none")
    both = steps.sleep_tensors(state)
    for row, text in enumerate(texts):
        alone = _slept(program, text)
        for name in alone:
            assert torch.allclose(both[name][row].double(), alone[name][0].double(), rtol=1e-12, atol=1e-14), name
    assert not torch.allclose(both["2.fast.down"][0], both["2.fast.down"][1])


def test_a_window_of_one_token_teaches_nothing() -> None:
    session = Session(load(seen("llama")))
    session.feed([[5]])
    session.sleep()
    state = session.steps.to_named_arrays(session.snapshot().state)
    assert not any(state[name].any() for name in state if ".fast." in name)
    assert session.stats.skipped == 0


def test_a_gradient_that_is_not_finite_leaves_the_row_as_it_was_and_is_told_once() -> None:
    """Here of one row of two: a key of its window, which later blocks read, is not a number any more."""
    program, name = seen("steps"), "2.v"
    session = Session(load(program), 2)
    first, others = TOKENS[:WINDOW].tolist(), TOKENS[WINDOW : 2 * WINDOW].tolist()
    session.feed([first, others])
    before = session.steps.to_named_arrays(session.snapshot().state)

    def spoiled_window() -> None:
        session.feed([first[:-1], others[:-1]])
        arrays = session.steps.to_named_arrays(session.snapshot().state)
        arrays[name][1, :, 0] = np.nan  # a sink, as sleeps see it
        session._state = session.steps.from_named_arrays(arrays)
        session.feed([first[-1:], others[-1:]])

    with pytest.warns(SleepcWarning, match="not finite"):
        spoiled_window()
    spoiled_window()  # warnings are errors
    after = session.steps.to_named_arrays(session.snapshot().state)
    assert session.stats.skipped == 6, "three steps of two sleeps of one row"
    assert after[SKIPPED].tolist() == [0, 6]
    assert np.array_equal(after["2.fast.down"][1], before["2.fast.down"][1])
    assert not np.array_equal(after["2.fast.down"][0], before["2.fast.down"][0])
    assert np.isfinite(after["2.fast.down"]).all()


def test_training_goes_through_the_steps() -> None:
    """What two windows' losses are by what a row has learned before them, against finite differences; without the way
    through the step (first order) the slope is another one.
    """
    program, ids = seen("plain"), torch.from_numpy(TOKENS)[None]
    steps = TRAINER.steps_on(program, materialise(program, "cpu"), train=True)
    name, zero = "2.fast.down", steps.new_state(1)

    def loss(begun: Tensor, *, first_order: bool = False) -> Tensor:
        state, total = {**zero, name: begun}, torch.zeros((), dtype=torch.float64)
        for start in (0, WINDOW):
            out, new = steps.wake_tensors(state, ids[:, start : start + WINDOW], torch.tensor([WINDOW]), "all")
            assert out is not None
            total = total + cross_entropy(out[0, :-1], ids[0, start + 1 : start + WINDOW])
            slept = steps.sleep_tensors(new)
            if first_order:
                slept[name] = begun + (slept[name] - begun).detach()
            state = slept
        return total

    begun = torch.zeros_like(zero[name]).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(begun), begun)
    (first,) = torch.autograd.grad(loss(begun, first_order=True), begun)
    way = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        slope = (loss(1e-5 * way) - loss(-1e-5 * way)) / 2e-5
    assert torch.isclose(slope, (gradient * way).sum(), rtol=1e-6)
    assert not torch.isclose(slope, (first * way).sum(), rtol=1e-3)


def _bigrams(seed: int, span: int) -> tuple[list[int], Tensor]:
    """160 of 16 words, of which three in four are what a table says of the one before, another one after every `span`
    of them; and for which that holds.
    """
    rng = np.random.default_rng(seed)
    words, told, after = [0], [False], rng.integers(0, 16, 16)
    for t in range(1, 160):
        told.append(t % span > 0 and bool(rng.random() < 0.75))
        after = after if t % span else rng.integers(0, 16, 16)
        words.append(int(after[words[-1]] if told[-1] else rng.integers(16)))
    return words, torch.tensor(told)


def test_bigrams_are_learned_if_they_hold_for_longer_than_a_window() -> None:
    """TTT-E2E's check, of random weights, which have but their sleeps to learn from: the mean surprise at words that a
    table tells, in the second half. A table that holds for half a window of 16 misleads.
    """
    torch.manual_seed(0)
    model = GPT(vocab=16, width=64, heads=4, blocks=2, context=64, tied=False).eval()
    with torch.no_grad():
        model.positions.weight.zero_()
    recipe = {"consolidation": "gradient", "window": 16, "eviction": "hard", "sinks": 0, "layers": "0", "mlps": "all"}

    def surprise(program: sleepc.Program, span: int) -> float:
        made = [_bigrams(seed, span) for seed in range(6)]
        rows = program.session(batch=6).feed([words for words, _ in made], logits="all")
        found = []
        for row, (words, told) in zip(rows, made, strict=True):
            every = cross_entropy(torch.from_numpy(row)[:-1], torch.tensor(words)[1:], reduction="none")
            found.append(every[80:][told[81:]])
        return float(torch.cat(found).mean())

    learns, still = (
        sleepc.convert(model, {**recipe, "gradient": {"lr": lr, "rank": 0, "weights": "down"}}) for lr in (10.0, 0.0)
    )
    assert surprise(learns, 1000) < surprise(still, 1000) - 1.5
    assert surprise(learns, 48) < surprise(still, 48) - 0.2
    assert surprise(learns, 8) > surprise(still, 8)


def test_a_saved_program_learns_alike(tmp_path: Path) -> None:
    program, recipe = seen("steps"), converted("steps")[1]
    save_artifact(tmp_path / "artifact", program, About(recipe, Source(name="tiny", kind="module")))
    loaded, manifest = load_artifact(tmp_path / "artifact")
    assert manifest.recipe.gradient == Gradient(**FAMILIES["steps"][1]["gradient"])
    assert np.array_equal(logits(loaded), logits(program))


def test_a_program_with_low_rank_matrices_learns_with_them() -> None:
    """What it learns by is made anew of the adapted weights: as if they had been merged."""
    program = run_stages(seen("llama"), (Stage("adapt", "STEP", (AddLowRank(2, 0),)),))
    generator, values = torch.Generator().manual_seed(2), {}
    for low_a, low_b in low_rank_keys(program).items():
        shape = program.params[low_b].shape
        values[low_b] = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1
        assert program.params[low_a].materialise().any()
    adapted = with_parameters(program, values)
    merged = run_stages(adapted, (Stage("adapt", "STEP", (MergeLowRank(),)),))
    assert np.allclose(logits(adapted), logits(merged), rtol=1e-9, atol=1e-9)
    assert not np.allclose(logits(adapted), logits(seen("llama")))


def test_queries_learn_and_keys_and_values_stay() -> None:
    """qTTT's check: what a sleep leaves in the KV window of the first block that learns is what any sleep leaves, and
    nothing is learned at rate 0.
    """
    options = {"consolidation": "gradient", "mlps": "1-2", "gradient": {**FAST, "weights": "query"}}
    learned = _slept(family("qwen3").convert(**options)[0])
    plain = _slept(family("qwen3").convert()[0])
    assert {name for name in learned if ".fast." in name} == {"1.fast.query", "2.fast.query"}
    assert all(learned[f"{i}.fast.query"].any() for i in (1, 2))
    for name in ("1.k", "1.v"):
        assert torch.equal(learned[name], plain[name])
    still = family("qwen3").convert(**{**options, "gradient": {"lr": 0.0, "weights": "query"}})[0]
    np.testing.assert_array_equal(logits(still), logits(family("qwen3").convert()[0]))


def test_an_added_mlp_changes_nothing_until_it_has_learned() -> None:
    """And then what sleeps teach it changes what is read; untrained, its last map alone has anything to learn."""
    options = {"consolidation": "gradient", "mlps": "2", "gradient": {**FAST, "weights": "prime"}}
    program, plain = family("llama").convert(**options)[0], family("llama").convert()[0]
    found, wanted = logits(program), logits(plain)
    assert np.array_equal(found[:WINDOW], wanted[:WINDOW])
    assert not np.allclose(found[WINDOW:], wanted[WINDOW:])
    learned = {name: bool(x.any()) for name, x in _slept(program).items() if ".fast." in name}
    assert learned == {"2.fast.prime_gate": False, "2.fast.prime_up": False, "2.fast.prime_down": True}
    assert np.array_equal(logits(without_memories(shaken(program))), logits(without_memories(plain)))


def test_a_step_on_a_query_finds_the_needle() -> None:
    """qTTT's facts, of the attention that steps go through: the share of one key falls the more keys there are; the
    gradient of -log of it is (mean key - key) / sqrt(d); and every step along it makes it larger.
    """
    generator, d = torch.Generator().manual_seed(0), 16
    keys = torch.randn(512, d, dtype=torch.float64, generator=generator)
    begun, shares = torch.randn(d, dtype=torch.float64, generator=generator), []
    for n in (32, 128, 512):
        q, risen = begun, list[float]()
        for _ in range(11):
            q = q.detach().requires_grad_()
            share = functional.attention_weights(q[None, None, None], keys[None, None, :n], scale=d**-0.5)[0, 0, 0]
            (step,) = torch.autograd.grad(-share[3].log(), q)
            torch.testing.assert_close(step, ((share @ keys[:n] - keys[3]) / d**0.5).detach(), rtol=1e-9, atol=1e-12)
            risen.append(share[3].item())
            q = q - 0.5 * step
        assert risen == sorted(set(risen))
        shares.append(risen[0])
        others = keys[:n][torch.arange(n) != 3]
        margin = float(begun @ keys[3] - torch.logsumexp(begun @ others.T / d**0.5, 0) * d**0.5) / d**0.5
        assert math.isclose(risen[0], 1 / (1 + math.exp(-margin)))
    assert shares == sorted(shares, reverse=True)


def test_what_it_costs_is_said() -> None:
    program, recipe = converted("steps")
    plain, _ = family("llama").convert(mlps="auto", eviction="hard")
    learned = 2 * 5 * (2 * 48 + 32)  # two blocks, rank 5: gate, up and down
    seen_here = inspect_program(family("llama").canonical, program, recipe)
    assert seen_here.learned_bytes == 8 * learned
    tokens, count, hidden = 8 * WINDOW, 8, 8 * WINDOW * 32
    assert program.state_bytes() - plain.state_bytes() == 8 * learned + tokens + count + hidden
    assert "3 steps of gradient descent (rate 2, clip 0.05) on the MLPs of blocks 1, 2" in seen_here.sleep


def test_a_bfloat16_program_learns_in_float32() -> None:
    program, _ = family("llama", torch.bfloat16).convert(consolidation="gradient", gradient=FAST)
    state = _slept(program)
    assert state["2.fast.down"].dtype == torch.float32
    assert _learned(state).isfinite().all()
    double = _slept(converted("llama")[0])
    assert torch.nn.functional.cosine_similarity(_learned(state).double(), _learned(double), dim=0) > 0.9


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("llama", {"consolidation": "replay", "gradient": {}}, "consolidation replay takes no steps"),
        ("llama", {"consolidation": "in_place", "gradient": {"lr": 1.0}}, "in_place takes no steps"),
        ("llama", {"mlps": "3"}, "layer 3 does not exist"),
        ("llama", {"window": 1, "sinks": 0}, "no next token"),
        ("llama", {"strategy": "insert"}, "is written by every token"),
        ("llama", {"strategy": "replace", "layers": "2"}, "is written by every token"),
        ("llama", {"gradient": {"lr": -1.0}}, "gradient.lr"),
        ("llama", {"gradient": {"clip": 0}}, "gradient.clip"),
        ("llama", {"gradient": {"weights": "all"}}, "gradient.weights"),
        ("llama", {"gradient": {"loss": "first"}}, "gradient.loss"),
        ("llama", {"gradient": {"span": 4}}, "all tokens of a window count"),
        ("qwen3-5", {"mlps": "all"}, "recurrence of its own"),
        ("gpt2", {"gradient": {"weights": "query"}}, "no linear map makes its queries and nothing else"),
    ],
)
def test_what_does_not_fit_is_refused(model: str, options: dict[str, Any], said: str) -> None:
    with warnings.catch_warnings(), pytest.raises(UsageError, match=said):
        family(model).convert(**{"consolidation": "gradient", **options})
