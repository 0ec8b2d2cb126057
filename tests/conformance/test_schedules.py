"""Random schedules of feeds, sleeps by hand, saves and loads against the oracle's reading of the same streams."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sleepc.ir.compare import max_error
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.streams import gap_to_oracle, state_of
from tests.conformance.backends import BACKENDS, RUNNABLE
from tests.conformance.test_invariants import bench
from tests.families import VOCAB, WINDOW, family

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(0, 2 * WINDOW), st.sampled_from(["left", "right"]), st.integers(0, 2)),
        st.tuples(st.just("sleep"), st.sets(st.integers(0, 1))),
        st.tuples(st.just("save")),
    ),
    max_size=7,
)


@dataclass
class Course:
    """Two rows on the way through a schedule: what each read, when it slept, and the logits that it got."""

    session: Session
    read: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    cuts: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = field(default_factory=lambda: ([], []))

    def feed(self, ids: Any, mask: Any) -> None:
        """Feed a padded batch; rows sleep of themselves after every window."""
        out = torch.from_numpy(self.session.feed(ids, mask, logits="all"))
        for b in range(2):
            for token in ids[b][mask[b]]:
                self.read[b].append(int(token))
                if len(self.read[b]) - (self.cuts[b][-1] if self.cuts[b] else 0) == WINDOW:
                    self.cuts[b].append(len(self.read[b]))
            self.found[b].append(out[b][torch.from_numpy(mask[b])])

    def sleep(self, rows: list[int]) -> None:
        """Sleep by hand, where rows have read anything since their last sleep."""
        for b in self.session.sleep(rows).tolist():
            self.cuts[b].append(len(self.read[b]))

    def save_and_load(self) -> None:
        """Go on in another session."""
        with tempfile.TemporaryDirectory() as folder:
            self.session.save_state(Path(folder) / "s")
            self.session = Session(self.session.steps, 2)
            self.session.load_state(Path(folder) / "s")

    def error(self, oracle: Oracle) -> float:
        """The largest error of logits and of the state at the end, against the oracle's reading of each row."""
        errors = [0.0]
        state = state_of(self.session)
        for b in range(2):
            if self.read[b]:
                with torch.no_grad():
                    stream = oracle(torch.tensor([self.read[b]]), tuple(self.cuts[b]))
                    errors.append(max_error(torch.cat(self.found[b]), stream.logits()[0]))
                wanted = stream.state()
                errors.append(gap_to_oracle({name: x[b : b + 1] for name, x in state.items()}, wanted))
        return max(errors)


def run_schedule(steps: Steps, actions: list[tuple[Any, ...]], *, swapped: bool = False) -> Course:
    """Carry out the actions; `swapped` exchanges the two rows."""
    course, rng = Course(Session(steps, 2)), np.random.default_rng(0)
    order = [1, 0] if swapped else [0, 1]
    for action in actions:
        if action[0] == "feed":
            ids, mask = _batch(rng, action[1], action[2], action[3])
            course.feed(ids[order], mask[order])
        elif action[0] == "sleep":
            course.sleep(sorted(order[b] for b in action[1]))
        else:
            course.save_and_load()
    return course


@pytest.mark.parametrize("backend", RUNNABLE)
@pytest.mark.parametrize(
    ("name", "recipe"), [("llama", "parallel"), ("gemma2", "insert-sleep"), ("gpt2", "parallel-hard")]
)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS)
def test_any_schedule(backend: str, name: str, recipe: str, actions: list[tuple[Any, ...]]) -> None:
    torch.set_num_threads(1)
    subject = bench(backend, name, recipe)
    assert subject.oracle is not None
    assert run_schedule(subject.steps, actions).error(subject.oracle) <= BACKENDS[backend].tolerance


OVERRIDES: list[Any] = [
    {"layers": "1", "strategy": "replace", "write": "default"},
    {"layers": "0", "strategy": "insert"},
    {"layers": "2", "strategy": "leave"},
    {"layers": "1", "window": WINDOW + 3},
]


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Options that fit together: strategies, rules, evictions, consolidations, N, loops, write times, and layers of
    their own.
    """
    strategy = draw(st.sampled_from(["parallel", "insert", "replace"]))
    rule = draw(st.sampled_from(["linear", "gated", "delta", "gated_delta"]))
    decays, corrects = "gated" in rule, "delta" in rule
    consolidation = draw(st.sampled_from(["replay", "recurrent"]))
    return {
        "strategy": strategy,
        "rule": rule,
        "decay": draw(st.sampled_from(["head", "channel"])) if decays else "head",
        "consolidation": consolidation,
        "passes": draw(st.integers(1, 3)) if corrects or consolidation == "recurrent" else 1,
        "loop": draw(st.sampled_from(["all", "middle", "0:1", "0:2", "1:3", "2:3"])),
        "eviction": draw(st.sampled_from(["sliding", "hard"])),
        "sinks": draw(st.sampled_from([0, 2])),
        "write": draw(st.sampled_from(["default", "sleep", "online"])) if strategy != "replace" else "default",
        "overrides": draw(st.lists(st.sampled_from(OVERRIDES), max_size=2)),
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", RUNNABLE)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(["llama", "gpt2", "gemma2"]), options=recipes(), actions=ACTIONS)
def test_any_schedule_of_any_recipe(
    backend: str, name: str, options: dict[str, Any], actions: list[tuple[Any, ...]]
) -> None:
    """Invariants 1 and 4 (any split equals the oracle), 5 (rows of unequal prompts, padded), 7 (saved on the way) and 8
    (rows exchanged).
    """
    torch.set_num_threads(1)
    subject = family(name)
    step, recipe = subject.convert(**options)
    program = shaken(step)
    steps = BACKENDS[backend].load(program)
    oracle = Oracle(subject.canonical, recipe, parameters_of(subject.canonical, program))
    course = run_schedule(steps, actions)
    assert course.error(oracle) <= BACKENDS[backend].tolerance
    other = run_schedule(steps, actions, swapped=True)
    for b in range(2):
        if course.read[b]:
            assert max_error(torch.cat(other.found[1 - b]), torch.cat(course.found[b])) <= BACKENDS[backend].tolerance


def _batch(rng: np.random.Generator, count: int, side: str, shorter: int) -> tuple[Any, Any]:
    """Two rows, the second shorter, padded on one side with ids that must not be read."""
    lengths = (count, max(count - shorter, 0))
    ids = rng.integers(0, VOCAB, (2, count))
    places = np.arange(count)
    rows = [places >= count - n if side == "left" else places < n for n in lengths]
    return ids, np.array(rows, dtype=bool).reshape(2, count)
