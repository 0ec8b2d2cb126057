"""Models whose tokenizer is in a form that sleepc does not read, or is not there: they convert, and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

import sleepc as package
from sleepc.errors import SleepcWarning
from tests.cli.models import run_here, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model"))
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.mark.filterwarnings("always::sleepc.errors.SleepcWarning")
def test_it_converts_and_says_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "tekken.json").write_text("{}")
    code, said, told = run_here(capsys, "convert", model, "-o", tmp_path / "out", "--window", 8, "--sinks", 2)
    assert code == 0, told
    assert "all hold" in said
    assert "no tokenizer.json (only tekken.json), so it cannot read text: reading random tokens instead" in told
    code, said, told = run_here(capsys, "run", tmp_path / "out", "hello")
    assert (code, said) == (2, "")
    assert "no tokenizer.json (only tekken.json)" in told, "also of an artifact, which has no such file"
    assert f"for DIR {model}, and convert it again" in told.replace("\n", " ")
    assert "Token ids can be fed from Python" in told


@pytest.mark.parametrize("files", [(), ("tokenizer.model",), ("vocab.json", "merges.txt")])
def test_verification_reads_random_tokens(model: Path, files: tuple[str, ...]) -> None:
    for name in ("tekken.json", *files):
        (model / name).write_text("x")
    (model / "tekken.json").unlink()
    program = package.convert(model, {"window": 8, "sinks": 2})
    with pytest.warns(SleepcWarning, match=", ".join(files) or "no tokenizer.json"):
        tokens = program.some_tokens(None)
    assert len(set(tokens)) > 50
    for name in files:
        (model / name).unlink()


@pytest.mark.filterwarnings("always::sleepc.errors.SleepcWarning")
def test_the_tokenizer_is_read_without_verification_too(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = ("convert", model, "-o", tmp_path / "out", "--window", 8, "--sinks", 2, "--no-verify")
    code, _, told = run_here(capsys, *convert)
    assert code == 0, told
    assert "no tokenizer.json, so it cannot read text" in told
    (model / "tokenizer.json").write_text('{"model": {"type": "BPE"')
    code, _, told = run_here(capsys, *convert, "--force")
    (model / "tokenizer.json").unlink()
    assert code == 2
    assert "cannot read tokenizer.json" in told
