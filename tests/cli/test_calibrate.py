"""`sleepc calibrate`: its table and JSON, the artifact that it makes or replaces, Ctrl-C and --resume."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import sleepc as package
from sleepc.backends.eager.backend import load
from sleepc.tasks.programs import full_attention
from sleepc.train import calibrate as module
from sleepc.train.local import local_steps
from sleepc.train.self_text import Writer
from tests.cli.models import run_here, save_model
from tests.families import VOCAB, family

FAST = ("--tokens", 64, "--steps", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    """Six documents that the model itself has written: full attention understands them best."""
    teacher = load(full_attention(family("llama").canonical, 64))
    written = islice(Writer(teacher, (3,), 64, 0, 6, least=64).pieces(), 6)
    file = model.parent / "text.jsonl"
    file.write_text("".join(json.dumps({"text": " ".join(f"w{i}" for i in ids)}) + "\n" for ids in written))
    return file


@pytest.fixture(scope="module")
def made(model: Path) -> Path:
    recipe = {"window": 8, "sinks": 2, "strategy": "insert"}
    return package.convert(model, recipe).save(model.parent / "artifact")


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "artifact"))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run `sleepc calibrate` in this process: exit code, stdout, stderr."""
    return run_here(capsys, "calibrate", *arguments)


def found(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What --json says, without how long it took."""
    code, said, err = run(capsys, *arguments, *FAST, "--json")
    assert code == 0, err
    data: dict[str, Any] = json.loads(said)
    assert data.pop("seconds") > 0
    return data


def bytes_of(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_an_artifact_is_made_or_replaced(artifact: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = bytes_of(artifact)
    out = artifact.parent / "calibrated"
    data = found(capsys, artifact, "--text", text, "-o", out)
    assert (data["artifact"], data["output"], data["kept"]) == (str(artifact), str(out), True)
    assert data["perplexity"]["after"] <= data["perplexity"]["before"] == data["perplexity"]["control"]
    assert [layer["layer"] for layer in data["layers"]] == [0, 1, 2]
    assert bytes_of(artifact) == before
    calibrated = package.load(out)
    assert calibrated.report["calibration"]["layers"] == data["layers"]
    assert calibrated.identity != package.load(artifact).identity

    code, said, _ = run(capsys, artifact, "--text", text, *FAST)
    assert code == 0
    header = ["layer", "looks back", "half-life", "β", "no memory", "before", "gates", "steps", "kept"]
    assert all(name in said for name in header)
    assert f"perplexity beyond 8 tokens   no memory {data['perplexity']['control']:.3f}" in said
    assert package.load(artifact).identity == calibrated.identity
    assert sorted(path.name for path in artifact.parent.iterdir()) == ["artifact", "calibrated"]


def test_what_does_not_help_is_not_saved(
    artifact: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([3.0, 2.0, 2.1])
    monkeypatch.setattr(module, "perplexity", lambda *_: next(figures))
    before = bytes_of(artifact)
    code, said, _ = run(capsys, artifact, "--text", text, *FAST)
    assert (code, "nothing is saved: it does not help" in said) == (1, True)
    assert bytes_of(artifact) == before
    assert list(artifact.parent.iterdir()) == [artifact]


def test_ctrl_c_leaves_finished_layers_and_the_artifact(
    artifact: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = found(capsys, artifact, "--text", text, "-o", artifact.parent / "whole")
    before = bytes_of(artifact)
    calls = 0
    steps = local_steps

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return steps(*arguments)

    monkeypatch.setattr(module, "local_steps", interrupted)
    out = artifact.parent / "calibrated"
    code, _, err = run(capsys, artifact, "--text", text, *FAST, "-o", out)
    assert code == 130
    assert "2 layers finished: the same command with --resume continues from there" in err
    assert bytes_of(artifact) == before
    assert not out.exists()
    assert run(capsys, artifact, "--text", text, "--steps", 6, "--resume", "-o", out)[0] == 2
    data = found(capsys, artifact, "--text", text, "-o", out, "--resume")
    assert calls == 4, "only the third layer is left to do"
    assert {**data, "output": None} == {**wanted, "output": None}
    assert package.load(out).identity == package.load(artifact.parent / "whole").identity
    assert sorted(path.name for path in artifact.parent.iterdir()) == ["artifact", "calibrated", "whole"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--text", "absent.txt"), "there is no file absent.txt"),
        (("--tokens", "0"), "tokens"),
        (("--steps", "-1"), "steps"),
        (("--against", "absent"), "absent"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    artifact: Path, text: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], said: str
) -> None:
    given = options if "--text" in options else ("--text", text, *options)
    code, out, err = run(capsys, artifact, *given)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert list(artifact.parent.iterdir()) == [artifact]


def test_an_output_that_exists_and_a_short_text(
    artifact: Path, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, err = run(capsys, artifact, "--text", text, "-o", artifact)
    assert (code, "exists" in err) == (2, True)
    short = tmp_path / "short.txt"
    short.write_text(" ".join(f"w{i % VOCAB}" for i in range(150)))
    code, _, err = run(capsys, artifact, "--text", short)
    assert code == 2
    assert "the text is too short: it gives 3 pieces, and 4 are needed (--text)" in err
