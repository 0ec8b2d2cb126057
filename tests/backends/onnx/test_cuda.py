"""States that stay on a device: two places each, changing roles. Run here by the CPU provider, as no test has a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.cuda import CUDA, DeviceSteps
from sleepc.backends.onnx.manifest import Columns, ExportManifest
from sleepc.backends.onnx.steps import OnnxSteps
from sleepc.capturing import capture
from sleepc.errors import SleepcError, UsageError
from sleepc.runtime.session import Session
from tests.backends.onnx.exports import lower
from tests.families import VOCAB, Family, make_module

CPU = "CPUExecutionProvider"
Made = Callable[..., tuple[DeviceSteps, OnnxSteps]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tuple[Path, ExportManifest]]:
    """Exports of a tiny Llama by what a sleep is; the host writes columns, or not."""
    module = make_module("llama", torch.float32)
    llama = Family(module, capture(module))
    made: dict[Any, tuple[Path, ExportManifest]] = {}

    def make(consolidation: str, columns: bool) -> tuple[Path, ExportManifest]:
        if (consolidation, columns) not in made:
            passes = {"passes": 4, "settle": 0.4} if consolidation == "recurrent" else {"passes": 2}
            program, _ = llama.convert(consolidation=consolidation, **passes)
            folder = tmp_path_factory.mktemp("export")
            made[consolidation, columns] = folder, lower(program, folder, Style(columns=columns))
        return made[consolidation, columns]

    return make


@pytest.fixture
def both(exported: Callable[[str, bool], tuple[Path, ExportManifest]]) -> Made:
    """Steps with the state on a device, and those with the state in host memory, of one program."""

    def make(consolidation: str = "replay") -> tuple[DeviceSteps, OnnxSteps]:
        device = DeviceSteps(*exported(consolidation, False), provider=CPU, threads=1)
        return device, OnnxSteps(*exported(consolidation, True), threads=1)

    return make


def text(*shape: int) -> Any:
    return np.random.default_rng(3).integers(0, VOCAB, shape)


@pytest.mark.parametrize("consolidation", ["replay", "recurrent"])
def test_rows_on_their_own_clocks_are_as_on_the_host(both: Made, consolidation: str) -> None:
    """Prefill over several sleeps, then tokens one at a time, rows sleeping together and apart."""
    tokens = text(3, 40)
    mask = np.arange(20) < np.array([[20], [13], [16]])
    found = []
    for steps in both(consolidation):
        session = Session(steps, 3)
        logits = [session.feed(tokens[:, :20], mask, "all")]
        logits += [session.feed(tokens[:, i : i + 1]) for i in range(20, 40)]
        found.append((logits, steps.to_named_arrays(session.snapshot().state), session.stats.passes))
    (ours, state, passes), (theirs, expected, taken) = found
    assert passes == taken
    assert bool(taken) == (consolidation == "recurrent")
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert state.keys() == expected.keys()
    for name, array in state.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_step_writes_where_it_does_not_read(both: Made) -> None:
    """Each state that a step replaces has two places; the old value is intact after the step, in the other one."""
    steps, _ = both()
    session = Session(steps)
    session.feed(text(1, 12))
    state = session._state
    where = {name: [value.data_ptr() for value in places] for name, places in state.places.items()}
    assert all(len(set(pair)) == len(pair) for pair in where.values())
    before, now = steps.to_named_arrays(state), dict(state.at)
    session.feed([[5]])
    moved = {name for name in now if state.at[name] != now[name]}
    assert moved == set(steps.replaced)
    assert {name: [value.data_ptr() for value in places] for name, places in state.places.items()} == where
    for name in moved:
        np.testing.assert_array_equal(state.spare(name).numpy(), before[name])
    assert (state.now("position").numpy() == 13).all()


def test_what_a_sleep_keeps_stays_where_it_is(both: Made) -> None:
    """A wake step and a sleep replace different states; each state is read where it was written last."""
    steps, _ = both()
    session = Session(steps)
    session.feed(text(1, 11))
    state = session._state
    now = dict(state.at)
    session.sleep()
    moved = {name for name in now if state.at[name] != now[name]}
    assert moved
    assert moved != set(steps.replaced)


def test_bindings_are_made_once(both: Made) -> None:
    """There are few arrangements of places, and so few bindings, however many tokens are read."""
    steps, _ = both()
    session = Session(steps)
    for token in text(50).tolist():
        session.feed([[token]])
    few = len(session._state.bound)
    for token in text(50).tolist():
        session.feed([[token]])
    assert len(session._state.bound) == few
    assert few <= 12


def test_logits_and_copies_do_not_change_later(both: Made) -> None:
    steps, _ = both()
    session = Session(steps)
    first = session.feed(text(1, 5))
    kept, snapshot = first.copy(), session.snapshot()
    for token in range(30):
        session.feed([[token]])
    np.testing.assert_array_equal(first, kept)
    session.restore(snapshot)
    after = session.feed([[7]])
    session.restore(snapshot)
    np.testing.assert_array_equal(session.feed([[7]]), after)


def test_a_state_file_goes_from_one_to_the_other(both: Made, tmp_path: Path) -> None:
    device, host = both()
    one, other = Session(device), Session(host)
    one.feed(text(1, 21))
    one.save_state(tmp_path / "state.safetensors")
    other.load_state(tmp_path / "state.safetensors")
    np.testing.assert_allclose(one.feed([[3]]), other.feed([[3]]), atol=1e-5)


def test_an_export_whose_windows_the_host_writes_is_refused(exported: Any) -> None:
    folder, manifest = exported("replay", True)
    assert any(isinstance(s.wake, Columns) for s in manifest.states)
    with pytest.raises(UsageError, match="with ep cuda"):
        DeviceSteps(folder, manifest, provider=CPU)


@pytest.mark.gpu
def test_cuda_is_as_the_cpu(exported: Any) -> None:
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    tokens = text(2, 40)
    made = exported("replay", False)
    ours, theirs = (Session(DeviceSteps(*made, provider=p), 2).feed(tokens, logits="all") for p in (CUDA, CPU))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_outputs_with_memory_of_an_input_are_refused(both: Made) -> None:
    device, _ = both()
    state = device.new_state(1)
    name = next(iter(device.replaced))
    state.places[name][1] = state.places[name][0]
    with pytest.raises(SleepcError, match=f"state {name} would be written into the memory of {name}"):
        device.wake(state, np.ones((1, 2), np.int64), np.array([2]), "last")
