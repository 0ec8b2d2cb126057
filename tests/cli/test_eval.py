"""`sleepc eval`: its JSON, tables and plots, and what it says of what cannot be measured."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from tests.cli.models import run_here
from tests.families import VOCAB

FAST = ("--samples", 2, "--distances", "0.5,1,2")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run `sleepc eval` in this process: exit code, stdout, stderr."""
    return run_here(capsys, "eval", *arguments)


def found(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What --json says, without how long it took."""
    code, said, err = run(capsys, *arguments, *FAST, "--json")
    assert code == 0, err
    data: dict[str, Any] = json.loads(said)
    assert data.pop("seconds") > 0
    return data


def rows_of(data: dict[str, Any], model: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "model"} for row in data["rows"] if row["model"] == model]


@pytest.mark.parametrize(
    ("task", "keys", "places"),
    [
        ("retrieval", {"distance", "accuracy", "rank", "margin", "log_prob", "count"}, [4, 8, 16]),
        ("copy", {"distance", "accuracy", "log_prob", "count"}, [4, 8, 16]),
        ("perplexity", {"from", "to", "perplexity", "count"}, [8, 16]),
    ],
)
def test_json_has_a_row_for_every_model_and_place(
    artifact: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    task: str,
    keys: set[str],
    places: list[int],
) -> None:
    data = found(capsys, artifact, "--task", task, *(() if task == "copy" else ("--against", model)))
    assert set(data) == {
        *(
            "artifact",
            "identity",
            "backend",
            "precision",
            "rounded",
            "task",
            "window",
            "tokens",
            "samples",
            "seed",
            "text",
        ),
        *("models", "metrics", "chance", "rows", "notes"),
    }
    assert (data["task"], data["window"], data["samples"]) == (task, 8, 2)
    assert data["models"] == ["converted", "sliding", *([] if task == "copy" else ["full"])]
    assert data["notes"] == ["the model cannot read text: streams are random tokens"]
    for name in data["models"]:
        rows = rows_of(data, name)
        assert [row.get("distance", row.get("to")) for row in rows] == places
        assert all(set(row) == keys for row in rows)
    assert set(data["metrics"]) == keys - {"distance", "from", "to", "count"}
    again = found(capsys, artifact, "--task", task)
    assert [row for row in data["rows"] if row["model"] != "full"] == again["rows"], "a seed decides everything"


def test_a_sweep_over_one_pass_is_no_sweep(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = found(capsys, artifact, "--task", "retrieval")
    swept = found(capsys, artifact, "--task", "retrieval", "--sweep", "passes=1,4")
    assert swept["models"] == ["passes=1", "passes=4", "sliding"]
    assert rows_of(swept, "passes=1") == rows_of(plain, "converted")
    assert rows_of(swept, "sliding") == rows_of(plain, "sliding")
    assert rows_of(swept, "passes=4") != rows_of(plain, "converted")
    assert found(capsys, artifact, "--task", "retrieval", "--seed", 1)["rows"] != plain["rows"]


def test_a_text_of_the_models_words_is_read(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    ids = torch.randint(1, VOCAB, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    text.write_text(" ".join(f"w{i}" for i in ids))
    data = found(capsys, artifact, "--task", "perplexity", "--text", text)
    assert (data["notes"], data["text"]) == ([], str(text))
    assert found(capsys, artifact, "--task", "retrieval", "--text", text)["rows"]


def test_tables_are_for_people(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run(capsys, artifact, "--task", "copy", *FAST)
    assert code == 0
    assert "16 (2 windows)" in said
    assert "sliding" in said
    assert run(capsys, artifact, "--task", "perplexity", *FAST)[1].count("8–16") == 1


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_plot_is_written_and_is_the_same_each_time(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    file = tmp_path / f"plot.{kind}"
    for task in ("retrieval", "perplexity"):
        assert run(capsys, artifact, "--task", task, *FAST, "--plot", file)[0] == 0
    first = file.read_bytes()
    assert run(capsys, artifact, "--task", "perplexity", *FAST, "--plot", file, "--json")[0] == 0
    assert file.read_bytes() == first
    assert list(tmp_path.iterdir()) == [file]
    if kind == "svg":
        texts = {"".join(node.itertext()).strip() for node in ElementTree.fromstring(first).iter()}
        assert {"converted", "sliding", "8", "16", "perplexity"} <= texts
    else:
        assert struct.unpack(">II", first[16:24]) == (840, 480)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--task", "reading"), "unknown task 'reading' (--task)"),
        (("--task", "copy", "--sweep", "window=4"), "cannot sweep 'window=4' (--sweep)"),
        (("--task", "copy", "--sweep", "passes=1,"), "cannot sweep"),
        (("--task", "copy", "--sweep", "passes=0"), "cannot sweep"),
        (("--task", "copy", "--distances", "1,-2"), "cannot read distances"),
        (("--task", "copy", "--distances", "nan"), "cannot read distances"),
        (("--task", "retrieval", "--distances", "1,1.2"), "3 tokens, and two distances are 2 tokens apart"),
        (("--task", "copy", "--samples", "0"), "samples"),
        (("--task", "copy", "--text", "absent.txt"), "cannot read absent.txt"),
        (("--task", "copy", "--plot", "plot.gif"), "cannot plot into plot.gif (--plot)"),
        (("--task", "copy", "--plot", "absent/plot.svg"), "absent is not a folder (--plot)"),
        (("--task", "copy", "--device", "cuda:77"), "error: "),
        (("--task", "copy", "--against", "absent"), "error: "),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    artifact: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...], said: str
) -> None:
    code, out, err = run(capsys, artifact, *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err


def test_a_plot_replaces_no_other_file(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes.svg"
    notes.write_text("mine")
    code, _, err = run(capsys, artifact, "--task", "copy", "--plot", notes)
    assert (code, "is not a plot" in err, notes.read_text()) == (2, True, "mine")


def test_without_matplotlib_it_says_what_to_install(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sleepc.tasks.plot.find_spec", lambda name: None)
    code, _, err = run(capsys, artifact, "--task", "copy", "--plot", tmp_path / "p.svg")
    assert (code, "pip install 'sleepc[plot]'" in err) == (2, True)


def test_a_text_that_the_tokenizer_cannot_read_is_refused(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("none of these words is known to this model " * 20)
    code, _, err = run(capsys, artifact, "--task", "perplexity", "--text", text)
    assert (code, "cannot read this text" in err) == (2, True)
