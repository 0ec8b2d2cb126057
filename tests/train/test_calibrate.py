"""Calibration as a whole: what is kept, what is not, and going on after an interruption."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sleepc as package
from sleepc.api import Program
from sleepc.backends.eager.backend import load
from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.manifest import Source
from sleepc.memory.parameters import MIX_BIAS, parameter_in
from sleepc.runtime.steps import IntArray
from sleepc.tasks.programs import full_attention
from sleepc.train import calibrate as module
from sleepc.train import gates
from sleepc.train.calibrate import CalibrationReport, CalibrationSettings, calibrate_on, deal, piece_length
from sleepc.train.self_text import Writer
from sleepc.verify.memory_values import new_parameters
from tests.families import family, make_module

SETTINGS = CalibrationSettings(tokens=48, steps=6)
LENGTH = 24


@cache
def pieces() -> list[IntArray]:
    """What the model itself writes: a text whose perplexity rises where something is forgotten."""
    teacher = load(full_attention(family("llama").canonical, LENGTH))
    return list(islice(Writer(teacher, (3,), LENGTH, 0, 8, least=LENGTH).pieces(), 8))


def converted(name: str = "llama", **options: Any) -> Program:
    graphs, recipe = family(name).convert(**{"window": 4, "sinks": 1, **options})
    return Program(graphs, recipe, Source(name=name, kind="module"), canonical=family(name).canonical)


def run(program: Program, work_dir: Path | None = None, resume: bool = False, **changes: Any) -> CalibrationReport:
    settings = SETTINGS.model_copy(update=changes)
    return calibrate_on(program, pieces(), settings, lambda what, share: None, work_dir, resume)


def values(graphs: ProgramGraphs) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in new_parameters(graphs).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strategy": "insert"},
        {"strategy": "replace", "decay": "channel"},
        {"strategy": "replace", "layout": "native"},
        {"overrides": [{"layers": "0", "strategy": "replace"}, {"layers": "1", "window": 6, "rule": "delta"}]},
    ],
    ids=str,
)
def test_a_layer_is_kept_only_where_it_helps(options: dict[str, Any]) -> None:
    program = converted(**options)
    before = values(program.graphs)
    report = run(program)
    assert [layer.layer for layer in report.layers] == [0, 1, 2]
    for layer in report.layers:
        least = layer.before
        if "gates" in layer.kept:
            assert layer.gates <= least
            least = layer.gates
        assert layer.steps is not None
        assert ("steps" in layer.kept) == (layer.steps < least)
        assert layer.strategy == program.recipe.plan(3)[layer.layer].strategy
    assert any("steps" in layer.kept for layer in report.layers)
    figures = report.perplexity
    assert all(math.isfinite(figure) for figure in figures.values())
    assert report.kept == (figures["after"] <= figures["before"])
    assert same(values(program.graphs), before) != report.kept
    assert program.report.get("calibration") == (report.to_json() if report.kept else None)
    assert "training" not in program.report
    assert json.loads(json.dumps(report.to_json())) == report.to_json()
    assert all(param.new == (parameter_in(key) is not None) for key, param in program.graphs.params.items())


def test_what_makes_the_whole_worse_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    program = converted()
    graphs, before = program.graphs, values(program.graphs)
    found = iter([3.0, 2.0, 2.1])
    monkeypatch.setattr(module, "perplexity", lambda *_: next(found))
    report = run(program)
    assert report.perplexity == {"control": 3.0, "before": 2.0, "after": 2.1}
    assert not report.kept
    assert program.graphs is graphs
    assert same(values(program.graphs), before)
    assert "calibration" not in program.report


def test_gates_that_do_harm_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    harmful = gates.gate_values

    def all_of_it(now: Any, goal: Any, mix: float | None, x: Any) -> dict[str, torch.Tensor]:
        return {**harmful(now, goal, mix, x), MIX_BIAS.port: torch.full_like(now[MIX_BIAS.port], 9.0)}

    monkeypatch.setattr(module, "gate_values", all_of_it)
    program = converted()
    before = values(program.graphs)
    report = run(program, steps=0)
    assert all(layer.gates > layer.before and layer.kept == () for layer in report.layers)
    assert all(layer.steps is None for layer in report.layers)
    assert not report.kept
    assert same(values(program.graphs), before)


class Stop(Exception):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_going_on_after_an_interruption_gives_the_same(tmp_path: Path, layer: int) -> None:
    whole = converted()
    wanted = run(whole)

    def stop(what: str, share: float | None) -> None:
        if what.startswith(f"layer {layer} ") and "step 3," in what:
            raise Stop

    program = converted()
    before = values(program.graphs)
    with pytest.raises(Stop):
        calibrate_on(program, pieces(), SETTINGS, stop, tmp_path / "work")
    assert same(values(program.graphs), before), "nothing is changed before the end"
    kept = sorted(file.name for file in (tmp_path / "work").iterdir())
    assert kept == [f"layer-{i:04d}.{kind}" for i in range(layer) for kind in ("json", "safetensors")]

    heard: list[str] = []
    found = calibrate_on(
        program, pieces(), SETTINGS, lambda what, share: heard.append(what), tmp_path / "work", resume=True
    )
    assert not any(what.startswith(f"layer {i} ") for what in heard for i in range(layer))
    drop = {"seconds"}
    assert found.model_dump(exclude=drop) == wanted.model_dump(exclude=drop)
    assert same(values(program.graphs), values(whole.graphs))


def test_another_calibration_is_not_gone_on_from(tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(converted(), work, steps=0)
    with pytest.raises(UsageError, match="another text, other options or another artifact"):
        run(converted(), work, resume=True)
    with pytest.raises(UsageError, match="other options or another artifact"):
        run(converted(seed=1, strategy="insert"), work, resume=True, steps=0)
    (work / "layer-0001.safetensors").write_bytes(b"short")
    with pytest.raises(UsageError, match=r"cannot read .*layer-0001\.safetensors"):
        run(converted(), work, resume=True, steps=0)
    (work / "layer-0001.json").write_text("{}")
    with pytest.raises(UsageError, match=r"cannot read .*layer-0001\.json"):
        run(converted(), work, resume=True, steps=0)
    run(converted(), work, steps=0)  # anew
    (work / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="does not belong to a calibration"):
        run(converted(), work, steps=0)
    assert (work / "notes.txt").read_text() == "mine"


def test_layers_behind_a_loop_are_left_alone() -> None:
    program = converted(consolidation="recurrent", passes=2, loop="0:2")
    report = run(program, steps=0)
    assert [layer.layer for layer in report.layers] == [0, 1]
    assert report.notes
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        package.api.warn_untrained(program)
    assert len(caught) == 1, "a calibration is no training"


def test_pieces_are_dealt_to_three() -> None:
    every = [np.full(5, n) for n in range(20)]
    parts = deal(every, 15)
    assert [[int(piece[0]) for piece in part] for part in (parts.learn, parts.apart, parts.held_out)] == [
        [0, 2, 4],
        [1],
        [3],
    ]
    with pytest.raises(UsageError, match="it gives 3 pieces, and 4 are needed"):
        deal(every[:3], 5)
    short = run(converted(), tokens=1000, steps=0)
    assert short.tokens == 4 * LENGTH
    assert short.notes == (f"the text gave {4 * LENGTH} tokens to learn from, not 1000",)


def test_a_piece_reaches_beyond_the_window_and_not_beyond_the_positions() -> None:
    graphs = converted().graphs  # 64 positions
    assert piece_length(graphs, 1) == 64
    assert piece_length(replace(graphs, max_positions=24), 1) == 24
    assert piece_length(replace(graphs, max_positions=None, window=256), 1) == 1024
    assert piece_length(replace(graphs, max_positions=None, window=4096), 1) == 8192
    with pytest.raises(UsageError, match="the model has 5 positions"):
        piece_length(replace(graphs, max_positions=5), 1)


def test_a_narrow_program_is_calibrated_in_float32() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = package.convert(make_module("llama", torch.bfloat16), {"window": 4, "sinks": 1})
    report = run(program, steps=2)
    assert all(0 < layer.before < 2 for layer in report.layers)
    assert program.graphs.dtype == torch.bfloat16
    for key, value in new_parameters(program.graphs).items():
        assert value.dtype == torch.float32, key
