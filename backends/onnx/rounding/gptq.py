"""Matrices in whole numbers: of 4 bits so that what they are multiplied with has nearly the same product, of 8 as near
as they can be.

GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, and those that follow take up what it
does to the product. With H = E[x xᵀ] and H⁻¹ = UᵀU, U an upper triangle, a column j that becomes q_j changes others by

    w_k -= (w_j - q_j) / U_jj * U_jk    for k > j.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sleepc.ir.packed import PackedWeight, Packing

GROUP = 32  # numbers with one scale
DAMPING = 0.01  # of the mean of H's diagonal: directions that the text did not have
SHRUNK = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72]  # scales that are tried, as shares of the largest one
KINDS = {4: "GPTQ", 8: "rounded"}


def triangle(moments: Tensor) -> Tensor:
    """The sum of x xᵀ [in, in] over what matrices are multiplied with, in any scale -> U [in, in] of H⁻¹ = UᵀU, from H
    damped.
    """
    h = moments.double()
    h.diagonal().add_(DAMPING * (float(h.diagonal().mean()) or 1.0))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()


def gptq(weight: Tensor, upper: Tensor, *, turned: bool = False) -> PackedWeight:
    """weight [out, in], in a multiple of GROUP, and the triangle U of what it is multiplied with -> numbers of 4 bits,
    -8 to 7 times a scale for each group.
    """
    left = weight.detach().float().T.contiguous().clone()  # a column is contiguous
    numbers, scales = torch.empty_like(left), []
    for at in range(0, len(left), GROUP):
        group = left[at : at + GROUP]
        block = upper[at : at + GROUP, at : at + GROUP]
        scale = _scale(group, block.diagonal())
        scales.append(scale)
        lost = torch.empty_like(group)
        for j in range(GROUP):
            numbers[at + j] = _nearest(group[j], scale)
            lost[j] = (group[j] - numbers[at + j] * scale) / block[j, j]
            group[j:] -= block[j, j:, None] * lost[j]
        left[at + GROUP :] -= upper[at : at + GROUP, at + GROUP :].T @ lost
    return _packed(numbers.T, torch.stack(scales, 1), 4, turned)


def rounded(weight: Tensor, *, turned: bool = False) -> PackedWeight:
    """weight [out, in] in numbers of 8 bits, -127 to 127 times a scale for each group."""
    groups = weight.detach().float().reshape(len(weight), -1, GROUP)
    scale = _stored(groups.abs().amax(-1) / 127)
    numbers = torch.where(scale[..., None] > 0, (groups / scale[..., None]).round().clamp(-127, 127), 0)
    return _packed(numbers.flatten(1), scale, 8, turned)


def _scale(group: Tensor, diagonal: Tensor) -> Tensor:
    """group [n, out] -> scales [out]: with the largest value at the end of the range that has one number more, or
    shrunk, whichever changes the product least.
    """
    largest = group.gather(0, group.abs().argmax(0, keepdim=True))[0]
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for share in SHRUNK:
        scale = _stored(largest * share / -8)
        cost = ((group - _nearest(group, scale) * scale) / diagonal[:, None]).square().sum(0)
        best, least = torch.where(cost < least, scale, best), torch.minimum(cost, least)
    return best


def _nearest(values: Tensor, scale: Tensor) -> Tensor:
    return torch.where(scale != 0, (values / scale).round().clamp(-8, 7), 0)


def _stored(scale: Tensor) -> Tensor:
    """As a file has it."""
    return scale.half().float()


def _packed(numbers: Tensor, scales: Tensor, bits: int, turned: bool) -> PackedWeight:
    raised = (numbers + 2 ** (bits - 1)).to(torch.uint8).numpy()
    if bits == 4:
        raised = raised[:, ::2] | raised[:, 1::2] << 4
    how = Packing(KINDS[bits], bits, GROUP, turned=turned)
    return PackedWeight.of(how, {"numbers": np.ascontiguousarray(raised), "scales": scales.half().numpy()})
