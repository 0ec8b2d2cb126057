"""Rows that are chosen by values, computed and put back: while a model is captured, all rows are computed, and those
that were chosen are put back.

Two ways to write it are known. A mask: `y[mask] = f(x[mask])`. And rows in the order of those who take them, split by
how many each takes: `cat([f(part) for f, part in zip(..., x.split(counts.tolist()))])`. What stands for f may only look
at a row at a time: the functions of ROWWISE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from sleepc.errors import Refusal

_ROWWISE: tuple[Callable[..., Any], ...] = (
    F.linear,
    F.layer_norm,
    F.dropout,
    F.gelu,
    F.relu,
    F.silu,
    torch.tanh,
    F.tanh,
)
ROWWISE = frozenset(_ROWWISE)


class Rows:
    """Some of the rows of a tensor [N,..]: all of them, and which, bool [N]."""

    def __init__(self, every: Tensor, chosen: Tensor) -> None:
        self.every, self.chosen = every, chosen

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise _refusal(f"go through {name}, which may look at several of them,")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Rowwise functions are computed for all rows; what puts parts together takes the rows that were chosen."""
        kwargs = kwargs or {}
        if func is torch.cat:
            return _joined(args[0])
        first = args[0]
        if func not in ROWWISE or not isinstance(first, Rows):
            raise _refusal(f"go through {getattr(func, '__name__', func)}, which may look at several of them,")
        return Rows(func(*tree_map_only(Rows, lambda rows: rows.every, args), **kwargs), first.chosen)


class Count:
    """A number out of counts [E], which `tolist` of a tensor without values takes one by one."""

    def __init__(self, counts: Tensor) -> None:
        self.counts = counts

    def __index__(self) -> int:
        raise _refusal("are counted, and the count is a number for Python,")


@contextmanager
def chosen_rows(model: nn.Module) -> Iterator[None]:
    """Within it the model chooses rows like this."""
    forward = model.forward

    @wraps(forward)
    def choosing(*args: Any, **kwargs: Any) -> Any:
        with _Choosing():
            return forward(*args, **kwargs)

    model.forward = choosing
    try:
        yield
    finally:
        del model.forward


class _Choosing(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.taken_out: dict[int, tuple[Tensor, Tensor]] = {}  # numbers of counts, and those

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__getitem__ and _is_mask(args[1]):
            return Rows(args[0], args[1])
        if func is Tensor.__setitem__ and isinstance(args[2], Rows):
            return args[0].copy_(torch.where(_over(args[2].chosen, args[0]), args[2].every, args[0]))
        if func is Tensor.item and id(args[0]) in self.taken_out:
            return Count(self.taken_out[id(args[0])][1])
        if func in (Tensor.split, torch.split) and _counted(args[1]):
            return _split(args[0], args[1][0].counts)
        made = func(*args, **kwargs)
        if func is Tensor.unbind and args[0].dim() == 1 and not args[0].is_floating_point():
            self.taken_out |= {id(part): (part, args[0]) for part in made}
        return made


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() == 1


def _counted(sizes: Any) -> bool:
    return isinstance(sizes, list) and any(isinstance(size, Count) for size in sizes)


def _split(rows: Tensor, counts: Tensor) -> list[Rows]:
    """The rows [N,..] of each of those who take counts [E] of them, one after the other."""
    ends = counts.cumsum(0)
    place = rows.new_ones(rows.shape[0], dtype=torch.int64).cumsum(0) - 1  # a range would look like positions
    taker = (place[:, None] >= ends).sum(1)
    return [Rows(rows, taker == i) for i in range(counts.shape[0])]


def _joined(parts: list[Rows]) -> Tensor:
    whole = torch.zeros_like(parts[0].every)
    for part in parts:
        whole = torch.where(_over(part.chosen, part.every), part.every, whole)
    return whole


def _over(chosen: Tensor, rows: Tensor) -> Tensor:
    return chosen.view(-1, *[1] * (rows.dim() - 1))


def _refusal(what: str) -> Refusal:
    return Refusal(
        "OPERATOR",
        f"rows that are chosen by values of tokens or weights {what} and shapes may not depend on values",
        fix="sleepc converts models that compute something for each of such rows alone, and put them back.",
    )
