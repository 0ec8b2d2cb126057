"""Training on a GPU: the same losses as on the CPU, and a stopped training goes on to the same end."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.api import Program, load
from sleepc.converting import convert
from sleepc.errors import SleepcWarning
from sleepc.tasks.rule110 import Rule110
from sleepc.train.trainer import Hooks, Step
from tests.families import make_module

pytestmark = pytest.mark.gpu
PUZZLE = Rule110(width=8, states=1, steps=(1, 2))
WINDOW, STEPS, STOP = 8, 6, 3
CLOSE = 1e-3  # of losses, after steps of optimisers, whose sums are in another order


@pytest.fixture(autouse=True)
def needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device here")


def _program(seed: int = 0) -> Program:
    torch.manual_seed(seed)
    recipe = {"window": WINDOW, "sinks": 0, "eviction": "hard", "consolidation": "recurrent", "passes": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)  # it was not trained for its passes
        return convert(make_module("nanogpt", torch.float32), {**recipe, "strategy": "replace", "layers": "every:2"})


def _train(device: str, work: Path, *, stop: int = 0, resume: bool = False, **options: Any) -> list[float]:
    """The losses, and the program's logits after it, are what a training is judged by."""
    steps: list[Step] = []
    hooks = Hooks(on_step=steps.append, should_stop=lambda: len(steps) == stop)
    program = _program()
    program.train(
        PUZZLE, work=work, device=device, hooks=hooks, resume=resume, steps=STEPS, batch=8, scratch=True, **options
    )
    return [step.loss for step in steps]


@pytest.mark.parametrize("options", [{}, {"checkpointing": True, "passes": "1:3"}, {"optimiser": "adamw"}])
def test_losses_are_those_of_the_cpu(tmp_path: Path, options: dict[str, Any]) -> None:
    ours = _train("cuda", tmp_path / "cuda", **options)
    theirs = _train("cpu", tmp_path / "cpu", **options)
    assert ours[-1] < ours[0]
    np.testing.assert_allclose(ours, theirs, rtol=CLOSE)


def test_a_stopped_training_goes_on(tmp_path: Path) -> None:
    whole = _train("cuda", tmp_path / "whole")
    before = _train("cuda", tmp_path / "parts", stop=STOP)
    after = _train("cuda", tmp_path / "parts", resume=True)
    assert len(before) == STOP
    np.testing.assert_allclose(before + after, whole, rtol=CLOSE)


def test_what_was_trained_can_be_saved_and_run_on_the_cpu(tmp_path: Path) -> None:
    program = _program()
    program.train(PUZZLE, work=tmp_path / "work", device="cuda", steps=2, batch=8, scratch=True)
    program.save(tmp_path / "artifact")
    tokens = [[0, 1, 1, 0, 1, 0, 0, 1, 2, 2]]
    on_gpu = program.session(device="cuda").feed(tokens, logits="all")
    on_cpu = load(tmp_path / "artifact").session().feed(tokens, logits="all")
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-4)
