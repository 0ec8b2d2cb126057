"""Compiled steps compute what eager's do, keep their code in the cache, and are refused where they cannot be had."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor import config

import sleepc
from examples.nanogpt import GPT
from sleepc.api import Program
from sleepc.backends.eager.compiled import CompiledSteps, in_place, one_row_linear
from sleepc.backends.eager.kernels import IN_PLACE
from sleepc.backends.table import find_backend
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.parameters import materialise
from sleepc.runtime.session import Session
from tests.cli.models import run_here, save_model
from tests.families import make_module

VOCAB, WINDOW = 61, 8
NONE = "no-such-compiler"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that begins empty."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SLEEPC_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def program() -> Program:
    """With windows, memories, records and kept pairs, in float64. No two blocks have as many slots, and one has one,
    which is no free size: its tokens are eager.
    """
    torch.manual_seed(0)
    recipe = {"window": WINDOW, "sinks": 2, "passes": 2, "keep": {"budgets": ((1, 0), (4, 2), (2, 3))}}
    return sleepc.convert(GPT(vocab=VOCAB, width=16, heads=2, blocks=3, context=64).double(), recipe)


def read(
    program: Program, rows: int, *, background: bool = False, **options: Any
) -> tuple[list[Any], dict[str, Any], list[str]]:
    """Logits and state of rows that sleep on their own clocks, and what was said."""
    said: list[str] = []
    if options:
        options["progress"] = lambda what, share: said.append(re.sub(r"[\d.]+ s$", "S s", what))
    steps = program.steps(**options)
    session = Session(steps, rows)
    session.defers = background
    session.feed([list(range(1, 12 + 5 * row)) for row in range(rows)])
    logits = []
    for step in range(2 * WINDOW):  # a row now and then reads nothing
        tokens = [[(7 * step + row) % VOCAB] if rows == 1 or (step + row) % 3 else [] for row in range(rows)]
        logits.append(session.feed(tokens))
        if background:
            session.sleep(background=True, at_least=WINDOW)
    return logits, steps.to_named_arrays(session.snapshot().state), said


@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_compiled_steps_equal_eager(cache: Path, program: Program, rows: int) -> None:
    """Across sleeps, with what they keep; the second time nothing is compiled, and no compiler is needed. In the
    background they are the same to the bit.
    """
    wanted, state, _ = read(program, rows)
    first, _, _ = read(program, rows, compile=True)
    with config.patch({"cpp.cxx": (NONE,)}):
        got, found, said = read(program, rows, background=True, compile=True)
    np.testing.assert_array_equal(first, got)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())
    assert found.keys() == state.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, state[name], rtol=0, atol=1e-9, err_msg=name)
    forms = ["one row"] if rows == 1 else ["one row", "many rows"]
    assert said == [f"compiled code: 3 functions for {form}, 0 compiled, 3 from the cache, S s" for form in forms]
    assert len(list(cache.rglob("*.pt2"))) >= 3 * len(forms)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hybrid_s_compiled_steps_equal_eager(cache: Path) -> None:
    """What its recurrent layers carry, too. Its norms and recurrences compute in float32."""
    hybrid = sleepc.convert(make_module("qwen3-5"), {"window": WINDOW, "sinks": 2})
    wanted, state, _ = read(hybrid, 1)
    got, found, said = read(hybrid, 1, compile=True)
    assert any(".own." in name for name in state)
    assert any(".tail." in name for name in state)
    assert len(said) == 1
    for a, b in zip([*got, *found.values()], [*wanted, *(state[name] for name in found)], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("sizes", [(1, 1), (1,), (1, 3), (2, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_of_one_row(sizes: tuple[int, ...], biased: bool) -> None:
    """Of values that do not lie side by side, too."""
    torch.manual_seed(0)
    x, weight = torch.randn(*sizes, 14, dtype=torch.float64)[..., ::2], torch.randn(5, 7, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64) if biased else None
    wanted = np.einsum("...i,oi->...o", x.numpy(), weight.numpy()) + (0 if bias is None else bias.numpy())
    np.testing.assert_allclose(one_row_linear(x, weight, bias), wanted, rtol=0, atol=1e-13)


def test_code_is_made_outside_a_caller_s_autocast(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it would have in it, and others would find it in the cache."""
    lowered: list[bool] = []
    monkeypatch.setattr(CompiledSteps, "_prepare", lambda *_: lowered.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        program.steps(compile=True)
    assert lowered == [False]


def test_what_is_written_in_place_is_no_result(program: Program) -> None:
    (block,) = program.graphs.classes.values()
    assert {"k", "v"} < set(in_place(block.wake)) < set(block.wake.results())


def test_another_thread_count_is_other_code(cache: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the code depends on is in the name of its file. Without a compiler only what is there runs."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with config.patch({"cpp.cxx": (NONE,)}), pytest.raises(UsageError, match="no C\\+\\+ compiler") as caught:
        program.steps(compile=True)
    assert "g++" in str(caught.value.fix)


def test_settings_of_a_record_wait_for_no_compiler(
    cache: Path, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the cache they run, and without what is not they are eager's."""
    backend, said = find_backend(), list[str]()
    tokens, tell = list(range(1, 12)), lambda what, share: said.append(re.sub(r"[\d.]+ s$", "S s", what))
    program.steps(compile=True)

    def read_by(rows: int) -> Any:
        session = Session(backend.tuned_steps(program.graphs, {"compile": True}, compiles=False, progress=tell), rows)
        return [session.feed([[token]] * rows) for token in tokens]

    with config.patch({"cpp.cxx": (NONE,)}):
        ready = read_by(1)
        monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path))
        without = [read_by(1), read_by(2)]
    left = "compiled code for {} is left out: it is not in the cache. --compile makes it, once for this machine."
    one, many = left.format("one row"), left.format("many rows")
    assert said == ["compiled code: 3 functions for one row, 0 compiled, 3 from the cache, S s", one, one, many]
    assert not list(tmp_path.iterdir())
    eager = Session(program.steps())
    wanted = [eager.feed([token]) for token in tokens]
    np.testing.assert_array_equal(without[0], wanted)
    np.testing.assert_allclose([each[:1] for each in without[1]], wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ready, wanted, rtol=0, atol=1e-9)


def test_without_a_compiler_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path / "cache"))
    place = sleepc.convert(save_model(tmp_path / "model"), {"window": 8}).save(tmp_path / "artifact")
    with config.patch({"cpp.cxx": (NONE,)}):
        code, _, said = run_here(capsys, "run", place, "w1", "--compile")
    assert code == 2
    assert "apt-get install g++" in " ".join(said.split())


def test_what_compiles_nothing_says_so(program: Program) -> None:
    with pytest.raises(UsageError, match="the backend onnx compiles nothing"):
        program.steps(backend="onnx", compile=True)
    with pytest.raises(UsageError, match="not trained"):
        program.steps(train=True, compile=True)


def test_what_cannot_be_traced_is_refused_by_name(program: Program) -> None:
    def asks(x: torch.Tensor) -> torch.Tensor:
        return x / int(x.abs().sum())  # a number that is not known before it runs

    kernels = {**IN_PLACE, torch.ops.sleepc.l2norm.default: asks}
    with pytest.raises(SleepcError, match=r"block\.0 cannot be compiled: .*data-dependent"):
        CompiledSteps(program.graphs, materialise(program.graphs, "cpu"), kernels, lambda what, share: None)
