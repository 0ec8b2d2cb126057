"""What files have of what a model computes for itself, as older ones do: masks, positions, rotary frequencies. It is
not read; if it is not what the model computes, that is said.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn

from sleepc.errors import SleepcWarning
from sleepc.hf.weight_files import some
from sleepc.ir.tensorfile import TensorFile

MASKED, FREQUENCIES, POSITIONS = "masked_bias", "inv_freq", "position_ids"
FAR = -1e3  # what is added to a score that does not count is below


def computed(skeleton: nn.Module, idle: dict[str, tuple[int, ...]]) -> set[str]:
    """Those of the unused tensors (name -> shape) that stand where `skeleton`, or an older one, computes its own."""
    kept = set(skeleton.state_dict())
    own = {end(name) for name, _ in skeleton.named_buffers() if name not in kept}
    return {
        name
        for name, shape in idle.items()
        if name.split(".")[-1] in (MASKED, FREQUENCIES, POSITIONS) or end(name) in own or _is_mask(name, shape)
    }


def say_other_values(model: nn.Module, files: Iterable[TensorFile], names: set[str]) -> None:
    """Warn of tensors `names` of the files that have other values than the loaded `model` computes in their place."""
    own = list(model.named_buffers())
    other = sorted(n for file in files for n in names & file.tensors.keys() if not _same(n, file.map(n), own))
    if other:
        text = f"left out, though {type(model).__name__} computes other values in its place: {some(other)}"
        warnings.warn(text, SleepcWarning, stacklevel=3)


def end(name: str) -> str:
    """The last two parts of a name."""
    return ".".join(name.split(".")[-2:])


def _is_mask(name: str, shape: tuple[int, ...]) -> bool:
    return name.endswith(".bias") and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


def _same(name: str, found: torch.Tensor, own: list[tuple[str, torch.Tensor]]) -> bool:
    last = name.split(".")[-1]
    if last == MASKED:
        return found.numel() == 1 and float(found) <= FAR
    if last == POSITIONS:
        return torch.equal(found.flatten().long(), torch.arange(found.numel()))
    if _is_mask(name, tuple(found.shape)):
        return torch.equal(found[0, 0] != 0, torch.ones(found.shape[2:], dtype=torch.bool).tril())
    alike = [value for key, value in own if end(key) == end(name) or key.endswith(last)]
    return any(value.shape == found.shape and _close(value.float(), found.float()) for value in alike)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Also if one was kept with few digits."""
    return torch.allclose(one, other, rtol=1e-2, atol=1e-6)
