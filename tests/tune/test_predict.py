"""What a step takes is counted as it runs, and what that takes on a device follows from its profile alone."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sleepc
from examples.nanogpt import GPT
from sleepc.api import Program
from sleepc.backends.contract import TrainingBackend
from sleepc.backends.table import find_backend, find_trainer
from sleepc.errors import SleepcError
from sleepc.ir.parameters import materialise
from sleepc.tune.predict import candidates_for, parts, predict, seconds
from sleepc.tune.profile import Profile, Sourced, find_profile
from sleepc.tune.space import Candidate
from sleepc.tune.work import FREE, Op, count
from sleepc.tuning import weight_bytes

WINDOW, WIDTH = 16, 32
FLOATS = 4


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    model = GPT(vocab=64, width=WIDTH, heads=2, blocks=2, context=64)
    return sleepc.convert(model, {"window": WINDOW, "sinks": 2})


def backend(name: str) -> TrainingBackend:
    found = find_backend(name)
    assert isinstance(found, TrainingBackend)
    return found


def changed(profile: Profile, **values: float) -> Profile:
    facts = {name: Sourced(value=value, source="made up here") for name, value in values.items()}
    return profile.model_copy(update=facts)


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many operators are called that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += isinstance(out, (torch.Tensor, list, tuple)) and not func.is_view and func not in FREE
        return out


@pytest.mark.parametrize("tokens", [1, WINDOW // 2])
def test_as_many_operators_are_counted_as_run(program: Program, tokens: int) -> None:
    work = count(program.graphs, find_trainer(), tokens)
    steps = find_trainer().steps_on(program.graphs, materialise(program.graphs, "cpu"))
    state, ids = steps.new_state(1), torch.zeros(1, tokens, dtype=torch.int64)
    with torch.no_grad(), Calls() as read:
        _, state = steps.wake_tensors(state, ids, torch.full((1,), tokens), "last")
    with torch.no_grad(), Calls() as sleep:
        steps.sleep_tensors(state)
    # PyTorch has a few operators for a processor that are several on no device.
    assert read.count <= len(work.read) <= 1.1 * read.count
    assert len(work.sleep) == pytest.approx(sleep.count, rel=0.02)


def test_files_of_another_dtype_count_as_they_are_loaded(program: Program) -> None:
    model = GPT(vocab=64, width=WIDTH, heads=2, blocks=2, context=64).to(torch.bfloat16)
    wide = sleepc.convert(model, {"window": WINDOW, "sinks": 2, "dtype": "float32"})
    assert torch.bfloat16 in {param.dtype for param in wide.graphs.params.values()}
    assert count(wide.graphs, find_trainer(), WINDOW) == count(program.graphs, find_trainer(), WINDOW)
    assert weight_bytes(wide.graphs) == weight_bytes(program.graphs)


def test_operations_and_bytes_are_those_of_the_weights(program: Program) -> None:
    work = count(program.graphs, find_trainer(), WINDOW)
    shapes = [tuple(p.shape) for p in program.graphs.params.values()]
    maps = sum(prod(shape) for shape in shapes if len(shape) == 2)
    tables = (64 + 64) * WIDTH  # of tokens and positions, which are looked up
    products = 2 * (maps - tables)
    assert products < sum(op.flops for op in work.decode) < 2 * products
    assert WINDOW * (products - 2 * 64 * WIDTH) < sum(op.flops for op in work.read) < 2 * WINDOW * products
    assert sum(op.bytes for op in work.decode) > FLOATS * (maps - tables)
    assert work.memory == FLOATS * sum(map(prod, shapes)) + program.graphs.state_bytes()
    eight = count(program.graphs, find_trainer(), WINDOW, rows=8)
    assert sum(op.flops for op in eight.decode) == pytest.approx(8 * sum(op.flops for op in work.decode), rel=0.1)
    # Several rows take a few operators more, which find where each begins.
    assert len(work.sleep) <= len(eight.sleep) < 1.1 * len(work.sleep)


def test_a_kernel_of_its_own_is_one_operator(program: Program) -> None:
    plain, own = (count(program.graphs, backend(name), WINDOW) for name in ("eager", "triton"))
    assert len(own.sleep) < 0.6 * len(plain.sleep)
    assert sum(op.bytes for op in own.sleep) < sum(op.bytes for op in plain.sleep)
    assert 0 < sum(op.flops for op in own.sleep) <= sum(op.flops for op in plain.sleep)


def test_a_step_takes_what_its_profile_says() -> None:
    profile = changed(find_profile("h100"), launch=1e-3, bandwidth=1e9)
    flops = profile.flops_in("f32")
    ops = [Op(flops, 10, torch.float32), Op(0, 2 * 10**9, torch.float32), Op(1, 1, torch.float32)]
    host, device = parts(ops, profile)
    assert host == pytest.approx(3e-3)
    assert device == pytest.approx(1 + 2 + 1e-9)
    assert seconds(ops, profile) == device
    assert seconds(ops, changed(profile, launch=10.0)) == pytest.approx(30)
    assert seconds(ops, profile.model_copy(update={"kind": "cpu"})) == pytest.approx(host + device)


def test_predictions_say_that_they_are(program: Program) -> None:
    profile = find_profile("h100")
    found = candidates_for(profile)
    assert [each.runner for each in found] == ["eager", "triton", *["onnx"] * 4]
    assert [each.runner for each in candidates_for(find_profile("mi300x"))] == ["eager", "triton"]
    eager, own = (predict(program.graphs, each, profile) for each in found[:2])
    assert eager.figures.predicted
    assert own.figures.pause_ms < eager.figures.pause_ms
    assert eager.figures.memory == own.figures.memory
    assert eager.notes[0].startswith("a token: ")
    assert " ms to launch, " in eager.notes[0]
    assert any("sm_90" in note or "registers" in note for note in own.notes)
    slow = changed(profile, bandwidth=1e6, launch=1e-12)
    decode = predict(program.graphs, Candidate(runner="eager"), slow).figures.decode_ms
    moved = sum(op.bytes for op in count(program.graphs, find_trainer(), 1).decode)
    assert decode == pytest.approx(1e3 * moved / 1e6, rel=1e-3)


def test_what_has_no_room_is_refused(program: Program) -> None:
    with pytest.raises(SleepcError, match=r"weights and state have .* and NVIDIA L4"):
        predict(program.graphs, Candidate(runner="eager"), changed(find_profile("l4"), memory=1e3))


def test_exports_differ_by_the_bytes_of_their_weights(program: Program) -> None:
    """On a device that does nothing but read: of a token all matrices, once each, but for the rows of tables."""
    profile = changed(find_profile("h100"), bandwidth=1e9, launch=1e-15, memory=1e12)
    profile = profile.model_copy(update={"flops": {"f32": Sourced(value=1e30, source="made up here")}})
    found = {each.options.get("precision", each.runner): each for each in candidates_for(profile)}
    took = {name: predict(program.graphs, each, profile).figures for name, each in found.items() if name != "triton"}
    assert took["fp32"].decode_ms == pytest.approx(took["eager"].decode_ms)
    used = {key for block in program.graphs.layout for key in block.params.values()}
    weights = {key: prod(spec.shape) for key, spec in program.graphs.params.items() if len(spec.shape) == 2}
    assert took["fp32"].memory - took["int8"].memory == sum(weights.values()) * 23 // 8
    per_bit = [
        (took[a].decode_ms - took[b].decode_ms) / bits for a, b, bits in (("fp32", "fp16", 16), ("fp16", "int4", 11))
    ]
    assert per_bit[0] == pytest.approx(per_bit[1], rel=1e-2)
    read_once = sum(weights[key] for key in used & weights.keys())
    assert 1e6 * per_bit[0] * 8 == pytest.approx(read_once + 64 * WIDTH, rel=0.2)  # and the head
