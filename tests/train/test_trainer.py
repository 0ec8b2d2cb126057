"""The loop: exact resume, parts of a batch, schedules, what is kept, and what is refused."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.api import Program
from sleepc.converting import convert
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.ir.weights import HeldTensor
from sleepc.memory.parameters import DECAYS
from sleepc.progress import silent
from sleepc.train.adapter import write_adapter
from sleepc.train.checkpoint import checkpoints
from sleepc.train.learned import Learned, Teacher
from sleepc.train.pieces import Piece
from sleepc.train.reading import Reading
from sleepc.train.run import Run
from sleepc.train.settings import Phase, Settings, make_settings, phases
from sleepc.train.trainer import Hooks, Step
from sleepc.train.training import Outcome, train
from tests.families import VOCAB, make_module
from tests.train.changes import trained

LENGTH = 20


@cache
def _converted(strategy: str) -> Program:
    return convert(make_module("llama", torch.float32), {"window": 6, "sinks": 1, "strategy": strategy})


def _program(strategy: str = "parallel") -> Program:
    """A fresh conversion: training replaces `graphs` and adds to `report`."""
    return replace(_converted(strategy), report={})


def _stream(phase: Phase, skip: int) -> Iterator[Piece]:
    for n in count(skip):
        rng = np.random.default_rng([phase.length, n])
        yield Piece(rng.integers(0, VOCAB, phase.length - n % 3))


def _train(
    program: Program, work: Path, stop: int = 0, resume: bool = False, **options: Any
) -> tuple[Outcome, list[Step]]:
    steps: list[Step] = []
    settings = make_settings({"tokens": LENGTH * 4 * 6, "length": LENGTH, "batch": 4, "lr": 0.02, **options})
    hooks = Hooks(on_step=steps.append, should_stop=lambda: len(steps) == stop)
    learned = Learned(Reading(_stream), settings, teacher=_original(program))
    return train(program, learned, Run(work=work, device="cpu", resume=resume, hooks=hooks)), steps


def _original(program: Program) -> Teacher:
    return Teacher(program.captured(silent), "original")


def _values(program: Program) -> dict[str, torch.Tensor]:
    return {key: param.materialise() for key, param in program.graphs.params.items() if isinstance(param, HeldTensor)}


def _losses(work: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (work / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", [{}, {"stages": "distil,lengthen", "train": "low-rank", "rank": 2, "hard": 0.5}])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, options: dict[str, Any]) -> None:
    whole, stopped = _program(), _program()
    outcome, steps = _train(whole, tmp_path / "whole", **options)
    assert outcome.finished
    before = _values(stopped)
    first, _ = _train(stopped, tmp_path / "parts", stop=2, **options)
    assert (first.finished, first.steps, first.adapter) == (False, 2, None)
    assert all(torch.equal(before[key], value) for key, value in _values(stopped).items()), "untouched when stopped"
    # What was killed after its checkpoint has lines of steps that come again.
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 77}\n')
    again = _program()
    second, rest = _train(again, tmp_path / "parts", resume=True, **options)
    assert (second.finished, second.steps, rest[0].step) == (True, outcome.steps, 3)
    assert _losses(tmp_path / "parts") == _losses(tmp_path / "whole") == [step.loss for step in steps]
    ours = _values(again)
    assert any(not torch.equal(before[key], ours[key]) for key in before)
    for key, value in _values(whole).items():
        assert torch.equal(value, ours[key]), key


def test_checkpoints_are_whole_and_two_are_kept(tmp_path: Path) -> None:
    _train(_program(), tmp_path, save_every=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000006"]
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name.startswith(".")]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    _train(_program(), tmp_path, stop=2)
    with pytest.raises(UsageError, match=r"differs in lr: lr 0.02 then, 0.01 now"):
        _train(_program(), tmp_path, resume=True, lr=0.01)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    _train(_program(), tmp_path, stop=2)
    (path,) = checkpoints(tmp_path)
    data = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(data[:-100])
    with pytest.raises(SleepcError):
        _train(_program(), tmp_path, resume=True)
    (path / "state.json").write_text("{")
    with pytest.raises(SleepcError, match="cannot be read"):
        _train(_program(), tmp_path, resume=True)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the error says to go on from is there."""

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sleepc.train.checkpoint.write_tensors", refuse)
        with pytest.raises(SleepcError, match="cannot be written: the disk is full") as caught:
            _train(_program(), tmp_path, stop=2)
        assert "resume" not in caught.value.fix
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    _train(_program(), tmp_path, stop=2)
    with monkeypatch.context() as patch:
        patch.setattr("sleepc.train.checkpoint.write_tensors", refuse)
        with pytest.raises(SleepcError, match="cannot be written: the disk is full") as caught:
            _train(_program(), tmp_path, resume=True)
        assert "step-00000002 with resume=True" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["step-00000002"]
    outcome, _ = _train(_program(), tmp_path, resume=True)
    assert outcome.finished


@pytest.mark.parametrize("stop", [0, 2])
def test_a_loss_that_is_no_number_says_what_there_is_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    if stop:
        _train(_program(), tmp_path, stop=stop)
    monkeypatch.setattr("sleepc.train.trainer.Trainer._gather", lambda *_: (1.0, (math.nan, 0.0, 0.0)))
    with pytest.raises(SleepcError, match="the loss is nan") as caught:
        _train(_program(), tmp_path, resume=bool(stop))
    # A checkpoint of another learning rate is none to go on from.
    assert (caught.value.fix == "Use a smaller learning rate, and force=True to start over.") is bool(stop)


def test_what_does_not_fit_into_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has ..")

    monkeypatch.setattr("sleepc.train.trainer.Trainer._backward", refuse)
    with pytest.raises(
        SleepcError, match=r"4 pieces at once .*CUDA out of memory \(step 1, distil\)\nUse accumulate 2"
    ):
        _train(_program(), tmp_path, stages="distil")


def test_parts_of_a_batch_add_up(tmp_path: Path) -> None:
    _, whole = _train(_program(), tmp_path / "a")
    _, parts = _train(_program(), tmp_path / "b", accumulate=2)
    _, windows = _train(_program(), tmp_path / "c", truncate=1)
    np.testing.assert_allclose([s.loss for s in parts], [s.loss for s in whole], rtol=1e-4)
    np.testing.assert_allclose([s.grad_norm for s in parts], [s.grad_norm for s in whole], rtol=1e-3)
    assert windows[0].loss == pytest.approx(whole[0].loss, rel=1e-5)
    assert windows[0].grad_norm != pytest.approx(whole[0].grad_norm, rel=1e-3)


def test_the_loss_falls(tmp_path: Path) -> None:
    program, steps = _program(), list[Step]()
    settings = make_settings({"tokens": LENGTH * 4 * 20, "length": LENGTH, "batch": 4, "train": "all", "lr": 0.02})
    same = [_stream(Phase("distil", LENGTH, 1, 0, 1), n) for n in range(4)]
    batch = [next(stream) for stream in same]
    learned = Learned(Reading(lambda phase, skip: cycle(batch)), settings, teacher=_original(program))
    outcome = train(program, learned, Run(work=tmp_path, device="cpu", hooks=Hooks(on_step=steps.append)))
    assert steps[-1].loss < 0.9 * steps[0].loss
    assert outcome.adapter is not None
    fresh = _program()
    fresh.adapt(outcome.adapter)
    for key, param in program.graphs.params.items():
        assert torch.equal(param.materialise(), fresh.graphs.params[key].materialise()), key


def test_stages_follow_each_other(tmp_path: Path) -> None:
    program = _program(strategy="replace")
    _, steps = _train(program, tmp_path, stages="align,distil,lengthen", hard=0.5, tokens=LENGTH * 4 * 10)
    seen = list(dict.fromkeys((s.stage, s.eviction, s.length) for s in steps))
    assert seen == [
        ("align", "own", 20),
        ("distil", "hard", 20),
        ("distil", "own", 20),
        ("lengthen", "own", 40),
        ("lengthen", "own", 80),
    ]
    assert all(s.lr <= 0.02 for s in steps)
    assert program.report["training"]["steps"] == len(steps)


def test_phases_keep_the_budget() -> None:
    made = phases(Settings(stages="align,distil,lengthen", tokens=100_000, length=100, batch=5))
    assert sum(p.steps * p.length * 5 for p in made) == pytest.approx(100_000, rel=0.02)
    assert [(p.stage, p.length) for p in made] == [
        ("align", 100),
        ("distil", 100),
        ("lengthen", 200),
        ("lengthen", 400),
    ]


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    program = _program()
    key = next(k for k in program.graphs.params if k.endswith(DECAYS.bias.port))
    bad = HeldTensor(torch.full(program.graphs.params[key].shape, float("nan")), new=True)
    program.graphs = replace(program.graphs, params={**program.graphs.params, key: bad})
    with pytest.raises(SleepcError, match="the loss is nan"):
        _train(program, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 6}, "never reach beyond the window"),
        ({"batch": 3, "accumulate": 2}, "cannot be divided"),
        ({"length": 100}, "has 64 positions"),
        ({"stages": "distil,align"}, "not in order"),
        ({"stages": "dream"}, "cannot read stages"),
        ({"rank": 0}, "rank = 0"),
        ({"train": "everything"}, "train = 'everything'"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _train(_program(), tmp_path, **options)


def test_hard_evictions_with_kept_pairs_are_refused(tmp_path: Path) -> None:
    keep = {"slots": 2, "budgets": "equal"}
    program = convert(make_module("llama", torch.float32), {"window": 6, "sinks": 1, "keep": keep})
    with pytest.raises(UsageError, match="kept pairs keep theirs"):
        _train(program, tmp_path, hard=0.5)


def test_slots_in_few_bits_are_not_trained_but_adapted(tmp_path: Path) -> None:
    """Rounding has no gradient: what a training with floats has learned fits them."""
    keep, module = {"slots": 2, "budgets": "equal"}, make_module("llama", torch.float32)
    plain, few = (convert(module, {"window": 6, "sinks": 1, "keep": {**keep, **m}}) for m in ({}, {"dtype": "int8"}))
    assert few.recipe.keep is not None
    int4 = few.recipe.keep.model_copy(update={"dtype": "int4"})
    four = replace(few, recipe=few.recipe.model_copy(update={"keep": int4}))
    for program, dtype in ((few, "int8"), (four, "int4")):
        with pytest.raises(UsageError, match=rf"no gradient goes through slots in {dtype} .*\n.*its adapter fits"):
            _train(program, tmp_path / dtype)
        assert not (tmp_path / dtype).exists(), "before any work"
    write_adapter(tmp_path / "adapter", plain, trained(plain), {})
    with pytest.warns(SleepcWarning, match="keep"):
        few.adapt(tmp_path / "adapter")
    near, exact = (each.session().feed(list(range(1, 30))) for each in (few, plain))
    assert 0 < np.abs(near - exact).max() < 0.1 * np.abs(exact).max()
    for key, param in plain.graphs.params.items():
        assert torch.equal(param.materialise(), few.graphs.params[key].materialise()), key


def test_a_teacher_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    program = _program()
    teacher = replace(_original(program), graphs=replace(program.captured(silent), vocab=7))
    learned = Learned(Reading(_stream), Settings(length=LENGTH), teacher=teacher)
    with pytest.raises(UsageError, match="the teacher's vocabulary size is 7"):
        train(program, learned, Run(work=tmp_path))


@pytest.mark.parametrize(("device", "words"), [("gpu", "unknown device 'gpu'"), ("cuda", "no CUDA device")])
def test_a_device_that_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, words: str
) -> None:
    """Not trained somewhere else in silence."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    learned = Learned(Reading(_stream), make_settings({"length": LENGTH}))
    with pytest.raises(UsageError, match=words):
        train(_program(), learned, Run(work=tmp_path, device=device))
