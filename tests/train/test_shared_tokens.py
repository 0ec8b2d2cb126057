"""A teacher whose table is wider than the tokenizer, or than the program's: compared over the words they share."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sleepc as package
from sleepc.backends.eager.backend import load
from sleepc.errors import UsageError
from sleepc.tasks.programs import full_attention
from sleepc.train.losses import kl_sum
from sleepc.train.self_text import Writer
from sleepc.train.shared_tokens import shared_tokens
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


@pytest.fixture(scope="module")
def program(folder: Path) -> package.Program:
    return package.convert(folder / "model", {"window": 8, "sinks": 1})


@pytest.fixture(scope="module")
def wide(folder: Path) -> package.Program:
    return package.convert(folder / "wide", {"window": 8, "sinks": 1})


def losses(program: package.Program, folder: Path, work: Path, teacher: Path | None) -> Any:
    learner = replace(program, report={})
    options: dict[str, Any] = {"tokens": 120, "length": 20, "batch": 2, "device": "cpu"}
    learner.distil([folder / "text"], teacher=teacher, work=work, **options)
    return [json.loads(line)["loss"] for line in (work / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore::sleepc.errors.SleepcWarning")  # of a training that is too short to help
def test_a_wider_table_teaches_the_same(program: package.Program, folder: Path, tmp_path: Path) -> None:
    own = losses(program, folder, tmp_path / "own", None)
    assert len(own) > 1
    np.testing.assert_allclose(losses(program, folder, tmp_path / "wide", folder / "wide"), own, rtol=1e-5)


def test_a_wider_table_learns_the_same(program: package.Program, wide: package.Program) -> None:
    """Logits over the tokens that both have, whatever the others say."""
    tokens = torch.arange(20)[None]
    one, other = (load(full_attention(p.captured(lambda *_: None), 20)) for p in (program, wide))
    real = torch.ones(1, 20, dtype=torch.bool)
    found = [steps.wake_tensors(steps.new_state(1), tokens, torch.tensor([20]), "all")[0] for steps in (one, other)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[1].shape[-1] == VOCAB + WIDER
    assert kl_sum(found[0][..., :VOCAB], found[1][..., :VOCAB], real).item() == pytest.approx(0, abs=1e-4)
    assert kl_sum(found[0], found[1][..., :VOCAB], real).item() == pytest.approx(0, abs=1e-4)


def test_tokens_that_are_shared(program: package.Program, wide: package.Program, folder: Path, tmp_path: Path) -> None:
    narrower = replace(program.graphs, vocab=VOCAB - 1)
    assert shared_tokens(program, wide.graphs, folder / "wide") == VOCAB
    assert shared_tokens(wide, program.graphs, folder / "model") == VOCAB
    assert shared_tokens(program, program.graphs, None) == VOCAB
    with pytest.raises(UsageError, match=f"is {VOCAB - 1}, and the program's tokenizer has {VOCAB} tokens"):
        shared_tokens(program, narrower, folder / "model")
    for nowhere in (None, tmp_path):
        with pytest.raises(UsageError, match=f"vocabulary size is {VOCAB + WIDER} and the program's {VOCAB}"):
            shared_tokens(program, wide.graphs, nowhere)


def test_a_teacher_with_other_words_is_refused(program: package.Program, folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder / "model", tmp_path / "other"))
    data = json.loads((other / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    vocab["w1"], vocab["w2"] = vocab["w2"], vocab["w1"]
    (other / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="another vocabulary than"):
        losses(program, folder, tmp_path / "work", other)


def test_what_stands_for_nothing_is_neither_said_nor_written(wide: package.Program) -> None:
    holes = wide.tokenizer().holes(wide.graphs.vocab)
    assert holes == list(range(VOCAB, VOCAB + WIDER))
    session = wide.session()
    session.feed([1, 2, 3])
    assert set(holes) & {int(step[0]) for step in session.generate(8)}, "it would say nothing else"
    written = Writer(wide.steps(), (), 8, 0, 4, never=holes).pieces()
    assert all(not set(holes) & set(next(written).tolist()) for _ in range(8))


def test_random_tokens_are_tokens(wide: package.Program) -> None:
    """The help topics have no word of this tokenizer."""
    assert set(wide.some_tokens(None)) == set(range(VOCAB))
