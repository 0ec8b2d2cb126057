"""Recurrent layers are captured by the contracts of transformers' kernel functions, and only as these are known."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import sleepc
import tests.hybrids
from sleepc.capture.kernel_seam import CONTRACTS, contract_of, open_kernel_seam, plain_kernels
from sleepc.capture.own_run import require_finite_answer
from sleepc.capturing import capture_flat
from sleepc.errors import Refusal
from sleepc.ir.graph import is_call
from sleepc.ops import RECURRENCES
from sleepc.verify.original import Original
from tests.hybrids import Hybrid

B, T, K, V, D = 2, 11, 2, 4, 6  # rows, tokens, key and value heads, their width


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def theirs(family: str, contract: str) -> Any:
    """The fallback of a modelling file, in plain PyTorch."""
    file = import_module(f"transformers.models.{family}.modeling_{family}")
    return next(value.__wrapped__ for value in vars(file).values() if contract_of(value) == contract)


@pytest.mark.parametrize("options", [{}, {"activation": "silu", "bias": numbers(5)}])
def test_a_convolution_is_transformers(options: dict[str, Any]) -> None:
    x, weight = numbers(B, 5, T), numbers(5, 4)
    wanted = theirs("lfm2", "causal_conv1d_fn")(x, weight, **options)
    torch.testing.assert_close(CONTRACTS["causal_conv1d_fn"](x, weight, **options), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize(("family", "contract"), [("qwen3_5", "chunk_gated_delta_rule"), ("kimi_linear", "chunk_kda")])
def test_a_delta_rule_is_transformers(family: str, contract: str, unit: bool) -> None:
    """Grouped keys; a decay for each head, or for each channel."""
    heads, decay = (V, (V, D)) if contract == "chunk_kda" else (K, (V,))
    q, k, v = 0.4 * numbers(B, T, heads, D), 0.4 * numbers(B, T, heads, D, seed=1), numbers(B, T, V, 5)
    g, beta = -numbers(B, T, *decay).abs(), numbers(B, T, V).sigmoid()
    wanted, _ = theirs(family, contract)(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=unit)
    made, state = CONTRACTS[contract](q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=unit, use_cache=False)
    assert state is None
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.1, 0.5)])
def test_a_scan_of_mamba_2_is_transformers(limit: tuple[float, float]) -> None:
    given = (numbers(B, T, V, 5), numbers(B, T, V), -numbers(V).abs(), numbers(B, T, K, D), numbers(B, T, K, D, seed=1))
    options: dict[str, Any] = {"chunk_size": 4, "D": numbers(V, seed=2), "z": None, "dt_bias": numbers(V, seed=3)}
    options |= {"dt_softplus": True, "dt_limit": limit, "return_final_states": False, "initial_states": None}
    wanted = theirs("bamba", "mamba_chunk_scan_combined")(*given, **options)
    made = CONTRACTS["mamba_chunk_scan_combined"](*given, **options, output_router_logits=True)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def test_a_selective_scan_is_transformers() -> None:
    """Mamba-1's, with a gate and a bias of the steps; its fallback computes in float32."""
    given = (
        numbers(B, V, T),
        numbers(B, V, T, seed=1),
        -numbers(V, D).abs(),
        numbers(B, D, T),
        numbers(B, D, T, seed=1),
    )
    options = {"D": numbers(V), "z": numbers(B, V, T, seed=2), "delta_bias": numbers(V, seed=3), "delta_softplus": True}
    wanted = theirs("jamba", "selective_scan_fn")(*given, **options)
    made = CONTRACTS["selective_scan_fn"](*given, **options, return_last_state=False, use_mambapy=False)
    torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def test_a_selective_scan_whose_steps_may_be_negative_is_refused() -> None:
    given = (numbers(B, V, T), numbers(B, V, T), -numbers(V, D).abs(), numbers(B, D, T), numbers(B, D, T))
    for options in ({}, {"delta_softplus": False}):
        with pytest.raises(Refusal, match="selective_scan_fn with delta_softplus=False"):
            CONTRACTS["selective_scan_fn"](*given, **options)


def test_an_installed_package_does_not_win() -> None:
    """The program's numbers are those of the rule; the package's functions are there again afterwards."""
    model, before = Hybrid().eval(), (tests.hybrids.conv, tests.hybrids.rule)
    with pytest.raises(AssertionError, match="installed package"):
        model(torch.zeros(1, 3, dtype=torch.int64))
    program = capture_flat(model)
    assert sum(is_call(node, *RECURRENCES) for node in program.embed.calls()) == 2
    assert (tests.hybrids.conv, tests.hybrids.rule) == before


def test_globals_are_put_back_after_an_error() -> None:
    model, before = Hybrid(), tests.hybrids.rule
    with pytest.raises(ZeroDivisionError), open_kernel_seam(model):
        _fails(tests.hybrids.rule is not before)
    assert tests.hybrids.rule is before


def _fails(inside: bool) -> None:
    assert inside
    raise ZeroDivisionError


@pytest.mark.parametrize("option", ["cu_seqlens", "initial_state", "allow_neg_eigval"])
def test_an_option_that_is_not_understood_is_named(option: str) -> None:
    with pytest.raises(Refusal, match=f"a delta rule with {option}, which") as caught:
        capture_flat(Hybrid({option: torch.zeros(3)}))
    assert caught.value.code == "UNKNOWN_OPTION"


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Refusal, match="calls chunk_gated_delta_rule otherwise than known: multiple values"):
        capture_flat(Hybrid({"beta": None}))


def test_what_ran_is_in_the_graph() -> None:
    with pytest.raises(Refusal, match="3 convolutions and recurrences of layers ran, and 2 are in the graph"):
        capture_flat(Hybrid(idle=True))


def test_a_memory_is_not_for_layers_without_attention() -> None:
    with pytest.raises(sleepc.UsageError, match="layer 0 has no attention to bound or to give a memory"):
        sleepc.convert(Hybrid(), {"window": 4, "sinks": 1, "layers": "0-1"})


def test_the_original_answers_without_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is for GPUs has no part in what the model is compared with; options that it alone knows are left
    out, as the decorator does.
    """
    for decorated in (tests.hybrids.conv, tests.hybrids.rule):
        monkeypatch.setattr(decorated, "__wrapped__", theirs("qwen3_5", contract_of(decorated)))
    model, before = Hybrid({"cache_params": 1}).eval(), tests.hybrids.rule
    tokens = torch.arange(5)[None]
    with pytest.raises(AssertionError, match="installed package"):
        model(tokens)
    found = Original(model)(tokens)
    assert tests.hybrids.rule is before
    with plain_kernels(model):
        torch.testing.assert_close(model(tokens), found, rtol=0, atol=0)
    require_finite_answer(model)
