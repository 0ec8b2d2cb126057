"""What is kept is exact: pairs chosen by scores, as many for every KV head as its budget says, against the oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from sleepc.artifact import About, load_artifact, save_artifact
from sleepc.cli.picture.facts import facts_of
from sleepc.cli.picture.sentences import sleep_steps
from sleepc.errors import UsageError
from sleepc.inspection import inspect_program
from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import NOTHING
from sleepc.ir.weights import HeldTensor
from sleepc.manifest import Source
from sleepc.memory.registry import RULES
from sleepc.memory.registry import register as register_rule
from sleepc.memory.rule import State, matrix
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.consolidation.block_sleep import (
    MODEL_POSITION,
    MODEL_POSITIONS,
    MOVED,
    WINDOW_PINNED,
    WINDOW_POSITIONS,
)
from sleepc.passes.keep.contract import HeadPairs, Score, WindowPairs
from sleepc.passes.keep.registry import SCORES, register
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.rewrite.kept_pairs import HEAD, QUERIES, probe_keys
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe, make_recipe
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.rounding import rounding_chooses
from sleepc.verify.streams import Stream, state_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import WRITTEN, load, runs
from tests.conformance.test_invariants import hold_invariants
from tests.families import VOCAB, WINDOW, family

SLOTS, SINKS = 3, 2


class Third(Score):
    """KV head h keeps the newest pairs of positions h, h + 3, h + 6, …"""

    name: ClassVar[str] = "third"

    def emit(self, e: Emit, pairs: WindowPairs) -> fx.Node:
        head = e.unsqueeze(e.call(aten.arange.default, pairs.heads), -1)
        turn = e.call(aten.remainder.Scalar, e.sub(e.unsqueeze(pairs.position, 1), head), 3)
        newest = e.unsqueeze(e.cast(pairs.position, torch.float32), 1)
        return e.where(e.call(aten.eq.Scalar, turn, 0), newest, NOTHING)

    def naive(self, pairs: HeadPairs) -> Tensor:
        each = (float(p) if (p - pairs.head) % 3 == 0 else NOTHING for p in pairs.positions)
        return torch.tensor(list(each), dtype=torch.float64)

    def in_words(self) -> str:
        return "every third pair"


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(Third())
    yield
    del SCORES["third"]


def convert(name: str = "llama", dtype: torch.dtype = torch.float64, **options: Any) -> tuple[ProgramGraphs, Recipe]:
    recipe = make_recipe({"window": WINDOW, "sinks": SINKS, "keep": {"slots": SLOTS, "score": "third"}, **options})
    canonical = family(name, dtype).canonical
    return shaken(run_stages(canonical, rewrite_stages(recipe, len(canonical.layout)))), recipe


def bench(name: str, steps: Steps, made: tuple[ProgramGraphs, Recipe], length: int = 3 * WINDOW + 3) -> Bench:
    canonical, (program, recipe) = family(name, made[0].dtype).canonical, made
    oracle = Oracle(canonical, recipe, parameters_of(canonical, program))
    tokens = np.random.default_rng(3).integers(0, VOCAB, length)
    return Bench(steps, oracle, make_streams(tokens, WINDOW))


OTHER = {"layers": "1", "strategy": "replace"}
UNEQUAL = {"budgets": [[2, 5], [0, 1], [3, 0]]}
LOOP = {"consolidation": "recurrent", "passes": 3, "loop": "0:2"}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"passes": 2}),
    ("llama", {"keep": UNEQUAL, **LOOP}),
    ("gemma2", {"keep": {"slots": 2}}),  # softcap; every second layer has a window of its own, and keeps nothing
    ("gpt2", {"keep": {"slots": 2}, "strategy": "insert", "overrides": [{"layers": "1", "window": WINDOW + 5}]}),
    ("llama", {"write": "online", "overrides": [{"layers": "0", "window": "none"}, OTHER]}),
    ("gptj", {"keep": {"slots": 2}}),  # its positions are a table: a key that has one cannot be turned on
    ("gpt-oss", {"keep": {"slots": 2}}),  # learned sink logits
    ("smollm3", {"keep": {"slots": 2}}),  # a layer without positions
    ("llama", {"keep": {"slots": 3, "score": "key"}}),
    ("llama", {"overrides": [{"layers": "0", "strategy": "leave", "window": 5}]}),  # it has lost tokens before a sleep
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_program_is_what_its_oracle_says(name: str, options: dict[str, Any]) -> None:
    made = convert(name, **options)
    hold_invariants(bench(name, load(made[0]), made), 1e-9)


@pytest.mark.parametrize(("name", "keep"), [("llama", UNEQUAL), ("smollm3", {"slots": 3}), ("gptj", {"slots": 2})])
def test_more_than_the_positions_that_the_model_has(name: str, keep: dict[str, Any]) -> None:
    """Sinks, pairs and ring are numbered anew, or, in a model that cannot, pairs are dropped. Rotations are float32."""
    made = convert(name, keep=keep)
    limit = made[0].max_positions
    assert limit is not None
    tokens = np.random.default_rng(4).integers(0, VOCAB, 2 * limit + 5)
    subject = bench(name, load(made[0]), made)
    subject.streams = (Stream(tokens, tuple(range(WINDOW, len(tokens) + 1, WINDOW))),) * 3
    assert invariants.definition(subject) < 1e-6
    state = subject.alone[0].state
    assert ("offset" in state) is (name != "gptj")
    assert int(state["0.kept.position"].max()) < limit
    if "offset" in state:
        assert int(state["offset"]) > 0


def test_what_is_kept_is_every_third_pair_of_each_head() -> None:
    session = Session(load(convert()[0]))
    session.feed([np.random.default_rng(5).integers(0, VOCAB, 4 * WINDOW + 1).tolist()])
    last = state_of(session)["2.kept.position"][0].tolist()
    heads = [p for head in range(2) for p in [p for p in range(SINKS, 4 * WINDOW) if p % 3 == head][-SLOTS:]]
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


def _one_head(program: ProgramGraphs) -> None:
    """All heads see what each has kept."""
    for wake in (cls.wake for cls in program.classes.values()):
        for node in wake.calls():
            if is_call(node, aten.eq.Tensor) and wake.ports().get(HEAD) in node.args:
                e = Emit(wake, "fault", node.next)
                for user in list(node.users):
                    user.replace_input_with(node, e.call(aten.ones_like.default, node))


def _oldest(program: ProgramGraphs) -> None:
    """A sleep keeps the oldest pairs: it takes all scores for equal."""
    for node in (node for cls in program.classes.values() if cls.sleep for node in cls.sleep.calls()):
        if is_call(node, aten.sort.stable) and node.kwargs.get("descending"):
            node.kwargs = {**node.kwargs, "descending": False}


def _one_budget(program: ProgramGraphs) -> None:
    """Heads take each other's slots."""
    for i, block in enumerate(program.layout):
        owners = program.params[block.params[HEAD]].materialise()
        program.params[block.params[HEAD]] = HeldTensor(torch.sort(1 - owners).values, new=True)
        assert i < 3


def _of_another(program: ProgramGraphs) -> None:
    """Heads have each other's probes."""
    for key in probe_keys(program).values():
        program.params[key] = HeldTensor(program.params[key].materialise().flip(0), new=True)


def _as_it_came(program: ProgramGraphs) -> None:
    """Kept keys have no positions."""
    for cls in program.classes.values():
        assert cls.sleep is not None
        for node in cls.sleep.calls():
            if is_call(node, aten.cos.default):
                Emit(cls.sleep, "fault", node.next)
                node.target = aten.ones_like.default


@pytest.mark.parametrize("fault", [_blind, _early, _one_head, _oldest, _one_budget, _as_it_came, _of_another])
def test_a_fault_is_found(fault: Callable[[ProgramGraphs], None]) -> None:
    keep = {"slots": SLOTS, **({"score": "probe"} if fault is _of_another else {})}
    program, recipe = convert(keep=UNEQUAL if fault is _one_budget else keep)
    wrong = program.clone()
    fault(wrong)
    assert invariants.definition(bench("llama", load(wrong), (program, recipe))) > 1e-4


def test_bytes_are_flat_and_counted() -> None:
    (kept, _), (plain, _) = convert(keep=UNEQUAL), convert(keep=None)
    site = find_site(family("llama").canonical.classes[kept.layout[0].cls].wake)
    waiting = 8 * (site.d_k + 1)  # what the memory will write: its key, and how strongly
    slots = sum(map(sum, UNEQUAL["budgets"])) * (8 * (site.d_k + site.d_v) + 8 + 8 + 8 + waiting)
    offset = 8  # positions are numbered anew
    marks = WINDOW + 8 * (SINKS + WINDOW)  # pinned, gaps
    assert kept.state_bytes() == plain.state_bytes() + slots + offset + marks
    session = Session(load(kept))
    for _ in range(5):
        session.feed([list(range(WINDOW + 1))])
        assert sum(value.numel() * value.element_size() for value in state_of(session).values()) == kept.state_bytes()


def test_blocks_that_differ_in_budgets_are_one_class() -> None:
    assert len(convert(keep={"budgets": [[2, 5], [0, 1], [3, 4]]})[0].classes) == 1
    assert len(convert(keep={"budgets": [[2, 5], [0, 0], [3, 4]]})[0].classes) == 2  # one that keeps none


def test_an_artifact_and_a_state_file_go_on_where_they_were(tmp_path: Path) -> None:
    program, recipe = convert(keep=UNEQUAL)
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


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"keep": UNEQUAL}),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (CASES[1], CASES[2], CASES[6])),
    ],
)
def test_exports_take_it(form: str, name: str, options: dict[str, Any]) -> None:
    subject = runs(form)
    made = convert(name, subject.dtype, **options)
    hold_invariants(bench(name, subject.load(made[0]), made), subject.tolerance)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("llama", {"eviction": "hard"}, "kept pairs keep theirs"),
        ("bloom", {}, "scores change with distance"),
        ("mistral-5", {}, "no layer can keep pairs"),
        ("llama", {"keep": {"slots": 3, "score": "fourth"}}, "no score is named 'fourth'"),
        ("llama", {"keep": {"budgets": [[1, 1]]}}, "for 1 layers, and the model has 3"),
        ("llama", {"keep": {"budgets": [[1, 1], [1], [1, 1]]}}, "layer 1 gets slots for 1 KV heads, and has 2"),
        ("gemma2", {"keep": {"budgets": [[1, 1], [1, 1], [1, 1]]}}, "keeps no pairs"),
        ("llama", {"keep": {"slots": 60}}, "60 pairs of one KV head and 8 new ones .* need 78 positions, .* has 64"),
        ("llama", {"overrides": [{"layers": "0-2", "strategy": "replace"}]}, "no layer can keep pairs"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        convert(name, **options)


def test_its_words_are_said() -> None:
    program, recipe = convert(keep={"score": "third", "budgets": [[], [2, 1], [3, 0]]})
    seen = inspect_program(family("llama").canonical, program, recipe)
    assert "every third pair, and memories are written with those that are dropped" in seen.sleep
    steps = " ".join(sleep_steps(facts_of("llama", seen, program, recipe)))
    assert "In block 0 what the window held" in steps
    assert "In blocks 1–2 what heads do not keep" in steps


@pytest.mark.parametrize("name", [QUERIES, WINDOW_POSITIONS, MODEL_POSITIONS, MODEL_POSITION, MOVED, WINDOW_PINNED])
def test_no_state_of_a_rule_has_the_name_of_a_port(name: str) -> None:
    made = replace(RULES["delta"], name="other", states={name: State(matrix)})
    with pytest.raises(UsageError, match=f"{name}.*is taken"):
        register_rule(made)


def test_half_precision_is_verified_in_float32() -> None:
    """Keys that are rounded otherwise are other choices."""
    assert rounding_chooses(convert(dtype=torch.bfloat16)[0])
    assert not rounding_chooses(convert(dtype=torch.bfloat16, keep=None)[0])
    assert not rounding_chooses(convert(dtype=torch.float32)[0])


def test_a_picture_is_drawn_of_blocks_with_other_budgets() -> None:
    program, recipe = convert(keep=UNEQUAL)
    facts = facts_of("llama", inspect_program(family("llama").canonical, program, recipe), program, recipe)
    assert sum(part.state_bytes * len(part.blocks) for part in facts.parts()) <= program.state_bytes()
