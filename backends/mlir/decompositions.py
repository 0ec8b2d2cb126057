"""Operators of PyTorch that torch-mlir does not lower, or not rightly, written with others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def solve_triangular(
    matrix: Tensor, right: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """matrix^-1 right, of matrices [.., n, n] with ones in the diagonal, zeros above it, and right [.., n, m].

    The inverse of its diagonal blocks of size s is that of blocks of 2 s by one step of forward substitution,
    D^-1 - D^-1 O D^-1, O being what is below: log2 n steps, each exact, whatever the entries are. (The series of powers
    of I - matrix is not: equal keys give 1e30 at n = 128.)
    """
    assert not upper, "delta rules solve for what is written before"
    assert left, "the unknown stands on the right"
    assert unitriangular, "a token writes all of itself"
    size, place = matrix.shape[-1], torch.arange(matrix.shape[-1], device=matrix.device)
    inverse = torch.eye(size, dtype=matrix.dtype, device=matrix.device).expand(matrix.shape)
    block = 1
    while block < size:
        row, column = (place // block)[:, None], (place // block)[None]
        below = torch.where((row % 2 == 1) & (column == row - 1), matrix, 0.0)
        inverse = inverse - inverse @ below @ inverse
        block *= 2
    return inverse @ right


def stable_sort(
    values: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """(values in order along `dim`, their places), equal ones as they stood: a value's rank is how many come before
    it, which n^2 comparisons count; a NaN is not expected.
    """
    x = values.movedim(dim, -1)
    place = torch.arange(x.shape[-1], device=x.device)
    mine, other = x[..., :, None], x[..., None, :]
    before = (other > mine) if descending else (other < mine)
    earlier = (other == mine) & (place[None] < place[:, None])
    rank = (before | earlier).to(torch.int64).sum(-1)
    # of rank r is the place whose rank it is
    chosen = (rank[..., None, :] == place[:, None]).to(torch.int64)
    order = (chosen * place).sum(-1)
    return x.gather(-1, order).movedim(-1, dim), order.movedim(-1, dim)


def remainder(x: Tensor, by: Tensor | float) -> Any:
    """What is left of x over `by`, with the sign of `by`: torch-mlir's form in stablehlo has that of x. NotImplemented,
    which leaves the operator, for other numbers than whole ones.
    """
    if x.is_floating_point():
        return NotImplemented
    return x - torch.div(x, by, rounding_mode="floor") * by


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.linalg_solve_triangular.default: solve_triangular,
    aten.sort.stable: stable_sort,
    aten.remainder.Scalar: remainder,
    aten.remainder.Tensor: remainder,
}
