"""Rows that are chosen by values, computed and put back: while a model is captured, all rows are computed, and those
that were chosen are put back.

Two ways to write it are known. A mask: `y[mask] = f(x[mask])`. And rows in the order of those who take them, split by
how many each takes: `cat([f(part) for f, part in zip(..., x.split(counts.tolist()))])`. What stands for f may only look
at a row at a time: the functions of ROWWISE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from sleepc.capture.replaced import forward_replaced
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
COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})


class _Opaque:
    """What Python may not look into: no operator is defined."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise _through(name)


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*_: Any) -> Any:
        raise _through(name)

    return refuse


for _name in ("bool", "eq", "getitem", "index", "iter", "len", "lt", "le", "gt", "ge", "ne", "neg", "setitem"):
    setattr(_Opaque, f"__{_name}__", _refusing(_name))
for _name in ("add", "floordiv", "matmul", "mod", "mul", "pow", "sub", "truediv"):
    for _side in ("", "r", "i"):
        setattr(_Opaque, f"__{_side}{_name}__", _refusing(_name))


@dataclass(frozen=True)
class Place:
    """One of the parts that something is split into."""

    of: object
    number: int
    count: int


class Rows(_Opaque):
    """Some of the rows of a tensor [N,..]: all of them, which, bool [N], and by what they were chosen: what a mask is
    made of, or a place among the parts of a split.
    """

    def __init__(self, every: Tensor, chosen: Tensor, origin: tuple[Any, ...] | Place) -> None:
        self.every, self.chosen, self.origin = every, chosen, origin

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Rowwise functions are computed for all rows; what puts parts together takes the rows that were chosen."""
        kwargs = kwargs or {}
        if func is torch.cat:
            return _joined(*args, **kwargs)
        first = args[0] if args else kwargs.get("input")
        given = [x for x in (*args, *kwargs.values()) if x is not first]
        one = isinstance(first, Rows) and first.every.dim() > 1 and not any(isinstance(x, Rows) for x in given)
        if func not in ROWWISE or not one or (func is F.layer_norm and len(given[0]) >= first.every.dim()):
            raise _through(getattr(func, "__name__", str(func)))
        args, kwargs = tree_map_only(Rows, lambda rows: rows.every, (args, kwargs))
        return Rows(func(*args, **kwargs), first.chosen, first.origin)


class Count(_Opaque):
    """A number out of counts [E], which `tolist` of a tensor without values takes one by one."""

    def __init__(self, counts: Tensor, place: Place) -> None:
        self.counts, self.place = counts, place


@contextmanager
def chosen_rows(model: nn.Module) -> Iterator[None]:
    """Within it the model chooses rows like this."""
    forward = model.forward

    @wraps(forward)
    def choosing(*args: Any, **kwargs: Any) -> Any:
        with _Choosing():
            return forward(*args, **kwargs)

    with forward_replaced(model, choosing):
        yield


class _Choosing(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.taken_out: dict[int, tuple[Tensor, Count]] = {}  # numbers of counts
        self.compared: dict[int, tuple[Any, ...]] = {}  # masks: what is compared in them
        self.held: list[Any] = []  # of which ids are kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__getitem__ and _is_mask(args[1]):
            # of what is written later, nothing is in them
            return Rows(args[0].clone(), args[1].clone(), self._made_of(args[1]))
        if func is Tensor.__setitem__ and isinstance(args[2], Rows):
            if not _is_mask(args[1]) or self._made_of(args[1]) != args[2].origin:
                raise _refusal("are put where other rows were chosen,")
            return args[0].copy_(torch.where(_over(args[2].chosen, args[0]), args[2].every, args[0]))
        if func is Tensor.item and id(args[0]) in self.taken_out:
            return self.taken_out[id(args[0])][1]
        if func in (Tensor.split, torch.split) and _counted([*args[1:], *kwargs.values()]):
            return _split(*args, **kwargs)
        made = func(*args, **kwargs)
        if func is Tensor.unbind and args[0].dim() == 1 and not args[0].is_floating_point():
            places = [Place(id(args[0]), i, len(made)) for i in range(len(made))]
            self.taken_out |= {id(x): (x, Count(args[0], place)) for x, place in zip(made, places, strict=True)}
        if getattr(func, "__name__", "").strip("_") in COMPARISONS and _is_mask(made) and not kwargs:
            self.held += [made, *args]
            of = [(id(x), x._version) if isinstance(x, Tensor) else x for x in args]
            self.compared[id(made)] = (func, *of)
        return made

    def _made_of(self, mask: Tensor) -> tuple[Any, ...]:
        """Equal for masks that are the same tensor, or the same comparison, with nothing written to it since."""
        self.held.append(mask)
        return self.compared.get(id(mask), (id(mask),)), mask._version


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() == 1


def _counted(options: list[Any]) -> bool:
    return any(isinstance(size, Count) for sizes in options if isinstance(sizes, (list, tuple)) for size in sizes)


def _split(rows: Tensor, sizes: Any = None, dim: int = 0, **named: Any) -> list[Rows]:
    """The rows [N,..] of each of those who take counts [E] of them, one after the other."""
    sizes = next(iter(named.values())) if sizes is None else sizes
    if dim != 0 or not _in_order([x.place if isinstance(x, Count) else None for x in sizes]):
        raise _refusal("are split otherwise than by all counts in their order,")
    ends = sizes[0].counts.cumsum(0)
    place = rows.new_ones(rows.shape[0], dtype=torch.int64).cumsum(0) - 1  # a range would look like positions
    taker = (place[:, None] >= ends).sum(1)
    split, kept = object(), rows.clone()
    return [Rows(kept, taker == i, Place(split, i, len(sizes))) for i in range(len(sizes))]


def _joined(tensors: Any, dim: int = 0) -> Tensor:
    """The rows [N,..] of all parts of a split, one after the other."""
    parts = list(tensors)
    if dim != 0 or not _in_order([x.origin if isinstance(x, Rows) else None for x in parts]):
        raise _refusal("are joined that are not all parts of one split, in their order,")
    whole = torch.zeros_like(parts[0].every)
    for part in parts:
        whole = torch.where(_over(part.chosen, part.every), part.every, whole)
    return whole


def _in_order(places: list[Any]) -> bool:
    """Are they all places of one thing, one after the other?"""
    first = places[0]
    return isinstance(first, Place) and places == [Place(first.of, i, first.count) for i in range(first.count)]


def _over(chosen: Tensor, rows: Tensor) -> Tensor:
    return chosen.view(-1, *[1] * (rows.dim() - 1))


def _through(name: str) -> Refusal:
    return _refusal(f"go through {name}, which may look at several of them,")


def _refusal(what: str) -> Refusal:
    return Refusal(
        "OPERATOR",
        f"rows that are chosen by values of tokens or weights {what} and shapes may not depend on values",
        fix="sleepc converts models that compute something for each of such rows alone, and put them back.",
    )
