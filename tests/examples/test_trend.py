"""The examples that show what passes of a sleep give: they train, go on where they were stopped, and show figures."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples import depo, rule110, trend
from examples.trend import Experiment, Run
from sleepc.tasks.depo import Depo
from sleepc.tasks.lessons import lessons
from sleepc.tasks.puzzle import examples
from sleepc.tasks.rule110 import Rule110
from sleepc.tasks.spelling import spell_as_ids
from sleepc.train.start import new_layers

RULE = Experiment(
    "a ring of 4 bits", Rule110(width=4, states=1, steps=(1,)), "exact", window=4, runs=trend.runs(4, passes=(1, 2)),
    width=16, heads=2, blocks=2, batch=4, every=2, held_out=8, seeds=1,
)  # fmt: skip
CYCLE = replace(
    RULE, title="a cycle", puzzle=Depo(nodes=3, hops=(1, 2), letters=3, longest=1, questions=2), metric="accuracy",
    window=7,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("e", [RULE, CYCLE], ids=["rule110", "depo"])
def test_figures_of_every_run(e: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, seed in itertools.product(e.runs, range(e.seeds)):
        assert trend.train(e, run, seed, trend.folder_of(tmp_path, run, seed))
    trend.show(e, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(r["passes"], r["seed"], r["step"]) for r in rows] == [*itertools.product((1, 2), (0,), (2, 4))]
    assert all(0 <= row[depth] <= 1 for row in rows for depth in trend.depths(e))
    assert all(row["seconds"] > 0 for row in rows)
    assert (tmp_path / "plot.svg").read_bytes().startswith(b"<?xml")
    assert "| N = 2 |" in capsys.readouterr().out


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, parts, whole = Run(2, 4), tmp_path / "parts", tmp_path / "whole"
    assert trend.train(RULE, run, 0, whole)
    looked = iter([False, False, True])  # before the run, after its first step, after its second

    class Stopping(list[bool]):
        def __bool__(self) -> bool:
            return next(looked)

    monkeypatch.setattr(trend, "_stopping", Stopping())
    assert not trend.train(RULE, run, 0, parts)
    monkeypatch.setattr(trend, "_stopping", [])
    assert trend.train(RULE, run, 0, parts)
    stopped, straight = (trend.Lines(folder / "scores.jsonl").read() for folder in (parts, whole))
    assert [row | {"pace": 0} for row in stopped] == [row | {"pace": 0} for row in straight]
    assert trend.train(RULE, run, 0, parts), "one that is finished is not trained again"
    assert len((parts / "metrics.jsonl").read_text().splitlines()) == 4


def test_all_numbers_of_passes_start_alike() -> None:
    once, twice = (new_layers(RULE.build(RULE, passes, 3).graphs, 3).params for passes in (1, 2))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key].materialise(), twice[key].materialise()) for key in once)
    other = new_layers(RULE.build(RULE, 1, 4).graphs, 4).params
    assert not torch.equal(once["blocks.1.memory.conv"].materialise(), other["blocks.1.memory.conv"].materialise())


def test_what_takes_long_waits_for_a_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"full": replace(RULE, runs=trend.runs(10_000_000, passes=(1,)))}
    assert trend.main("rule110", "About.", sizes, ["--full", "--work", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert "on this CPU" in said
    assert "--yes" in said
    assert list(tmp_path.iterdir()) == []


# Of Depo's full size, names have one or two tokens: contexts end anywhere there, as the paper's do.
WHOLE = [*rule110.SIZES.values(), depo.SIZES["normal"], depo.SIZES["quick"]]


@pytest.mark.parametrize("e", WHOLE, ids=lambda e: e.title)
def test_windows_end_where_contexts_end(e: Experiment) -> None:
    """Else attention would still have a part of the context when it is asked for."""
    found = spell_as_ids(e.puzzle.vocabulary, len(e.puzzle.vocabulary), examples(e.puzzle, 1, seed=1))
    (sample,), (lesson,) = found, lessons(found)
    assert len(sample.tokens) % e.window == 0
    assert len(lesson.tokens) - len(sample.tokens) <= e.window, "no sleep among the questions"


def test_a_curriculum_asks_for_more_hops_as_it_goes() -> None:
    puzzle = depo.Growing(nodes=5, hops=(1, 2, 4), letters=5, longest=1, questions=3, until=(2, 4))
    asked = [{q.depth for q in example.questions} for example in examples(puzzle, 6, seed=0)]
    assert asked == [{1}, {1}, {1, 2}, {1, 2}, {1, 2, 4}, {1, 2, 4}]
    assert puzzle.vocabulary == Depo(nodes=5, hops=(1, 2, 4), letters=5, longest=1, questions=3).vocabulary


def test_seconds_are_steps_at_the_median_pace(tmp_path: Path) -> None:
    e = replace(RULE, runs=(Run(1, 6),), seeds=1)
    scores = [{"step": n, "loss": 1.0, "pace": p, "steps 1": n / 6} for n, p in ((2, 2.0), (4, 60.0), (6, 2.0))]
    trend.Lines(trend.folder_of(tmp_path, e.runs[0], 0) / "scores.jsonl").write(scores)
    rows = trend.collect(e, tmp_path)
    assert [row["seconds"] for row in rows] == [4.0, 8.0, 12.0]
    assert trend.at(rows, e.runs[0], "steps 1", "seconds", 11.9) == [4 / 6]
    assert trend.at(rows, e.runs[0], "steps 1", "step", 1) == []
    assert trend.spelled([0.25, 0.5, 0.75]) == "0.50 (0.25–0.75)"
