"""`sleepc tune --target` for a device that is not here: everything is predicted, and says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import sleepc
from examples.nanogpt import GPT
from sleepc.cli.elsewhere import tune_elsewhere
from sleepc.cli.main import main
from sleepc.errors import UsageError
from sleepc.tune.record import Limits


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = GPT(vocab=64, width=32, heads=2, blocks=1, context=32)
    return sleepc.convert(model, {"window": 8, "sinks": 2}).save(tmp_path_factory.mktemp("tune") / "artifact")


def test_every_figure_says_that_it_is_predicted(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune_elsewhere(artifact, "mi300x", Limits(), explain=True, as_json=False)
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if " kB" in line]
    assert len(rows) == 2
    assert all(line.rstrip().endswith("predicted") for line in rows)
    assert sum("●" in line for line in rows) == 1
    assert "AMD Instinct MI300X: nothing was measured" in said
    assert "bandwidth 5.3e+12: AMD Instinct MI300X data sheet" in said
    assert said.count("a token: ") == 2
    tune_elsewhere(artifact, "h100", Limits(), explain=True, as_json=False)
    said = capsys.readouterr().out
    assert (said.count("rounded weights, predicted"), said.count(" predicted")) == (3, 6 + 1)
    assert "onnx precision=int4 ops=ort ep=cuda: operators are those of PyTorch, with weights of 5 bits" in said
    tune_elsewhere(artifact, "h100", Limits(), explain=False, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["predicted"]
    assert [each["figures"]["predicted"] for each in found["candidates"]] == [True] * 6
    assert found["chosen"] in [each["candidate"] for each in found["candidates"]]
    assert found["chosen"]["options"].get("precision", "fp32") == "fp32"  # what is rounded is not chosen
    assert not list(artifact.rglob("tuning"))


def test_limits_hold(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune_elsewhere(artifact, "l4", Limits(), explain=False, as_json=True)
    pauses = sorted({each["figures"]["pause_ms"] for each in json.loads(capsys.readouterr().out)["candidates"]})
    tune_elsewhere(artifact, "l4", Limits(pause_ms=sum(pauses[:2]) / 2), explain=False, as_json=True)
    found = json.loads(capsys.readouterr().out)
    (chosen,) = [each for each in found["candidates"] if each["candidate"] == found["chosen"]]
    assert chosen["figures"]["pause_ms"] == pauses[0]
    with pytest.raises(UsageError, match="nothing fits on NVIDIA L4"):
        tune_elsewhere(artifact, "l4", Limits(memory=10), explain=False, as_json=True)


def test_an_unknown_device_is_refused_before_all_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown device 'h900'"):
        tune_elsewhere(tmp_path, "h900", Limits(), explain=False, as_json=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "h900"), "unknown device 'h900'"),
        (("--target", "h100", "--time", "5m"), "--time is of what was measured"),
        (("--target", "h100", "--again"), "--again is of what was measured"),
        (("--target", "h100", "--report", "x.html"), "--report is of what was measured"),
    ],
)
def test_options_that_do_not_fit(
    artifact: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tune", str(artifact), *options])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_on_the_command_line(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tune", str(artifact), "--target", "h100", "--budget-memory", "1MB"])
    assert caught.value.code == 0
    assert "every figure is predicted" in capsys.readouterr().out
