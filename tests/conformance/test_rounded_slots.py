"""Slots in int8 and int4: what is kept is the pair as it was rounded once, whatever sleeps and positions come later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from sleepc.errors import SleepcError, UsageError
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.infer import infer_types
from sleepc.ir.interp import run
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import TensorType
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.rounded import FORMS, read_rounded, write_rounded
from sleepc.recipe import make_recipe
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.report import Check
from sleepc.verify.rounded import rounded, stored
from sleepc.verify.rounding import explained, widened
from sleepc.verify.streams import Stream, read, state_of
from tests.conformance.backends import EXPORTS, load, runs
from tests.conformance.test_invariants import hold_invariants
from tests.conformance.test_kept_pairs import LOOP, UNEQUAL, bench, convert
from tests.conformance.test_kept_pairs import registered as registered  # the score of these tests
from tests.families import VOCAB, WINDOW

INT8, INT4 = ({"dtype": dtype} for dtype in FORMS)


Write = Callable[[Tensor], tuple[Tensor, Tensor]]
Read = Callable[[Tensor, Tensor], Tensor]


def converters(dtype: str, width: int, wide: torch.dtype) -> tuple[Write, Read]:
    """x [1,S,width] -> what is stored; and back. As graphs have it."""
    form, writes, reads = FORMS[dtype], Graph("write"), Graph("read")
    x = writes.add_port("input", "x", TensorType(wide, ("B", "S", width)))
    writes.set_returns({"x": x})
    numbers, peaks = write_rounded(Emit(writes, "test"), x, form, width)
    writes.set_returns({"numbers": numbers, "peaks": peaks})
    infer_types(writes)
    ports = [reads.add_port("input", n, node.meta["type"]) for n, node in writes.results().items()]
    reads.set_returns({"x": ports[0]})
    reads.set_returns({"x": read_rounded(Emit(reads, "test"), ports[0], ports[1], form, width, wide)})
    infer_types(reads)

    def write(x: Tensor) -> tuple[Tensor, Tensor]:
        found = run(writes, {"x": x})
        return found["numbers"], found["peaks"]

    return write, lambda numbers, peaks: run(reads, {"numbers": numbers, "peaks": peaks})["x"]


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 5, 33, 64])
@pytest.mark.parametrize("dtype", FORMS)
def test_what_was_rounded_once_stays_as_it_is(dtype: str, width: int, wide: torch.dtype) -> None:
    write, back = converters(dtype, width, wide)
    draw = torch.Generator().manual_seed(width)
    x = torch.randn(1, 60, width, generator=draw) * 2.0 ** torch.randint(-90, 100, (1, 60, 1), generator=draw)
    x[0, 0], x[0, 1, 1:], x[0, 2] = 0, 0, 1e-38
    x = x.to(wide)
    once = write(x)
    assert [part.dtype for part in once] == [FORMS[dtype].dtype, torch.int16]
    assert all(torch.equal(a, b) for a, b in zip(once, write(back(*once)), strict=True))
    step = x.abs().amax(-1, keepdim=True).clamp(min=2.0**-100) / FORMS[dtype].most
    assert bool(((back(*once) - x).abs() <= 0.51 * step).all())
    if wide == torch.float64:  # in which nothing is between two whole numbers, as the oracle has it
        assert all(torch.equal(a, b) for a, b in zip(once, stored("x", x, dtype).values(), strict=True))
        torch.testing.assert_close(back(*once), rounded(x, dtype), rtol=1e-12, atol=0)


CASES = [
    ("llama", {"keep": {**UNEQUAL, **INT8}}),
    ("gpt2", {"keep": {"slots": 2, **INT4}, "strategy": "insert", "write": "sleep"}),
    pytest.param("llama", {"keep": {**UNEQUAL, **INT4}, **LOOP}, marks=pytest.mark.slow),
    pytest.param("smollm3", {"keep": {"slots": 2, **INT4}}, marks=pytest.mark.slow),  # a layer without positions
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_program_is_what_its_oracle_says(name: str, options: dict[str, Any]) -> None:
    made = convert(name, **options)
    hold_invariants(bench(name, load(made[0]), made), 1e-9)


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("llama", {**UNEQUAL, **INT4}),
        pytest.param("gptj", {"slots": 2, **INT8}, marks=pytest.mark.slow),
    ],
)
def test_a_pair_is_turned_from_what_was_rounded_once(name: str, keep: dict[str, Any]) -> None:
    """Over more than one sleep that renumbers: keys that were turned from turned ones would lose each time."""
    made = convert(name, keep=keep)
    limit = made[0].max_positions
    assert limit is not None
    tokens = np.random.default_rng(4).integers(0, VOCAB, 3 * limit + 5)
    subject = bench(name, load(made[0]), made)
    subject.streams = (Stream(tokens, tuple(range(WINDOW, len(tokens) + 1, WINDOW))),)  # type: ignore[assignment]
    assert invariants.definition(subject) < 1e-9


def _turned_again(program: ProgramGraphs) -> None:
    """Keys are turned to their new positions from those that have positions."""
    for cls in program.classes.values():
        assert cls.sleep is not None
        ports = cls.sleep.ports()
        for part in ("", ".peak"):
            ports[f"kept.plain{part}"].replace_all_uses_with(ports[f"kept.k{part}"])


def _coarse(program: ProgramGraphs) -> None:
    """Memories are written with what was dropped, and not as it was kept."""
    for cls in program.classes.values():
        assert cls.sleep is not None
        ports = cls.sleep.ports()
        ports["kept.record.k.peak"].replace_all_uses_with(ports["kept.v.peak"])


def _swapped(program: ProgramGraphs) -> None:
    """The halves of a vector change places."""
    for cls in program.classes.values():
        assert cls.sleep is not None
        for node in cls.wake.calls():
            if is_call(node, aten.cat.default) and _is_of_halves(node):
                node.args = (list(reversed(node.args[0])), node.args[1])  # type: ignore[arg-type]


def _is_of_halves(node: fx.Node) -> bool:
    first = node.args[0][0]  # type: ignore[index]
    return isinstance(first, fx.Node) and is_call(first, aten.floor.default)


@pytest.mark.parametrize("fault", [_turned_again, _coarse, _swapped])
def test_a_fault_is_found(fault: Callable[[ProgramGraphs], None]) -> None:
    program, recipe = convert(keep={"slots": 3, **INT4})
    wrong = program.clone()
    fault(wrong)
    subject = bench("llama", load(wrong), (program, recipe))
    tokens = np.random.default_rng(4).integers(0, VOCAB, 2 * 64 + 5)
    subject.streams = (Stream(tokens, tuple(range(WINDOW, len(tokens) + 1, WINDOW))),)  # type: ignore[assignment]
    assert invariants.definition(subject) > 1e-4


ALL = [(form, how) for form in EXPORTS for how in (INT4, INT8)]


@pytest.mark.parametrize(("form", "how"), [ALL[0], *(pytest.param(*each, marks=pytest.mark.slow) for each in ALL[1:])])
def test_exports_take_it(form: str, how: dict[str, str]) -> None:
    """A number between two whole ones may become either in float32: logits are held to that."""
    subject = runs(form)
    made = convert("llama", subject.dtype, keep={**UNEQUAL, **how})
    steps = subject.load(made[0])
    bench_ = bench("llama", steps, made)
    with torch.no_grad():
        wanted = [bench_.oracle(torch.from_numpy(s.tokens)[None], s.cuts).logits()[0] for s in bench_.streams]  # type: ignore[misc]
    found = read(steps, bench_.streams, padding="left")
    errors = [(a - b[at]).abs().max() for a, b, at in zip(found.logits, wanted, found.places, strict=True)]
    assert max(errors) < 0.02
    assert invariants.saving(bench_) == 0


@pytest.mark.parametrize(("how", "numbers"), [(INT8, 8), (INT4, 4)])
def test_bytes_are_counted(how: dict[str, str], numbers: int) -> None:
    """Heads have eight numbers: one group."""
    (few, _), (plain, _) = convert(keep={**UNEQUAL, **how}), convert(keep=None)
    vectors = 4 * (numbers + 2)  # k, v, k before positions, and the memory's key, each with a peak
    slots = sum(map(sum, UNEQUAL["budgets"])) * (vectors + 8 + 8 + 8 + 8)  # position, token, score and beta
    marks = 8 + WINDOW + 8 * (2 + WINDOW)
    assert few.state_bytes() == plain.state_bytes() + slots + marks
    session = Session(load(few))
    session.feed([list(range(3 * WINDOW + 1))])
    assert sum(value.numel() * value.element_size() for value in state_of(session).values()) == few.state_bytes()


def test_a_state_of_another_dtype_is_refused_by_name(tmp_path: Path) -> None:
    sessions = [Session(load(convert(keep={"slots": 3, **how})[0]), identity=str(how)) for how in (INT8, INT4)]
    sessions[0].save_state(tmp_path / "state")
    with pytest.raises(SleepcError, match=r"array 0.kept.k\b.*'i8'.*'u8'"):
        sessions[1].load_state(tmp_path / "state")


def test_what_is_dropped_leaves_an_empty_slot() -> None:
    session = Session(load(convert(keep={"slots": 3, **INT4})[0]))
    empty = state_of(session)
    session.feed([list(range(2 * WINDOW))])
    pairs = session.drop((0, WINDOW)).pairs
    now = state_of(session)
    assert pairs > 0
    for i in range(3):
        gone = now[f"{i}.kept.token"] < 0
        for name in (n for n in now if n.startswith(f"{i}.kept.")):
            assert torch.equal(now[name][gone], empty[name][gone])


def test_it_is_verified_in_float64() -> None:
    """Whole numbers that differ are explained by rounding, but for values that are not finite; few bits stay few."""
    program = convert(dtype=torch.float32, keep={"slots": 3, **INT8})[0]
    wrong = [Check("", 1, False, 1 / 127, 1e-4, "")]
    found = explained(program, wrong)
    assert found is not None
    assert found[0] == torch.float64
    assert explained(convert(keep={"slots": 3, **INT8})[0], wrong) is None
    wide = {s.name: s.dtype for s in widened(program, "STEP", torch.float64).all_states()}
    assert (wide["0.kept.k"], wide["0.kept.k.peak"], wide["0.kept.score"]) == (torch.int8, torch.int16, torch.float64)


@pytest.mark.parametrize("dtype", ["int2", "float16", "INT8", 8, True])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(UsageError, match=r"keep.dtype"):
        make_recipe({"keep": {"slots": 3, "dtype": dtype}})
