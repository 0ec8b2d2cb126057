"""`sleepc distil`: the artifact, the adapter and the metrics that it leaves, Ctrl-C and --resume, several processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import sleepc as package
from sleepc.errors import SleepcWarning
from sleepc.train.trainer import Trainer
from tests.cli.models import ROOT, run_here, save_model

FAST = ("--tokens", 700, "--length", 28, "--batch", 4, "--lr", 0.02, "--recall", 0, "--device", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_model(tmp_path_factory.mktemp("model") / "model")
    return package.convert(model, {"window": 8, "sinks": 1}).save(model.parent / "artifact")


@pytest.fixture(scope="module")
def text(made: Path) -> Path:
    rng, file = random.Random(0), made.parent / "text.jsonl"
    rows = (" ".join(f"w{rng.randrange(1, 60)}" for _ in range(70)) for _ in range(30))
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return file


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "artifact"))


def _metrics(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


def _losses(work: Path) -> list[float]:
    return [row["loss"] for row in _metrics(work)]


def _logits(path: Path) -> Any:
    return package.load(path).session().feed([i % 60 for i in range(30)])


def _files(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_it_replaces_the_artifact_and_leaves_an_adapter(
    artifact: Path, made: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said, err = run_here(capsys, "distil", artifact, "--text", text, *FAST)
    assert (code, err.count("step")) == (0, 6), err
    assert "trained   1 950 parameters on" in said
    work = tmp_path / "artifact.training"
    assert sorted(p.name for p in work.iterdir()) == ["adapter.safetensors", "metrics.jsonl"]
    trained = _logits(artifact)
    assert np.abs(trained - _logits(made)).max() > 1e-6
    training = package.load(artifact).report["training"]
    assert (training["steps"], training["text"]) == (6, [text.name])
    assert str(tmp_path.parent).encode() not in (work / "adapter.safetensors").read_bytes(), "it goes round"
    code, said, _ = run_here(capsys, "adapt", made, work / "adapter.safetensors", "-o", tmp_path / "again")
    assert code == 0
    np.testing.assert_array_equal(_logits(tmp_path / "again"), trained)
    # A training after it begins from what was learned, and needs no --force.
    code, _, err = run_here(capsys, "distil", artifact, "--text", text, *FAST, "--lr", 0.002, "--start", "kept")
    assert code == 0, err


def test_ctrl_c_keeps_what_was_done(
    artifact: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    assert run_here(capsys, "distil", artifact, "--text", text, *FAST, "-o", whole)[0] == 0
    before, show = _files(artifact), Trainer._show

    def press(trainer: Trainer, step: Any) -> None:
        show(trainer, step)
        if step.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_show", press)
        code, _, err = run_here(capsys, "distil", artifact, "--text", text, *FAST)
    assert (code, "the same command with --resume continues" in err) == (130, True), err
    assert _files(artifact) == before
    code, _, err = run_here(capsys, "distil", artifact, "--text", text, *FAST)
    assert (code, "a training was stopped here" in err) == (2, True)
    code, _, err = run_here(capsys, "distil", artifact, "--text", text, *FAST, "--resume")
    assert (code, "resuming after step 3 of 6" in err) == (0, True), err
    assert _losses(tmp_path / "artifact.training") == _losses(tmp_path / "whole.training")
    np.testing.assert_array_equal(_logits(artifact), _logits(whole))


@pytest.mark.parametrize(("command", "out"), [("distil", False), ("train", True)])
def test_what_got_worse_is_not_saved_unless_it_is_asked_for(
    artifact: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, out: bool
) -> None:
    before = _files(artifact)
    target = tmp_path / "out" if out else artifact
    arguments = (command, artifact, "--text", text, "--tokens", 340, "--length", 28, "--batch", 4, "--lr", 0.9,
                 "--device", "cpu", *(("-o", target) if out else ()))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("always", SleepcWarning)  # tests make them errors
        code, said, err = run_here(capsys, *arguments)
        assert (code, "warning: the training made things worse on " in err) == (1, True), err
        assert "nothing is saved" in err
        assert ("perplexity" in said, "next" in said) == (True, False)
        assert _files(artifact) == before
        assert target.exists() != out
        code, _, err = run_here(capsys, *arguments, "--resume")
        assert (code, "nothing is saved" in err) == (1, True), err
        assert _files(artifact) == before
        steps = len(_metrics(target.with_name(f"{target.name}.training")))
        code, said, err = run_here(capsys, *arguments, "--resume", "--force", "--json")
    assert (code, "It is kept, as asked." in err) == (0, True), err
    found = json.loads(said)
    assert (found["kept"], found["output"]) == (True, str(target))
    assert found["held_out"]["surprise"]["after"] > found["held_out"]["surprise"]["before"]
    assert len(_metrics(Path(found["work"]))) == steps, "nothing was trained again"
    assert np.abs(_logits(target) - _logits(artifact if out else target)).max() >= (1e-3 if out else 0)
    assert package.load(target).report["training"]["held_out"] == found["held_out"]
    assert not list(Path(found["work"]).glob("step-*"))


def test_half_an_adapter_and_json(
    artifact: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, said, err = run_here(
        capsys, "distil", artifact, "--text", text, *FAST, "--half", "--train", "low-rank", "--rank", 2, "--merge",
        "-o", out, "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(said)
    assert (found["finished"], found["steps"], list(found["losses"])) == (True, 6, ["distil"])
    with safe_open(found["adapter"], framework="numpy") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {np.dtype(np.float16)}  # noqa: SIM118
    code, _, err = run_here(capsys, "adapt", artifact, found["adapter"], "-o", tmp_path / "again")
    assert code == 0, err
    np.testing.assert_allclose(_logits(tmp_path / "again"), _logits(out), atol=0.02)


def test_the_teacher_writes_its_own_text(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_here(capsys, "distil", artifact, "--self", *FAST, "-o", tmp_path / "out")
    assert code == 0, err
    assert package.load(tmp_path / "out").report["training"]["text"] == "self"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no training text is given"),
        (("--self", "--text", "x.txt"), "no training text is given"),
        (("--text", "nowhere.txt"), "nowhere.txt"),
        (("--self", "--resume"), "there is no training to resume"),
        (("--self", "--stages", "dream"), "cannot read stages"),
        (("--self", "--lr", "7"), "lr = 7"),
        (("--self", "--length", "8", "--device", "cpu"), "never reach beyond the window"),
    ],
)
def test_what_cannot_be_is_refused(
    artifact: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    before = _files(artifact)
    code, _, err = run_here(capsys, "distil", artifact, *arguments)
    assert (code, words in err) == (2, True), err
    assert _files(artifact) == before


@pytest.mark.slow
def test_two_processes_do_what_one_does(
    artifact: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(capsys, "distil", artifact, "--text", text, *FAST, "-o", tmp_path / "one")[0] == 0
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [*launch, "-m", "sleepc", "distil", artifact, "--text", text, *FAST, "-o", tmp_path / "two"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    training = [package.load(tmp_path / name).report["training"] for name in ("one", "two")]
    assert [t["processes"] for t in training] == [1, 2]
    one, two = (_metrics(tmp_path / f"{name}.training") for name in ("one", "two"))
    np.testing.assert_allclose([r["loss"] for r in two], [r["loss"] for r in one], rtol=1e-4)
    np.testing.assert_allclose([r["grad_norm"] for r in two], [r["grad_norm"] for r in one], rtol=1e-3)
    np.testing.assert_allclose(_logits(tmp_path / "two"), _logits(tmp_path / "one"), atol=1e-3)
