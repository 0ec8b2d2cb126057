"""Consolidation `tokens`: windows become soft tokens. Its checks are those of the notes on ICAE: an encoder that is the
model itself while its LoRA matrices are zero, a frozen decoder, how many there are, reconstruction; those of the notes
on ComprExIT, of its plan and its gates; and what every consolidation has to hold.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx
from torch.nn.functional import cross_entropy

import sleepc
from sleepc.artifact import About, load_artifact, save_artifact
from sleepc.errors import SleepcWarning, UsageError
from sleepc.inspection import inspect_program
from sleepc.ir.graph import Graph
from sleepc.ir.infer import infer_types
from sleepc.ir.interp import run
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.manifest import Source
from sleepc.passes.adapt.add_low_rank import AddLowRank, low_rank_keys
from sleepc.passes.adapt.merge_low_rank import MergeLowRank
from sleepc.passes.base import Stage
from sleepc.passes.consolidation.soft_tokens import EMBEDDINGS, GAIN, LOW_B, soft_keys
from sleepc.passes.consolidation.transport import DEPTH, KEY, LAYERS, QUERY, VALUE, over_depth, plan
from sleepc.passes.lib.emit import Emit
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe, Soft
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.train.parameters import trained_keys
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken, with_parameters, without_memories
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.soft import sinkhorn
from sleepc.verify.verify import make_streams
from tests.cli.models import save_model
from tests.conformance.backends import TRAINER, load, runs
from tests.families import SHAPE, VOCAB, WINDOW, family

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 3 * WINDOW + 3)
SMALL: dict[str, Any] = {"tokens": 3, "windows": 2, "rank": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "renumbered": ("llama", {"soft": {**SMALL, "tokens": 2}}),  # past the model's last position
    "insert": ("llama", {"strategy": "insert", "sinks": 0}),
    "some-layers": ("llama", {"layers": "1", "passes": 2}),
    "joined": ("gpt2", {}),  # positions of tokens; queries and values by one map
    "own-windows": ("gemma2", {"own_windows": "leave"}),
    "narrowed": ("gemma2", {"own_windows": "narrow"}),
    "norms": ("qwen3", {"last_position": "renumber", "soft": {**SMALL, "rank": 0}}),
    "plain": ("nanogpt", {}),
    "comprexit": ("llama", {"soft": {**SMALL, "encoder": "comprexit", "width": 6}}),
    "comprexit-own": ("gemma2", {"own_windows": "leave", "soft": {**SMALL, "encoder": "comprexit", "width": 6}}),
    "shared": ("gemma4", {}),  # layers that use an earlier one's keys again
}
SLOW = ("insert", "own-windows", "some-layers", "narrowed", "norms", "plain", "shared", "renumbered", "comprexit-own")
LONG = ("renumbered",)


@cache
def converted(name: str, dtype: torch.dtype = torch.float64) -> tuple[ProgramGraphs, Recipe]:
    model, options = FAMILIES[name]
    return family(model, dtype).convert(**{"consolidation": "tokens", "soft": SMALL, **options})


@cache
def seen(name: str, dtype: torch.dtype = torch.float64) -> ProgramGraphs:
    return shaken(converted(name, dtype)[0])


def bench(name: str, steps: Steps, dtype: torch.dtype = torch.float64) -> Bench:
    canonical = family(FAMILIES[name][0], dtype).canonical
    oracle = Oracle(canonical, converted(name, dtype)[1], parameters_of(canonical, seen(name, dtype)))
    tokens = np.random.default_rng(4).integers(0, VOCAB, 10 * WINDOW) if name in LONG else TOKENS
    return Bench(steps, oracle, make_streams(tokens, WINDOW))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else []) for n in FAMILIES])
def test_it_is_what_its_oracle_says(name: str) -> None:
    made = bench(name, load(seen(name)))
    assert invariants.definition(made) < 1e-9
    assert invariants.chunking(made) < 1e-9
    assert invariants.padding(made) < 1e-9
    assert invariants.saving(made) == 0
    assert invariants.permuting(made) < 1e-9


@pytest.mark.parametrize(
    ("style", "name"),
    [
        ("ort", "llama"),
        *(pytest.param(style, "llama", marks=pytest.mark.slow) for style in ("portable", "mlir")),
        *(pytest.param(style, "comprexit", marks=pytest.mark.slow) for style in ("ort", "portable")),
    ],
)
def test_in_an_export_it_is_what_its_oracle_says(style: str, name: str) -> None:
    subject = runs(style)
    made = bench(name, subject.load(seen(name, subject.dtype)), subject.dtype)
    assert invariants.definition(made) < subject.tolerance
    assert invariants.padding(made) < subject.tolerance


def slept(program: ProgramGraphs, *texts: Any, train: bool = False, values: Any = None) -> dict[str, Tensor]:
    """The state after one window of each text and its sleep."""
    values = materialise(program, "cpu") if values is None else values
    steps = TRAINER.steps_on(program, values, train=train)
    ids = torch.from_numpy(np.stack(texts))
    lengths = torch.tensor([ids.shape[1]] * len(texts))
    with torch.set_grad_enabled(train):
        _, state = steps.wake_tensors(steps.new_state(len(texts)), ids, lengths, "none")
        return steps.sleep_tensors(state)


def logits(program: ProgramGraphs, tokens: Any = TOKENS) -> Any:
    return Session(load(program)).feed([np.asarray(tokens).tolist()], logits="all")[0]


def heads(state: dict[str, Tensor], name: str, count: int) -> Tensor:
    """What slots hold last, [Hkv,count,..], of row 0."""
    rows = state[name][0]
    return rows.reshape(2, -1, *rows.shape[1:])[:, -count:]


def test_with_no_lora_it_is_the_original_that_encodes_and_reads() -> None:
    """transformers' own model reads the window and the places behind it, and then the soft tokens alone: its keys and
    values are those in the slots, but for its norms, which are float32.
    """
    program, _ = family("llama").convert(consolidation="tokens", soft=SMALL, sinks=0)
    shape, generator = program.params[EMBEDDINGS].shape, torch.Generator().manual_seed(1)
    given = {EMBEDDINGS: torch.randn(shape, generator=generator, dtype=torch.float64)}
    given[GAIN] = torch.randn(shape[1], generator=generator, dtype=torch.float64)
    state = slept(with_parameters(program, given), TOKENS[:WINDOW])

    module: Any = family("llama").module
    at = [1, 4, 7]  # of 8 tokens the last one of each third
    table = module.get_input_embeddings()
    window = table(torch.from_numpy(TOKENS[:WINDOW]))
    last: list[Tensor] = []
    hook = module.model.layers[-1].register_forward_hook(lambda *call: last.append(call[2]))
    with torch.no_grad():
        module(inputs_embeds=torch.cat([window, window[at] + given[EMBEDDINGS]])[None])
        x = last[0][0, -3:] if last[0].dim() == 3 else last[0][-3:]
        z = window[at] + given[GAIN] * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        cache_ = module(inputs_embeds=z[None], position_ids=torch.tensor([at]), use_cache=True).past_key_values
    hook.remove()
    for i, layer in enumerate(cache_.layers):
        for part, value in (("k", layer.keys), ("v", layer.values)):
            assert torch.allclose(heads(state, f"{i}.kept.{part}", 3), value[0], rtol=1e-3, atol=1e-3), (i, part)
    assert heads(state, "0.kept.position", 3).tolist() == [at, at]


def test_at_first_a_program_keeps_words_of_its_windows() -> None:
    """Whatever its LoRA matrices start as: they, embeddings and gain are zero where it matters."""
    plain = converted("llama")[0]
    assert not any(plain.params[key].materialise().any() for key in soft_keys(plain) if key.endswith(LOW_B))
    assert not any(plain.params[key].materialise().any() for key in (EMBEDDINGS, GAIN))
    other, _ = family("llama").convert(consolidation="tokens", soft=SMALL, seed=5)
    assert np.array_equal(logits(without_memories(plain)), logits(without_memories(other)))


def test_gradients_reach_the_encoder_and_the_decoder_is_frozen() -> None:
    program = seen("plain")  # whose norms are float64
    keys = [key for key in trained_keys(program, "new") if "memory" not in key]
    assert set(keys) == soft_keys(program)
    values = {key: value.detach().clone() for key, value in materialise(program, "cpu").items()}
    for key in keys:
        values[key].requires_grad_()
    steps = TRAINER.steps_on(program, values, train=True)
    state = slept(program, TOKENS[:WINDOW], train=True, values=values)
    loss = torch.zeros((), dtype=torch.float64)
    for start in (WINDOW, 2 * WINDOW):  # soft tokens are seen once the ring has nothing as old any more
        ids = torch.from_numpy(TOKENS[start : start + WINDOW])
        out, state = steps.wake_tensors(state, ids[None], torch.tensor([WINDOW]), "all")
        assert out is not None
        loss, state = loss + cross_entropy(out[0, :-1], ids[1:]), steps.sleep_tensors(state)
    found = torch.autograd.grad(loss, [values[key] for key in keys])
    assert all(gradient.abs().max() > 1e-6 for gradient in found)
    way = [torch.randn(g.shape, generator=torch.Generator().manual_seed(1), dtype=g.dtype) for g in found]

    def moved(by: float) -> float:
        there = {key: (values[key] + by * w).detach() for key, w in zip(keys, way, strict=True)}
        steps, state, total = TRAINER.steps_on(program, {**values, **there}), None, 0.0
        state = steps.new_state(1)
        for start in (0, WINDOW, 2 * WINDOW):
            ids = torch.from_numpy(TOKENS[start : start + WINDOW])
            out, state = steps.wake_tensors(state, ids[None], torch.tensor([WINDOW]), "all")
            assert out is not None
            total += float(cross_entropy(out[0, :-1], ids[1:])) if start else 0.0
            state = steps.sleep_tensors(state)
        return total

    with torch.no_grad():
        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert np.isclose(slope, float(sum((g * w).sum() for g, w in zip(found, way, strict=True))), rtol=1e-5)


def test_every_window_fills_as_many_slots_and_the_oldest_leave() -> None:
    """ICAE's count of segments: of T tokens, 3 for each whole window, until the latest two windows are there."""
    session = Session(load(seen("llama")))
    for windows in range(4):
        arrays = session.steps.to_named_arrays(session.snapshot().state)
        for part, width in (("k", (8,)), ("v", (8,)), ("token", ())):
            assert arrays[f"0.kept.{part}"].shape == (1, 2 * 3 * 2, *width)
        wanted = [WINDOW * w + at for w in range(max(0, windows - 2), windows) for at in (1, 4, 7)]
        held = arrays["0.kept.token"][0].reshape(2, 6)
        assert held.tolist() == [[-1] * (6 - len(wanted)) + wanted] * 2
        session.feed([np.arange(WINDOW).tolist()])


def test_a_sleep_before_its_time_makes_as_many_of_the_tokens_there_are() -> None:
    session = Session(load(seen("llama")))
    session.feed([[5, 6]])
    session.sleep()
    session.sleep()  # of nothing: it makes nothing
    arrays = session.steps.to_named_arrays(session.snapshot().state)
    assert arrays["0.kept.token"][0].reshape(2, 6).tolist() == [[-1, -1, -1, 0, 0, 1]] * 2


def test_rows_share_no_soft_tokens() -> None:
    """Rows of other texts are what they are alone, to the bit, and differ."""
    texts = [TOKENS[:WINDOW], TOKENS[WINDOW : 2 * WINDOW]]
    both = slept(seen("llama"), *texts)
    for row, text in enumerate(texts):
        alone = slept(seen("llama"), text)
        for name in (name for name in alone if ".kept." in name):
            assert torch.allclose(both[name][row].double(), alone[name][0].double(), rtol=1e-12, atol=1e-14), name
    assert not torch.allclose(both["0.kept.v"][0], both["0.kept.v"][1])


def test_a_saved_program_makes_the_same(tmp_path: Path) -> None:
    program, recipe = seen("llama"), converted("llama")[1]
    save_artifact(tmp_path / "artifact", program, About(recipe, Source(name="tiny", kind="module")))
    loaded, manifest = load_artifact(tmp_path / "artifact")
    assert manifest.recipe.soft == Soft(**SMALL)
    assert np.array_equal(logits(loaded), logits(program))


def test_low_rank_matrices_of_the_blocks_are_the_encoders_too() -> None:
    """As if they had been merged."""
    program = run_stages(seen("llama"), (Stage("adapt", "STEP", (AddLowRank(2, 0),)),))
    generator = torch.Generator().manual_seed(2)
    values = {
        low_b: torch.randn(program.params[low_b].shape, generator=generator, dtype=torch.float64) * 0.1
        for low_b in low_rank_keys(program).values()
    }
    adapted = with_parameters(program, values)
    merged = run_stages(adapted, (Stage("adapt", "STEP", (MergeLowRank(),)),))
    assert np.allclose(logits(adapted), logits(merged), rtol=1e-9, atol=1e-9)
    assert not np.allclose(logits(adapted), logits(seen("llama")))


def test_what_it_costs_is_said() -> None:
    program, recipe = converted("llama")
    plain, _ = family("llama").convert()
    slot = 8 * (8 + 8 + 1 + 1 + 1)  # k and v of 8 numbers, position, token and score
    assert program.state_bytes() - plain.state_bytes() == 3 * 2 * 6 * slot + 8 * WINDOW + 8  # and ids, and the offset
    said = inspect_program(family("llama").canonical, program, recipe).sleep
    assert "the window becomes 3 soft tokens, and those of the latest 2 windows stay" in said


def test_a_bfloat16_program_has_an_encoder_in_float32() -> None:
    program, _ = family("llama", torch.bfloat16).convert(consolidation="tokens", soft=SMALL)
    assert program.params[GAIN].dtype == torch.float32
    state, double = slept(program, TOKENS[:WINDOW]), slept(converted("llama")[0], TOKENS[:WINDOW])
    assert state["0.kept.k"].dtype == torch.bfloat16
    similar = torch.nn.functional.cosine_similarity(
        state["2.kept.v"].double().flatten(), double["2.kept.v"].flatten(), dim=0
    )
    assert similar > 0.95


def test_nothing_of_a_window_can_be_pinned_or_dropped() -> None:
    session = Session(load(seen("llama")))
    session.feed([[5, 6, 7]])
    for mark in (session.keep, session.drop):
        with pytest.raises(UsageError, match="keeps no pairs that could be pinned or dropped"):
            mark((0, 2))


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("llama", {"consolidation": "replay", "soft": {}}, "consolidation replay makes no soft tokens"),
        ("llama", {"keep": {"slots": 4}}, "not both"),
        ("llama", {"eviction": "hard"}, "restarts positions"),
        ("llama", {"soft": {"tokens": 9}}, "cannot become 9"),
        ("llama", {"strategy": "replace", "layers": "2"}, "this layer has none left"),
        ("llama", {"soft": {**SMALL, "windows": 30}}, "need .* positions"),
        ("qwen3-5", {}, "carries other states"),
        ("bloom", {}, "scores change with distance"),
    ],
)
def test_what_does_not_fit_is_refused(model: str, options: dict[str, Any], said: str) -> None:
    given = {"consolidation": "tokens", "soft": SMALL, **options}
    with warnings.catch_warnings(), pytest.raises(UsageError, match=said):
        family(model).convert(**given)


def repeated(soft: int, steps: int) -> float:
    """A model of two layers and its encoder learn to write a window of 16 letters (of 16) again, once another window
    has come between: how many letters are right.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    length, letters, rows = 16, 16, 16
    torch.manual_seed(0)
    shape: dict[str, Any] = {**SHAPE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    module: Any = LlamaForCausalLM(LlamaConfig(**{**shape, "vocab_size": letters + 1, "max_position_embeddings": 128}))
    recipe = {"window": length, "sinks": 0, "layers": "0", "consolidation": "tokens"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = sleepc.convert(module.float().eval(), {**recipe, "soft": {"tokens": soft, "windows": 2, "rank": 8}})
    program = made.graphs
    values = {key: value.detach().clone() for key, value in materialise(program, "cpu").items()}
    leaves = [values[key].requires_grad_() for key in trained_keys(program, "all") if "memory" not in key]
    optimiser, generator = torch.optim.AdamW(leaves, lr=3e-3), torch.Generator().manual_seed(0)
    filler, lengths = torch.full((rows, length), letters), torch.tensor([length] * rows)

    def answers() -> tuple[Tensor, Tensor]:
        text = torch.randint(0, letters, (rows, length), generator=generator)
        trained = TRAINER.steps_on(program, values, train=True)
        state = trained.new_state(rows)
        for window in (text, filler):
            _, state = trained.wake_tensors(state, window, lengths, "none")
            state = trained.sleep_tensors(state)
        out, _ = trained.wake_tensors(state, torch.cat([filler[:, :1], text[:, :-1]], 1), lengths, "all")
        assert out is not None
        return out, text

    for _ in range(steps):
        out, text = answers()
        found = torch.autograd.grad(cross_entropy(out.flatten(0, 1), text.flatten()), leaves, allow_unused=True)
        for leaf, gradient in zip(leaves, found, strict=True):
            leaf.grad = gradient
        optimiser.step()
    with torch.no_grad():
        return float(
            torch.stack([(out.argmax(-1) == text).double().mean() for out, text in (answers(), answers())]).mean()
        )


@pytest.mark.slow
def test_a_tiny_autoencoder_writes_its_window_again() -> None:
    """With as many soft tokens as letters; with an eighth of them there is no room for them."""
    assert repeated(16, 100) > 0.99
    assert repeated(2, 100) < 0.6


@pytest.mark.slow
def test_distillation_trains_the_encoder(tmp_path: Path) -> None:
    """All of its parameters change, and nothing of the model's own."""
    with pytest.warns(SleepcWarning, match="until it is trained"):
        program = sleepc.convert(
            save_model(tmp_path / "model"), {"window": 6, "sinks": 1, "consolidation": "tokens", "soft": SMALL}
        )
    before = {key: param.materialise().clone() for key, param in program.graphs.params.items()}
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i * 7 % 59 + 1}" for i in range(900)))
    options: dict[str, Any] = {"length": 30, "batch": 2, "steps": 4, "device": "cpu", "recall": 1.0, "force": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)  # four steps make it worse, which is said
        program.distil([text], work=tmp_path / "work", **options)
    changed = {key for key, param in program.graphs.params.items() if not torch.equal(param.materialise(), before[key])}
    assert soft_keys(program.graphs) <= changed
    assert all(program.graphs.params[key].new for key in changed)


# -- ComprExIT: depth, and optimal transport ----------------------------------------------------------


def computed(write: Callable[..., fx.Node], **given: Tensor) -> Tensor:
    """What a part of the graph makes of tensors by the names of its arguments."""
    graph = Graph("part")
    ports = {name: graph.add_port("input", name, TensorType(x.dtype, tuple(x.shape))) for name, x in given.items()}
    graph.set_returns({"x": ports[next(iter(ports))]})
    graph.set_returns({"x": write(Emit(graph, "test"), **ports)})
    infer_types(graph)
    found: Tensor = run(graph, given)["x"]
    return found


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_thirty_steps_give_the_plan_its_marginals() -> None:
    near, supply = 0.3 * torch.tanh(random(2, 12, 4)), random(2, 12).softmax(1)
    found = computed(lambda e, near, supply: plan(e, near, supply, 4), near=near, supply=supply)
    assert torch.allclose(found.sum(2), supply, atol=1e-4)
    assert torch.allclose(found.sum(1), torch.full((2, 4), 0.25, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(found[1], sinkhorn(near[1], supply[1].log()), atol=1e-12)


def test_with_a_place_for_every_token_each_goes_to_its_own() -> None:
    """As entropy counts for nothing: where each is most like itself."""
    near = torch.eye(6, dtype=torch.float64)[None] * 0.9 + 0.1 * torch.tanh(random(1, 6, 6))
    supply = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    found = computed(lambda e, near, supply: plan(e, near, supply, 6, sharp=0.01), near=near, supply=supply)
    assert torch.allclose(found[0], torch.eye(6, dtype=torch.float64) / 6, atol=1e-6)


def test_where_all_are_alike_every_soft_token_is_the_mean() -> None:
    near, supply = torch.ones(1, 8, 2, dtype=torch.float64), torch.full((1, 8), 1 / 8, dtype=torch.float64)
    found = computed(lambda e, near, supply: plan(e, near, supply, 2), near=near, supply=supply)
    assert torch.allclose(found, torch.full_like(near, 1 / 16), atol=1e-12)


def test_sharp_gates_choose_one_layer() -> None:
    names = {"share": DEPTH, "layer": LAYERS, "query": QUERY, "key": KEY, "value": VALUE}
    given = {"x": random(1, 5, 3, 4), "share": random(3), "layer": random(3, 6)}
    given |= {name: random(6, 4) for name in ("query", "key", "value")}

    def gated(sharp: float) -> Tensor:
        def write(e: Emit, x: fx.Node, **ports: fx.Node) -> fx.Node:
            return over_depth(e, x, {names[name]: port for name, port in ports.items()}.__getitem__, sharp)

        return computed(write, **given)

    every = given["x"] @ given["value"].T  # [1,5,3,6]
    apart = (gated(1e-6)[:, :, None] - every).abs().amax(-1)
    assert (apart.amin(-1) < 1e-12).all()
    assert (gated(1.0)[:, :, None] - every).abs().amax(-1).amin(-1).amax() > 1e-3
