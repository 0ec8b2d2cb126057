"""`sleepc eval --task` for tasks with examples: figures by depth, settings, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE

import sleepc as package
from examples.nanogpt import GPT
from sleepc.tasks.puzzles import PUZZLES
from tests.cli.models import run_here
from tests.tasks.test_puzzles import SMALL


def save_letters(path: Path) -> None:
    """A tokenizer whose tokens are letters."""
    inner = Tokenizer(BPE({letter: i for i, letter in enumerate(" ?0123456789")}, []))
    inner.decoder = Fuse()
    inner.save(str(path))


def chosen(name: str) -> list[str]:
    return [part for setting in SMALL[name] for part in ("--set", setting)]


def found(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, said, err = run_here(capsys, "eval", *arguments, "--json")
    assert code == 0, err
    data: dict[str, Any] = json.loads(said)
    assert data.pop("seconds") > 0
    return data


@pytest.mark.parametrize("name", PUZZLES)
def test_json_has_a_row_for_every_model_and_depth(
    artifact: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data = found(capsys, artifact, "--task", name, *chosen(name), "--samples", 6)
    shown = json.loads(run_here(capsys, "tasks", name, *chosen(name), "--n", "6", "--json")[1])
    assert (data["settings"], data["samples"], data["models"]) == (shown["settings"], 6, ["converted", "sliding"])
    depths = sorted({q["depth"] for example in shown["examples"] for q in example["questions"]})
    for model in data["models"]:
        rows = [row for row in data["rows"] if row["model"] == model]
        assert [row[shown["by"]] for row in rows] == depths
        assert sum(row["count"] for row in rows) == sum(len(example["questions"]) for example in shown["examples"])
        assert all(0 <= row["constant_accuracy"] <= 1 for row in rows)
    words = len(shown["vocabulary"])
    assert data["notes"] == [f"the model cannot read text: tokens are the task's own, 0 to {words - 1}"]
    assert found(capsys, artifact, "--task", name, *chosen(name), "--samples", 6) == data


def test_a_model_with_the_tasks_own_vocabulary_and_no_tokenizer_is_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = package.convert(GPT(vocab=3, width=16, heads=2, blocks=2, context=64), {"window": 5, "sinks": 0})
    data = found(capsys, program.save(tmp_path / "own"), "--task", "rule110", *chosen("rule110"), "--samples", 3)
    assert data["notes"] == ["the model cannot read text: tokens are the task's own, 0 to 2"]
    assert len(data["rows"]) == 6


def test_it_goes_with_sweeps_full_attention_and_plots(
    artifact: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--task", "rule110", *chosen("rule110"), "--samples", 6)
    plot = tmp_path / "plot.svg"
    data = found(capsys, artifact, *small, "--sweep", "passes=1,2", "--against", model, "--plot", plot)
    assert data["models"] == ["passes=1", "passes=2", "sliding", "full"]
    texts = {"".join(node.itertext()).strip() for node in ElementTree.fromstring(plot.read_bytes()).iter()}
    assert {"passes=2", "steps", "accuracy", "1", "2", "7"} <= texts


def test_tables_have_the_constant_beside_the_models(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run_here(capsys, "eval", artifact, "--task", "rule110", *chosen("rule110"))
    assert code == 0
    heads = [line.split() for line in said.splitlines() if line.split()[:1] == ["steps"]]
    assert heads == [["steps", "converted", "sliding", "constant"]] * 2 + [["steps", "converted", "sliding"]]
    assert "examples with every answer right" in said
    assert "50 streams of 13 tokens" in said


def test_a_model_that_reads_the_words_gets_text(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same model with a tokenizer of one letter for each token: the same task, in other ids."""
    options = ("--task", "rule110", *chosen("rule110"), "--samples", 6)
    before, spelled = found(capsys, artifact, *options), artifact.parent / "spelled"
    shutil.copytree(artifact, spelled)
    save_letters(spelled / "tokenizer.json")
    data = found(capsys, spelled, *options)
    assert data["notes"] == []
    assert data["tokens"] > before["tokens"], "spaces are tokens too"
    assert [row["constant_accuracy"] for row in data["rows"]] == [row["constant_accuracy"] for row in before["rows"]]
    assert data["rows"] != before["rows"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("rule110", "--set", "height=8"), "rule110 cannot be set 'height=8' (--set)"),
        (("rule110", "--distances", "1,2"), "rule110 does not take --distances"),
        (("rule110", "--text", "book.txt"), "rule110 does not take --text"),
        (("copy", "--set", "width=8"), "copy has no settings (--set)"),
        (("khop", "--set", "entities=70"), "the task has 74 different words, and the model 61 tokens (--task)"),
        (("sudoku",), "unknown task 'sudoku' (--task)"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    artifact: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], said: str
) -> None:
    code, out, err = run_here(capsys, "eval", artifact, "--task", *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
