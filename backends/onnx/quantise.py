"""Weights of linear maps in blocks of 32 along the input, by ONNX Runtime's own quantiser, one tensor at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 32
Packed = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]


def quantise(weight: npt.NDArray[np.float32], bits: int) -> tuple[Packed, Scales]:
    """weight [out, in] -> (packed [out, blocks, 32 * bits / 8], scales [out, blocks]); symmetric, as MatMulNBits and
    GatherBlockQuantized read them: value = (packed - 2^(bits-1)) * scale. Inputs are filled up to whole blocks.
    """
    from onnxruntime.capi import _pybind_state as runtime

    out, width = weight.shape
    blocks = -(-width // BLOCK)
    packed = np.zeros((out, blocks, BLOCK * bits // 8), np.uint8)
    scales = np.zeros((out, blocks), np.float32)
    zero_points = np.zeros((out, -(-blocks * bits // 8)), np.uint8)
    run: Any = runtime.quantize_matmul_4bits if bits == 4 else runtime.quantize_matmul_8bits
    run(packed, np.ascontiguousarray(weight.T), scales, zero_points, BLOCK, out, width, True)
    return packed, scales


def dequantise(packed: Packed, scales: Scales, bits: int, width: int) -> npt.NDArray[np.float32]:
    """The weight [out, width] that kernels compute with."""
    numbers = packed.astype(np.int16)
    if bits == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], -1).reshape(*packed.shape[:2], BLOCK)
    values = (numbers - 2 ** (bits - 1)) * scales[..., None]
    found: npt.NDArray[np.float32] = values.reshape(len(packed), -1)[:, :width].astype(np.float32)
    return found
