"""Do the tensors of a checkpoint fit the class that is to have them? Matched by transformers' own loading, on shapes
alone, before anything is read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sleepc.errors import SleepcWarning, UsageError
from sleepc.hf.computed import computed, end
from sleepc.hf.misfit import Misfit, misfit_error, odd_ones
from sleepc.hf.quantised import quantised, said_beside
from sleepc.hf.quiet import quiet
from sleepc.hf.weight_files import some
from sleepc.ir.tensorfile import TensorEntry, TensorFile


class Described:
    """Stands for a tensor of a file while transformers matches names: it has a shape, and no values."""

    def __init__(self, entry: TensorEntry) -> None:
        self.entry, self.shape = entry, entry.shape
        self.wanted: torch.dtype | None = None  # what it was asked for in; None if nobody asked
        self.given: torch.Tensor | None = None

    def __getitem__(self, place: object) -> Described:
        """As of a slice of a safetensors file, from which transformers takes all."""
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor of the shape, on no device."""
        del device
        self.wanted = dtype or self.entry.dtype
        self.given = torch.empty(self.entry.shape, dtype=self.wanted, device="meta")
        return self.given


def check_fit(skeleton: Any, files: Iterable[TensorFile], dtype: torch.dtype, folder: Path, config: Any) -> set[str]:
    """Compare names, shapes and kinds of numbers of all tensors in `files` with what `skeleton`, a model of
    transformers on meta, has. `config` is the whole checkpoint's, which may be of more than the language model.

    Returns the names of tensors that the model computes for itself. Says in a warning which parts of the checkpoint are
    left out. Raises Refusal if weights are quantised, UsageError
    if one is missing, is not used or has another shape.
    """
    tensors = {name: Described(entry) for file in files for name, entry in file.tensors.items()}
    matched, info = load_state(_without_values(type(skeleton)), skeleton.config, tensors, dtype, folder)
    idle = {name for name, tensor in tensors.items() if tensor.wanted is None}
    tables = computed(skeleton, {name: tensors[name].entry.shape for name in idle})
    part = type(config) is not type(skeleton.config)  # the text model of something larger
    beside = _other_parts(idle - tables, tensors.keys() - idle) if part else {}
    known = tables | {name for names in beside.values() for name in names}
    misfit = Misfit(
        missing=sorted(info["missing_keys"]),
        unused=sorted(_unexpected(info["unexpected_keys"], idle) - known),
        unlike=_other_shapes(info["mismatched_keys"]) + _other_numbers(tensors),
        dropped=_dropped(matched, tensors, info["missing_keys"]),
    )
    _refuse_packed(tensors, set(misfit.unused), folder)
    if misfit:
        raise misfit_error(misfit, skeleton, folder)
    _say_left_out(beside | _by_part(idle - known), type(skeleton).__name__)
    return tables


def fit_nothing(skeleton: Any, folder: Path) -> None:
    """Load no tensors into a model of transformers on meta: whatever a configuration can be wrong in, fails here."""
    load_state(_without_values(type(skeleton)), skeleton.config, {}, torch.float32, folder)


def load_state(kind: Any, config: Any, state: dict[str, Any], dtype: torch.dtype, folder: Path) -> tuple[Any, Any]:
    """A model of class `kind` that has the tensors of `state`, and what transformers says of the loading. Nothing of
    the checkpoint's folder is looked at. Raises UsageError if transformers cannot put tensors together.
    """
    with quiet():
        try:
            loaded: tuple[Any, Any] = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=dtype,
                attn_implementation=config._attn_implementation,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
            )
        except RuntimeError as error:
            if "conversion of the weights" not in str(error):
                raise
            raise UsageError(
                f"the tensors cannot be put together as {kind.__name__} needs them: {odd_ones(state)}",
                where=str(folder),
                fix="The checkpoint is incomplete: fetch it again.",
            ) from error
    return loaded


def _without_values(kind: type) -> type:
    """The class, with nothing done for what a checkpoint lacks: a whole model of random values costs minutes, and one
    of a wrong size more memory than there is.
    """
    nothing = {"initialize_weights": lambda self: None, "_move_missing_keys_from_meta_to_device": lambda *_: None}
    return type(kind.__name__, (kind,), {**nothing, "__module__": kind.__module__})


def _unexpected(keys: set[str], idle: set[str]) -> set[str]:
    """Tensors that transformers did not expect, and does not know as left over. It names them after its renamings:
    if such a name is in no file, those are meant that end in the same way.
    """
    ends = {end(key): key for key in keys - idle}
    found = {name for name in idle if name in keys or end(name) in ends}
    return found | {key for last, key in ends.items() if last not in {end(name) for name in found}}


def _refuse_packed(tensors: dict[str, Described], unused: set[str], folder: Path) -> None:
    """Raise Refusal for whole numbers if the model has none: weights that are packed or quantised."""
    packed = [
        name
        for name, tensor in tensors.items()
        if not tensor.entry.dtype.is_floating_point
        and tensor.entry.dtype != torch.bool
        and (tensor.wanted.is_floating_point if tensor.wanted else name in unused)
    ]
    if packed:
        kind = str(tensors[packed[0]].entry.dtype).removeprefix("torch.")
        more = f" and {len(packed) - 1} more are" if len(packed) > 1 else " is"
        raise quantised(f"{packed[0]}{more} stored as {kind}{said_beside(folder)}", folder)


def _other_shapes(found: Iterable[tuple[str, Any, Any]]) -> list[str]:
    return [f"{name} is {list(file)} in the file, {list(model)} in the model" for name, file, model in sorted(found)]


def _other_numbers(tensors: dict[str, Described]) -> list[str]:
    """Numbers of a kind that the model does not have there; whole ones for fractions are quantised, and refused."""
    return [
        f"{name} is {tensor.entry.dtype} in the file, {tensor.wanted} in the model"
        for name, tensor in tensors.items()
        if tensor.wanted and tensor.wanted.is_floating_point != tensor.entry.dtype.is_floating_point
    ]


def _other_parts(unused: Iterable[str], used: Iterable[str]) -> dict[str, list[str]]:
    """Unused tensors by the modules that nothing used is in, not deeper than two: a tower next to the text model."""
    modules = {".".join(name.split(".")[:n]) for name in used for n in range(1, name.count(".") + 1)}
    parts: dict[str, list[str]] = {}
    for name in sorted(unused):
        pieces = name.split(".")
        outside = next((n for n in range(1, len(pieces)) if ".".join(pieces[:n]) not in modules), 0)
        if 0 < outside <= 2 and not pieces[outside - 1].isdigit():
            parts.setdefault(".".join(pieces[:outside]), []).append(name)
    return parts


def _by_part(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by what stands before their first number's end: model.layers.7, or else by their first part."""
    parts: dict[str, list[str]] = {}
    for name in sorted(names):
        numbered = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", name)
        parts.setdefault(numbered[0] if numbered else name.split(".")[0], []).append(name)
    return parts


def _say_left_out(parts: dict[str, list[str]], kind: str) -> None:
    if parts:
        text = some(f"{part} ({len(names)} tensors)" for part, names in parts.items())
        warnings.warn(f"left out, because {kind} does not use it: {text}", SleepcWarning, stacklevel=4)


def _dropped(matched: nn.Module, described: dict[str, Described], missing: Iterable[str]) -> list[str]:
    """Names of tensors that were asked for, and went nowhere since another had the same place in the model.

    A tensor that is a parameter as it is shares its storage. The others were put together: were they more numbers than
    the parameters that were made from them?
    """
    state = {id(p): p for name, p in matched.state_dict(keep_vars=True).items() if name not in set(missing)}
    homes = {_storage(p) for p in state.values()}
    asked = {name: t.given for name, t in described.items() if t.given is not None}
    loose = {name: t for name, t in asked.items() if _storage(t) not in homes}
    stored = {_storage(t) for t in asked.values()}
    made = sum(p.numel() for p in state.values() if _storage(p) not in stored)
    return sorted(loose) if sum(t.numel() for t in loose.values()) > made else []


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
