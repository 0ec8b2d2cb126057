"""Weights in 4 and 8 bits fitted to a text: numbers by the definition of GPTQ, what is watched, and what is chosen."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sleepc.backends.onnx.check.quality import TEXT
from sleepc.backends.onnx.quantise import dequantise, quantise
from sleepc.backends.onnx.rounding import fit as fitting
from sleepc.backends.onnx.rounding.fit import Wish, fit, weight_bytes
from sleepc.backends.onnx.rounding.gptq import DAMPING, GROUP, SHRUNK, gptq, rounded, triangle
from sleepc.backends.onnx.rounding.products import Products
from sleepc.backends.onnx.target import TARGET, Options
from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.runner import run_stages
from tests.families import VOCAB, WINDOW, family

FEW = 48
TOKENS = np.random.default_rng(0).integers(0, VOCAB, FEW)


@pytest.fixture(autouse=True)
def _few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "LEAST", FEW)
    monkeypatch.setattr(fitting, "JUDGED", FEW // 2)
    monkeypatch.setattr(fitting, "READ", FEW)


def silent(what: str, share: float | None) -> None:
    pass


def inputs(width: int, *, rows: int = 300) -> Tensor:
    """x [rows, width] whose columns follow from each other."""
    torch.manual_seed(0)
    return torch.randn(rows, width // 4) @ torch.randn(width // 4, width) + 0.1 * torch.randn(rows, width)


def by_definition(weight: Tensor, moments: Tensor) -> Tensor:
    """Column by column in float64, each time with the inverse of H over the columns that are left."""
    h = moments.double()
    h = h + DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    found = torch.empty_like(weight, dtype=torch.float64)
    for row, given in enumerate(weight.double()):
        left = given.clone()
        for j in range(len(left)):
            if j % GROUP == 0:
                costs = [float(torch.linalg.inv(h[k:, k:])[0, 0]) for k in range(j, j + GROUP)]
                scale = best_scale(left[j : j + GROUP], costs)
            number = float(torch.clamp(torch.round(left[j] / scale), -8, 7))
            found[row, j] = number * scale
            inverse = torch.linalg.inv(h[j:, j:])
            left[j:] = left[j:] - (left[j] - found[row, j]) / inverse[0, 0] * inverse[0]
    return found


def best_scale(group: Tensor, costs: list[float]) -> float:
    largest = max(group.tolist(), key=abs)
    tried = [float(torch.tensor(largest * share / -8, dtype=torch.float32).half()) for share in SHRUNK]

    def cost(scale: float) -> float:
        pairs = zip(group.tolist(), costs, strict=True)
        return float(sum((w - min(max(round(w / scale), -8), 7) * scale) ** 2 / c for w, c in pairs))

    return min(tried, key=cost)


def test_numbers_are_those_of_the_definition() -> None:
    x = inputs(96)
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(3)) * 0.1
    found = gptq(weight, triangle(x.T @ x))
    assert found.shape == (5, 96)
    np.testing.assert_allclose(found.value(), by_definition(weight, x.T @ x).numpy(), rtol=0, atol=1e-6)


def test_products_change_less_than_by_rounding() -> None:
    x = inputs(128)
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(4))
    plain = dequantise(*quantise(weight.numpy(), 4), 4, 128)
    lost = [
        float((x @ (torch.from_numpy(v) - weight).T).norm()) for v in (gptq(weight, triangle(x.T @ x)).value(), plain)
    ]
    assert lost[0] < 0.5 * lost[1]


def test_eight_bits_are_within_half_a_step_and_zeros_stay() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
    weight[1] = 0
    found = rounded(weight)
    step = np.repeat(found.scale, GROUP, 1)
    assert (np.abs(found.value() - weight.numpy()) <= step * 0.51).all()
    assert not found.value()[1].any()
    assert not gptq(weight, triangle(torch.eye(64))).value()[1].any()


@cache
def program(name: str) -> ProgramGraphs:
    step, _ = family(name, torch.float32).convert()
    return step


@pytest.mark.parametrize(("name", "turned"), [("llama", False), ("gpt2", True)])
def test_moments_are_of_what_the_model_multiplies(name: str, turned: bool) -> None:
    """Within the window the program's products are those of the original, whose modules say what they are given."""
    seen: dict[str, Tensor] = {}

    def note(key: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[key] = given[0].reshape(-1, given[0].shape[-1]).detach()

    tokens, model = TOKENS[:WINDOW], family(name, torch.float32).module
    maps = [(key, part) for key, part in model.named_modules() if type(part).__name__ in ("Linear", "Conv1D")]
    hooks = [part.register_forward_pre_hook(partial(note, f"{key}.weight")) for key, part in maps]
    family(name, torch.float32).logits(torch.from_numpy(tokens)[None])
    for hook in hooks:
        hook.remove()
    products = Products(program(name))
    for _ in products.read(tokens):
        pass
    wanted = {key for key, is_turned in products.turned.items() if is_turned is turned} & seen.keys()
    assert len(wanted) > 5
    found = products.moments(tokens, wanted)
    assert found.keys() == wanted
    for key, value in found.items():
        want = seen[key].T @ seen[key]
        torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_what_stands_in_a_place_is_what_is_computed_with() -> None:
    products = Products(program("gpt2"))
    own = np.concatenate(list(products.read(TOKENS)))
    key = next(key for key, turned in products.turned.items() if turned)
    zero = rounded(torch.zeros_like(products.values[key].T), turned=True)
    with products.instead({key: zero}):
        other = np.concatenate(list(products.read(TOKENS)))
    again = np.concatenate(list(products.read(TOKENS)))
    np.testing.assert_array_equal(again, own)
    assert np.abs(other - own).max() > 1e-3


def fitted(**wish: Any) -> fitting.FittedBits:
    return fit(program("llama"), TOKENS, Wish(**wish), silent)


def test_a_size_is_filled_with_what_helps_most() -> None:
    small, large = fitted(loss=1e9).facts["fitted"], fitted(size=10**9).facts["fitted"]
    assert (small["eight_bits"], large["four_bits"]) == ([], 0)
    assert large["loss"] < 1e-2
    half = (small["bytes"] + large["bytes"]) // 2
    between = fitted(size=half)
    facts = between.facts["fitted"]
    assert small["bytes"] < facts["bytes"] <= half < large["bytes"]
    assert facts["eight_bits"] == large["eight_bits"][: len(facts["eight_bits"])]
    bits = {key: weight.how.bits for key, weight in between.weights.items()}
    assert {key for key, count in bits.items() if count == 8} == set(facts["eight_bits"])
    values = program("llama").params
    plain = sum(4 * values[key].materialise().numel() for key in values if not values[key].new and key not in bits)
    assert facts["bytes"] == plain + sum(map(weight_bytes, between.weights.values()))


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(size=1000), r"no mix of 4 and 8 bits has 0 MB: with 4 bits everywhere it is 0\.\d MB"),
        (Wish(loss=1e-12), r"perplexity grows by \S+% with all matrices in 8 bits"),
        (Wish(size=10**9, loss=1e-12), r"perplexity grows by \S+% within 1000 MB"),
    ],
)
def test_a_wish_that_cannot_be_met_says_what_comes_nearest(
    wish: Wish, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting._Judged, "loss", lambda *_: 0.01)
    with pytest.raises(UsageError, match=said):
        fit(program("llama"), TOKENS, wish, silent)


def test_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(UsageError, match="tokens to calibrate with") as caught:
        fit(program("llama"), TOKENS[:-1], Wish(), silent)
    assert "fast" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": "120MB"}, "size says how weights in 4 bits are made"),
        ({"precision": "int8", "fast": True}, "fast says how"),
        ({"precision": "int4", "fast": True, "max_loss": "3%"}, "neither a size nor a loss"),
        ({"precision": "int4", "size": "large"}, "cannot read 'large'"),
        ({"precision": "int4", "max_loss": "3MB"}, "cannot read '3MB'"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TARGET.check(Options(**options))


def test_files_have_what_was_fitted(tmp_path: Path) -> None:
    """Of both kinds of products, as ONNX Runtime computes them, against eager steps with the same values."""
    from sleepc.backends.contract import Draft

    step = program("gpt2")
    options = Options(precision="int4", max_loss="90000%")
    tokens = np.resize(TOKENS, TEXT + FEW).tolist()
    lowered = run_stages(step, TARGET.lowering(step, options))
    bounds = {"int4": (9.0, 0.0)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sleepc.backends.onnx.check.quality.BOUNDS", bounds)  # random weights say nothing of quality
        report = TARGET.write(lowered, options, Draft(tmp_path, step, tokens)).report
    assert report["ok"]
    assert (report["fitted"]["four_bits"] > 5, report["fitted"]["eight_bits"]) == (True, [])
    assert TARGET.options_of(TARGET.open(tmp_path)) == {"precision": "int4", "ops": "ort", "ep": "cpu"} | {
        "sleep_ops": "same", "one_token": False, "packed": False, "fast": False, "size": "", "max_loss": "90000%"
    }  # fmt: skip
