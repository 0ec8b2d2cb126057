"""In-place operators and complex numbers are captured as functions of real numbers, views and all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sleepc.errors import Refusal
from sleepc.ir.compare import max_error
from sleepc.ir.graph import is_call
from sleepc.ir.levels import mutates
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.front.drop_noops import DropNoops
from sleepc.passes.front.split_complex import SplitComplex
from tests.capture.flat import Through, captured, outputs


def in_place(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    y += x
    y.div_(2)
    return y * y


def one_of_several(x: Tensor) -> Tensor:
    best, _ = x.topk(2, -1)
    best /= best.sum(-1, keepdim=True)
    return best


def through_a_view(x: Tensor) -> Tensor:
    y = torch.tanh(x).unsqueeze(-1)
    y.add_(1.0)
    return y.squeeze(-1)


def part_of_a_value(x: Tensor) -> Tensor:
    y = x * 2
    y[..., :2] += 1
    return y


def read_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    seen = y.view(x.shape[0], -1, 3, 2)
    y.mul_(3.0)
    return y + seen.flatten(2)


def promotes(x: Tensor) -> Tensor:
    y = x * 2
    y.mul_(x.double())
    return y


@pytest.mark.parametrize("change", [in_place, one_of_several, through_a_view])
def test_fresh_values_need_no_decomposition(
    change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decomposed")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", fail)
    model = Through(change)
    check(model, captured(model))


@pytest.mark.parametrize("change", [part_of_a_value, read_through_a_view, promotes])
def test_shared_memory_and_casts_keep_their_meaning(change: Callable[[Tensor], Tensor]) -> None:
    model = Through(change)
    check(model, captured(model))


def check(model: nn.Module, program: ProgramGraphs) -> None:
    assert not any(mutates(node.target) for node in program.embed.calls())
    for shape in ((2, 7), (1, 1)):
        tokens = torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))
        assert max_error(outputs(program, tokens), model(tokens)) <= 1e-6


def turned(x: Tensor) -> Tensor:
    """Complex numbers in every way that is known."""
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], 3, 2)).unsqueeze(-1)[..., 0]
    turn = torch.polar(torch.ones_like(x[..., :3]), x[..., 3:])
    z = z * turn * 2.0 * x[..., :3]
    z = z * torch.complex(x[..., :3], x[..., 3:])
    return torch.view_as_real(z).flatten(2)


def test_complex_numbers_are_split() -> None:
    model = Through(turned)
    program = captured(model)
    assert SplitComplex().run(program)
    assert not any(node.meta["val"].is_complex() for node in program.embed.calls() if is_tensor_call(node))
    check(model, program)


def is_tensor_call(node: torch.fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def test_unknown_operators_on_complex_numbers_are_refused() -> None:
    model = Through(lambda x: torch.view_as_complex(x.reshape(*x.shape[:-1], 3, 2)).exp().real)
    with pytest.raises(Refusal) as caught:
        SplitComplex().run(captured(model))
    assert caught.value.code == "OPERATOR"


def test_transposed_weights_have_one_spelling() -> None:
    weight = torch.randn(6, 6)
    program = captured(Through(lambda x: x @ weight.T))
    DropNoops().run(program)
    assert not any(is_call(node, torch.ops.aten.numpy_T.default) for node in program.embed.calls())
