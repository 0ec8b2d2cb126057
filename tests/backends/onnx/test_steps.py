"""Steps of an export over arrays that stay where they are: against the eager backend, and what they leave untouched."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.backends.eager.backend import load as load_eager
from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.denormals import KNOWN, denormals_as_zero
from sleepc.backends.onnx.host_instructions import instructions_of
from sleepc.backends.onnx.manifest import Columns
from sleepc.backends.onnx.state import write_columns
from sleepc.backends.onnx.steps import OnnxSteps
from sleepc.backends.tunable import available_threads
from sleepc.errors import SleepcError
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.sampling import Sampling, candidates
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Array, Logits, Steps
from sleepc.verify.memory_values import shaken
from tests.backends.onnx.exports import lower
from tests.families import VOCAB, family

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def program() -> ProgramGraphs:
    step, _ = family("llama", torch.float32).convert(window=8, sinks=2)
    return shaken(step)


@pytest.fixture(scope="module", params=[True, False], ids=["columns", "whole"])
def steps(
    program: ProgramGraphs, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> OnnxSteps:
    folder = tmp_path_factory.mktemp("export")
    return OnnxSteps(folder, lower(program, folder, Style(columns=request.param)), threads=1)


@pytest.fixture(scope="module")
def eager(program: ProgramGraphs) -> Steps:
    return load_eager(program)


def tokens(rows: int, count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, count))


def lengths(*values: int) -> Array:
    return np.array(values, np.int64)


def same(found: dict[str, Array], wanted: dict[str, Array], *, exact: bool = False) -> None:
    """Are these the arrays of one state?"""
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype, name
        assert np.allclose(array, wanted[name], atol=0 if exact else TOLERANCE, rtol=0), name


def drive(steps: Steps) -> Iterator[tuple[Array | None, dict[str, Array]]]:
    """Three rows through calls of all kinds: the logits that mean something, and the state, after every call."""
    state = steps.new_state(3)
    calls: list[tuple[Any, Logits]] = [
        ((3, 1, 0), "last"),
        ((1, 1, 1), "all"),
        ((1, 1, 1), "last"),
        ((0, 0, 1), "none"),
        ((3, 4, 3), "all"),
    ]
    for i, (counts, logits) in enumerate(calls):
        count = lengths(*counts)
        out, state = steps.wake(state, tokens(3, max(counts), i), count, logits)
        read = None
        if out is not None:
            there = np.arange(max(counts)) < count[:, None]
            read = out[there] if logits == "all" else out[count > 0]
        yield read, steps.to_named_arrays(state)
    for rows in ([True, False, False], [False, False, False], [True, True, True], [False, True, True]):
        state = steps.sleep(state, np.array(rows))
        yield None, steps.to_named_arrays(state)
        out, state = steps.wake(state, tokens(3, 2, 9), lengths(2, 0, 1), "last")
        assert out is not None
        yield out[[0, 2]], steps.to_named_arrays(state)


def test_every_call_gives_what_the_eager_backend_gives(steps: OnnxSteps, eager: Steps) -> None:
    for (out, arrays), (wanted, others) in zip(drive(steps), drive(eager), strict=True):
        assert (out is None) == (wanted is None)
        if out is not None and wanted is not None:
            assert out.dtype == np.float32
            assert out.shape == wanted.shape
            assert np.abs(out - wanted).max(initial=0) < TOLERANCE
        same(arrays, others)


def test_sampling_holds_on_a_thread_where_the_least_numbers_are_0() -> None:
    """Whoever calls sleepc may have made them so."""
    torch.set_flush_denormal(True)
    try:
        ids, weights = candidates(np.array([1.0, 3.0, 2.0], np.float32), Sampling(5e-324))
    finally:
        torch.set_flush_denormal(False)
    assert (ids.tolist(), weights.tolist()) == ([1], [1.0])


HALVED = """
import sys
from pathlib import Path
import numpy as np
from sleepc.backends.onnx.manifest import ExportManifest
from sleepc.backends.onnx.steps import OnnxSteps

small = np.array([1e-40, 3e-39], np.float32)
found = [(small * np.float32(0.5)).tobytes()]
steps = OnnxSteps(Path(sys.argv[1]), ExportManifest.model_validate_json(sys.stdin.read()), threads=1)
found.append((small * np.float32(0.5)).tobytes())
_, state = steps.wake(steps.new_state(1), np.ones((1, 3), np.int64), np.array([3]), "last")
steps.sleep(state, np.array([True]))
found.append((small * np.float32(0.5)).tobytes())
assert found[0] != bytes(8) and set(found) == {found[0]}, found
"""


def test_least_numbers_stay_what_they_are_outside(steps: OnnxSteps) -> None:
    """A process's first session of ONNX Runtime would make them 0 for ever, in what else its thread computes."""
    command = [sys.executable, "-c", HALVED, str(steps.folder)]
    subprocess.run(command, input=steps.manifest.model_dump_json(), text=True, check=True, timeout=60)
    weights, small = torch.full((4, 4), 0.5), torch.full((4,), 1e-39)
    before = weights @ small
    with denormals_as_zero():
        assert not KNOWN or not (weights @ small).any(), "what a run's own thread computes is fast"
    assert before.all()
    assert torch.equal(weights @ small, before)


@pytest.mark.parametrize("logits", ["last", "all", "none"])
def test_no_tokens(steps: OnnxSteps, logits: Logits) -> None:
    _, state = steps.wake(steps.new_state(2), tokens(2, 3), lengths(3, 2), "none")
    before = steps.to_named_arrays(state)
    out, state = steps.wake(state, tokens(2, 0), lengths(0, 0), logits)
    shapes = {"last": (2, VOCAB), "all": (2, 0, VOCAB), "none": None}
    assert (None if out is None else out.shape) == shapes[logits]
    same(steps.to_named_arrays(state), before, exact=True)


def test_rows_without_tokens_stay_bit_for_bit(steps: OnnxSteps) -> None:
    _, state = steps.wake(steps.new_state(2), tokens(2, 5), lengths(5, 4), "none")
    before = steps.to_named_arrays(state)
    _, state = steps.wake(state, tokens(2, 2), lengths(0, 2), "last")
    after = steps.to_named_arrays(state)
    same({n: a[:1] for n, a in after.items()}, {n: a[:1] for n, a in before.items()}, exact=True)
    state = steps.sleep(state, np.array([False, True]))
    same({n: a[:1] for n, a in steps.to_named_arrays(state).items()}, {n: a[:1] for n, a in after.items()}, exact=True)


def test_logits_are_the_callers_own(steps: OnnxSteps) -> None:
    first, state = steps.wake(steps.new_state(1), tokens(1, 1), lengths(1), "last")
    assert first is not None
    kept = first.copy()
    for seed in range(1, 4):
        _, state = steps.wake(state, tokens(1, 1, seed), lengths(1), "last")
    assert np.array_equal(first, kept)


def test_copies_of_rows_go_their_own_way(steps: OnnxSteps) -> None:
    _, state = steps.wake(steps.new_state(2), tokens(2, 5), lengths(5, 3), "none")
    before = steps.to_named_arrays(state)
    copies = steps.select_rows(state, np.array([1, 1, 0]))
    same(steps.to_named_arrays(copies), {n: a[[1, 1, 0]] for n, a in before.items()}, exact=True)
    _, copies = steps.wake(copies, tokens(3, 2), lengths(2, 1, 2), "last")
    copies = steps.sleep(copies, np.array([True, True, False]))
    same(steps.to_named_arrays(state), before, exact=True)


def test_arrays_in_and_out(steps: OnnxSteps) -> None:
    _, state = steps.wake(steps.new_state(2), tokens(2, 5), lengths(5, 3), "none")
    arrays = steps.to_named_arrays(state)
    again = steps.from_named_arrays({name: array.copy() for name, array in arrays.items()})
    out, _ = steps.wake(state, tokens(2, 1), lengths(1, 1), "last")
    assert not np.array_equal(arrays["position"], state.arrays["position"])
    other, _ = steps.wake(again, tokens(2, 1), lengths(1, 1), "last")
    assert out is not None
    assert other is not None
    assert np.array_equal(out, other)


def test_a_new_state_is_empty_whatever_was_read_before(steps: OnnxSteps) -> None:
    for _ in range(2):
        state = steps.new_state(1)
        assert not any(array.any() for array in steps.to_named_arrays(state).values())
        _, state = steps.wake(state, tokens(1, 6), lengths(6), "none")
        assert any(array.any() for array in steps.to_named_arrays(state).values())


def test_steps_bind_once_where_nothing_changes(steps: OnnxSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(steps)
    session.feed([1])
    list(session.generate(3))
    placed: list[Array] = []
    place = OnnxSteps.place

    def noted(self: OnnxSteps, array: Array) -> Any:
        placed.append(array)
        return place(self, array)

    monkeypatch.setattr(OnnxSteps, "place", noted)
    for call in session._state.bound:
        call.place = steps.place
    list(session.generate(2))
    assert [array.shape for array in placed] == [(1, 1, VOCAB)] * 2, "only room for the logits"


def test_windows_are_written_in_place(steps: OnnxSteps) -> None:
    state = steps.new_state(1)
    rings = {name: array for name, array in state.rings.items()}
    for _ in range(3):
        _, state = steps.wake(state, tokens(1, 1), lengths(1), "last")
    state = steps.sleep(state, np.array([True]))
    assert all(state.rings[name] is ring for name, ring in rings.items())
    for spec in steps.manifest.states:
        if isinstance(spec.wake, Columns):
            assert state.arrays[spec.name].base is rings[spec.wake.output]


def test_a_state_is_free_when_nobody_has_it(steps: OnnxSteps) -> None:
    gc.disable()
    try:
        _, state = steps.wake(steps.new_state(1), tokens(1, 1), lengths(1), "last")
        _, state = steps.wake(state, tokens(1, 1), lengths(1), "last")
        gone = weakref.ref(state)
        del state
        assert gone() is None
    finally:
        gc.enable()


def test_other_numbers_of_passes(program: ProgramGraphs, steps: OnnxSteps) -> None:
    many = OnnxSteps(steps.folder, steps.manifest, threads=1)
    many.passes = 5
    found = []
    for each in (steps, many):
        _, state = each.wake(each.new_state(1), tokens(1, 8), lengths(8), "none")
        found.append(each.to_named_arrays(each.sleep(state, np.array([True]))))
    differ = [name for name in found[0] if not np.array_equal(found[0][name], found[1][name])]
    assert differ
    assert {steps.manifest.passes, 5} == {1, 5}
    assert not {"position", "since", "slept"} & set(differ)


@pytest.mark.parametrize("batch", [1, 3])
def test_columns_go_into_their_slots(batch: int) -> None:
    rng = np.random.default_rng(0)
    ring, new = rng.normal(size=(2, batch, 2, 5, 3)), rng.normal(size=(batch, 4, 2, 3))
    slots = np.array([[4, 0], [-1, 2], [-1, -1]])[:batch]
    wanted = ring.copy()
    for b in range(batch):
        for t in range(2):
            for layer in range(2):
                if slots[b, t] >= 0:
                    wanted[layer, b, :, slots[b, t]] = new[b, 2 * layer : 2 * layer + 2, t]
    write_columns(ring, new, slots)
    assert np.array_equal(ring, wanted)
    one = ring.copy()
    write_columns(one[:, :1], new[:1, :, :1], np.array([[-1]]))
    assert np.array_equal(one, ring)
    write_columns(one[:, :1], new[:1, :, :1], np.array([[3]]))
    assert np.array_equal(one[0, 0, :, 3], new[0, :2, 0])


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert available_threads() == 3
    for text in ("", "many", "0", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert available_threads() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_threads() == os.cpu_count()


def test_files_that_are_not_what_the_manifest_says(steps: OnnxSteps, tmp_path: Path) -> None:
    with pytest.raises(SleepcError, match=r"cannot open wake\.onnx"):
        OnnxSteps(tmp_path, steps.manifest)
    wake = steps.manifest.wake
    for change in ({"inputs": wake.inputs[1:]}, {"outputs": wake.outputs[1:]}):
        manifest = steps.manifest.model_copy(update={"wake": wake.model_copy(update=change)})
        with pytest.raises(SleepcError, match="what the manifest says"):
            OnnxSteps(steps.folder, manifest)


def test_outputs_with_memory_of_an_input_are_refused(steps: OnnxSteps) -> None:
    """One place for a state that goes in and comes out would be wrong wherever the runtime reorders."""
    state = steps.new_state(1)
    name = next(iter(steps.replaced))
    state.spare[name] = state.arrays[name]
    with pytest.raises(SleepcError, match=f"state {name} would be written into the memory of {name}"):
        steps.wake(state, np.ones((1, 2), np.int64), np.array([2]), "last")
    assert any("memory of its own" in rule for rule in instructions_of(steps.manifest))
