"""Convolutions and recurrences of the model's own, in blocks with attention and without, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import sleepc
from sleepc.cli.convert import _tell_conversion
from sleepc.cli.display import Display
from sleepc.errors import SleepcWarning
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.states import with_role
from sleepc.passes.analysis.kv_cache import kv_cache
from sleepc.passes.lib.emit import Emit, aten
from sleepc.runtime.state_file import read_state, write_state
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import load
from tests.conformance.test_invariants import hold_invariants
from tests.hybrids import VOCAB, WIDTH, Hybrid

WINDOW = 8
OWN = {"tail.0": (3 * WIDTH, 2), "own.0": (2, WIDTH // 2, WIDTH // 2)}


def converted(*, beside: bool, positions: int | None = None, **options: Any) -> sleepc.Program:
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)  # recurrent passes need training
        return sleepc.convert(
            Hybrid(beside=beside, positions=positions).double(), {"window": WINDOW, "sinks": 2, **options}
        )


@pytest.mark.parametrize(
    ("beside", "options"),
    [
        (False, {"keep": {"slots": 3, "budgets": "equal"}, "passes": 2, "positions": 24}),
        (True, {"eviction": "hard", "write": "online"}),
        (False, {"consolidation": "recurrent", "passes": 2, "sinks": 0, "settle": 0.1}),
        (True, {"consolidation": "recurrent", "passes": 3, "loop": "0:1"}),
    ],
)
def test_invariants(beside: bool, options: dict[str, Any]) -> None:
    program = converted(beside=beside, **options)
    graphs = shaken(program.graphs)
    assert program.canonical is not None
    oracle = Oracle(program.canonical, program.recipe, parameters_of(program.canonical, graphs))
    tokens = np.random.default_rng(3).integers(0, VOCAB, 3 * WINDOW + 3)
    bench = Bench(load(graphs), oracle, make_streams(tokens, WINDOW))
    assert set(OWN) <= {name.partition(".")[2] for name in bench.alone[0].state}
    hold_invariants(bench, 1e-9)


@pytest.mark.parametrize("beside", [False, True])
def test_what_a_hybrid_carries(beside: bool) -> None:
    """Blocks, states, and what they cost, beside what the original's cache does."""
    program = converted(beside=beside)
    classes = [program.graphs.classes[block.cls] for block in program.graphs.layout]
    own = [{s.name: s.dims[1:] for s in with_role(cls.states, "tail", "own")} for cls in classes]
    assert own == ([OWN, OWN] if beside else [OWN, {}])
    assert [bool(with_role(cls.states, "kv")) for cls in classes] == ([True, True] if beside else [False, True])
    assert [plan.strategy for plan in program.recipe.plan(2)] == ["parallel" if beside else "leave", "parallel"]
    assert program.canonical is not None
    cache, count = kv_cache(program.canonical), 1 + beside
    carried = 3 * WIDTH * 2 + 2 * (WIDTH // 2) ** 2
    assert cache.bytes(10) == 8 * count * (10 * 2 * WIDTH + carried)
    assert cache.bytes_per_token == 8 * count * 2 * WIDTH
    seen = program.inspect()
    assert (len(seen.blocks), seen.sites) == (2, 1 + beside)
    assert seen.blocks[0].becomes == ("window 8 + gated_delta memory" if beside else "as it is, from state to state")


def test_what_is_told_of_a_hybrid() -> None:
    """Heads are those of its attention, in whichever block that is."""
    program, told = converted(beside=False), StringIO()
    _tell_conversion(Display(Console(file=told, width=200)), program, program.inspect())
    assert "2 blocks · 1 attention site (2 heads, 2 KV heads, d=4" in told.getvalue()
    assert "1 layer → as it is, from state to state, 1 layer → window 8" in told.getvalue()


def test_a_state_without_what_it_carries_is_refused(tmp_path: Path) -> None:
    """As a conversion saved it that knew no recurrent layers; and one from before there were passes."""
    session, file = converted(beside=False).session(), tmp_path / "state"
    session.save_state(file)
    passes = converted(beside=False, consolidation="recurrent", passes=2)
    with pytest.raises(sleepc.SleepcError, match="another model or conversion: it differs in array"):
        passes.session().load_state(file)
    held = session._file_contents({})
    arrays = {name: array for name, array in read_state(file, held).items() if "own" not in name}
    write_state(file, arrays, replace(held, arrays={name: held.arrays[name] for name in arrays}))
    with pytest.raises(sleepc.SleepcError, match=r"it differs in array 0\.own\.0 \(None in the file"):
        session.load_state(file)


def _forget(graph: Graph, name: str) -> None:
    port = graph.ports("state")[name]
    zeros = Emit(graph, "", next(iter(graph.calls()))).call(aten.zeros_like.default, port)
    for user in [user for user in port.users if user is not zeros]:
        user.replace_input_with(port, zeros)


def _let_padding_write(graph: Graph) -> None:
    (real,) = graph.ports("input")["real"].users
    for mask in [real, *real.users]:
        for node in [user for user in mask.users if is_call(user, aten.mul.Tensor)]:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plant", "measure"),
    [
        (lambda graph: _forget(graph, "own.0"), invariants.chunking),
        (lambda graph: _forget(graph, "tail.0"), invariants.chunking),
        (_let_padding_write, invariants.padding),
    ],
)
def test_what_is_carried_wrongly_is_found(plant: Callable[[Graph], None], measure: Callable[[Bench], float]) -> None:
    program = converted(beside=False).graphs.clone()
    wake = program.classes[program.layout[0].cls].wake
    plant(wake)
    wake.drop_dead()
    infer_types(wake)
    tokens = np.random.default_rng(3).integers(0, VOCAB, 3 * WINDOW + 3)
    assert measure(Bench(load(program), None, make_streams(tokens, WINDOW))) > 1e-3
