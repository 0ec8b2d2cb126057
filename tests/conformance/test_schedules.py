"""Random schedules of feeds, sleeps by hand, saves and loads against the oracle's reading of the same streams."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sleepc.ir.compare import max_error
from sleepc.runtime.session import Session
from tests.conformance.backends import BACKENDS
from tests.conformance.test_invariants import TOLERANCE, bench
from tests.families import VOCAB, WINDOW

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(0, 2 * WINDOW), st.sampled_from(["left", "right"]), st.integers(0, 2)),
        st.tuples(st.just("sleep"), st.sets(st.integers(0, 1))),
        st.tuples(st.just("save")),
    ),
    max_size=7,
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "recipe"), [("llama", "parallel"), ("gemma2", "insert-sleep"), ("gpt2", "parallel-hard")]
)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(actions=ACTIONS)
def test_any_schedule(backend: str, name: str, recipe: str, actions: list[tuple[Any, ...]]) -> None:
    torch.set_num_threads(1)
    oracle, steps = bench(backend, name, recipe).oracle, bench(backend, name, recipe).steps
    assert oracle is not None
    session, rng = Session(steps, 2), np.random.default_rng(0)
    read: list[list[int]] = [[], []]
    cuts: list[list[int]] = [[], []]
    found: list[list[torch.Tensor]] = [[], []]
    since = [0, 0]
    for action in actions:
        if action[0] == "feed":
            ids, mask = _batch(rng, action[1], action[2], action[3])
            out = torch.from_numpy(session.feed(ids, mask, logits="all"))
            for b in range(2):
                for token in ids[b][mask[b]]:
                    read[b].append(int(token))
                    since[b] = (since[b] + 1) % WINDOW
                    if since[b] == 0:
                        cuts[b].append(len(read[b]))
                found[b].append(out[b][torch.from_numpy(mask[b])])
        elif action[0] == "sleep":
            for b in session.sleep(sorted(action[1])).tolist():
                cuts[b].append(len(read[b]))
                since[b] = 0
        else:
            with tempfile.TemporaryDirectory() as folder:
                session.save_state(Path(folder) / "s")
                session = Session(steps, 2)
                session.load_state(Path(folder) / "s")
    for b in range(2):
        if read[b]:
            with torch.no_grad():
                wanted = oracle(torch.tensor([read[b]]), tuple(cuts[b])).logits()[0]
            assert max_error(torch.cat(found[b]), wanted) <= TOLERANCE


def _batch(rng: np.random.Generator, count: int, side: str, shorter: int) -> tuple[Any, Any]:
    """Two rows, the second shorter, padded on one side with ids that must not be read."""
    lengths = (count, max(count - shorter, 0))
    ids = rng.integers(0, VOCAB, (2, count))
    places = np.arange(count)
    rows = [places >= count - n if side == "left" else places < n for n in lengths]
    return ids, np.array(rows, dtype=bool).reshape(2, count)
