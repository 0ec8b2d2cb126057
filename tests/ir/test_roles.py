"""Every state has a role that says what a sleep does to it; artifacts from before there were roles get them by name."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from sleepc.artifact import About, load_artifact, save_artifact
from sleepc.backends.eager.backend import load
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import AT_SLEEP, BY_NAME, PINNED_SCORE, PREFIX, Role, at_sleep, name_of, role_of_name
from sleepc.ir.states import StateSpec, find_state, with_role
from sleepc.manifest import MANIFEST, Source, identity_of, read_manifest
from sleepc.memory.registry import RULES, register
from sleepc.memory.rule import State, matrix
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.rewrite.bound_attention import CLOCK
from sleepc.passes.rewrite.kept_pairs import kept_specs
from sleepc.passes.runner import run_stages
from sleepc.passes.stateful.add_sleep import AddSleep
from sleepc.recipe import Recipe
from sleepc.runtime import steps
from sleepc.sealed_json import digest
from sleepc.verify.streams import tensors_of
from tests.families import WINDOW, family

LOOP = {"window": WINDOW, "sinks": 2, "consolidation": "recurrent", "passes": 2, "loop": "0:2", "settle": 0.1}
RECIPES: dict[str, dict[str, Any]] = {
    "replay": {"window": WINDOW, "sinks": 2, "passes": 2, "last_position": "renumber"},
    "recurrent": {**LOOP, "strategy": "insert", "write": "online"},
}


@cache
def _converted(recipe: str) -> ProgramGraphs:
    canonical = family("llama").canonical
    return run_stages(canonical, rewrite_stages(Recipe(**RECIPES[recipe]), len(canonical.layout)))


def converted(recipe: str) -> ProgramGraphs:
    """A copy for each test, which may change it."""
    return _converted(recipe).clone()


def test_every_role_says_what_a_sleep_does() -> None:
    assert set(AT_SLEEP) == set(get_args(Role))
    with pytest.raises(SleepcError, match="what a sleep does to states of role 'dream'"):
        at_sleep("dream")  # type: ignore[arg-type]


@pytest.mark.parametrize("place", ["block", "program"])
@pytest.mark.parametrize("role", ["dream", "memory", "clock"])
def test_no_sleep_of_a_state_that_nothing_is_said_of(place: str, role: Any) -> None:
    """A role that is not listed anywhere, a memory without a block, and a clock within one."""
    program = converted("replay")
    spec = StateSpec(role, "odd", ("B",), torch.float32, "overwrite")
    if place == "program":
        program.states = (*program.states, spec)
    else:
        cls = program.classes[program.layout[0].cls]
        cls.states = (*cls.states, spec)
    allowed = (place, role) in {("block", "memory"), ("program", "clock")}
    sleep = AddSleep(WINDOW, 2, "sliding", "replay", ())
    if allowed:
        sleep.run(program)
        return
    with pytest.raises(SleepcError, match=r"role|counter"):
        sleep.run(program)


def test_the_clock_is_that_of_sessions() -> None:
    assert [spec.name for spec in CLOCK] == list(steps.CLOCKS)


def test_no_rule_names_a_state_like_a_port_of_blocks() -> None:
    """Whatever these are called, in programs that have as many kinds of ports as there are."""
    kept, _ = family("llama").convert(**LOOP, keep={"slots": 2, "budgets": "equal"}, last_position="renumber")
    programs = [kept, converted("recurrent")]
    graphs = [graph for program in programs for cls in program.classes.values() for graph in cls.graphs()]
    own = {spec.part for program in programs for spec in with_role(program.all_states(), "memory")}
    names = {port for graph in graphs for port in graph.ports()} - own
    assert {"k", "tail", "live", "query_positions", "window_pinned", "mask.0", "kept.k"} <= names
    for name in names:
        with pytest.raises(UsageError, match=r"which is taken|cannot name a state"):
            register(replace(RULES["delta"], name="new", states={name: State(matrix)}))


def test_what_sessions_mark_is_called_as_in_programs() -> None:
    """Sessions know no program: they find marks by the names of arrays."""
    assert torch.finfo(torch.float32).max == PINNED_SCORE
    cls = next(iter(family("llama").canonical.classes.values()))
    specs = kept_specs(find_site(cls.wake), torch.float32, None, turns=True)
    assert {steps.TOKEN, steps.SCORE} <= {spec.name for spec in specs}


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_artifact_of_format_1_gets_its_roles_by_names(recipe: str, tmp_path: Path) -> None:
    program = converted(recipe)
    folder = tmp_path / "artifact"
    save_artifact(folder, program, About(Recipe(**RECIPES[recipe]), Source(name="tiny", kind="module")))
    new, identity = load_artifact(folder)[0], identity_of(read_manifest(folder))
    assert new.all_states() == program.all_states()
    rewrite(folder, to_format_1)
    old, manifest = load_artifact(folder)
    assert old.all_states() == program.all_states()
    assert identity_of(manifest) == identity, "states that were saved before still belong to it"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("role"), "has no role"),
        (lambda state: state.update(role="dream"), "role"),
        (lambda state: state.update(part="odd"), "another name than its role"),
        (lambda state: state.update(initial=float("inf")), "finite"),
    ],
)
def test_roles_that_do_not_fit_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    recipe = RECIPES["replay"]
    save_artifact(folder, converted("replay"), About(Recipe(**recipe), Source(name="tiny", kind="module")))
    rewrite(folder, lambda data: change(next(iter(data["classes"].values()))["states"][0]))
    with pytest.raises(SleepcError, match=said):
        load_artifact(folder)


def test_names_are_of_one_role_each() -> None:
    for role in get_args(Role):
        parts = [name for name, of in BY_NAME.items() if of == role] or ["S", "beta"]
        assert [role_of_name(name_of(role, part)) for part in parts] == [(role, part) for part in parts]
    assert set(PREFIX) == {"kept", "gap", "record", "fast", "start", "own"}


def test_a_state_begins_as_it_says() -> None:
    program = converted("replay")
    for cls in program.classes.values():
        cls.states = tuple(replace(s, initial=0.5) if s.role == "memory" else s for s in cls.states)
    eager = load(program)
    state = tensors_of(eager, eager.new_state(2))
    for spec in program.all_states():
        wanted = 0.5 if spec.role == "memory" else 0
        assert (state[spec.name] == wanted).all(), spec.name
    assert find_state(program.all_states(), "memory", "S") is not None


def rewrite(folder: Path, change: Any) -> None:
    """Change the manifest, and its own hash with it."""
    path = folder / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data | {"sha256": digest(data)}))


def to_format_1(data: dict[str, Any]) -> None:
    """As it was written before there were roles."""
    data["format"] = 1
    for state in [*data["states"], *(s for entry in data["classes"].values() for s in entry["states"])]:
        for key in ("role", "part", "initial"):
            del state[key]
