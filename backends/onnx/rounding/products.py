"""A program whose products with its own matrices are watched: what they are multiplied with, and what other matrices in
their place would make of the logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sleepc.backends.contract import Kernels
from sleepc.backends.table import find_trainer
from sleepc.ir.levels import aten
from sleepc.ir.packed import PackedWeight
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, IntArray

PIECE = 64  # tokens that are read at once


class Products:
    """Reads texts with a program at level STEP, in float32."""

    def __init__(self, program: ProgramGraphs) -> None:
        self.values = materialise(program, "cpu")
        own = {key: value for key, value in self.values.items() if value.dim() == 2 and not program.params[key].new}
        self._key = {value.data_ptr(): key for key, value in own.items()}
        self.turned: dict[str, bool] = {}
        """The matrices that were used so far: False if they are [out, in], True if [in, out]."""
        self._wanted: set[str] = set()
        self._moments: dict[str, Tensor] = {}
        self._last: tuple[Tensor, str] | None = None
        self._instead: Mapping[str, PackedWeight] = {}
        replaced: Kernels = {
            aten.linear.default: self._linear,
            aten.addmm.default: self._addmm,
            aten.embedding.default: self._embedding,
        }
        self.steps = find_trainer().steps_on(program, self.values, replaced=replaced)

    def read(self, tokens: IntArray) -> Iterator[FloatArray]:
        """Logits [n, V], piece by piece."""
        session = Session(self.steps)
        for at in range(0, len(tokens), PIECE):
            yield session.feed(tokens[None, at : at + PIECE], logits="all")[0]

    def moments(self, tokens: IntArray, keys: Iterable[str]) -> dict[str, Tensor]:
        """The sum of x xᵀ [in, in] for each of `keys`, x being what it is multiplied with when `tokens` are read.

        Matrices that are multiplied with one value share one tensor. One that is only looked up in has none.
        """
        self._wanted, self._moments, self._last = set(keys), {}, None
        for _ in self.read(tokens):
            pass
        self._wanted, found = set(), self._moments
        return found

    @contextmanager
    def instead(self, weights: Mapping[str, PackedWeight]) -> Iterator[None]:
        """Within it the program has the values of `weights` in place of its own."""
        self._instead = weights
        try:
            yield
        finally:
            self._instead = {}

    def _used(self, weight: Tensor, *, turned: bool) -> tuple[str | None, Tensor]:
        """The key of a matrix, and what stands in its place."""
        key = self._key.get(weight.data_ptr())
        if key is None or self.values[key].shape != weight.shape:
            return None, weight
        self.turned.setdefault(key, turned)
        other = self._instead.get(key)
        if other is None:
            return key, weight
        return key, torch.from_numpy(other.parameter())

    def _note(self, key: str | None, x: Tensor) -> None:
        if key not in self._wanted or key is None:
            return
        if self._last is not None and self._last[0] is x:
            self._moments.setdefault(key, self._moments[self._last[1]])
            return
        rows, width = x.reshape(-1, x.shape[-1]).float(), x.shape[-1]
        self._moments.setdefault(key, torch.zeros(width, width)).addmm_(rows.T, rows)
        self._last = x, key

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        key, weight = self._used(weight, turned=False)
        self._note(key, x)
        return torch.nn.functional.linear(x, weight, bias)

    def _addmm(self, bias: Tensor, x: Tensor, weight: Tensor, **scales: Any) -> Tensor:
        key, weight = self._used(weight, turned=True)
        self._note(key, x)
        return torch.addmm(bias, x, weight, **scales)

    def _embedding(self, table: Tensor, ids: Tensor, *rest: Any) -> Tensor:
        return torch.nn.functional.embedding(ids, self._used(table, turned=False)[1])
