"""Convolutions over tokens that are called as PyTorch's own: while a model is captured, they are convolutions of ours.

A model pads its features on the left, so that a token sees none that come later, and may convolve once or several times
what it has padded once. What the first of these makes of the padding is what the next one sees before the first token:
numbers that are made of weights alone. They are taken off, since ours see zeros there, and what becomes of them is
added again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sleepc.capture.kernel_seam import causal_conv1d_fn
from sleepc.capture.replaced import forward_replaced


@contextmanager
def plain_convolutions(model: nn.Module) -> Iterator[None]:
    """Within it the model convolves like this."""
    forward = model.forward

    @wraps(forward)
    def convolving(*args: Any, **kwargs: Any) -> Any:
        with _Convolving():
            return forward(*args, **kwargs)

    with forward_replaced(model, convolving):
        yield


@dataclass(frozen=True)
class _Padded:
    """x [B,C,T] with `lead` columns before it, of the numbers `before` [C] (None: zeros)."""

    x: Tensor
    lead: int
    before: Tensor | None = None


class _Convolving(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.padded: dict[int, tuple[Tensor, _Padded]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv1d:
            convolved = self._convolved(*args, **kwargs)
            if convolved is not None:
                return convolved
        made = func(*args, **kwargs)
        if func is F.pad:
            self._note_pad(made, *args, **kwargs)
        return made

    def _note_pad(self, made: Tensor, x: Tensor, pad: Sequence[Any], mode: str = "constant", value: Any = None) -> None:
        left, *others = pad
        if x.dim() == 3 and isinstance(left, int) and left > 0 and others == [0] and mode == "constant" and not value:
            self.padded[id(made)] = made, _Padded(x, left)

    def _convolved(  # noqa: PLR0913 (PyTorch calls it with these)
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        """conv1d of what was padded, [B,C,T] behind as many columns as are left; None of anything else."""
        _, padded = self.padded.get(id(x), (x, None))
        left = padded.lead - weight.shape[2] + 1 if padded is not None else -1
        if padded is None or left < 0 or [_only(each) for each in (stride, padding, dilation)] != [1, 0, 1]:
            return None
        y, before = padded.x, bias
        if padded.before is not None:
            y = y - padded.before[:, None]
            of_before = _grouped(padded.before[None, None], weight.sum(2), groups)[0, 0]
            before = of_before if bias is None else of_before + bias
        y = _over_tokens(y, weight, groups)
        y = y if before is None else y + before[:, None]
        if left == 0:
            return y
        start = y.new_zeros(y.shape[1]) if before is None else before
        made = torch.cat([start[None, :, None].expand(y.shape[0], -1, left), y], 2)
        self.padded[id(made)] = made, _Padded(y, left, before)
        return made


def _only(option: Any) -> Any:
    return option[0] if isinstance(option, (tuple, list)) and len(option) == 1 else option


def _over_tokens(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """x [B,C,T], zeros before, weight [C',C/groups,K] -> [B,C',T]."""
    channels, taps = x.shape[1], weight.shape[2]
    if groups == channels == weight.shape[0]:
        return causal_conv1d_fn(x, weight[:, 0])
    parts = []
    for k in range(taps):
        ago = taps - 1 - k
        moved = causal_conv1d_fn(x, F.pad(x.new_ones(channels, 1), (0, ago))) if ago else x
        parts.append(_grouped(moved.transpose(1, 2), weight[:, :, k], groups))
    return torch.stack(parts).sum(0).transpose(1, 2)


def _grouped(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """x [..,T,C], weight [C',C/groups] -> [..,T,C']: each group of channels by itself."""
    matrices = weight.view(groups, -1, weight.shape[1]).transpose(1, 2)
    made: Tensor = x.reshape(*x.shape[:-1], groups, 1, weight.shape[1]) @ matrices
    return made.flatten(-3)
