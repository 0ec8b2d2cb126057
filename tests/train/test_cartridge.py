"""Cartridges: keys and values in slots, trained towards the model that has the document in view."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import sleepc
from sleepc.backends.table import find_trainer
from sleepc.progress import silent
from sleepc.runtime.cartridge import Cartridge
from sleepc.tasks.programs import full_attention_for
from sleepc.train.cartridge import CartridgeSettings, Making, Slots
from sleepc.train.self_study import Lesson, taught
from tests.families import VOCAB, WINDOW, family

SINKS, SLOTS = 2, 6
DOCUMENT = np.random.default_rng(3).integers(0, VOCAB, 5 * WINDOW + 3).tolist()


@cache
def program(name: str = "llama") -> sleepc.Program:
    recipe = {"window": WINDOW, "sinks": SINKS, "keep": {"slots": SLOTS}}
    return sleepc.convert(family(name, torch.float64).module, recipe)


@cache
def lessons(name: str = "llama", count: int = 24, length: int = 12) -> list[Lesson]:
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
    # its norms compute in float64
    slots, some = Slots(making("stablelm").steps, begun("stablelm")), lessons("stablelm")[:3]
    slots.loss(some).backward()
    step, random = 1e-5, np.random.default_rng(0)
    for name, master in slots.masters.items():
        assert master.grad is not None
        for at in random.integers(0, master.numel(), 3).tolist():
            sides = []
            for way in (step, -step):
                with torch.no_grad():
                    master.view(-1)[at] += way
                    sides.append(float(slots.loss(some)))
                    master.view(-1)[at] -= way
            slope = (sides[0] - sides[1]) / (2 * step)
            assert float(master.grad.view(-1)[at]) == pytest.approx(slope, rel=1e-5, abs=1e-9), name


def test_it_learns_what_the_teacher_expects_on_lessons_that_it_has_not_seen() -> None:
    made = making(steps=60).trained(begun(), lessons(), silent)
    print(made.before, made.after, made.best)
    assert made.after < made.before
