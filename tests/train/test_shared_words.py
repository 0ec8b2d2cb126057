"""A teacher whose table is wider than the tokenizer, or than the program's: compared over the words they share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sleepc as package
from sleepc.errors import UsageError
from sleepc.train.self_text import sampled
from tests.cli.models import save_model
from tests.families import VOCAB, make_module

WIDER = 7


def of_width(module: Any, words: int) -> nn.Module:
    """The same model with other rows in its tables, or fewer; as they are, it says nothing but what has no word."""
    made: Any = type(module)(type(module.config)(**{**module.config.to_dict(), "vocab_size": words}))
    values = {name: value.clone() for name, value in made.state_dict().items()}
    for name, value in module.state_dict().items():
        values[name][: len(value)] = value[: len(values[name])]
    for row in range(VOCAB, words):
        values["lm_head.weight"][row] = (-50 if row % 2 else 50) * values["lm_head.weight"][0]
    made.load_state_dict(values)
    return made.eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the same with a wider table, and a text."""
    made = tmp_path_factory.mktemp("words")
    module = make_module("llama", torch.float32)
    save_model(made / "model", module=module)
    save_model(made / "wide", module=of_width(module, VOCAB + WIDER))
    rng = np.random.default_rng(0)
    (made / "text").write_text(" ".join(f"w{i}" for i in rng.integers(1, VOCAB, 500)))
    return made


OPTIONS: dict[str, Any] = {"tokens": 200, "length": 20, "batch": 2, "device": "cpu"}


def converted(model: Path) -> package.Program:
    return package.convert(model, {"window": 8, "sinks": 1})


def losses(folder: Path, work: Path, model: str, teacher: Any = None) -> Any:
    converted(folder / model).distil([folder / "text"], teacher=teacher, work=work, **OPTIONS)
    return [json.loads(line)["loss"] for line in (work / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore:the training made things worse")
def test_a_wider_table_teaches_the_same(folder: Path, tmp_path: Path) -> None:
    own = losses(folder, tmp_path / "own", "model")
    wide = losses(folder, tmp_path / "wide", "model", folder / "wide")
    np.testing.assert_allclose(wide, own, rtol=1e-5)
    np.testing.assert_allclose(losses(folder, tmp_path / "both", "wide", folder / "model"), own, rtol=1e-5)


def test_a_teacher_with_other_words_is_refused(folder: Path, tmp_path: Path) -> None:
    program = converted(folder / "model")
    other = Path(shutil.copytree(folder / "model", tmp_path / "other"))
    data = json.loads((other / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    vocab["w1"], vocab["w2"] = vocab["w2"], vocab["w1"]
    (other / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="other words than"):
        program.distil([folder / "text"], work=tmp_path / "work", **OPTIONS, teacher=other)
    (other / "tokenizer.json").unlink()
    wide = Path(shutil.copytree(folder / "wide", tmp_path / "wide"))
    (wide / "tokenizer.json").unlink()
    for teacher in (wide, of_width(make_module("llama", torch.float32), VOCAB + WIDER)):
        with pytest.raises(UsageError, match=f"has {VOCAB + WIDER} words and the program {VOCAB}"):
            program.distil([folder / "text"], work=tmp_path / "work", **OPTIONS, teacher=teacher)
    narrow = save_model(tmp_path / "narrow", module=of_width(make_module("llama", torch.float32), VOCAB - 1))
    with pytest.raises(UsageError, match=f"has {VOCAB - 1} words, and the program's tokenizer knows {VOCAB}"):
        program.distil([folder / "text"], work=tmp_path / "work", **OPTIONS, teacher=narrow)


@pytest.mark.filterwarnings("ignore:the training made things worse")
def test_what_stands_for_nothing_is_neither_said_nor_written(folder: Path, tmp_path: Path) -> None:
    program = converted(folder / "wide")
    holes = program.tokenizer().holes(program.graphs.vocab)
    assert holes == list(range(VOCAB, VOCAB + WIDER))
    session = program.session()
    session.feed([1, 2, 3])
    assert set(holes) & {int(step[0]) for step in session.generate(8)}, "it would say nothing else"
    written = sampled(program.steps(), (), 8, 0, 4, never=holes)
    assert all(not set(holes) & set(next(written).tolist()) for _ in range(8))
    program.distil(teacher=folder / "model", work=tmp_path, **OPTIONS)


def test_random_tokens_are_tokens(folder: Path, tmp_path: Path) -> None:
    """The help topics have no word of this tokenizer."""
    program = converted(folder / "wide")
    assert set(program.some_tokens(None)) == set(range(VOCAB))
