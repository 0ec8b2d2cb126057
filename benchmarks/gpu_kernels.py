"""Kernels of the memory on a GPU beside flash-linear-attention's and PyTorch's, with what the card can do at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from parts import Case, milliseconds
from torch import Tensor

from sleepc.ops import functional

RULE: dict[str, Any] = {"rule": "gated_delta", "scale": 1.0}
CHUNK = 64
SHAPES = [(1, 32768, 16, 64), (1, 32768, 16, 128), (4, 32768, 32, 64), (4, 32768, 32, 128)]
STEPS = [(64, 1, 32, 64), (256, 1, 32, 128)]
WINDOWS = [(16, 256, 16, 64), (16, 256, 16, 128)]


def reasons(device: str) -> dict[str, str]:
    """Systems that cannot be measured here, and why."""
    found = {}
    if not find_spec("triton"):
        found["sleepc"] = "Triton is not installed: pip install 'sleepc[triton]'"
    if device == "cpu":
        found["fla"] = "flash-linear-attention runs on a GPU"
    elif not find_spec("fla"):
        found["fla"] = "flash-linear-attention is not installed: pip install flash-linear-attention"
    return found


def cases(device: str, smoke: bool) -> Iterator[Case]:
    """All measurements: B, T, H and d by kernel and system."""
    low = torch.float32 if device == "cpu" else torch.bfloat16
    tiny, without = [(1, 20, 1, 16)], reasons(device)
    yield {"kernel": "copy", "system": "torch"}, lambda: _copy(device, 20 if smoke else 30)
    yield {"kernel": "matmul", "system": "torch"}, lambda: _matmul(device, 64 if smoke else 8192, low)
    for kernel, shapes in (("chunk", SHAPES), ("chunk, both ways", SHAPES), ("step", STEPS)):
        for shape in tiny if smoke else shapes:
            shape = (*shape[:1], 1, *shape[2:]) if kernel == "step" else shape
            for system, run in SYSTEMS.items():
                if system not in without and (system != "torch" or kernel == "step" or shape[1] < 1000):
                    yield _case(kernel, system, run, shape, device, low)
    for shape in tiny if smoke else WINDOWS:
        for passes in (1, 2) if smoke else (1, 2, 4, 8):
            if "sleepc" not in without:
                yield _replayed(shape, passes, device, low)


def _case(kernel: str, system: str, run: Callable[..., Any], shape: tuple[int, ...], device: str, low: Any) -> Case:
    rows, tokens, heads, size = shape
    key = {"kernel": kernel, "system": system, "rows": rows, "tokens": tokens, "heads": heads, "head": size}

    def measure() -> Row:
        given = inputs(shape, device, low)
        if kernel == "chunk, both ways":
            given = [x.requires_grad_() for x in given]
            found = milliseconds(lambda: torch.autograd.grad(_total(run(*given)), given), 1 if device == "cpu" else 10)
        else:
            with torch.no_grad():
                found = milliseconds(lambda: run(*given), 1 if device == "cpu" else 10)
        return {"ms": found, **_limits(shape, found, low, both=kernel == "chunk, both ways")}

    return key, measure


Row = dict[str, Any]


def _total(results: Any) -> Tensor:
    total: Tensor = sum(x.float().sum() for x in results)  # type: ignore[assignment]
    return total


def inputs(shape: tuple[int, ...], device: str, low: torch.dtype) -> list[Tensor]:
    """q, k, v, g, beta and a state: unit keys, half-lives near 1,000 tokens."""
    rows, tokens, heads, size = shape
    made = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(rows, heads, tokens, size, generator=made, device=device) for _ in range(3))
    beta = torch.rand(rows, heads, tokens, generator=made, device=device)
    state = torch.zeros(rows, heads, size, size, device=device)
    return [functional.l2norm(q).to(low), functional.l2norm(k).to(low), v.to(low), -beta / 1000, beta, state]


def _sleepc(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Any:
    from sleepc.backends.triton.delta_rule import delta_rule

    return delta_rule(q, k, v, g, beta, [state], **RULE, chunk=CHUNK)


def _torch(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Any:
    return functional.delta_rule(q, k, v, g, beta, [state], **RULE, chunk=CHUNK)


def _fla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Any:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    q, k, v, g, beta = (x.transpose(1, 2) for x in (q, k, v, g, beta))  # [B, T, H, ..]
    run = fused_recurrent_gated_delta_rule if q.shape[1] == 1 else chunk_gated_delta_rule
    return run(q, k, v, g, beta, scale=1.0, initial_state=state, output_final_state=True)


SYSTEMS: dict[str, Callable[..., Any]] = {"sleepc": _sleepc, "fla": _fla, "torch": _torch}


def _replayed(shape: tuple[int, ...], passes: int, device: str, low: torch.dtype) -> Case:
    rows, tokens, heads, size = shape
    key = {"kernel": "replay", "system": "sleepc", "rows": rows, "tokens": tokens, "heads": heads, "head": size}

    def measure() -> Row:
        from sleepc.backends.triton.delta_rule import replay

        _, k, v, g, beta, state = inputs(shape, device, low)
        options: dict[str, Any] = {"rule": RULE["rule"], "passes": passes, "written": False}
        with torch.no_grad():
            return {"ms": milliseconds(lambda: replay(k, v, g, beta, [state], **options), 1 if device == "cpu" else 10)}

    return {**key, "passes": passes}, measure


def _copy(device: str, power: int) -> Row:
    """Bytes per second of a copy, read and written: what no kernel is faster than."""
    x = torch.empty(1 << power, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return {"gb_per_s": 2 * x.numel() / milliseconds(lambda: y.copy_(x)) / 1e6}


def _matmul(device: str, size: int, low: torch.dtype) -> Row:
    """Operations per second of a large product."""
    x = torch.randn(size, size, device=device).to(low)
    return {"tflop_per_s": 2 * size**3 / milliseconds(lambda: x @ x) / 1e9}


def _limits(shape: tuple[int, ...], ms: float, low: torch.dtype, *, both: bool) -> Row:
    """Bytes that have to move, and operations of the products by chunks, per second: to compare with `copy`, `matmul`.
    Both ways is taken as three times as much.
    """
    rows, tokens, heads, size = shape
    moved = rows * heads * (4 * tokens * size * low.itemsize + 8 * tokens + 8 * size * size)
    chunk = min(CHUNK, tokens)
    flops = rows * heads * tokens * (10 * chunk * size + 6 * size * size)
    more = 3 if both else 1
    return {"gb_per_s": more * moved / ms / 1e6, "tflop_per_s": more * flops / ms / 1e9}
