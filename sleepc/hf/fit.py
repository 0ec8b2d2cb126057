"""Do the tensors of a checkpoint fit the class that is to have them? Matched by transformers' own loading, on shapes
alone, before anything is read.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.hf.quantised import quantised, said_beside
from sleepc.hf.weight_files import some
from sleepc.ir.tensorfile import TensorEntry, TensorFile

# What wrappers put before or into names, and who they are.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "base_model.model.": "peft",
}
FIRST = 3  # names that a message shows


class Described:
    """Stands for a tensor of a file while transformers matches names: it has a shape, and no values."""

    def __init__(self, entry: TensorEntry) -> None:
        self.entry = entry
        self.wanted: torch.dtype | None = None  # what it was asked for in; None where nobody asked
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


@dataclass
class Misfit:
    """What does not fit: names of the model's weights, and of tensors in the files."""

    missing: list[str]
    unused: list[str]
    unlike: list[str]  # with what the file and the model have
    dropped: list[str]  # whose weight another tensor stands for

    def __bool__(self) -> bool:
        return bool(self.missing or self.unused or self.unlike or self.dropped)


def check_fit(skeleton: Any, files: list[TensorFile], dtype: torch.dtype, folder: Path, config: Any) -> None:
    """Compare names, shapes and kinds of numbers of all tensors in `files` with what `skeleton`, a model of
    transformers on meta, has. `config` is the whole checkpoint's, which may be of more than the language model.

    Says in a warning which parts of the checkpoint are left out. Raises Refusal where weights are quantised, UsageError
    where one is missing, is used by nobody or has another shape.
    """
    tensors = {name: Described(entry) for file in files for name, entry in file.tensors.items()}
    matched, info = load_state(_without_values(type(skeleton)), skeleton.config, tensors, dtype, folder)
    tables = _tables(skeleton)
    idle = [name for name, found in tensors.items() if found.wanted is None and not _computed(tables, name, found)]
    _refuse_packed(tensors, set(idle), folder)
    part = type(config) is not type(skeleton.config)  # the text model of something larger
    beside = _other_parts(idle, tensors.keys() - set(idle)) if part else {}
    rest = [name for name in idle if not any(name in names for names in beside.values())]
    known = [
        name for name in rest if name in info["unexpected_keys"]
    ] or rest  # some are renamed before they are missed
    misfit = Misfit(
        missing=sorted(info["missing_keys"]),
        unused=known if info["unexpected_keys"] else [],  # transformers knows which to ignore
        unlike=[
            f"{name} is {list(a)} in the file, {list(b)} in the model" for name, a, b in sorted(info["mismatched_keys"])
        ]
        + _other_numbers(tensors),
        dropped=_dropped(matched, tensors, info["missing_keys"]),
    )
    if misfit:
        raise _said(misfit, skeleton, folder)
    _say_left_out(beside | _by_part(rest), type(skeleton).__name__)


def load_state(kind: Any, config: Any, state: dict[str, Any], dtype: torch.dtype, folder: Path) -> tuple[Any, Any]:
    """A model of class `kind` that has the tensors of `state`, and what transformers says of the loading. Nothing of
    the checkpoint's folder is looked at. Raises UsageError where transformers cannot put tensors together.
    """
    with _quiet():
        try:
            return kind.from_pretrained(
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
                f"the tensors cannot be put together as {kind.__name__} needs them: some are missing, or differ",
                where=str(folder),
                fix="Fetch the model again; TRANSFORMERS_VERBOSITY=info with transformers says which.",
            ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report: what it says is said by errors here."""
    from transformers.utils import logging

    before = logging.get_verbosity()  # type: ignore[no-untyped-call]
    logging.set_verbosity(logging.CRITICAL)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)  # type: ignore[no-untyped-call]


def _without_values(kind: type) -> type:
    """The class, with nothing done for what a checkpoint lacks: a whole model of random values costs minutes."""
    nothing = {"initialize_weights": lambda self: None, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), nothing)


def _refuse_packed(tensors: dict[str, Described], idle: set[str], folder: Path) -> None:
    """Raise Refusal for whole numbers where the model has none: weights that are packed or quantised."""
    packed = [
        name
        for name, tensor in tensors.items()
        if not tensor.entry.dtype.is_floating_point
        and tensor.entry.dtype != torch.bool
        and (tensor.wanted.is_floating_point if tensor.wanted else name in idle and prod(tensor.entry.shape) > 1)
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


def _tables(skeleton: nn.Module) -> set[str]:
    """The last two parts of the names of what the model computes and keeps in no file."""
    kept = set(skeleton.state_dict())
    return {".".join(name.split(".")[-2:]) for name, _ in skeleton.named_buffers() if name not in kept}


def _computed(tables: set[str], name: str, tensor: Described) -> bool:
    """Is it a table that the model computes, and older files hold: rotary frequencies, positions, causal masks?"""
    last, shape = name.split(".")[-1], tensor.entry.shape
    mask = last == "bias" and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return mask or last in ("masked_bias", "inv_freq", "position_ids") or ".".join(name.split(".")[-2:]) in tables


def _other_parts(unused: list[str], used: Iterable[str]) -> dict[str, list[str]]:
    """Unused tensors by the modules that nothing used is in, not deeper than two: a tower beside the text model."""
    modules = {".".join(name.split(".")[:n]) for name in used for n in range(1, name.count(".") + 1)}
    parts: dict[str, list[str]] = {}
    for name in unused:
        pieces = name.split(".")
        outside = next((n for n in range(1, len(pieces)) if ".".join(pieces[:n]) not in modules), 0)
        if 0 < outside <= 2 and not pieces[outside - 1].isdigit():
            parts.setdefault(".".join(pieces[:outside]), []).append(name)
    return parts


def _by_part(names: list[str]) -> dict[str, list[str]]:
    """Names by what stands before their first number's end: model.layers.7, or else by their first part."""
    parts: dict[str, list[str]] = {}
    for name in names:
        numbered = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", name)
        parts.setdefault(numbered[0] if numbered else name.split(".")[0], []).append(name)
    return parts


def _say_left_out(parts: dict[str, list[str]], kind: str) -> None:
    if parts:
        text = some((f"{part} ({len(names)} tensors)" for part, names in parts.items()), FIRST)
        warnings.warn(f"left out, since {kind} has no use for it: {text}", SleepcWarning, stacklevel=4)


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


def _said(misfit: Misfit, skeleton: Any, folder: Path) -> SleepcError:
    kind = type(skeleton).__name__
    prefix = _prefix(misfit)
    kinds = {
        "missing": misfit.missing,
        "used by nobody": misfit.unused,
        "of another shape or kind": misfit.unlike,
        "of a weight that is there already": misfit.dropped,
    }
    parts = [f"{len(names)} {what} ({some(names, FIRST)})" for what, names in kinds.items() if names]
    fix = "The checkpoint is incomplete, or of another model than config.json says: fetch it again."
    if prefix:
        maker = next((who for wrapper, who in WRAPPERS.items() if wrapper in prefix), "a wrapper")
        parts.insert(0, f"names have {prefix!r} in them, as {maker} leaves it")
        fix = "Save the model that is inside the wrapper (with peft after merge_and_unload), and convert that."
    elif misfit.missing and _head_only(misfit.missing, skeleton):
        fix = "If the head is the embedding, config.json has to say so: tie_word_embeddings: true. Else fetch it again."
    return UsageError(f"the weights are not those of {kind}: {'; '.join(parts)}", where=str(folder), fix=fix)


def _head_only(missing: list[str], skeleton: Any) -> bool:
    head = skeleton.get_output_embeddings()
    name = next((name for name, module in skeleton.named_modules() if module is head), None)
    return missing == [f"{name}.weight"]


def _prefix(misfit: Misfit) -> str:
    """What a wrapper has put before, or into, the names of the unused tensors: "" where it is nothing."""
    inside = [wrapper for wrapper in WRAPPERS if any(f".{wrapper}" in f".{name}" for name in misfit.unused)]
    if inside:
        return inside[0]
    ends = Counter(
        name.removesuffix(want) for name in misfit.unused for want in misfit.missing if name.endswith("." + want)
    )
    return ends.most_common(1)[0][0] if ends and ends.most_common(1)[0][1] > len(misfit.unused) // 2 else ""
