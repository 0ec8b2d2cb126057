"""Does a model's own code ask how long its call is, as the largest of the positions that it is given?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sleepc.capture.counting import Integers
from sleepc.capture.fake_run import left_alone

LENGTH = 13


class _LengthWatch(Integers):  # type: ignore[no-untyped-call]
    """Follows what is made of the positions, and notes whether the code asks for one such number."""

    def __init__(self, model: nn.Module, positions: Tensor) -> None:
        super().__init__(model)
        self.made, self.asked_length = {id(positions): positions}, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        follows = any(id(x) in self.made for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        if follows and func is torch.ops.aten._local_scalar_dense.default:
            self.asked_length = True
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if follows:
            self.made |= {id(x): x for x in tree_leaves(result) if isinstance(x, Tensor)}
        return result


def asks_for_length(call: nn.Module) -> bool:
    """Does `call(tokens, positions)` ask for a number that is made of the positions, up to its first attention?"""
    tokens = torch.arange(LENGTH)[None]
    positions = torch.arange(LENGTH)[None]
    watch = _LengthWatch(call, positions)
    try:
        with left_alone(call), torch.no_grad(), watch:
            call(tokens, positions)
    except Exception:  # the end of what can be run without features, or the model's own code, which may raise anything
        pass
    return watch.asked_length
