"""Cartridges: keys and values in slots, trained towards the model that has the document in view."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import sleepc
from sleepc.backends.table import find_trainer
from sleepc.errors import SleepcError, UsageError
from sleepc.hf.tokenizer import Tokenizer
from sleepc.ir.parameters import materialise
from sleepc.progress import silent
from sleepc.runtime.cartridge import Cartridge
from sleepc.tasks.exchanges import Exchange
from sleepc.tasks.programs import full_attention_for
from sleepc.train.cartridge import CartridgeSettings, Making, Slots
from sleepc.train.self_study import TOP, CartridgeLesson, Study, taught
from sleepc.train.tutor import Tutor
from tests.families import VOCAB, WINDOW, family

SINKS, SLOTS = 2, 6
DOCUMENT = np.random.default_rng(3).integers(0, VOCAB, 4 * WINDOW + 3).tolist()


@cache
def program(name: str = "llama") -> sleepc.Program:
    recipe = {"window": WINDOW, "sinks": SINKS, "keep": {"slots": SLOTS, "budgets": "equal"}}
    return sleepc.convert(family(name, torch.float64).module, recipe)


@cache
def lessons(name: str = "llama", count: int = 24, length: int = 12) -> list[CartridgeLesson]:
    """What the original expects of stretches of the document that come after it: a window and more."""
    teacher = full_attention_for(program(name).captured(silent), find_trainer().steps)(64)
    starts = np.random.default_rng(4).integers(0, len(DOCUMENT) - length, count)
    return list(taught(teacher, DOCUMENT, [(DOCUMENT[at : at + length], 2) for at in starts]))


def making(name: str = "llama", **settings: Any) -> Making:
    return Making(program(name), CartridgeSettings(**{"batch": 4, "lr": 0.05, **settings}))


@cache
def begun(name: str = "llama") -> Cartridge:
    return making(name).filled(DOCUMENT, "text", silent)


def test_gradients_are_those_of_finite_differences() -> None:
    # its norms compute in float64, and a lesson has a sleep in it
    slots, some = Slots(making("stablelm").steps, begun("stablelm")), lessons("stablelm")[:3]
    slots.loss(some).backward()  # type: ignore[no-untyped-call]
    step, draw = 1e-5, np.random.default_rng(0)
    for name, master in slots.masters.items():
        assert master.grad is not None
        for at in draw.integers(0, master.numel(), 3).tolist():
            sides = []
            for way in (step, -step):
                with torch.no_grad():
                    master.view(-1)[at] += way
                    sides.append(float(slots.loss(some)))
                    master.view(-1)[at] -= way
            slope = (sides[0] - sides[1]) / (2 * step)
            assert float(master.grad.view(-1)[at]) == pytest.approx(slope, rel=1e-5, abs=1e-9), name


def test_it_learns_what_the_teacher_expects_in_lessons_that_it_has_not_seen() -> None:
    before = {key: value.clone() for key, value in materialise(program().graphs, "cpu").items()}
    making_, some = making(steps=30), lessons()
    made = making_.trained(begun(), some, silent)
    assert made.after < made.before - 0.2
    assert made.best > 0
    apart = some[::8]
    assert Slots(making_.steps, made.cartridge).judged(apart, 4) == pytest.approx(made.after, abs=1e-9)
    assert Slots(making_.steps, begun()).judged(apart, 2) == pytest.approx(made.before, abs=1e-9)
    assert (made.lessons, made.held_out) == (21, 3)
    now = materialise(program().graphs, "cpu")
    assert all(torch.equal(now[key], value) for key, value in before.items())
    kept = {name for name, each in begun().arrays.items() if np.array_equal(each, made.cartridge.arrays[name])}
    assert {name.partition(".")[2] for name in kept} == {"k", "v", "kept.position"}  # the sinks, and places


def test_steps_that_do_not_help_are_not_kept() -> None:
    made = making(steps=2, lr=0.9).trained(begun(), lessons(), silent)
    assert made.best == 0 or made.after < made.before
    none = making(steps=0).trained(begun(), lessons(), silent)
    assert (none.best, none.after) == (0, none.before)
    assert all(np.array_equal(each, begun().arrays[name]) for name, each in none.cartridge.arrays.items())


def test_the_first_token_is_never_trained() -> None:
    """A program without sinks may keep it in slots."""
    position = begun().arrays["0.kept.position"].copy()
    position[0] = 0
    slots = Slots(making().steps, begun().filled({"0.kept.position": position}))
    slots.loss(lessons()[:2]).backward()  # type: ignore[no-untyped-call]
    for name, master in slots.masters.items():
        assert master.grad is not None
        still = master.grad.abs().sum(1) == 0
        assert still.tolist() == [name.startswith("0.") and not i for i in range(len(master))]


def whole(slots: Slots, lesson: CartridgeLesson, log_p: Tensor) -> float:
    """Cross entropy of all of the vocabulary, of a lesson of less than a window."""
    state = slots.rows(1)
    out, _ = slots.steps.wake_tensors(state, lesson.tokens[None], torch.tensor([len(lesson.tokens)]), "all")
    assert out is not None
    log_q = out[0, lesson.places].log_softmax(-1)
    return -(log_p.exp() * log_q).sum(-1).mean().item()


def test_of_a_small_vocabulary_all_of_it_counts() -> None:
    slots, read = Slots(making().steps, begun()), DOCUMENT[:7]
    log_p = torch.randn(6, VOCAB, dtype=torch.float64).log_softmax(-1)
    top = log_p.topk(VOCAB)
    lesson = CartridgeLesson(torch.tensor(read), torch.arange(7) > 0, top.indices, top.values)
    assert slots.loss([lesson]).item() == pytest.approx(whole(slots, lesson, log_p), abs=1e-9)
    few = CartridgeLesson(lesson.tokens, lesson.places, top.indices[:, :TOP], top.values[:, :TOP])
    assert slots.loss([few]).item() < slots.loss([lesson]).item()


def test_a_batch_is_the_mean_over_tokens_of_its_lessons() -> None:
    slots, short = Slots(making().steps, begun()), lessons(length=5)[:2]
    long = lessons()[:2]
    sizes = [int(each.places.sum()) for each in (*short, *long)]
    alone = [slots.loss([each]).item() for each in (*short, *long)]
    mean = sum(size * loss for size, loss in zip(sizes, alone, strict=True)) / sum(sizes)
    assert slots.loss([*short, *long]).item() == pytest.approx(mean, abs=1e-7)


def test_what_the_teacher_expects_is_its_own_log_p() -> None:
    teacher = full_attention_for(program().captured(silent), find_trainer().steps)(64)
    rest = [4, 9, 2, 7]
    (lesson,) = taught(teacher, DOCUMENT, [(rest, 2)])
    module = family("llama", torch.float64).module
    with torch.no_grad():
        log_p = module(input_ids=torch.tensor([[*DOCUMENT, *rest]])).logits[0, -4:].double().log_softmax(-1)
    assert lesson.places.tolist() == [False, True, True, True]
    assert lesson.ids.shape == (3, TOP)
    assert torch.allclose(lesson.log_p, log_p[1:].gather(-1, lesson.ids), atol=1e-6)


class Words:
    """A tokenizer of words "w0" .., without a template."""

    def encode(self, text: str) -> list[int]:
        return [int(word[1:]) for word in text.split() if word[1:].isdigit()]

    encode_part = encode_next = encode

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(f"w{i}" for i in ids)

    def template(self) -> None:
        return None

    def has_template(self) -> bool:
        return False


def test_self_study_asks_and_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = full_attention_for(program().captured(silent), find_trainer().steps)
    tutor = Tutor(teacher, cast(Tokenizer, Words()), VOCAB)
    monkeypatch.setattr(Tutor, "turns", lambda self, text, count, chance: [Exchange("w1 w2", "w3 w4 w5")] * count)
    study, text = Study(tutor, part=20, each=4, longest=10), Words().decode(DOCUMENT)
    shares: list[float] = []
    found = study.lessons(text, 6, random.Random(0), shares.append)
    assert shares == [4 / 6, 1.0]
    assert len(found) == 6
    asked = [each for each in found if each.tokens.tolist() == [1, 2, 3, 4, 5]]
    assert len(asked) == 3
    assert all(each.places.tolist() == [False, True, True, True, True] for each in asked)
    again = [each.tokens.tolist() for each in found if each.tokens.tolist() != [1, 2, 3, 4, 5]]
    stretches = [DOCUMENT[at : at + 9] for at in range(len(DOCUMENT) - 8)]
    assert all(each in stretches for each in again)
    assert [each.tokens.tolist() for each in study.lessons(text, 6, random.Random(0), shares.append)] == [
        each.tokens.tolist() for each in found
    ]


def test_a_document_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="all of the document are sinks"):
        making().filled(DOCUMENT[:SINKS], "", silent)
    with pytest.raises(UsageError, match=r"24 positions cannot be counted anew"):
        making("gpt2").filled(DOCUMENT, "", silent)
    with pytest.raises(UsageError, match=r"no window is left of the model's 24 positions"):
        making("gpt2").filled(DOCUMENT[:14], "", silent)
    long = making().filled(DOCUMENT * 4, "", silent)  # llama counts anew
    assert long.tokens == 4 * len(DOCUMENT)
    assert long.position + WINDOW <= 64
    for i, heads in long.pairs.items():
        assert heads == (SLOTS, SLOTS)
        assert int(long.arrays[f"{i}.kept.position"].max()) <= long.position - WINDOW


def test_a_loss_that_is_not_finite_ends_it() -> None:
    broken = begun().filled({"0.kept.v": np.full_like(begun().arrays["0.kept.v"], np.inf)})
    with pytest.raises(SleepcError, match="the loss of step 1 is"):
        making(steps=1).trained(broken, lessons(), silent)
    with pytest.raises(UsageError, match="had nothing to say"):
        making().trained(begun(), [], silent)
