"""What a training is judged by: pieces that it never learns from, figures that others compute too, and the rule."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sleepc as package
from sleepc.api import Program
from sleepc.backends.eager.backend import load
from sleepc.errors import SleepcWarning
from sleepc.memory.parameters import MIX_BIAS
from sleepc.tasks.lessons import NOTHING
from sleepc.tasks.programs import full_attention
from sleepc.tasks.puzzles import make_puzzle
from sleepc.tasks.spelling import spell_as_ids
from sleepc.train.judging import Judgement, read
from sleepc.train.pieces import Piece
from sleepc.train.reading import self_reading, task_reading, text_reading
from sleepc.train.settings import Settings, make_settings, phases
from sleepc.train.texts import texts
from tests.cli.models import save_model

WINDOW = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Program:
    model = save_model(tmp_path_factory.mktemp("model") / "model")
    program = package.convert(model, {"window": WINDOW, "sinks": 1})
    program.captured(lambda what, share: None)
    return program


@pytest.fixture
def program(made: Program) -> Program:
    return replace(made, report={})


def _text(folder: Path, documents: int, words: int, of: int = 59) -> Path:
    rng, file = random.Random(1), folder / "text.jsonl"
    rows = (" ".join(f"w{rng.randrange(1, of)}" for _ in range(words)) for _ in range(documents))
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return file


def log_softmax(logits: Any) -> Any:
    """log p of logits [T,V]."""
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _grams(piece: Piece) -> set[tuple[int, ...]]:
    """Four tokens in a row: of a random text every one is there once."""
    return {tuple(piece.tokens[i : i + 4].tolist()) for i in range(len(piece) - 3)}


@pytest.mark.parametrize(("documents", "words"), [(1, 400), (30, 37), (3, 90), (2, 12)])
@pytest.mark.parametrize("stages", ["distil,lengthen", "solve"])
def test_no_stage_learns_from_what_is_held_out(
    made: Program, tmp_path: Path, documents: int, words: int, stages: str
) -> None:
    given = texts([_text(tmp_path, documents, words)], None)
    settings = make_settings({"stages": stages, "length": 16, "recall": 0.0, "tokens": 4000})
    reading = text_reading(given.documents, made.tokenizer(), settings, WINDOW)
    held = reading.held_out()
    assert reading.apart
    assert 0 < sum(map(len, held)) <= documents * words / 2
    apart = set().union(*map(_grams, held))
    for phase in phases(settings):
        learned = set().union(*map(_grams, islice(reading.stream(phase, 0), 200)))
        assert learned
        assert not learned & apart


@pytest.mark.parametrize(("pieces", "tokens"), [(600, 600), (1500, 900), (100, 5000)])
def test_all_of_what_is_learned_from_is_judged(made: Program, tmp_path: Path, pieces: int, tokens: int) -> None:
    """Of five texts one after the other none is left out, wherever it stands."""
    file, length, rng = tmp_path / "text.jsonl", 128, random.Random(2)
    with file.open("w") as rows:
        for number in range(pieces):
            words = " ".join(f"w{rng.randrange(1, 50)}" for _ in range(length - 1))
            rows.write(json.dumps({"text": f"w{50 + 5 * number // pieces} {words}"}) + "\n")
    settings = make_settings({"length": length, "tokens": tokens * length, "recall": 0.0})
    held = text_reading(texts([file], None).documents, made.tokenizer(), settings, WINDOW).held_out()
    seen = min(max(tokens, 256), 1024, pieces)
    assert {int(piece.tokens[0]) - 50 for piece in held} == set(range(5 * (seen - 1) // pieces + 1))
    assert len(held) == min(4096 // length, pieces // 8)


def test_of_one_piece_nothing_can_be_held_out(made: Program, tmp_path: Path) -> None:
    given = texts([_text(tmp_path, 1, 16)], None)
    reading = text_reading(given.documents, made.tokenizer(), make_settings({"length": 16}), WINDOW)
    assert (len(reading.held_out()), reading.apart) == (1, False)
    assert "all there is, which it learned from" in _judged(apart=reading.apart).where


def test_what_is_held_out_of_a_task_and_of_a_teachers_texts_is_other(made: Program) -> None:
    puzzle = make_puzzle("khop", ["entities=16"])
    settings = Settings(stages="solve", steps=20, batch=8, length=64)
    tasks = task_reading(puzzle, lambda made: spell_as_ids(puzzle.vocabulary, 200, made), settings)
    own = self_reading(made.captured(lambda *_: None), made.tokenizer(), Settings(length=16), WINDOW, load)
    for reading, chosen in ((tasks, settings), (own, Settings(length=16))):
        held = {piece.tokens.tobytes() for piece in reading.held_out()}
        learned = {piece.tokens.tobytes() for piece in islice(reading.stream(phases(chosen)[0], 0), 160)}
        assert len(held) == 64
        assert not held & learned


def test_figures_are_those_of_sessions(program: Program) -> None:
    rng = np.random.default_rng(0)
    held = [Piece(rng.integers(0, 61, n)) for n in (20, 13, 20)]
    canonical = program.captured(lambda what, share: None)
    teacher = load(full_attention(canonical, 20))
    surprise, divergence, taught, count = read(load(program.graphs), teacher, held).tolist()
    ours = [log_softmax(program.session().feed(p.tokens.tolist(), logits="all")[0]) for p in held]
    full = package.Program(teacher.program, program.recipe, program.source)
    theirs = [log_softmax(full.session().feed(p.tokens.tolist(), logits="all")[0]) for p in held]
    assert count == sum(len(p) - 1 for p in held)
    for found, logs in ((surprise, ours), (taught, theirs)):
        wanted = -sum(log[np.arange(len(p) - 1), p.tokens[1:]].sum() for log, p in zip(logs, held, strict=True))
        assert found == pytest.approx(wanted, rel=1e-4)
    wanted = sum((np.exp(t) * (t - o)).sum() for t, o in zip(theirs, ours, strict=True))
    assert divergence == pytest.approx(wanted, rel=1e-3)
    labels = np.full(20, NOTHING)
    labels[[5, 12]] = 3, 7
    asked = Piece(held[0].tokens, labels)
    alone = read(load(program.graphs), None, [asked, asked]).tolist()
    assert alone[1:] == [0, 0, 4]
    assert alone[0] == pytest.approx(-2 * (ours[0][5, 3] + ours[0][12, 7]), rel=1e-4)


def _judged(
    kl: tuple[float, float] = (1.0, 0.5),
    surprise: tuple[float, float] = (3.0, 2.9),
    teacher: float | None = 2.5,
    goal: Any = "divergence",
    apart: bool = True,
) -> Judgement:
    figures: dict[Any, float] = dict(zip(("before", "after"), surprise, strict=True))
    far: dict[Any, float] = dict(zip(("before", "after"), kl, strict=True)) if teacher is not None else {}
    figures |= {"teacher": teacher} if teacher is not None else {}
    return Judgement(pieces=1, tokens=9, apart=apart, goal=goal, surprise=figures, divergence=far)


@pytest.mark.parametrize(
    ("judged", "worse"),
    [
        (_judged(), False),
        (_judged(kl=(1.0, 1.0)), False),
        (_judged(kl=(1.0, 1.001)), True),
        (_judged(kl=(1.0, math.nan)), True),
        (_judged(kl=(math.nan, 1.0)), True),
        (_judged(surprise=(3.0, 3.005)), False),
        (_judged(surprise=(3.0, 3.04)), True),
        (_judged(surprise=(3.0, math.inf)), True),
        (_judged(surprise=(3.0, 3.04), teacher=3.1), False),
        (_judged(goal="surprise", kl=(1.0, 2.0)), False),
        (_judged(goal="surprise", surprise=(3.0, 3.001)), True),
        (_judged(goal="surprise", teacher=None, surprise=(3.0, 2.9)), False),
        (_judged(goal="surprise", teacher=None, surprise=(3.0, math.inf)), True),
    ],
)
def test_what_is_worse(judged: Judgement, worse: bool) -> None:
    assert judged.worse == worse
    assert "perplexity" in judged.told()


@pytest.mark.parametrize("teach", [True, False])
def test_a_program_stays_as_it_was(program: Program, tmp_path: Path, teach: bool) -> None:
    file, graphs = _text(tmp_path, 20, 40), program.graphs
    learn: Any = program.distil if teach else lambda text, **options: program.train(text=text, **options)
    options = {"length": 20, "batch": 4, "steps": 3, "device": "cpu", "work": tmp_path / "work"}
    options |= {"lr": 0.9, "train": "all", "weights_lr": 0.9} if not teach else {"lr": 0.9}
    with pytest.warns(SleepcWarning, match=r"made things worse on .*did not learn from.*The program stays as it was"):
        outcome = learn([file], **options)
    assert (outcome.finished, outcome.kept) == (True, False)
    assert program.graphs is graphs
    assert program.report == {}
    if outcome.adapter is not None:
        other = replace(program, report={})
        other.adapt(outcome.adapter)  # what was learned is not lost
        key = next(key for key in graphs.params if key.endswith(MIX_BIAS.port))
        assert not torch.equal(graphs.params[key].materialise(), other.graphs.params[key].materialise())
