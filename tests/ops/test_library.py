"""The registered operators: contracts, fake kernels, gradients, also those of plain functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from sleepc.ops import functional
from tests.ops.cases import RULES, memory, normal, worst


@dataclass(frozen=True)
class Case:
    """One call: the operator's name, tensors in order (lists where it takes lists), options."""

    op: str
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def registered(self) -> torch._ops.OpOverload[..., Any]:
        op: torch._ops.OpOverload[..., Any] = getattr(torch.ops.sleepc, self.op).default
        return op

    @property
    def plain(self) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(functional, self.op)
        return function


def _attention_cases(tokens: int) -> list[Case]:
    q, k, v = normal(2, 4, tokens, 2), normal(2, 2, tokens, 2, seed=1), normal(2, 2, tokens, 3)
    held = normal(2, 2, 4, 2, seed=3), normal(2, 2, 4, 3, seed=4)
    positions = 5 + torch.arange(tokens).expand(2, -1)
    mask = functional.window_mask(positions, torch.tensor([5, 5]), window=3, sinks=1)
    sinks, bias = normal(4, seed=5), normal(2, 1, tokens, tokens, seed=6)
    how = {"scale": 0.5}
    kept = normal(2, 3, 2, seed=7), normal(2, 3, v.shape[3], seed=8), normal(2, k.shape[1], tokens, 3, seed=9) > 0
    return [
        Case("attention", (q, k, v), {**how, "causal": True}),
        Case(
            "attention",
            (q, k, v),
            {**how, "causal": True, "sees": "chunk(2)", "slopes": [0.5, 0.4, 0.3, 0.2]},
            "slopes",
        ),
        Case("attention", (q, k, v, bias, sinks), {**how, "softcap": 2.0}, "bias"),
        Case("window_attention", (q, k, v, *held, mask), how),
        Case("kept_attention", (q, k, v, *held, mask, *kept), how),
        Case("kept_attention", (q, k, v, *held, mask, *kept, sinks), {**how, "softcap": 2.0}, "sink_logits"),
        Case("window_attention", (q, k, v, *held, mask, sinks), {**how, "softcap": 2.0}, "sink_logits"),
    ]


def _window_cases(tokens: int) -> list[Case]:
    positions, start = 5 + torch.arange(tokens).expand(2, -1), torch.tensor([5, 5])
    size = {"window": 4, "sinks": 1}
    slots = functional.window_slots(positions, **size)
    return [
        Case("window_slots", (positions,), size),
        Case("window_mask", (positions, start), {**size, "sees": "window(2)&chunk(3)"}),
        Case("window_bias", (positions, start), {**size, "slopes": [0.5, 0.25], "dtype": torch.float32}),
        Case("write_slots", (normal(2, 1, 5, 2), normal(2, 1, tokens, 2, seed=1), slots)),
    ]


def _memory_cases(tokens: int) -> list[Case]:
    cases = []
    for rule in RULES:
        for channel in (False, True):
            x = memory(tokens, rows=1, heads=2, memories=1, dk=2, dv=2, channel=channel)
            how, label = {"rule": rule}, f"{rule}-{channel}"
            one = {**how, "scale": 0.7, "chunk": 2}
            many = {**how, "passes": 5, "written": False, "chunk": 2}
            cases.append(Case("delta_rule", (*x.stream, [x.state]), one, label))
            cases.append(Case("replay", (*x.record, [x.state]), many, label))
    x = memory(tokens, dk=2)
    return [*cases, Case("delta_rule_read", (x.q, [x.state]), {"rule": "delta", "scale": 0.7})]


def _fused_cases(tokens: int) -> list[Case]:
    real, heads, columns = torch.arange(tokens) < torch.tensor([[tokens], [1]]), (2, 3, tokens, 2), (2, tokens, 6)
    asked, decays, rate = normal(2, tokens, 3), normal(*columns, seed=1), normal(6, seed=2)
    return [
        Case("masked_l2norm", (normal(*heads), real)),
        Case("gates", (real, asked), {}, "strength"),
        Case("gates", (real, asked, decays[..., :3].contiguous(), rate[:3].contiguous()), {}, "head"),
        Case("gates", (real, asked, decays, rate), {}, "channel"),
        Case("mixed", (normal(*heads), normal(*heads, seed=1), asked, torch.tensor([True, False]))),
        Case("gated_norm", (normal(*heads), normal(2, seed=1), normal(*columns, seed=2)), {"eps": 1e-5}),
    ]


def _cases(tokens: int) -> list[Case]:
    lengths = torch.tensor([tokens, max(tokens - 1, 0)])
    conv = (normal(2, tokens, 3), normal(3, 4, seed=1), normal(2, 3, 3, seed=2), lengths)
    maps = [normal(4, 3, seed=1), normal(2, 3, seed=2)]
    return [
        *_attention_cases(tokens),
        *_window_cases(tokens),
        Case("short_conv", conv),
        Case("l2norm", (normal(2, tokens, 3),)),
        Case("rms_norm", (normal(2, tokens, 3), normal(3, seed=1)), {"eps": 1e-5}),
        Case("linears", (normal(2, tokens, 3), maps)),
        Case("linears", (normal(2, tokens, 3), maps, [normal(4, seed=3), normal(2, seed=4)]), {"width": 2}, "heads"),
        Case("rotary", (normal(2, 3, tokens, 4), normal(2, tokens, 4, seed=1), normal(2, tokens, 4, seed=2))),
        *_fused_cases(tokens),
        *_memory_cases(tokens),
    ]


def _name(case: Case) -> str:
    return f"{case.op}-{case.label}" if case.label else case.op


three_tokens = pytest.mark.parametrize("case", _cases(3), ids=_name)


def _flat(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else [z for y in x for z in _flat(y)]


@pytest.mark.parametrize("case", [c for n in (0, 1, 3) for c in _cases(n)], ids=_name)
def test_registered_equals_plain_and_fake_and_shares_nothing(case: Case) -> None:
    want, got = case.plain(*case.args, **case.options), case.registered(*case.args, **case.options)
    assert type(want) is type(got)
    assert all(torch.equal(a, b) for a, b in zip(_flat(want), _flat(got), strict=True))
    kept = {x.untyped_storage().data_ptr() for x in _flat(case.args)} - {0}
    for result in (want, got):
        assert not kept & {x.untyped_storage().data_ptr() for x in _flat(result)}
    assert all(x.is_contiguous() for x in _flat(got))
    meta = torch.utils._pytree.tree_map_only(Tensor, lambda x: x.to("meta"), case.args)
    fake = case.registered(*meta, **case.options)
    for a, b in zip(_flat(fake), _flat(got), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def _differentiable(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[Tensor]]:
    """Fresh leaves for every floating tensor, and the arguments made of them."""
    leaves: list[Tensor] = []

    def fresh(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        leaves.append(x.detach().clone().requires_grad_())
        return leaves[-1]

    return torch.utils._pytree.tree_map_only(Tensor, fresh, args), leaves


@pytest.mark.parametrize("case", [c for n in (1, 3) for c in _cases(n)], ids=_name)
def test_any_layout_of_arguments(case: Case) -> None:
    """Heads are often a transposed view of the features."""

    def strided(x: Tensor) -> Tensor:
        return x.mT.contiguous().mT if x.dim() > 1 else x

    args = torch.utils._pytree.tree_map_only(Tensor, strided, case.args)
    want = _flat(case.plain(*case.args, **case.options))
    assert max(map(worst, _flat(case.plain(*args, **case.options)), want)) < 1e-12
    got = _flat(case.registered(*args, **case.options))
    assert max(map(worst, got, want)) < 1e-12
    assert all(x.is_contiguous() for x in got)


DISCRETE = ("window_slots", "window_mask", "window_bias")


@pytest.mark.parametrize("through", ["plain", "registered"])
@pytest.mark.parametrize("case", [c for c in _cases(3) if c.op not in DISCRETE], ids=_name)
def test_gradients(case: Case, through: str) -> None:
    args, leaves = _differentiable(case.args)
    function = getattr(case, through)

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        given = iter(values)
        filled = torch.utils._pytree.tree_map_only(Tensor, lambda x: next(given) if x.is_floating_point() else x, args)
        return tuple(_flat(function(*filled, **case.options)))

    assert torch.autograd.gradcheck(run, leaves)


one_of_each = pytest.mark.parametrize("case", list({c.op: c for c in _cases(3)}.values()), ids=_name)
CONTRACT = ("test_schema", "test_autograd_registration", "test_faketensor")


@one_of_each
def test_contract(case: Case) -> None:
    args, _ = _differentiable(case.args)
    torch.library.opcheck(case.registered, args, case.options, test_utils=(*CONTRACT, "test_aot_dispatch_static"))


# every size of every argument as a symbol; rows and tokens, which are symbols in use, are tested below
@pytest.mark.slow
@one_of_each
def test_contract_with_symbols(case: Case) -> None:
    args, _ = _differentiable(case.args)
    torch.library.opcheck(case.registered, args, case.options, test_utils="test_aot_dispatch_dynamic")


def test_second_derivatives() -> None:
    x = memory(2, rows=1, heads=1, memories=1, dk=2, dv=1)
    leaves = [y.requires_grad_() for y in (*x.stream, x.state)]

    def run(*y: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.sleepc.delta_rule(*y[:5], [y[5]], rule="gated_delta", scale=1.0, chunk=2))

    assert torch.autograd.gradgradcheck(run, leaves)


def test_one_tensor_as_two_arguments() -> None:
    """Its gradient is the sum of both, counted once each."""
    results = []
    for rule in (functional.delta_rule, torch.ops.sleepc.delta_rule):
        x = memory(3, heads=2)
        k = x.k.clone().requires_grad_()
        out = rule(k, k, x.v, x.g, x.beta, [x.state], rule="delta", scale=1.0)
        results.append(torch.autograd.grad(out[0].sum() + out[1].sum(), k)[0])
    assert worst(results[1], results[0]) < 1e-14


def test_results_that_nobody_uses_have_no_gradient() -> None:
    x = memory(3)
    q = x.q.clone().requires_grad_()
    out = torch.ops.sleepc.delta_rule(q, x.k, x.v, x.g, x.beta, [x.state], rule="delta", scale=1.0)
    assert out[0].requires_grad
    (grad,) = torch.autograd.grad(out[0].sum(), q)
    assert grad.abs().max() > 0


class _Step(torch.nn.Module):
    """Every operator once, over symbolic B and T."""

    def forward(
        self, x: Tensor, weight: Tensor, tail: Tensor, keys: Tensor, state: Tensor, start: Tensor
    ) -> tuple[Tensor, ...]:
        ops = torch.ops.sleepc
        lengths = torch.full_like(start, x.shape[1])
        y, tail = ops.short_conv(x, weight, tail, lengths)
        q = y.view(x.shape[0], x.shape[1], 2, 4).transpose(1, 2)
        k = ops.l2norm(q[:, :1])
        beta = k.sum(-1).sigmoid()
        positions = start[:, None] + torch.arange(x.shape[1])
        slots = ops.window_slots(positions, window=8, sinks=2)
        mask = ops.window_mask(positions, start, window=8, sinks=2)
        o = ops.window_attention(q, k, k, keys, keys, mask, scale=0.5)
        o = o + ops.attention(q, k, k, scale=0.5, causal=True)
        m, state = ops.delta_rule(q, k, k, -beta, beta, [state], rule="gated_delta", scale=1.0)
        m = m + ops.delta_rule_read(q, [state], rule="gated_delta", scale=1.0)
        (state,) = ops.replay(k, k, -beta, beta, [state], rule="gated_delta", passes=4, written=True)
        return o + m, tail, ops.write_slots(keys, k, slots), state


def _step_inputs(rows: int, tokens: int) -> tuple[Tensor, ...]:
    tail, keys = normal(rows, 8, 3, seed=2).float(), normal(rows, 1, 10, 4, seed=3).float()
    state, start = normal(rows, 1, 4, 4, seed=4).float(), torch.full((rows,), 7)
    return normal(rows, tokens, 8).float(), normal(8, 4, seed=1).float(), tail, keys, state, start


# torch 2.13 looks up a deprecated name while it copies its own tree specifications
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_symbolic_rows_and_tokens() -> None:
    rows, tokens = torch.export.Dim("B"), torch.export.Dim("T", max=8)
    first = {0: rows}
    shapes = ({0: rows, 1: tokens}, None, first, first, first, first)
    program = torch.export.export(_Step(), _step_inputs(2, 5), dynamic_shapes=(*shapes,), strict=False)
    module = program.module()
    for size in ((1, 1), (3, 8), (2, 2)):
        got, want = module(*_step_inputs(*size)), _Step()(*_step_inputs(*size))
        assert all(worst(a, b) < 1e-6 for a, b in zip(got, want, strict=True))
    calls = {str(n.target) for n in program.graph.nodes if "sleepc" in str(n.target)}
    assert len(calls) == 10
