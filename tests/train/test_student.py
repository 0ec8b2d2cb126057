"""What a student's loss is: against logits of sessions and of the original, in float64; what gradients and parts do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sleepc.api import Program
from sleepc.backends.eager.backend import load
from sleepc.converting import convert
from sleepc.errors import UsageError
from sleepc.memory.parameters import STRENGTHS, parameter_in
from sleepc.runtime.steps import IntArray
from sleepc.tasks.programs import full_attention
from sleepc.train.divergence import alone
from sleepc.train.parameters import trained_keys
from sleepc.train.pieces import Piece, batch_of
from sleepc.train.settings import StageName
from sleepc.train.student import LOW, Carry, Computing, Segment, Student, parts_of
from sleepc.verify.memory_values import shaken
from tests.families import VOCAB, make_module, memory_names

WINDOW, LENGTH = 6, 20
KEEP = {"slots": 3, "budgets": [[5, 1], [0, 2], [4, 6]]}


@cache
def _converted(options: str, name: str = "llama") -> Program:
    program = convert(make_module(name, torch.float64), {"window": WINDOW, "sinks": 1, **json.loads(options)})
    program.graphs = shaken(program.graphs)
    return program


def _program(**options: Any) -> Program:
    return _converted(json.dumps(options))


@pytest.fixture
def program() -> Program:
    return _program()


def _student(program: Program, keys: list[str] | None = None, **options: Any) -> Student:
    keys = keys or [key for key, param in program.graphs.params.items() if param.new]
    teacher = load(full_attention(program.captured(lambda what, share: None), LENGTH))
    return Student({"own": program.graphs}, keys, teacher, Computing(**options))


def _pieces(*lengths: int) -> list[IntArray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, n) for n in lengths]


def _parts(pieces: list[IntArray], windows: int = 0) -> Iterator[Segment]:
    tokens, lengths, labels = map(torch.from_numpy, batch_of([Piece(ids) for ids in pieces]))
    return parts_of(tokens, lengths, labels, WINDOW, windows)


def _read(student: Student, goal: StageName, pieces: list[IntArray], windows: int = 0) -> Tensor:
    carry, losses = student.begin(len(pieces)), []
    for part in _parts(pieces, windows):
        loss, carry = student.read(goal, "own", part, carry)
        losses.append(loss)
    return torch.stack(losses).sum()


def _loss(student: Student, goal: StageName, pieces: list[IntArray]) -> float:
    return float(_read(student, goal, pieces).detach())


def _logits(program: Program, ids: Any) -> tuple[Tensor, Tensor]:
    """Of the original, and of a session of the program."""
    assert program.original is not None
    with torch.no_grad():
        full = program.original(torch.tensor(ids)[None]).logits[0]
    return full, torch.from_numpy(program.session().feed(ids.tolist(), logits="all")[0])


@pytest.mark.parametrize("options", [{}, {"strategy": "replace"}, {"eviction": "hard", "passes": 2}, {"keep": KEEP}])
def test_the_distillation_loss_is_the_divergence_of_a_session_from_the_original(options: dict[str, Any]) -> None:
    program, pieces = _program(**options), _pieces(LENGTH, 13, 2)
    expected = 0.0
    for ids in pieces:
        full, ours = (x.log_softmax(-1) for x in _logits(program, ids))
        expected += float((full.exp() * (full - ours)).sum())
    assert _loss(_student(program), "distil", pieces) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"strategy": "replace"}, {"strategy": "insert"}, {"keep": KEEP}], ids=str)
@pytest.mark.parametrize(("shared", "weigh"), [(None, 0.0), (VOCAB - 5, 2.0)])
def test_a_gradient_that_is_computed_with_the_loss_is_that_of_the_whole_logits(
    options: dict[str, Any], shared: int | None, weigh: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = _student(_program(**options))
    student.shared, student.weigh, student.abreast = shared, weigh, False
    assert alone(student.bound("own"))
    monkeypatch.setattr("sleepc.train.divergence.ROWS", 4)
    found = _loss(student, "distil", _pieces(LENGTH, 13)), _gradients(student, "distil")
    monkeypatch.setattr("sleepc.train.student.alone", lambda steps: False)
    plain = _loss(student, "distil", _pieces(LENGTH, 13)), _gradients(student, "distil")
    assert found[0] == pytest.approx(plain[0], rel=1e-12)
    assert found[1].keys() == plain[1].keys()
    assert any(g.abs().max() > 0 for g in plain[1].values())
    for key, gradient in plain[1].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"eviction": "hard", "passes": 2}, {"keep": KEEP}], ids=str)
def test_a_first_window_is_the_teachers_and_has_no_gradient_of_its_own(options: dict[str, Any]) -> None:
    program = _program(**options)
    student = _student(program, trained_keys(program.graphs, "new"))
    assert student.begins_alike == {"own": True}
    quick = _loss(student, "distil", _pieces(LENGTH, 13, 3)), _gradients(student, "distil")
    assert _loss(student, "distil", _pieces(WINDOW)) == 0
    student.begins_alike["own"] = False
    whole = _loss(student, "distil", _pieces(LENGTH, 13, 3)), _gradients(student, "distil")
    assert quick[0] == pytest.approx(whole[0], rel=1e-9)
    for key, gradient in whole[1].items():
        torch.testing.assert_close(quick[1][key], gradient, rtol=1e-6, atol=1e-9)


def test_a_first_window_is_read_as_a_whole_if_something_in_it_is_learned() -> None:
    """Memories that answer at once, weights of the model itself."""
    assert not _student(_program(strategy="insert")).begins_alike["own"]
    assert not _student(_program(strategy="replace")).begins_alike["own"]
    program = _program()
    assert not _student(program, trained_keys(program.graphs, "all")).begins_alike["own"]


@pytest.mark.parametrize("strategy", ["parallel", "insert"])
@pytest.mark.parametrize("goal", ["distil", "lengthen"])
@pytest.mark.parametrize("among", ["keys and values", "new"])
def test_gradients_go_through_kept_pairs(strategy: str, goal: StageName, among: str) -> None:
    """Of losses in windows after several sleeps: those of differences, where the same pairs are kept."""
    keep = {"slots": 3, "budgets": [[5, 1, 2, 4], [0, 2, 6, 1], [4, 6, 0, 5]]}
    program = _converted(json.dumps({"strategy": strategy, "keep": keep}), "gpt2")  # computes all of it in float64
    keys = trained_keys(program.graphs, "new") if among == "new" else trained_keys(program.graphs, "all")
    student = _student(program, [key for key in keys if among == "new" or key.endswith("c_attn.weight")])
    found, differences = _gradients(student, goal), []
    torch.manual_seed(0)
    way = {key: torch.randn_like(master) for key, master in student.masters.items()}
    for size in (1e-6, -2e-6):
        with torch.no_grad():
            for key, master in student.masters.items():
                master += size * way[key]
        differences.append(_loss(student, goal, _pieces(LENGTH, 13)))
    along = sum(float((gradient * way[key]).sum()) for key, gradient in found.items())
    assert abs(along) > 1e-4
    assert (differences[0] - differences[1]) / 2e-6 == pytest.approx(along, rel=1e-4)


def test_the_lengthening_loss_is_the_surprise_of_a_session(program: Program) -> None:
    pieces = _pieces(LENGTH, 13, 7)
    expected = 0.0
    for ids in pieces:
        ours = _logits(program, ids)[1]
        expected += float(functional.cross_entropy(ours[:-1], torch.tensor(ids[1:]), reduction="sum"))
    assert _loss(_student(program), "lengthen", pieces) == pytest.approx(expected, rel=1e-6)


def test_aligned_blocks_are_exact_inside_the_window_and_not_beyond(program: Program) -> None:
    student = _student(program)
    assert _loss(student, "align", _pieces(WINDOW)) < 1e-12
    assert _loss(student, "align", _pieces(LENGTH)) > 1e-3


def test_a_block_that_is_missing_has_an_error_of_one() -> None:
    from sleepc.train.losses import relative_error_sum

    base, wanted = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    assert float(relative_error_sum(base, wanted, base, real)) == pytest.approx(8)


def _gradients(student: Student, goal: StageName, windows: int = 0) -> dict[str, Tensor]:
    for master in student.masters.values():
        master.grad = None
    loss = _read(student, goal, _pieces(LENGTH, 13), windows)
    torch.autograd.backward(loss)
    return {key: m.grad.clone() for key, m in student.masters.items() if m.grad is not None}


@pytest.mark.parametrize(
    ("goal", "options"), [("align", {}), ("distil", {}), ("lengthen", {}), ("distil", {"keep": KEEP})]
)
def test_computing_activations_again_changes_no_gradient(goal: StageName, options: dict[str, Any]) -> None:
    students = [_student(_program(**options), checkpointing=c) for c in (False, True)]
    students[0].abreast = False  # as with checkpoints: llama rounds to float32 on the way, to other numbers in a batch
    plain, again = (_gradients(student, goal) for student in students)
    assert plain.keys() == again.keys()
    assert any(g.abs().max() > 0 for g in plain.values())
    for key, gradient in plain.items():
        torch.testing.assert_close(again[key], gradient, rtol=1e-9, atol=1e-12)


def test_parts_give_the_same_loss_and_gradients_end_where_they_are_cut() -> None:
    student = _student(_converted("{}", "gpt2"))  # computes all of it in float64
    whole, parted = _gradients(student, "distil"), _gradients(student, "distil", 1)
    for key, gradient in whole.items():
        torch.testing.assert_close(parted[key], gradient, rtol=1e-9, atol=1e-12)
    reaching = STRENGTHS.weight.port  # later windows, through the memory alone
    key = next(k for k in student.masters if k.endswith(reaching))
    found = []
    for cut in (False, True):
        student.masters[key].grad = None
        carry: Carry = student.begin(1)
        losses = []
        for part in _parts(_pieces(LENGTH), 1):
            loss, carry = student.read("distil", "own", part, carry)
            losses.append(loss)
            carry = carry.detached() if cut else carry
        torch.autograd.backward(torch.stack(losses).sum())
        left = student.masters[key].grad
        found.append(None if left is None else float(left.abs().max()))
    assert found[0]
    assert not found[1], "what a window wrote has an effect after its sleep only, where the gradient was cut"


@pytest.mark.parametrize(
    ("goal", "options"),
    [
        ("distil", {}),
        ("distil", {"strategy": "insert", "write": "online"}),
        ("distil", {"keep": {"slots": 3, "budgets": [[5, 1, 2, 4], [0, 2, 6, 1], [4, 6, 0, 5]]}}),
        ("distil", {"consolidation": "in_place"}),
        ("lengthen", {"strategy": "replace"}),
        ("lengthen", {"eviction": "hard", "passes": 2}),
    ],
    ids=str,
)
def test_windows_side_by_side_are_read_as_one_after_the_other(goal: StageName, options: dict[str, Any]) -> None:
    program = _converted(json.dumps(options), "gpt2")  # computes all of it in float64
    found = []
    for abreast in (True, False):
        student = _student(program)
        assert student.abreast
        student.abreast, student.begins_alike = abreast, {"own": False}
        states = []
        for pieces, windows in ((_pieces(LENGTH, 13, 3), 0), (_pieces(LENGTH, 18), 2)):
            carry, losses = student.begin(len(pieces)), []
            for part in _parts(pieces, windows):
                loss, carry = student.read(goal, "own", part, carry)
                losses.append(loss)
            states.append({**carry.state, "loss": torch.stack(losses).sum(), "missed": carry.missed})
            torch.autograd.backward(states[-1]["loss"])
        found.append((states, {key: master.grad for key, master in student.masters.items()}))
    (states, gradients), (other_states, others) = found
    for mine, theirs in zip(states, other_states, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-9, atol=1e-12)
    assert any(g is not None and g.abs().max() > 0 for g in others.values())
    for key, gradient in others.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-9, atol=1e-12)


def test_passes_of_sleeps_that_run_no_block_again_are_refused(program: Program) -> None:
    student, (part, *_) = _student(program), _parts(_pieces(LENGTH))
    with pytest.raises(UsageError, match="no block again"):
        student.read("lengthen", "own", part, student.begin(1), 2)


def test_rows_of_a_batch_do_not_see_each_other(program: Program) -> None:
    pieces, student = _pieces(LENGTH, 13, 9), _student(program)
    together = _loss(student, "distil", pieces)
    assert together == pytest.approx(sum(_loss(student, "distil", [p]) for p in pieces), rel=1e-9)


def test_linear_maps_run_in_bfloat16_and_memories_in_float32() -> None:
    program = convert(make_module("llama-tied", torch.float32), {"window": WINDOW, "sinks": 1})
    program.graphs = shaken(program.graphs)
    plain, low = _student(program), _student(program, low=True)
    kept = {key for key, value in low.frozen.items() if value.dtype == LOW}
    assert sum("mlp" in key for key in kept) == 9
    assert not any("memory" in key or "norm" in key for key in kept)
    assert all(master.dtype == torch.float32 for master in low.masters.values())
    part = next(_parts(_pieces(LENGTH)))
    loss, carry = low.read("distil", "own", part, low.begin(1))
    assert {carry.state[name].dtype for name in memory_names(program.graphs)} == {torch.float32}
    exact = _loss(plain, "distil", _pieces(LENGTH))
    assert float(loss.detach()) == pytest.approx(exact, rel=0.05)
    assert float(loss.detach()) != exact


@pytest.mark.parametrize("name", ["llama-tied", "llama"])
def test_tied_weights_are_trained_as_one(name: str) -> None:
    program = convert(make_module(name, torch.float32), {"window": WINDOW, "sinks": 1})
    keys = trained_keys(program.graphs, "all")
    student = Student({"own": program.graphs}, keys, None)
    values = student.values()
    shapes = [key for key, value in values.items() if tuple(value.shape) == (VOCAB, 32)]
    masters = [key for key in student.masters if tuple(student.masters[key].shape) == (VOCAB, 32)]
    assert len(masters) == (1 if name == "llama-tied" else 2)
    torch.autograd.backward(_read(student, "lengthen", _pieces(LENGTH)))
    assert all(m.grad is not None for key, m in student.masters.items() if parameter_in(key) is None)
    assert set(shapes) >= set(masters)
    assert set(values) == set(program.graphs.params) - {k for k, p in program.graphs.params.items() if k not in values}
