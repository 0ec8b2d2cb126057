"""Models whose tokenizer is in a form that sleepc does not read, or is not there: they convert, and say so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sleepc as package
from sleepc.errors import SleepcWarning
from sleepc.hf.tokenizer import OTHERS, NoTokenizer, copy_tokenizer, load_tokenizer
from tests.cli.models import run_here, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model"))
    (folder / "tokenizer.json").unlink()
    return folder


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_there_instead_goes_with_artifacts_and_exports(name: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (model / name).write_text("{}")
    copy_tokenizer(model, folder)
    (model / name).unlink()
    with pytest.raises(NoTokenizer, match=re.escape(f"no tokenizer.json (only {name})")):
        load_tokenizer(folder)
    for where in (model, folder):
        (where / "tokenizer.json").write_text("{}")
    (model / name).write_text("{}")
    (folder / name).unlink()
    copy_tokenizer(model, folder)
    (model / name).unlink()
    (model / "tokenizer.json").unlink()
    assert not (folder / name).exists(), "nobody reads it"


@pytest.mark.filterwarnings("always::sleepc.errors.SleepcWarning")
def test_it_converts_and_says_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "tekken.json").write_text("{}")
    code, said, told = run_here(capsys, "convert", model, "-o", tmp_path / "out", "--window", 8, "--sinks", 2)
    assert code == 0, told
    assert "all hold" in said
    assert "no tokenizer.json (only tekken.json), so it cannot read text: reading random tokens instead" in told
    export = tmp_path / "export"
    code, _, told = run_here(capsys, "export", tmp_path / "out", "--to", "onnx", "-o", export)
    assert (code, "reading random tokens instead" in told) == (0, True), told
    for command in (
        ("run", tmp_path / "out"),
        ("run", export, "--backend", "onnx"),
        ("chat", export, "--backend", "onnx"),
    ):
        code, said, told = run_here(capsys, *command, *(["hello"] if command[0] == "run" else []))
        assert (code, said) == (2, "")
        assert f"no tokenizer.json (only tekken.json), so it cannot read text ({command[1]})" in told
        assert "may write one into that folder" in told
        assert "Token ids can be fed from Python" in told
    code, said, told = run_here(capsys, "verify", export)
    assert (code, "the export is whole" in said) == (0, True)
    assert "(only tekken.json), so it cannot read text: reading random tokens instead" in told
    text = tmp_path / "text"
    text.write_text("w1")
    assert run_here(capsys, "verify", export, "--text", text)[0] == 2


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
