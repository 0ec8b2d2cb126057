"""The examples that show what passes of a sleep give: they train, go on where they were stopped, and show figures."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples import depo, rule110
from examples.trend import command, figures, training
from examples.trend.experiment import Experiment, Run, runs
from sleepc.memory.parameters import CONV, key_of
from sleepc.tasks.depo import Depo
from sleepc.tasks.lessons import lessons
from sleepc.tasks.puzzle import examples
from sleepc.tasks.rule110 import Rule110
from sleepc.tasks.spelling import spell_as_ids
from sleepc.train.start import new_layers

RULE = Experiment(
    "a ring of 4 bits", Rule110(width=4, states=1, steps=(1,)), "exact", window=4, runs=runs(4, passes=(1, 2)),
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
        assert training.train(e, run, seed, training.folder_of(tmp_path, run, seed))
    figures.show(e, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(r["passes"], r["seed"], r["step"]) for r in rows] == [*itertools.product((1, 2), (0,), (2, 4))]
    assert all(0 <= row[depth] <= 1 for row in rows for depth in figures.depths(e))
    assert all(row["seconds"] > 0 for row in rows)
    assert (tmp_path / "plot.svg").read_bytes().startswith(b"<?xml")
    assert "| N = 2 |" in capsys.readouterr().out


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, parts, whole = Run(2, 4), tmp_path / "parts", tmp_path / "whole"
    assert training.train(RULE, run, 0, whole)
    looked = iter([False, False, True])  # before the run, after its first step, after its second

    monkeypatch.setattr(training, "_stopping", lambda: next(looked))
    assert not training.train(RULE, run, 0, parts)
    monkeypatch.setattr(training, "_stopping", lambda: False)
    assert training.train(RULE, run, 0, parts)
    stopped, straight = (training.Lines(folder / "scores.jsonl").read() for folder in (parts, whole))
    assert [row | {"pace": 0} for row in stopped] == [row | {"pace": 0} for row in straight]
    assert training.train(RULE, run, 0, parts), "one that is finished is not trained again"
    assert len((parts / "metrics.jsonl").read_text().splitlines()) == 4


STARTED = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from examples.trend.command import main
from tests.examples.test_trend import LONG

def stop():
    while os.environ["WAIT"] == "steps" and not list(Path(sys.argv[2]).glob("*/metrics.jsonl")):
        time.sleep(0.1)
    time.sleep(1)
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))

if __name__ == "__main__":  # not in the processes that train
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process is born with it ignored
    threading.Thread(target=stop, daemon=True).start()
    sys.exit(main("rule110", "About.", {"normal": LONG}, ["--work", sys.argv[2]]))
"""
LONG = replace(RULE, runs=runs(1_000_000, passes=(1, 2)))


def _started(folder: Path, wait: str, sent: signal.Signals) -> subprocess.CompletedProcess[str]:
    """The command, which gets a signal when there are steps, or soon. It has ended when all of its processes have."""
    script = folder / "started.py"
    script.write_text(STARTED)
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, str(script), str(root), str(folder / "work")],
        env=os.environ | {"WAIT": wait, "SIGNAL": str(int(sent))}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.mark.parametrize("wait", ["steps", pytest.param("nothing", marks=pytest.mark.slow)])
def test_ctrl_c_stops_all_trainings(tmp_path: Path, wait: str) -> None:
    """Also in the second in which their processes start."""
    done = _started(tmp_path, wait, signal.SIGINT)
    said = [line for line in done.stderr.splitlines() if "  loss " not in line]  # beside the progress
    assert (done.returncode, said) == (130, [])
    assert "The same command goes on" in done.stdout
    trained = {path.parent.name for path in tmp_path.glob("work/*/metrics.jsonl")}
    assert trained == {path.parent.name for path in tmp_path.glob("work/*/step-*")}, "what took a step has a checkpoint"
    assert bool(trained) == (wait == "steps")


@pytest.mark.slow
def test_trainings_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    assert _started(tmp_path, "steps", signal.SIGKILL).returncode == -signal.SIGKILL


def test_all_numbers_of_passes_start_alike() -> None:
    once, twice = (new_layers(RULE.build(RULE, passes, 3).graphs, 3).params for passes in (1, 2))
    assert once.keys() == twice.keys()
    assert all(torch.equal(once[key].materialise(), twice[key].materialise()) for key in once)
    other = new_layers(RULE.build(RULE, 1, 4).graphs, 4).params
    assert not torch.equal(once[key_of(1, CONV)].materialise(), other[key_of(1, CONV)].materialise())


def test_what_takes_long_waits_for_a_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"full": replace(RULE, runs=runs(10_000_000, passes=(1,)))}
    assert command.main("rule110", "About.", sizes, ["--full", "--work", str(tmp_path)]) == 2
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
    (sample,) = found
    assert len(sample.tokens) % e.window == 0
    assert max(len(item.question) for item in sample.items.values()) <= e.window, "no sleep inside a question"


@pytest.mark.parametrize("e", [e for e in WHOLE if e is not depo.SIZES["normal"]], ids=lambda e: e.title)
def test_no_sleep_comes_among_questions(e: Experiment) -> None:
    """But in the Depo that is trained at length: its questions fill another window, which examples/depo.py says."""
    found = spell_as_ids(e.puzzle.vocabulary, len(e.puzzle.vocabulary), examples(e.puzzle, 1, seed=1))
    (sample,), (lesson,) = found, lessons(found)
    assert len(lesson.tokens) - len(sample.tokens) <= e.window


def test_a_curriculum_asks_for_more_hops_as_it_goes() -> None:
    puzzle = depo.Growing(nodes=5, hops=(1, 2, 4), letters=5, longest=1, questions=3, until=(2, 4))
    asked = [{q.depth for q in example.questions} for example in examples(puzzle, 6, seed=0)]
    assert asked == [{1}, {1}, {1, 2}, {1, 2}, {1, 2, 4}, {1, 2, 4}]
    assert puzzle.vocabulary == Depo(nodes=5, hops=(1, 2, 4), letters=5, longest=1, questions=3).vocabulary


def test_seconds_are_steps_at_the_median_pace(tmp_path: Path) -> None:
    e = replace(RULE, runs=(Run(1, 6),), seeds=1)
    scores = [{"step": n, "loss": 1.0, "pace": p, "steps 1": n / 6} for n, p in ((2, 2.0), (4, 60.0), (6, 2.0))]
    training.Lines(training.folder_of(tmp_path, e.runs[0], 0) / "scores.jsonl").write(scores)
    rows = figures.collect(e, tmp_path)
    assert [row["seconds"] for row in rows] == [4.0, 8.0, 12.0]
    assert figures.at(rows, e.runs[0], "steps 1", "seconds", 11.9) == [4 / 6]
    assert figures.at(rows, e.runs[0], "steps 1", "step", 1) == []
    assert figures.spelled([0.25, 0.5, 0.75]) == "0.50 (0.25–0.75)"
