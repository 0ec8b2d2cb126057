"""What slots in few bits hold, in the oracle: vectors rounded as docs/keep.md says, written down once more."""

from __future__ import annotations

import torch
from torch import Tensor

from sleepc.passes.rewrite.rounded import PEAK

GROUPS = {"int8": (32, 127), "int4": (16, 7)}  # the most numbers of a group, and the largest whole number


def rounded(x: Tensor, dtype: str) -> Tensor:
    """x [..,D] as slots of a `keep.dtype` give it back; itself for `float`."""
    return x if dtype == "float" else _parts(x, dtype)[2].to(x.dtype)


def stored(part: str, x: Tensor, dtype: str) -> dict[str, Tensor]:
    """The states that hold x [B,S,D], by part."""
    if dtype == "float":
        return {part: x}
    numbers, peaks, _ = _parts(x, dtype)
    if dtype == "int8":
        return {part: numbers.to(torch.int8), part + PEAK: peaks.to(torch.int16)}
    half = numbers.shape[-1] // 2
    pairs = (numbers[..., :half] + 8) * 16 + numbers[..., half:] + 8
    return {part: pairs.to(torch.uint8), part + PEAK: peaks.to(torch.int16)}


def _parts(x: Tensor, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """Whole numbers [..,G n], peaks in steps of 1/256 of an octave [..,G], and what both say [..,D]."""
    most_in_group, most = GROUPS[dtype]
    width = x.shape[-1]
    count = (width + most_in_group - 1) // most_in_group
    size = (width + count - 1) // count
    if dtype == "int4" and count * size % 2:
        size += 1
    wide = torch.cat([x.double(), x.new_zeros(*x.shape[:-1], count * size - width).double()], -1)
    numbers, peaks, values = [], [], []
    for group in torch.split(wide, size, -1):
        peak = torch.log2(group.abs().max(-1, keepdim=True).values.clamp(min=2.0**-100)).mul(256).round()
        peak = peak.clamp(max=127 * 256)
        step = torch.exp2(peak / 256) / most
        number = (group / step).round().clamp(-most, most)
        numbers.append(number)
        peaks.append(peak)
        values.append(number * step)
    return torch.cat(numbers, -1), torch.cat(peaks, -1), torch.cat(values, -1)[..., :width]
