"""`sleepc train`: a model from scratch learns a task and is evaluated; a text's last tokens; Ctrl-C and --resume."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sleepc as package
from examples.nanogpt import GPT
from sleepc.errors import SleepcWarning
from sleepc.train.trainer import Trainer
from tests.cli.models import run_here, save_model

TASK = ("--task", "rule110", "--set", "width=4", "--set", "states=2", "--set", "steps=1")
FAST = (*TASK, "--scratch", "--steps", 6, "--batch", 8, "--passes", "1:2", "--device", "cpu")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Of a module in memory: it has no tokenizer."""
    torch.manual_seed(0)
    module = GPT(vocab=5, width=16, heads=2, blocks=2, context=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)
        program = package.convert(module, {"window": 4, "sinks": 0, "consolidation": "recurrent", "passes": 2})
    return program.save(tmp_path / "artifact")


def _metrics(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_a_task_stops_and_goes_on(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, show = tmp_path / "whole", Trainer._show
    code, said, err = run_here(capsys, "train", artifact, *FAST, "-o", whole)
    assert code == 0, err
    assert "right" in err
    assert f"sleepc eval {whole} --task rule110 --set width=4 --set states=2 --set steps=1" in " ".join(said.split())
    assert sorted(path.name for path in (tmp_path / "whole.training").iterdir()) == ["metrics.jsonl"]

    def press(trainer: Trainer, step: Any) -> None:
        show(trainer, step)
        if step.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_show", press)
        code, _, err = run_here(capsys, "train", artifact, *FAST)
    assert (code, "the same command with --resume continues" in err) == (130, True), err
    code, said, err = run_here(capsys, "train", artifact, *FAST, "--resume", "--json")
    assert code == 0, err
    assert (json.loads(said)["steps"], json.loads(said)["adapter"]) == (6, "")
    figures = [
        [(row["loss"], row["right"], row["exact"], row["passes"]) for row in _metrics(tmp_path / f"{name}.training")]
        for name in ("artifact", "whole")
    ]
    assert figures[0] == figures[1]
    ids = [0, 1, 1, 0, 1, 0, 0, 1, 2, 2]
    resumed, uninterrupted = (package.load(path).session().feed(ids) for path in (artifact, whole))
    np.testing.assert_array_equal(resumed, uninterrupted)
    code, said, err = run_here(capsys, "eval", whole, *TASK, "--samples", 5, "--json")
    assert code == 0, err
    assert json.loads(said)["rows"][0]["count"] == 10


def test_the_end_of_pieces_of_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "model")
    artifact = package.convert(model, {"window": 8, "sinks": 1}).save(tmp_path / "artifact")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i * 7 % 59 + 1}" for i in range(600)))
    options = ("--text", text, "--length", 28, "--batch", 4, "--device", "cpu", "--steps", 3, "--start", "kept")
    code, said, err = run_here(capsys, "train", artifact, *options, "--predict", 4, "-o", tmp_path / "out")
    assert code == 0, err
    assert (tmp_path / "out.training" / "adapter.safetensors").is_file()
    assert "sleepc run" in said
    training = package.load(tmp_path / "out").report["training"]
    assert (training["predict"], training["text"], training["stages"]) == (4, ["text.txt"], "solve")
    assert {round(row["right"] * 16, 6) % 1 for row in _metrics(tmp_path / "out.training")} == {0}, "4 labels a piece"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no training data is given"),
        (("--task", "chess"), "unknown task 'chess' to learn"),
        (("--task", "rule110", "--length", "9"), "does not take length"),
        ((*TASK, "--passes", "many"), "cannot read passes"),
        (("--text", "nowhere.txt"), "nowhere.txt"),
        ((*TASK, "--resume"), "there is no training to resume"),
    ],
)
def test_what_cannot_be_is_refused(
    artifact: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = run_here(capsys, "train", artifact, *arguments)
    assert (code, words in err) == (2, True), err
