"""Going on with a stopped training: only where what it reads is what it was; then to the bit, again and again."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sleepc as package
from sleepc.api import Program
from sleepc.errors import SleepcWarning, UsageError
from sleepc.train.texts import texts
from sleepc.train.trainer import Hooks
from tests.cli.models import save_model

FAST: dict[str, Any] = {"length": 20, "batch": 2, "device": "cpu", "lr": 0.01, "save_every": 2}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _saved(tmp_path_factory.mktemp("resume"))


def _saved(folder: Path, **recipe: Any) -> Path:
    """A converted model in `folder`."""
    return package.convert(save_model(folder / "model"), {"window": 6, "sinks": 1, **recipe}).save(folder / "artifact")


def _rows(folder: Path, name: str = "text.jsonl", documents: int = 9, seed: int = 0) -> Path:
    rng = random.Random(seed)
    rows = [
        {name: " ".join(f"w{rng.randrange(1, 60)}" for _ in range(45)) for name in ("text", "other")}
        for _ in range(documents)
    ]
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def _learn(artifact: Path, work: Path, command: str = "distil", stop: int = 0, **options: Any) -> Program:
    """Train for some steps; the program after it."""
    program, steps = package.load(artifact), list[Any]()
    hooks = Hooks(on_step=steps.append, should_stop=lambda: len(steps) == stop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)
        outcome = getattr(program, command)(work=work, hooks=hooks, force=True, **{**FAST, **options})
    assert outcome.finished != bool(stop)
    return program


@pytest.mark.parametrize(
    "options",
    [
        {
            **{"train": "low-rank", "rank": 2, "stages": "distil:3,lengthen:1", "planted": 0.4, "weigh": 2.0},
            "keep": {"slots": 2, "budgets": [[1, 3], [4, 0], [2, 2]]},
        },
        {"command": "train", "train": "all", "optimiser": "muon", "predict": 5},
    ],
    ids=str,
)
def test_resumed_again_in_later_epochs_it_is_the_uninterrupted_one(
    artifact: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """12 pieces, one of them held out: an epoch ends in the 6th step."""
    options = {"text": [_rows(tmp_path, documents=4)], "steps": 18, **options}
    artifact = _saved(tmp_path, keep=options.pop("keep")) if "keep" in options else artifact
    whole = _learn(artifact, tmp_path / "whole", **options)
    _learn(artifact, tmp_path / "parts", stop=3, **options)
    for stop in (5, 7):
        _learn(artifact, tmp_path / "parts", stop=stop, resume=True, **options)
    parts = _learn(artifact, tmp_path / "parts", resume=True, **options)
    for key, param in whole.graphs.params.items():
        assert torch.equal(param.materialise(), parts.graphs.params[key].materialise()), key
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    figures = [[json.loads(line)["loss"] for line in part] for part in lines]
    assert figures[0] == figures[1]


def _a_word(text: Path) -> None:
    text.write_text(text.read_text().replace("w7 ", "w8 ", 1))


def _the_last_word(text: Path) -> None:
    text.write_text(text.read_text()[:-30] + text.read_text()[-30:].replace("w2", "w3"))


def _another_row(text: Path) -> None:
    text.write_text(text.read_text() + '{"text": "w5 w6", "other": ""}\n')


def _other_rows(text: Path) -> None:
    _rows(text.parent, seed=1)


@pytest.mark.parametrize("change", [_a_word, _the_last_word, _another_row, _other_rows])
@pytest.mark.parametrize("given", ["file", "folder", "gz", "dataset"])
def test_other_words_in_the_same_file_have_another_hash(
    tmp_path: Path, change: Callable[[Path], None], given: str
) -> None:
    text = _rows(tmp_path / "texts")
    packed = tmp_path / "packed.jsonl.gz"

    def content() -> str:
        packed.write_bytes(gzip.compress(text.read_bytes()))
        if given == "dataset":
            return texts([], str(text.parent)).content
        return texts([{"file": text, "folder": text.parent, "gz": packed}[given]], None).content

    before, known = text.read_bytes(), content()
    change(text)
    assert text.read_bytes() != before
    assert content() != known
    text.write_bytes(before)
    assert content() == known


def test_other_words_field_teacher_or_tokenizer_is_noticed(artifact: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(artifact.parent / "model", tmp_path / "model"))
    options: dict[str, Any] = {"text": [_rows(tmp_path)], "steps": 9, "teacher": other}
    _learn(artifact, tmp_path / "work", stop=1, **options)
    with pytest.raises(UsageError, match="differs in content"):
        _learn(artifact, tmp_path / "work", resume=True, **options, field="other")
    before = options["text"][0].read_bytes()
    _a_word(options["text"][0])
    with pytest.raises(UsageError, match="differs in content"):
        _learn(artifact, tmp_path / "work", resume=True, **options)
    options["text"][0].write_bytes(before)
    mine = Path(shutil.copytree(artifact, tmp_path / "artifact"))
    words = json.loads((mine / "tokenizer.json").read_text())
    vocab = words["model"]["vocab"]
    vocab["w7"], vocab["w8"] = vocab["w8"], vocab["w7"]
    for folder in (mine, other):
        (folder / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UsageError, match="step 1 of the stopped training read other data than it would read now"):
        _learn(mine, tmp_path / "work", resume=True, **options)
    save_model(other, "olmo2")
    with pytest.raises(UsageError, match="differs in teacher_sha256"):
        _learn(artifact, tmp_path / "work", resume=True, **options)


def test_the_same_words_in_another_place_are_the_same(artifact: Path, tmp_path: Path) -> None:
    text = _rows(tmp_path / "here")
    _learn(artifact, tmp_path / "work", stop=1, text=[text], steps=4)
    there = Path(shutil.copytree(text.parent, tmp_path / "there"))
    shutil.rmtree(text.parent)
    _learn(artifact, tmp_path / "work", resume=True, text=[there / text.name], steps=4)
