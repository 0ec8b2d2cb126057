"""Quantised tensors of a GGUF file as packed weights: the same numbers and scales, in the order that kernels read.

Kinds and layouts are those of llama.cpp's ggml-quants.c. Kinds whose values are no whole numbers times a scale for 16
or 32 of them, or whose scales are no half floats, have no packed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sleepc.ir.packed import PackedWeight, Packing

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
Parts = dict[str, Array]
# The 16 values of IQ4_NL and IQ4_XS (kvalues_iq4nl).
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)
SUPER = 256  # numbers of a block of the K kinds


def packed(kind: str, rows: Bytes) -> PackedWeight | None:
    """The rows [out, bytes] of a tensor of a kind ("Q4_K"); None if the kind has no packed form."""
    if kind not in KINDS:
        return None
    how, size, read = KINDS[kind]
    parts = read(rows.reshape(-1, size))
    numbers = parts["numbers"].reshape(len(rows), -1)
    if how.bits == 4:
        numbers = numbers[:, ::2] | numbers[:, 1::2] << 4
    rest = {name: part.reshape(len(rows), -1) for name, part in parts.items() if name != "numbers"}
    return PackedWeight.of(how, {"numbers": np.ascontiguousarray(numbers, np.uint8), **rest})


def _half(blocks: Bytes, at: int) -> Array:
    """The float16 at a byte of every block, [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _nibbles(codes: Bytes, run: int) -> Array:
    """Bytes whose lower halves are the first half of a run of numbers, and the upper ones the rest: [n, 2 * bytes]."""
    halves = codes.reshape(len(codes), -1, run // 2)
    return np.concatenate([halves & 15, halves >> 4], -1).reshape(len(codes), -1)


def _fifth_bits(words: Bytes) -> Array:
    """A bit for each of 32 numbers, as 16 or 0: [n, 4] -> [n, 32]."""
    return np.unpackbits(words, axis=-1, bitorder="little") << 4


def _q4_0(blocks: Bytes) -> Parts:
    return {"scales": _half(blocks, 0), "numbers": _nibbles(blocks[:, 2:], 32)}


def _q4_1(blocks: Bytes) -> Parts:
    return {"scales": _half(blocks, 0), "lows": _half(blocks, 2), "numbers": _nibbles(blocks[:, 4:], 32)}


def _q5_0(blocks: Bytes) -> Parts:
    numbers = _nibbles(blocks[:, 6:], 32) | _fifth_bits(np.ascontiguousarray(blocks[:, 2:6]))
    return {"scales": _half(blocks, 0), "numbers": numbers + 112}


def _q5_1(blocks: Bytes) -> Parts:
    return {"lows": _half(blocks, 2), **_q5_0(np.delete(blocks, (2, 3), axis=1))}


def _q8_0(blocks: Bytes) -> Parts:
    return {"scales": _half(blocks, 0), "numbers": blocks[:, 2:] ^ 128}  # of a signed byte that is 128 more


def _q2_k(blocks: Bytes) -> Parts:
    steps, codes = blocks[:, :16], blocks[:, 16:80]
    numbers = codes.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return {
        "scales": _half(blocks, 80),
        "steps": (steps & 15).astype(np.int8),
        "lows": -_half(blocks, 82),
        "low_steps": steps >> 4,
        "numbers": numbers.reshape(-1, SUPER) + 6,
    }


def _q3_k(blocks: Bytes) -> Parts:
    mask, codes, steps = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    low = codes.reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    high = mask[:, None] >> np.arange(8, dtype=np.uint8)[:, None] & 1  # a bit that is not set takes 4 away
    numbers = low.reshape(-1, SUPER) + 4 * high.reshape(-1, SUPER) + 4
    four = np.concatenate([steps[:, :8] & 15, steps[:, :8] >> 4], -1)
    two = steps[:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return {
        "scales": _half(blocks, 108),
        "steps": ((four | two.reshape(-1, 16) << 4).astype(np.int8) - 32).astype(np.int8),
        "numbers": numbers,
    }


def _scales_of_k(blocks: Bytes) -> Parts:
    """Of Q4_K and Q5_K: 6 bits for a step and 6 for a step of the minimum, which is taken away, of 8 groups."""
    a, b, rest = (blocks[:, at : at + 4] for at in (4, 8, 12))
    steps = np.concatenate([a & 63, rest & 15 | a >> 2 & 48], -1)
    return {
        "scales": _half(blocks, 0),
        "steps": steps.astype(np.int8),
        "lows": -_half(blocks, 2),
        "low_steps": np.concatenate([b & 63, rest >> 4 | b >> 2 & 48], -1),
    }


def _q4_k(blocks: Bytes) -> Parts:
    return {**_scales_of_k(blocks), "numbers": _nibbles(blocks[:, 16:], 64)}


def _q5_k(blocks: Bytes) -> Parts:
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    numbers = _nibbles(blocks[:, 48:], 64) | fifth.reshape(-1, SUPER) << 4
    return {**_scales_of_k(blocks), "numbers": numbers + 112}


def _q6_k(blocks: Bytes) -> Parts:
    low = _nibbles(blocks[:, :128], 128)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    return {
        "scales": _half(blocks, 208),
        "steps": np.ascontiguousarray(blocks[:, 192:208]).view(np.int8),
        "numbers": (low | high.reshape(-1, SUPER) << 4) + 96,
    }


def _iq4_nl(blocks: Bytes) -> Parts:
    return {"scales": _half(blocks, 0), "numbers": (LEVELS + 128)[_nibbles(blocks[:, 2:], 32)]}


def _iq4_xs(blocks: Bytes) -> Parts:
    high = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    four = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], -1).reshape(-1, 8)
    steps = (four | high.astype(np.uint8) << 4).astype(np.int8) - 32
    numbers = (LEVELS + 128)[_nibbles(blocks[:, 8:], 32)]
    return {"scales": _half(blocks, 0), "steps": steps.astype(np.int8), "numbers": numbers}


# How it is packed, the bytes of a block, and how one is read. Numbers without a sign are read as if half of their range
# were taken away, and `raised` by that again: what rounding activations costs grows with the numbers.
KINDS: dict[str, tuple[Packing, int, Callable[[Bytes], Parts]]] = {
    how.kind: (how, size, read)
    for how, size, read in (
        (Packing("Q4_0", 4, 32), 18, _q4_0),
        (Packing("Q4_1", 4, 32, raised=8), 20, _q4_1),
        (Packing("Q5_0", 8, 32), 22, _q5_0),
        (Packing("Q5_1", 8, 32, raised=16), 24, _q5_1),
        (Packing("Q8_0", 8, 32), 34, _q8_0),
        (Packing("Q2_K", 4, 16, raised=2), 84, _q2_k),
        (Packing("Q3_K", 4, 16), 110, _q3_k),
        (Packing("Q4_K", 4, 32, raised=8), 144, _q4_k),
        (Packing("Q5_K", 8, 32, raised=16), 176, _q5_k),
        (Packing("Q6_K", 8, 16), 210, _q6_k),
        (Packing("IQ4_NL", 8, 32), 18, _iq4_nl),
        (Packing("IQ4_XS", 8, 32), 136, _iq4_xs),
    )
}
