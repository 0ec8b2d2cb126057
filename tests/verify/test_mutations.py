"""Every planted fault is found by `verify`, in every program that has a place for it, and a sound program passes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.ir.program import ProgramGraphs
from sleepc.recipe import Recipe
from sleepc.verify.mutations import MUTATIONS
from sleepc.verify.verify import Measuring, VerifyReport, verify_program
from tests.families import VOCAB, family

PROGRAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("gemma2", {"passes": 3}),
    "qwen2-online": ("qwen2", {"write": "online"}),
    "gpt2-hard": ("gpt2", {"eviction": "hard"}),
    "llama-insert": ("llama", {"strategy": "insert", "write": "sleep"}),
    "llama-loop": ("llama", {"strategy": "insert", "consolidation": "recurrent", "passes": 2, "loop": "0:2"}),
    "llama-settle": ("llama", {"consolidation": "recurrent", "passes": 4, "loop": "0:1", "settle": 0.3}),
    "llama-learn": ("llama", {"consolidation": "gradient", "gradient": {"lr": 2.0, "rank": 5, "clip": 0.5}}),
    "llama-tokens": ("llama", {"consolidation": "tokens", "soft": {"tokens": 3, "windows": 2, "rank": 2}}),
    "bloom": ("bloom", {}),
    "llama4": ("llama4", {"eviction": "hard"}),
}
# What only some programs have a place for is planted in those; everything else in the first four.
SPECIAL = {
    "llama-loop": {
        "one recurrent pass too many",
        "recurrent passes at the positions of the next window",
        "hidden states of the window one token off",
        "blocks after the loop start from the window's end",
        "recurrent passes go on with the convolution's tail",
        "sinks seen twice while asleep",
    },
    "llama-settle": {"recurrent passes end too early"},
    "llama-learn": {
        "one step of gradient descent too many",
        "gradient descent uphill",
        "a gradient of another norm",
        "tokens learned in place of those after them",
    },
    "llama-tokens": {
        "an encoder without its LoRA matrices",
        "soft tokens without what was encoded",
        "soft tokens that begin as the tokens before",
        "soft tokens one position further on",
        "rows share soft tokens",
        "the oldest soft tokens stay",
    },
    "bloom": {"slopes of other heads", "window one too far", "wrong ring slot"},
    "llama4": {"chunks one token too long", "window one too short"},
}
ONLY_THERE = {
    fault for name in ("llama-loop", "llama-settle", "llama-learn", "llama-tokens") for fault in SPECIAL[name]
}
ONLY_THERE |= {"slopes of other heads", "chunks one token too long"}
PLANTED = [(fault, name) for name in PROGRAMS for fault in sorted(SPECIAL.get(name, set(MUTATIONS) - ONLY_THERE))]
CHEAP = sorted(PROGRAMS, key=("qwen2-online", "gpt2-hard", "llama-insert", *SPECIAL, "gemma2").index)
COSTLY = ("gemma2", "llama-insert")  # tests/conformance has their invariants, too
# Where the fault changes nothing that the program computes.
HARMLESS = {
    # Sliding eviction zeroes nothing anyway.
    ("evicted tokens stay", "gemma2"),
    ("evicted tokens stay", "qwen2-online"),
    ("evicted tokens stay", "llama-insert"),
    # With hard eviction positions stay below sinks + window: every token has its own slot, and all are near enough.
    ("sinks dropped", "gpt2-hard"),
    ("wrong ring slot", "gpt2-hard"),
    # Sliding eviction goes on counting; none of these streams reaches the last position.
    ("positions go on after hard eviction", "gemma2"),
    ("positions go on after hard eviction", "qwen2-online"),
    ("positions go on after hard eviction", "llama-insert"),
}


@cache
def program(name: str) -> tuple[ProgramGraphs, Recipe]:
    chosen, options = PROGRAMS[name]
    return family(chosen).convert(**options)


def check(step: ProgramGraphs, name: str) -> VerifyReport:
    torch.set_num_threads(1)
    subject = family(PROGRAMS[name][0])
    tokens = np.random.default_rng(8).integers(0, VOCAB, 40).tolist()
    _, recipe = program(name)
    return verify_program(
        step, subject.canonical, recipe, tokens, original=original(name), measuring=Measuring(perplexity=False)
    )


def original(name: str) -> Any:
    """The original, its answers to the same tokens remembered; its float32 softmax is not what is tested here."""
    subject = family(PROGRAMS[name][0])

    def call(tokens: torch.Tensor) -> torch.Tensor:
        return _answer(name, tuple(tokens[0].tolist()), subject)

    return call


ANSWERS: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}


def _answer(name: str, tokens: tuple[int, ...], subject: Any) -> torch.Tensor:
    if (name, tokens) not in ANSWERS:
        ANSWERS[name, tokens] = subject.logits(torch.tensor([tokens]))
    return ANSWERS[name, tokens]


def failed(report: VerifyReport) -> set[int]:
    """Invariants that fail by more than float32 explains: models take softmax in it, and Llama 4 runs its experts in
    it, also as float64 models.
    """
    return {c.invariant for c in report.checks if not c.ok and not (c.value is not None and c.value < 2e-5)}


def places(fault: str) -> Iterator[tuple[str, ProgramGraphs]]:
    """Programs, and what they become, in which the fault changes what is computed; cheap ones first."""
    for name in sorted((name for planted, name in PLANTED if planted == fault), key=CHEAP.index):
        mutant = None if (fault, name) in HARMLESS else MUTATIONS[fault](program(name)[0])
        if mutant is not None:
            yield name, mutant


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in COSTLY else ()) for name in PROGRAMS]
)
def test_a_sound_program_passes(name: str) -> None:
    assert failed(check(program(name)[0], name)) == set()


@pytest.mark.parametrize("fault", MUTATIONS)
def test_the_fault_is_found(fault: str) -> None:
    """In the first program that has a place for it."""
    name, mutant = next(places(fault))
    assert failed(check(mutant, name))


@pytest.mark.slow
@pytest.mark.parametrize("fault", MUTATIONS)
def test_the_fault_is_found_in_every_program(fault: str) -> None:
    for name, mutant in places(fault):
        assert failed(check(mutant, name)), name
