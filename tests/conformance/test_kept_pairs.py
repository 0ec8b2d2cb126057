"""A consolidation that keeps every third pair: what a slot holds is state, and every head has a mask of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import fx

from sleepc.artifact import About, load_artifact, save_artifact
from sleepc.backends.eager.backend import load
from sleepc.errors import SleepcError, UsageError
from sleepc.inspection import inspect_program
from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.manifest import Source
from sleepc.memory.registry import RULES
from sleepc.memory.registry import register as register_rule
from sleepc.memory.rule import State, matrix
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.consolidation.best_pairs import Candidates, keep_best
from sleepc.passes.consolidation.block_sleep import WINDOW_POSITIONS, BlockSleep
from sleepc.passes.consolidation.contract import Consolidation, StreamSleep
from sleepc.passes.consolidation.recurrent import Recurrent
from sleepc.passes.consolidation.registry import CONSOLIDATIONS, find, register
from sleepc.passes.consolidation.replay import Replay
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.rewrite.kept_pairs import QUERIES
from sleepc.passes.runner import run_stages
from sleepc.recipe import LayerPlan, Recipe, make_recipe
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.shake import shaken
from sleepc.verify.streams import state_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import ONNX
from tests.conformance.test_invariants import hold_invariants
from tests.families import VOCAB, WINDOW, family

SLOTS, SINKS = 3, 2


class KeepsThird(Consolidation):
    """Beside what another consolidation does: KV head h keeps the newest pairs of positions h, h + 3, h + 6, …"""

    def kept(self, recipe: Recipe, plan: LayerPlan) -> int:
        return SLOTS if plan.window is not None and plan.strategy != "replace" else 0

    def sleep(self, block: BlockSleep) -> dict[str, fx.Node]:
        return super().sleep(block) | keep_best(block, third)

    def remember(self, sleep: StreamSleep) -> None:
        for layer in sleep.layers:
            for head in range(0 if layer.kept is None else layer.kept.shape[1]):
                assert layer.kept is not None
                tokens = [t for t in layer.kept[0, head].tolist() if t >= 0]
                for t in sleep.tokens:
                    if sleep.positions[t] >= SINKS and (sleep.positions[t] - head) % 3 == 0:
                        tokens.append(t)
                tokens = [] if sleep.evicts_hard else tokens[-SLOTS:]
                layer.kept[:, head] = torch.tensor([-1] * (SLOTS - len(tokens)) + tokens)
        super().remember(sleep)

    def in_words(self, recipe: Recipe, blocks: int) -> str:
        return f"{super().in_words(recipe, blocks)}, every third pair is kept"


def third(e: Emit, among: Candidates) -> fx.Node:
    """Its position, for a pair that its head keeps."""
    head = e.unsqueeze(e.call(aten.arange.default, among.heads), -1)
    turn = e.call(aten.remainder.Scalar, e.sub(among.position, head), 3)
    return e.where(e.call(aten.eq.Scalar, turn, 0), among.position, -1)


class ThirdReplay(KeepsThird, Replay):
    name: ClassVar[str] = "third"


class ThirdRecurrent(KeepsThird, Recurrent):
    name: ClassVar[str] = "third_recurrent"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for made in (ThirdReplay(), ThirdRecurrent()):
        register(made)
    yield
    for name in ("third", "third_recurrent"):
        del CONSOLIDATIONS[name]


def convert(name: str = "llama", dtype: torch.dtype = torch.float64, **options: Any) -> tuple[ProgramGraphs, Recipe]:
    recipe = make_recipe({"window": WINDOW, "sinks": SINKS, "consolidation": "third", **options})
    canonical = family(name, dtype).canonical
    return shaken(run_stages(canonical, rewrite_stages(recipe, len(canonical.layout)))), recipe


def bench(name: str, steps: Steps, made: tuple[ProgramGraphs, Recipe], length: int = 3 * WINDOW + 3) -> Bench:
    canonical, (program, recipe) = family(name, made[0].dtype).canonical, made
    oracle = Oracle(canonical, recipe, parameters_of(canonical, program))
    tokens = np.random.default_rng(3).integers(0, VOCAB, length)
    return Bench(steps, oracle, make_streams(tokens, WINDOW))


OTHER = {"layers": "1", "strategy": "replace"}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"passes": 2}),
    ("gemma2", {}),  # softcap; every second layer has a window of its own, and keeps nothing
    ("gpt2", {"strategy": "insert", "overrides": [{"layers": "1", "window": WINDOW + 5}]}),
    ("llama", {"write": "online", "overrides": [{"layers": "0", "window": "none"}, OTHER]}),
    ("llama", {"consolidation": "third_recurrent", "passes": 3, "loop": "0:2"}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_program_is_what_its_oracle_says(name: str, options: dict[str, Any]) -> None:
    made = convert(name, **options)
    hold_invariants(bench(name, load(made[0]), made), 1e-9)


def test_more_than_the_positions_that_the_model_has() -> None:
    """Positions begin anew at a sleep, and what was kept is dropped."""
    made = convert()
    limit = made[0].max_positions
    assert limit is not None
    subject = bench("llama", load(made[0]), made, limit + WINDOW + 5)
    assert invariants.definition(subject) < 1e-9
    kept = subject.alone[0].state["0.kept.position"]
    assert int(kept.max()) < limit // 2


def test_what_is_kept_is_every_third_pair_of_each_head() -> None:
    session = Session(load(convert()[0]))
    session.feed([np.random.default_rng(5).integers(0, VOCAB, 4 * WINDOW + 1).tolist()])
    last = state_of(session)["2.kept.position"][0].tolist()
    heads = [[p for p in range(SINKS, 4 * WINDOW) if p % 3 == head][-SLOTS:] for head in range(2)]
    assert last == heads


def _blind(program: ProgramGraphs) -> None:
    """Kept pairs are not seen."""
    for wake in (cls.wake for cls in program.classes.values()):
        port = wake.ports("state")["kept.position"]
        for user in list(port.users):
            e = Emit(wake, "fault", user)
            user.replace_input_with(port, e.add(e.call(aten.zeros_like.default, port), -1))


def _early(program: ProgramGraphs) -> None:
    """Kept pairs are seen while the window still has them."""
    for wake in (cls.wake for cls in program.classes.values()):
        for node in list(wake.ports("input")[QUERIES].users):
            node.args = (node.args[0], 0)


def _one_mask(program: ProgramGraphs) -> None:
    """All heads see what the first one sees."""
    for wake in (cls.wake for cls in program.classes.values()):
        port = wake.ports("state")["kept.position"]
        for user in list(port.users):
            e = Emit(wake, "fault", user)
            first = e.call(aten.slice.Tensor, port, 1, 0, 1)
            user.replace_input_with(port, e.call(aten.expand_as.default, first, port))


def _oldest(program: ProgramGraphs) -> None:
    """A sleep keeps the oldest pairs."""
    for cls in program.classes.values():
        assert cls.sleep is not None
        for node in cls.sleep.calls():
            if is_call(node, aten.topk.default):
                node.args = (*node.args, False)


@pytest.mark.parametrize("fault", [_blind, _early, _one_mask, _oldest])
def test_a_fault_is_found(fault: Callable[[ProgramGraphs], None]) -> None:
    program, recipe = convert()
    wrong = program.clone()
    fault(wrong)
    assert invariants.definition(bench("llama", load(wrong), (program, recipe))) > 1e-4


def test_bytes_are_flat_and_counted() -> None:
    (kept, _), (plain, _) = convert(), convert(consolidation="replay")
    canonical = family("llama").canonical
    sites = [find_site(canonical.classes[block.cls].wake) for block in canonical.layout]
    slots = sum(site.kv_heads * SLOTS * (8 * (site.d_k + site.d_v) + 8) for site in sites)
    assert kept.state_bytes() == plain.state_bytes() + slots
    session = Session(load(kept))
    for _ in range(5):
        session.feed([list(range(WINDOW + 1))])
        assert sum(value.numel() * value.element_size() for value in state_of(session).values()) == kept.state_bytes()


def test_an_artifact_and_a_state_file_go_on_where_they_were(tmp_path: Path) -> None:
    program, recipe = convert()
    save_artifact(tmp_path / "artifact", program, About(recipe, Source(name="tiny", kind="module")))
    again = load_artifact(tmp_path / "artifact")[0]
    assert again.all_states() == program.all_states()
    tokens = np.random.default_rng(6).integers(0, VOCAB, 4 * WINDOW).tolist()
    first, second, from_file = Session(load(program)), Session(load(program)), Session(load(again))
    first.feed([tokens[: 2 * WINDOW + 3]])
    first.save_state(tmp_path / "state")
    second.load_state(tmp_path / "state")
    from_file.load_state(tmp_path / "state")
    found = [session.feed([tokens[2 * WINDOW + 3 :]], logits="all") for session in (first, second, from_file)]
    assert np.array_equal(found[0], found[1])
    np.testing.assert_allclose(found[2], found[0], rtol=0, atol=1e-12)  # weights of a file may be summed otherwise


@pytest.mark.parametrize("form", ONNX)
@pytest.mark.parametrize(
    ("name", "options"),
    [("llama", {}), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("gemma2", {"passes": 2}), CASES[-1]))],
)
def test_onnx_takes_it(form: str, name: str, options: dict[str, Any]) -> None:
    if reason := ONNX[form].missing():
        pytest.skip(reason)
    made = convert(name, torch.float32, **options)
    hold_invariants(bench(name, ONNX[form].load(made[0]), made), ONNX[form].tolerance)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("llama", {"eviction": "hard"}, "positions begin anew"),
        ("llama", {"last_position": "renumber"}, "positions begin anew"),
        ("bloom", {}, "scores fall with distance"),
        ("llama", {"consolidation": "fourth"}, "no consolidation is named 'fourth'"),
        ("llama", {"rule": "gated", "passes": 2}, "does not correct what it wrote"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        convert(name, **options)


def test_a_consolidation_that_forgets_its_pairs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeepsThird, "sleep", Replay.sleep)
    with pytest.raises(SleepcError, match=r"third does not say what a sleep makes of kept\.k"):
        convert()


@pytest.mark.parametrize(("name", "said"), [("replay", "there is a consolidation named 'replay'"), ("Third", "lower")])
def test_names_that_collide_are_an_error(name: str, said: str) -> None:
    made = type("Other", (Replay,), {"name": name})()
    with pytest.raises(UsageError, match=said):
        register(made)
    assert type(find("replay")) is Replay


def test_its_words_are_said() -> None:
    program, recipe = convert()
    assert "every third pair is kept" in inspect_program(family("llama").canonical, program, recipe).sleep


@pytest.mark.parametrize("name", [QUERIES, WINDOW_POSITIONS])
def test_no_state_of_a_rule_has_the_name_of_a_port(name: str) -> None:
    made = replace(RULES["delta"], name="other", states={name: State(matrix)})
    with pytest.raises(UsageError, match=f"{name}.*is taken"):
        register_rule(made)
