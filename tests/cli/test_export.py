"""`sleepc export`: whole folders or nothing, one clear line for bad input, and a report that is printed and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sleepc
from sleepc.backends.onnx.check import check as module
from sleepc.backends.onnx.weights import Weights
from sleepc.backends.report import Figure, Report
from sleepc.cli.export import recalled
from tests.cli.models import run_here, save_model

FILES = {"onnx.json", "wake.onnx", "sleep_replay.onnx", "weights.bin", "config.json", "tokenizer.json"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_model(tmp_path_factory.mktemp("model") / "model")
    return sleepc.convert(model, {"window": 8, "sinks": 2}).save(model.parent / "artifact")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def export(capsys: pytest.CaptureFixture[str], artifact: Path, *options: object) -> tuple[int, str, str]:
    return run_here(capsys, "export", artifact, "--to", "onnx", *options)


def test_an_export_stands_in_the_artifact_and_is_replaced_only_by_force(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(artifact)
    code, said, complaint = export(capsys, artifact)
    assert (code, complaint) == (0, ""), complaint
    for words in ("across two sleeps", "a sleep of 2 passes", "weights by value", "wake.onnx"):
        assert words in said
    folder = artifact / "onnx"
    assert {p.name for p in folder.iterdir()} >= FILES
    assert {k: v for k, v in contents(artifact).items() if not k.startswith("onnx/")} == before
    manifest = json.loads((folder / "onnx.json").read_text())
    assert manifest["identity"] == sleepc.load(artifact).identity
    assert manifest["rules"][0].startswith("1. ")
    assert any("passes" in rule for rule in manifest["rules"])
    assert manifest["report"]["ok"]
    assert len(manifest["report"]["checks"]) > 10

    (folder / "wake.onnx").write_bytes(b"other")
    code, _, complaint = export(capsys, artifact)
    assert (code, "--force" in complaint) == (2, True)
    assert (folder / "wake.onnx").read_bytes() == b"other"
    code, said, _ = export(capsys, artifact, "--force", "--json", "--precision", "int8")
    assert code == 0
    found = json.loads(said)
    assert found["report"]["perplexity"]["after"] > 1
    assert "recall, as nats a token surprises less" in recalled(found["report"]["recall"])
    assert (folder / "wake.onnx").read_bytes() != b"other"
    assert not list(artifact.glob(".*"))


def test_recall_is_told_by_distance() -> None:
    said = recalled([{"tokens": 64, "before": 2, "after": 1.987}, {"tokens": 576, "before": 0.1, "after": -0.1}])
    assert said.endswith("it is read again after 64 · 576 tokens: 2.00 · 0.10 before, 1.99 · -0.10 after")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "fp8"], "fp8"),
        (["--ops", "ops"], "--ops"),
        (["--ep", "npu"], "--ep"),
        (["--precision", "int4", "--ops", "portable"], "kernels of ONNX Runtime's own"),
        (["--text", "nothing.txt"], "nothing.txt"),
    ],
)
def test_bad_options_leave_nothing(
    artifact: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = export(capsys, artifact, "-o", tmp_path / "out", *options)
    assert code == 2
    assert said.startswith("error: ")
    assert words in said
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_short(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("w1 w2")
    code, _, said = export(capsys, artifact, "-o", tmp_path / "out", "--text", text)
    assert code == 2
    assert "the text has 2 tokens" in said
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


def test_other_targets_and_folders_that_are_no_artifact(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = run_here(capsys, "export", artifact, "--to", "tflite")
    assert (code, "Targets: onnx" in said) == (2, True)
    code, _, said = export(capsys, tmp_path)
    assert (code, "is not a sleepc artifact" in said) == (2, True)
    precious = tmp_path / "out"
    precious.mkdir()
    (precious / "notes.txt").write_text("keep")
    code, _, said = export(capsys, artifact, "-o", precious, "--force")
    assert code == 2
    assert (precious / "notes.txt").read_text() == "keep"


def _leaving_nothing(
    artifact: Path, folder: Path, capsys: pytest.CaptureFixture[str], *options: object
) -> tuple[int, str]:
    code, _, said = export(capsys, artifact, "-o", folder / "out", *options)
    assert not list(folder.iterdir())
    return code, said


def test_a_weight_that_is_written_wrongly(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Weights._write

    def wrong(self: Weights, name: str, array: Any) -> Any:
        array = array.copy()
        array.reshape(-1)[-1] += 1
        return right(self, name, array)

    monkeypatch.setattr(Weights, "_write", wrong)
    code, said = _leaving_nothing(artifact, tmp_path, capsys)
    assert code == 1
    assert "does not have the values of" in said


def test_figures_over_their_bounds(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(*arguments: object) -> Report:
        return Report([Figure("decode", "logits", 0.25, 1e-3), Figure("prefill", "logits", 1e-6, 1e-3)])

    monkeypatch.setattr(module, "check", bad)
    code, said = _leaving_nothing(artifact, tmp_path, capsys)
    assert code == 1
    assert "decode: logits 0.25, at most 0.001" in said
    assert "prefill" not in said


def test_an_interruption(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_read_onnx", interrupted)
    code, said = _leaving_nothing(artifact, tmp_path, capsys)
    assert (code, "interrupted" in said) == (130, True)


def test_a_runtime_that_is_missing(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sleepc.backends.onnx.installed.version_of", {"onnx": "1", "onnx-ir": "1"}.get)
    code, said = _leaving_nothing(artifact, tmp_path, capsys)
    assert (code, "pip install 'sleepc[onnx]'" in said) == (2, True)
