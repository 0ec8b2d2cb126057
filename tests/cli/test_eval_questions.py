"""`sleepc eval --task questions` and RULER's texts: the JSON, the tables, the plot, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.models import run_here

WORDS = [f"w{i}" for i in range(30)]  # one of them is in almost every answer of a model of 61 words


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three texts of 25 words, and one that is longer than the model has positions."""
    lines = []
    for i, length in enumerate((25, 25, 25, 80)):
        text = " ".join(f"w{(7 * i + k) % 61}" for k in range(length))
        asked = [{"question": "w5 w9", "answers": WORDS}, {"question": "w3", "answers": [f"w{7 * i + 9}"]}]
        lines.append(json.dumps({"text": text, "questions": asked}))
    path = tmp_path_factory.mktemp("questions") / "some.jsonl"
    path.write_text("\n".join(lines))
    return path


def run(capsys: pytest.CaptureFixture[str], artifact: Path, *arguments: object) -> tuple[int, str, str]:
    return run_here(capsys, "eval", artifact, *arguments)


def test_json_tells_answers_from_figures(artifact: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = file.with_suffix(".svg")
    options = ("--task", "questions", "--questions", file, "--answer", 5, "--plot", plot, "--json")
    code, said, err = run(capsys, artifact, *options)
    assert code == 0, err
    data: dict[str, Any] = json.loads(said)
    assert [text["name"] for text in data["texts"]] == ["text 1", "text 2", "text 3"]
    assert any("text 4 is left out" in note and "64 positions" in note for note in data["notes"])
    models = {model["model"]: model for model in data["models"]}
    assert list(models) == ["full", "sliding", "converted"]
    assert models["sliding"]["state_bytes"] <= models["converted"]["state_bytes"]
    assert models["sliding"]["window"] > models["converted"]["window"] == 8
    full = [answer["answers"]["full"]["score"] for answer in data["answers"]]
    assert len(full) == 6
    for name, model in models.items():
        right = [a["answers"][name]["score"] for a, counts in zip(data["answers"], full, strict=True) if counts]
        assert (model["answered"], model["counted"], model["asked"]) == (sum(right), sum(full), 6)
        rows = [row for row in data["rows"] if row["model"] == name]
        assert sum(row["counted"] for row in rows) == sum(full)
    assert sum(full) >= 1, "else nothing is compared"
    assert models["full"]["gap"] == 0
    assert plot.read_text().startswith("<?xml")


def test_tables_have_every_model(artifact: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, err = run(capsys, artifact, "--task", "questions", "--questions", file, "--answer", 3)
    assert code == 0, err
    for word in ("full", "sliding", "converted", "within sliding", "6 questions on 3 texts", "text 4 is left out"):
        assert word in said


def test_texts_of_ruler_are_told_by_their_length(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--set", "length=25,34", "--set", "hops=1")
    options = ("--task", "ruler-tracking", *settings, "--samples", 1, "--answer", 2, "--json")
    code, said, err = run(capsys, artifact, *options)
    assert code == 0, err
    data = json.loads(said)
    assert {row["tokens"] for row in data["rows"]} == {25, 34}
    assert {row["asked"] for row in data["rows"]} == {1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "questions", "--sweep", "passes=2"), "does not take --sweep"),
        (("--task", "questions", "--set", "length=3"), "does not take --set"),
        (("--task", "questions", "--distances", "1"), "does not take --distances"),
        (("--task", "questions", "--backend", "onnx"), "full attention is measured by PyTorch"),
        (("--task", "questions", "--questions", "nowhere.jsonl"), "cannot read nowhere.jsonl"),
        (("--task", "retrieval", "--questions", "some.jsonl"), "does not take --questions"),
        (("--task", "khop", "--answer", "3"), "does not take --answer"),
        (("--task", "ruler-single", "--questions", "some.jsonl"), "does not take --questions"),
        (("--task", "ruler-single", "--set", "lengths=3"), "cannot be set"),
        (("--task", "ruler-single", "--set", "length=3"), "has no room for what is told"),
        (("--task", "ruler-single", "--set", "length=600"), "no text can be read"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: tuple[str, ...], said: str, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, artifact, *options)
    assert code == 2
    assert said in " ".join(err.split())


def test_a_bad_line_is_named_before_any_work(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "questions": [{"question": "b", "answers": []}]}\n')
    code, _, err = run(capsys, artifact, "--task", "questions", "--questions", tmp_path / "bad.jsonl")
    assert code == 2
    assert "bad.jsonl, line 1" in " ".join(err.split())
