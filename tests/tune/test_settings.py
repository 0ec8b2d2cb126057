"""Settings that backends and targets declare change nothing that is computed, and only those are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sleepc
from examples.nanogpt import GPT
from sleepc.api import Program
from sleepc.backends.contract import Backend
from sleepc.backends.table import find_runner, runners
from sleepc.backends.tunable import Setting
from sleepc.errors import UsageError
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps

TOKENS = np.arange(40) % 50


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    torch.manual_seed(0)
    made = sleepc.convert(GPT(vocab=50), {"window": 16, "sinks": 2})
    made.save(tmp_path_factory.mktemp("settings") / "artifact")
    made.export(tokens=list(range(50)) * 2)
    return made


def tuned(program: Program, name: str, settings: dict[str, Setting]) -> Steps:
    runner = find_runner(name)
    if isinstance(runner, Backend):
        return runner.tuned_steps(program.graphs, settings)
    assert program.path is not None
    return runner.open(program.path).tuned_steps(settings)


@pytest.mark.parametrize("name", [name for name in runners() if find_runner(name).tunables()])
def test_every_setting_computes_the_same(program: Program, name: str) -> None:
    wanted = Session(program.steps()).feed(TOKENS, logits="all")
    threads = torch.get_num_threads()
    for each in find_runner(name).tunables():
        for value in (v for v in each.values if v is not True):  # compiled code has tests of its own
            session = Session(tuned(program, name, {each.name: value}))
            np.testing.assert_allclose(session.feed(TOKENS, logits="all"), wanted, atol=1e-4)
    assert torch.get_num_threads() == threads


def test_threads_are_those_of_the_steps(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = tuned(program, runners()[0], {"threads": 2})
    seen: list[int] = []
    step = steps.wake_tensors  # type: ignore[attr-defined]

    def seeing(*given: object) -> object:
        seen.append(torch.get_num_threads())
        return step(*given)

    monkeypatch.setattr(steps, "wake_tensors", seeing)
    before = torch.get_num_threads()
    Session(steps).feed([1, 2])
    assert (seen, torch.get_num_threads()) == ([2], before)


def test_steps_of_a_program_with_settings(program: Program) -> None:
    wanted = Session(program.steps()).feed(TOKENS)
    for name in (name for name in runners() if find_runner(name).tunables()):
        steps = program.tuned_steps({"threads": 1}, backend=name)
        assert steps.threads == 1  # type: ignore[attr-defined]
        np.testing.assert_allclose(Session(steps).feed(TOKENS), wanted, atol=1e-4)
        for odd in (5, ["threads"], {"threads": object()}, {1: 2}):
            with pytest.raises(UsageError, match="setting"):
                program.tuned_steps(odd, backend=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"wheels": 4}, {"threads": "two"}, {"threads": True}])
@pytest.mark.parametrize("name", [name for name in runners() if find_runner(name).tunables()])
def test_other_settings_are_refused(program: Program, name: str, settings: dict[str, Setting], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no setting"):
        tuned(program, name, settings)


def test_other_words_are_refused(program: Program) -> None:
    words = {
        (name, each.name)
        for name in runners()
        for each in find_runner(name).tunables()
        if isinstance(each.values[0], str)
    }
    assert any(setting == "spin" for _, setting in words)
    for name, setting in words:
        with pytest.raises(UsageError, match=f"no setting {setting}=odd"):
            tuned(program, name, {setting: "odd"})
