"""Vectors that slots hold in few bits: whole numbers and, for every group of neighbours in a vector, their peak.

x is about n peak / most, n a whole number from -most to most, and peak = 2^(p / 256), p a whole number too: the
largest |x| of the group, rounded. What was rounded once gives the same n and p if it is rounded again, since the
number at the peak has n = most. A vector is rounded by itself, so it does not matter when, and with which others, it is
kept (docs/decisions/0023-rounded-slots.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import fx

from sleepc.ir.states import StateSpec
from sleepc.passes.lib.emit import Emit, aten

PEAK = ".peak"  # ends the part that has the peaks of another
OCTAVE = 256  # steps of a peak from one power of two to the next
LEAST = -100  # a peak is 2^LEAST or more
MOST = 127  # octaves: what 16 bits have room for


@dataclass(frozen=True)
class Form:
    """Numbers of so many `bits`, in groups of at most `group`; those of 4 bits stand two in a byte, and those of the
    first half of a vector are the high ones.
    """

    bits: int
    group: int

    @property
    def most(self) -> int:
        """The largest whole number."""
        return (1 << (self.bits - 1)) - 1

    @property
    def dtype(self) -> torch.dtype:
        """Of what is stored."""
        return torch.int8 if self.bits == 8 else torch.uint8

    def cut(self, width: int) -> tuple[int, int]:
        """How many groups a vector has, and how many numbers each; the last ones may be none of its own."""
        groups = -(-width // self.group)
        size = -(-width // groups)
        odd = self.bits == 4 and groups * size % 2
        return groups, size + 1 if odd else size


FORMS = {"int8": Form(8, 32), "int4": Form(4, 16)}


def form_of(dtype: torch.dtype) -> Form | None:
    """The form of what is stored in a dtype; None if numbers are stored as they are."""
    return next((form for form in FORMS.values() if form.dtype == dtype), None)


def rounded_specs(spec: StateSpec, form: Form | None) -> tuple[StateSpec, ...]:
    """The states that hold vectors like `spec`, ("B", .., D), all 0 at first: `spec` itself without a form."""
    if form is None:
        return (spec,)
    *places, width = spec.dims
    assert isinstance(width, int), spec
    groups, size = form.cut(width)
    stored, none = (groups * size, 0.0) if form.bits == 8 else (groups * size // 2, 8.0 * 17)
    return (
        replace(spec, dims=(*places, stored), dtype=form.dtype, initial=none),
        replace(spec, part=spec.part + PEAK, dims=(*places, groups), dtype=torch.int16, initial=LEAST * OCTAVE),
    )


def read_rounded(e: Emit, stored: fx.Node, peaks: fx.Node, form: Form, width: int, dtype: torch.dtype) -> fx.Node:
    """What is stored of vectors [B,S,width], in `dtype`."""
    groups, size = form.cut(width)
    n = e.cast(stored, dtype)
    if form.bits == 4:
        high = e.call(aten.floor.default, e.mul(n, 1 / 16))
        pair = [high, e.sub(n, e.mul(high, 16))]
        n = e.sub(e.call(aten.cat.default, pair, 2), 8)
    n = e.call(aten.unflatten.int, n, 2, [groups, size])
    x = e.mul(n, e.unsqueeze(e.mul(_peak(e, e.cast(peaks, dtype)), 1 / form.most), -1))
    x = e.call(aten.flatten.using_ints, x, 2, 3)
    return x if groups * size == width else e.call(aten.slice.Tensor, x, 2, 0, width)


def write_rounded(e: Emit, x: fx.Node, form: Form, width: int) -> tuple[fx.Node, fx.Node]:
    """What is stored of vectors x [B,S,width], float32 or wider: whole numbers, and peaks."""
    groups, size = form.cut(width)
    if groups * size > width:
        x = e.call(aten.constant_pad_nd.default, x, [0, groups * size - width], 0.0)
    x = e.call(aten.unflatten.int, x, 2, [groups, size])
    largest = e.call(aten.amax.default, e.call(aten.abs.default, x), [-1], False)
    octaves = e.mul(e.call(aten.log.default, e.call(aten.clamp.default, largest, 2.0**LEAST)), OCTAVE / math.log(2))
    peaks = e.call(aten.clamp.default, e.call(aten.round.default, octaves), LEAST * OCTAVE, MOST * OCTAVE)
    share = e.call(aten.div.Tensor, x, e.unsqueeze(_peak(e, peaks), -1))
    n = e.call(aten.clamp.default, e.call(aten.round.default, e.mul(share, form.most)), -form.most, form.most)
    n = e.call(aten.flatten.using_ints, n, 2, 3)
    if form.bits == 4:
        high, low = (e.call(aten.slice.Tensor, n, 2, at, at + groups * size // 2) for at in (0, groups * size // 2))
        n = e.call(aten.add.Scalar, e.add(e.mul(high, 16), low), 8 * 17)
    return e.cast(n, form.dtype), e.cast(peaks, torch.int16)


def _peak(e: Emit, peaks: fx.Node) -> fx.Node:
    return e.call(aten.exp.default, e.mul(peaks, math.log(2) / OCTAVE))
