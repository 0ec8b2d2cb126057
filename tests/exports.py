"""torch.export of a model that this process has exported before: made once, with the weights of each that asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

KEPT = 64
PLAIN = (bool, int, float, str, tuple, list, torch.dtype, FunctionType, type(None))


@dataclass
class Kept:
    """An exported program, what its model was, and the same taken apart, if that was asked for."""

    made: ExportedProgram
    parts: object  # kept, so that no other has the address of one
    decomposed: ExportedProgram | None = None


class Again:
    """An exported program with the tensors of another model that is exported to the same."""

    def __init__(self, kept: Kept, made: ExportedProgram, model: nn.Module) -> None:
        self.kept, self.made, self.model = kept, made, model
        self.state_dict = model.state_dict(keep_vars=True)
        own = dict(model.named_buffers(remove_duplicate=False))
        self.constants = {name: own.get(name, value) for name, value in made.constants.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made, name)

    def run_decompositions(self, table: dict[Any, Any]) -> Again:
        """The same of the program that is made of it."""
        assert not table, "operators stay what they are"
        self.kept.decomposed = self.kept.decomposed or self.made.run_decompositions(table)
        return Again(self.kept, self.kept.decomposed, self.model)


def once(export: Callable[..., ExportedProgram]) -> Callable[..., Any]:
    """`export`, but for what equals a model that it was given before, it returns what it made of that."""
    known: dict[str, Kept] = {}

    def exported(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        parts = parts_of(model)
        if parts is None:
            return export(model, *args, **kwargs)
        key = repr((parts, torch.get_default_dtype()))
        kept = known.get(key) or Kept(export(model, *args, **kwargs), parts)
        if len(known) < KEPT:
            known[key] = kept
        return Again(kept, kept.made, model)

    return exported


def parts_of(model: nn.Module) -> object:
    """All that the code of a model finds in it but its tensors' values; None if its code is not transformers' own."""
    modules = dict(model.named_modules(remove_duplicate=False))
    inner = [each for name, each in modules.items() if name]
    config = getattr(inner[0], "config", None)
    if config is None or any(each._forward_hooks or each._forward_pre_hooks for each in inner):
        return None
    if any(type(each).__module__.partition(".")[0] not in ("torch", "transformers") for each in inner):
        return None
    fields = json.dumps(config.to_dict(), default=str, sort_keys=True), sorted(map(str, vars(config).items()))
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first = {id(x): name for name, x in reversed(tensors)}
    return (
        fields,
        [(name, type(each), type(each).forward, plain_of(each)) for name, each in modules.items()],
        [(name, first[id(x)], x.dtype, x.device, tuple(x.shape), x.stride()) for name, x in tensors],
    )


def plain_of(module: nn.Module) -> list[tuple[str, Any]]:
    """A module's attributes that are values or functions."""
    return sorted((name, known_by(value)) for name, value in vars(module).items() if isinstance(value, PLAIN))


def known_by(value: Any) -> Any:
    """What a value is, in all modules that have it: capturing puts new functions around each module's own forward."""
    if isinstance(value, FunctionType) and str(value.__globals__["__name__"]).startswith("sleepc.capture."):
        inner = getattr(value, "__wrapped__", None)
        return value.__code__, known_by(getattr(inner, "__func__", inner))
    return value
