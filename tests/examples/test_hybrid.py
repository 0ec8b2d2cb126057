"""The example of a hybrid: it learns, is converted, and its figures are those of what it reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import hybrid
from examples.hybrid_tasks import LEARNED, PAIRS, VOCABULARY, WINDOW, Hops, Mixture, Recall, Text, letters
from sleepc.tasks.puzzle import Puzzle, examples

TINY = replace(hybrid.SIZES["quick"], steps=1, passes=(2,), more=1, batch=2, held_out=3)


def test_every_line_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is read within the first window is the same for all; behind it a sleep changes it. A second start has
    nothing to do.
    """
    monkeypatch.setitem(hybrid.SIZES, "quick", TINY)
    monkeypatch.setattr(hybrid, "LAYERS", hybrid.LAYERS[:2])
    monkeypatch.setattr(hybrid, "ATTENTION", "1")
    given = ["--quick", "--seeds", "3", "--work", str(tmp_path)]
    assert hybrid.main(given) == 0
    file = tmp_path / "quick" / "seed-3" / "results.jsonl"
    rows = {row["arm"]: row for row in map(json.loads, file.read_text().splitlines())}
    assert list(rows) == [arm.name for arm in hybrid.arms(TINY)]
    full = rows["full attention"]
    for name in ("window alone", "N = 2, sliding", "N = 2"):
        assert rows[name]["perplexity 0"] == pytest.approx(full["perplexity 0"], rel=1e-4)
        assert rows[name]["perplexity 3"] != pytest.approx(full["perplexity 3"], rel=1e-4)
    assert rows["window alone"]["perplexity 3"] != pytest.approx(rows["N = 2"]["perplexity 3"], rel=1e-4)
    for name in ("full attention, trained on", "N = 2, trained"):
        assert rows[name]["perplexity 0"] != full["perplexity 0"]
    assert "| N = 2, trained | " in capsys.readouterr().out

    before = file.read_bytes()
    assert hybrid.main(given) == 0
    assert file.read_bytes() == before

    file.write_bytes(before.replace(b'"window alone"', b'"sleepless"')[:-9])
    assert hybrid.main(given) == 0
    assert "not measured any more: sleepless" in capsys.readouterr().out
    lines = [json.loads(line)["arm"] for line in file.read_text().splitlines()]
    assert sorted(lines) == sorted(["sleepless", *rows])


def test_seeds_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        hybrid.main(["--quick", "--seeds", "0,a"])
    assert (ended.value.code, "not whole numbers" in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize("puzzle", [*LEARNED, *hybrid.EXAMS.values(), Mixture(2)], ids=repr)
def test_questions_stay_within_a_window(puzzle: Puzzle) -> None:
    """No sleep inside what is asked alone, and all words are in the vocabulary."""
    for example in examples(puzzle, 4, seed=1):
        asked = [(*question.asked, *question.answer) for question in example.questions]
        assert {*example.context, *(word for words in asked for word in words)} <= set(VOCABULARY)
        if puzzle in hybrid.EXAMS.values():
            assert len(example.context) % WINDOW + max(map(len, asked)) - 1 <= WINDOW


def test_a_pair_is_told_as_many_sleeps_ago_as_its_depth_says() -> None:
    for example in examples(Recall(), 8, seed=0):
        for question in example.questions:
            key, (value,) = question.asked[1], question.answer
            place = example.context.index(key)
            assert example.context[place + 1] == value
            assert question.depth == len(example.context) // WINDOW - (place + 1) // WINDOW
    assert len(example.questions) == PAIRS


def test_facts_of_hops_fill_a_window() -> None:
    example = Hops().example(0, np.random.default_rng(0))
    assert len(example.context) == WINDOW
    lead = {example.context[i : i + 2]: example.context[i + 2] for i in range(0, WINDOW, 3)}
    for question in example.questions:
        at, *relations = question.asked
        for relation in relations:
            at = lead[at, relation]
        assert (at,) == question.answer


def test_held_out_text_is_not_learned() -> None:
    """The exam's text begins where the training's ends."""
    exam, taught = letters(held_out=True), letters(held_out=False)
    assert 8 * len(exam) < len(taught) < 10 * len(exam)
    (example,) = examples(Text(after=(1,)), 1, seed=0)
    text = "".join((*example.context, *example.questions[0].asked, *example.questions[0].answer))
    assert text in exam
    assert text not in taught
    assert len(text) == 2 * WINDOW


def test_a_model_starts_by_its_seed() -> None:
    first, again, other = (hybrid.make_model(TINY, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "model.layers.0.linear_attn.dt_bias"
    assert not torch.equal(first[name], other[name])
    lost = torch.nn.functional.softplus(first[name])  # of the log of what is written, by token
    assert torch.all((lost >= 0.001) & (lost <= 0.1))
