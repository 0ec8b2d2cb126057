"""Models with layers that carry a state of their own from token to token: recognised before they are exported.

Those that came through the seam (kernel_seam.py) are known, and counted; all others are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sleepc.capture.fake_run import fake_run
from sleepc.errors import Refusal, SleepcError
from sleepc.ir.levels import aten
from sleepc.ops import RECURRENCES

PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61)
STEPS = 3  # as many single tokens taken out one by one are a loop over tokens
COUNTS = 2  # dimensions: of a running sum that counts tokens, [B,T], for positions or ALiBi; a state has channels too
RUNNING = (aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default)


class _Found(Exception):
    """Ends the run as soon as a sign was seen."""


class _RecurrenceWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Looks for a convolution over tokens, a running sum or product, keys times values, and a loop over tokens."""

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = length
        self.taken: set[int] = set()
        self.known = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.known += func in RECURRENCES
        if func is aten.convolution.default and _over_tokens(args[0], args[1], self.length):
            raise _Found("a convolution over tokens")
        if func in RUNNING and args[0].is_floating_point() and args[0].dim() > COUNTS:
            raise _Found("a running sum or product")
        if func is aten.bmm.default and _sums_over_tokens(args[0], args[1], self.length):
            raise _Found("a sum of keys times values")
        if func is aten.select.int and _takes_a_token(args[0], args[1], self.length):
            self.taken.add(args[2])
            if len(self.taken) >= STEPS:
                raise _Found("a loop over tokens")
        return func(*args, **(kwargs or {}))


def _over_tokens(x: Tensor, weight: Tensor, length: int) -> bool:
    """Is it a convolution of features [B,C,T], padded or not, with more than one tap?"""
    taps = weight.shape[-1]
    return weight.dim() == 3 and taps > 1 and length <= x.shape[-1] <= length + 2 * taps


def _sums_over_tokens(a: Tensor, b: Tensor, length: int) -> bool:
    """[..,D,T] times [..,T,D]: every token's is added to one matrix (softmax attention has [..,T,T] times [..,T,D])."""
    return b.shape[-2] == length and a.shape[-2] != length and b.shape[-1] != length


def _takes_a_token(x: Tensor, dim: int, length: int) -> bool:
    return x.is_floating_point() and x.dim() > 1 and x.shape[dim] == length


def refuse_recurrence(model: nn.Module, device: torch.device) -> int | None:
    """Run the model once on fake tensors (no weight is read): how many RECURRENCES ran. Raises Refusal(RECURRENT) if a
    layer shows a sign of a recurrence that none of them is.

    None if the model's code cannot be run like this: whoever exports it has the error to report, or a graph to
    look at instead.
    """
    length = _length(model)
    tokens = torch.zeros(2, length, dtype=torch.int64, device=device)
    positions = torch.arange(length, device=device).expand(2, length)
    watch = _RecurrenceWatch(length)
    try:
        fake_run(model, tokens, positions, watch)
    except _Found as sign:
        raise Refusal(
            "RECURRENT",
            f"a layer is recurrent: it carries state from token to token ({sign})",
            fix="sleepc converts recurrent layers that call transformers' kernel functions, whose rules it knows.",
        ) from None
    except SleepcError:  # attention is called in a way that sleepc does not know: no export would help
        raise
    except Exception:  # the model's own code, which may raise anything
        return None
    return watch.known


def _length(model: nn.Module) -> int:
    """A number of tokens that no size of the model can be mistaken for: a prime that divides none of them."""
    sizes = {size for p in (*model.parameters(), *model.buffers()) for size in p.shape}
    return next((prime for prime in PRIMES if all(size % prime for size in sizes)), PRIMES[-1])
