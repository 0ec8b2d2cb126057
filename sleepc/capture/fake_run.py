"""A run of a model's own code on fake tensors, which reads no weight and leaves nothing behind in the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

LEAVES = (Tensor, type, ModuleType, FunctionType, MethodType)  # what is not opened in search of what an object holds


def fake_run(model: nn.Module, tokens: Tensor, positions: Tensor, watch: TorchDispatchMode | None = None) -> None:
    """Call model(tokens, positions) on fake tensors, while `watch` sees every operator. Sizes are those of the call.

    Raises what the model's code raises, which may be anything.
    """
    # A value that the code asks for (.item()) becomes a symbol, as in an export.
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)
    with left_alone(model), torch.no_grad(), mode, watch or nullcontext():
        model(mode.from_tensor(tokens), mode.from_tensor(positions))


@contextmanager
def left_alone(model: nn.Module) -> Iterator[None]:
    """Put back, at the end, every attribute of the model and all that its objects, dicts and lists hold.

    Models assign attributes when they are called (a table moved to a device, a cache): what was computed from fake
    tensors may not stay.
    """
    before = [(holder, holder.copy()) for holder in _holders(model)]
    try:
        yield
    finally:
        for holder, held in before:
            holder.clear()
            holder.update(held) if isinstance(holder, dict) else holder.extend(held)


def _holders(root: object) -> list[Any]:
    """The dicts (of attributes, too) and lists that are reached from `root`."""
    found: dict[int, Any] = {}
    stack, seen = [root], set[int]()
    while stack:
        value = stack.pop()
        if id(value) in seen or isinstance(value, LEAVES):
            continue
        seen.add(id(value))
        if isinstance(value, (dict, list)):
            found[id(value)] = value
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
        elif isinstance(getattr(value, "__dict__", None), dict):
            stack.append(vars(value))
    return list(found.values())
