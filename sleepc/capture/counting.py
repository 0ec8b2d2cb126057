"""Where a model starts to count positions when it is given none: at 0, or behind the number of its padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sleepc.capture.fake_run import left_alone
from sleepc.errors import Refusal
from sleepc.ir.levels import aten, mutates

ROWS, LENGTH = 8, 13
TABLES = {aten.embedding.default: 1, aten.index_select.default: 2}  # where their index stands among the arguments
ATTENTION = ("softmax", "scaled_dot_product", "sleepc::attention")


class _Stop(Exception):
    """Ends the run: positions were looked up before attention, or are not to be seen."""


class Integers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes what is made of integers, and of everything else only the shape; notes what tables are asked for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = {id(x) for x in (*model.parameters(), *model.buffers())}
        self.asked: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if any(name in func.name() for name in ATTENTION) or (mutates(func) and id(args[0]) in self.held):
            raise _Stop
        if func in TABLES:
            table, index = args[0], args[TABLES[func]]
            if id(table) in self.held and not index.is_meta:
                self.asked[id(table)] = index
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        shapes_only = any(x.is_meta or not _counts(x) for x in tensors)
        if shapes_only:
            args, kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
        if kwargs.get("device") is not None:  # what is made where the features are is made here instead, to be read
            kwargs["device"] = torch.device("meta" if shapes_only else "cpu")
        return func(*args, **kwargs)


def _counts(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex())


def counting_start(call: nn.Module) -> int:
    """The number that the model gives to the first of its tokens when `call(tokens, None)` leaves it to count, minus
    the one that it takes from `call(tokens, positions)`. No weight is read: up to the first attention, integers are
    computed and features are shapes.

    0 also if the model's code cannot be run like this; `sleepc verify` compares with the model's own counting.
    Raises Refusal(POSITIONS) if it does not count on by one.
    """
    tokens = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)
    positions = torch.arange(LENGTH).expand(ROWS, LENGTH)
    given, own = _asked(call, tokens, positions), _asked(call, tokens, None)
    starts: set[int] = set()
    for table in given.keys() & own.keys():
        a, b = given[table], own[table]
        if a.shape[-1:] == b.shape[-1:] == (LENGTH,):
            starts.add(_start(b.reshape(-1, LENGTH) - a.reshape(-1, LENGTH)))
    starts.discard(0)
    if len(starts) > 1:
        raise _refusal()
    return starts.pop() if starts else 0


def _start(differences: Tensor) -> int:
    """What all rows [B,T] differ by, but for the one that may hold the token of padding, which is not counted."""
    rows = [row.unique().tolist() for row in differences]
    starts = [row[0] for row in rows if len(row) == 1]
    if len(starts) < len(rows) - 1 or len(set(starts)) != 1:
        raise _refusal()
    return int(starts[0])


def _asked(call: nn.Module, tokens: Tensor, positions: Tensor | None) -> dict[int, Tensor]:
    watch = Integers(call)
    try:
        with left_alone(call), torch.no_grad(), watch:
            call(tokens, positions)
    except Exception:  # _Stop, or the model's own code, which may raise anything: what was seen before is what is known
        pass
    return watch.asked


def _refusal() -> Refusal:
    return Refusal(
        "POSITIONS",
        "without given positions the model does not count its tokens one by one",
        fix="sleepc numbers tokens in the order in which they are read.",
    )
