"""`--tokens FILE` of verify and export: ids instead of a text, for models without a tokenizer too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sleepc
from sleepc.cli.input_text import read_tokens
from sleepc.errors import UsageError
from tests.cli.models import run_here
from tests.families import VOCAB, WINDOW, make_module


@pytest.mark.parametrize("text", ["12 7 30", "12\n7\n30\n", "[12, 7, 30]\n", " 12,7,30"])
def test_files_of_numbers(text: str, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(text)
    assert read_tokens(tmp_path / "ids") == [12, 7, 30]


@pytest.mark.parametrize("text", ["", "[]", "1 -2", "1.5", "[[1], [2]]", "one", "1e3", "٣", '{"ids": [1]}', "9" * 40])
def test_anything_else_is_a_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(text)
    with pytest.raises(UsageError, match="cannot read tokens"):
        read_tokens(tmp_path / "ids")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model without a tokenizer, whose original is in its folder."""
    folder = tmp_path_factory.mktemp("ids")
    make_module("phi3").float().save_pretrained(folder / "model")  # type: ignore[operator]
    program = sleepc.convert(folder / "model", {"window": WINDOW, "sinks": 2})
    return program.save(folder / "artifact")


@pytest.mark.filterwarnings("ignore::sleepc.errors.SleepcWarning")
def test_both_read_them(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids, few = tmp_path / "ids", tmp_path / "few"
    ids.write_text(" ".join(str(i * i % VOCAB) for i in range(100)))
    few.write_text("1 4 9 16 25 36 49 3 20 39 60")
    code, shown, _ = run_here(capsys, "verify", artifact, "--tokens", few, "--json")
    assert (code, json.loads(shown)["perplexity"][-1]["tokens_to"]) == (0, 11)
    code, shown, _ = run_here(capsys, "export", artifact, "--to", "onnx", "--tokens", ids, "--json")
    assert code == 0, shown
    code, _, said = run_here(capsys, "verify", artifact / "onnx", "--tokens", ids)
    assert code == 0, said


@pytest.mark.parametrize(
    ("ids", "more", "said"),
    [
        (f"1 2 {VOCAB}", (), f"token id {VOCAB} is not in the vocabulary"),
        ("1 2 3", ("--text", "x"), "not both"),
        ("one", (), "'one' in it is not a token id"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "export"])
def test_mistakes(
    artifact: Path,
    ids: str,
    more: tuple[str, ...],
    said: str,
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ids").write_text(ids)
    to = ("--to", "onnx", "-o", tmp_path / "out") if command == "export" else ()
    code, _, shown = run_here(capsys, command, artifact, "--tokens", tmp_path / "ids", *to, *more)
    assert code == 2
    assert said in " ".join(shown.split())
    assert not (tmp_path / "out").exists()
