"""What a program keeps from call to call: tensors with a role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sleepc.ir.roles import Role, Update, name_of
from sleepc.ir.types import TensorType


@dataclass(frozen=True)
class StateSpec:
    """One tensor of the state: what it is (`part`) of its role; `dims` starts with "B". All of it is `initial` at
    first. `update` is how it may be written in place, or "read" if it is an earlier block's (`Block.ring` says whose),
    as it was before the call. `block`: whose it is, if that is known.
    """

    role: Role
    part: str
    dims: tuple[int | str, ...]
    dtype: torch.dtype
    update: Update
    initial: float = 0.0
    block: int | None = None

    @property
    def name(self) -> str:
        """Its name for people, ports and files: "k", "record.beta", and of block 3 "3.k"."""
        local = name_of(self.role, self.part)
        return local if self.block is None else f"{self.block}.{local}"

    def type(self) -> TensorType:
        """The type of the state's port."""
        return TensorType(self.dtype, self.dims)

    def first(self, batch: int, device: str | torch.device = "cpu") -> torch.Tensor:
        """Its value [B,..] for rows that have read nothing."""
        sizes = [int(dim) for dim in self.dims[1:]]
        return torch.full((batch, *sizes), self.initial, dtype=self.dtype, device=device)

    def bytes_per_row(self) -> int:
        """Bytes of one sequence's part of this tensor."""
        size = self.dtype.itemsize
        for dim in self.dims[1:]:
            assert isinstance(dim, int), self
            size *= dim
        return size


def find_state(specs: Iterable[StateSpec], role: Role, part: str) -> StateSpec | None:
    """The state that is this part of this role, None if there is none."""
    return next((spec for spec in specs if (spec.role, spec.part) == (role, part)), None)


def with_own(specs: Iterable[StateSpec]) -> list[StateSpec]:
    """Those that are a block's own, in order: it does not only read them."""
    return [spec for spec in specs if spec.update != "read"]


def with_role(specs: Iterable[StateSpec], *roles: Role) -> list[StateSpec]:
    """The states of these roles, in order."""
    return [spec for spec in specs if spec.role in roles]
