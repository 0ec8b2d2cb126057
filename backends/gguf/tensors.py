"""Tensors of transformers' Qwen3.5 class in a GGUF file: their names, how values change on the way there and back, and
the kinds that they are written in. As llama.cpp's converter and its architecture `qwen35` have them (docs/native.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sleepc.errors import UsageError
from sleepc.ir.tensorfile import Planned

ARCHITECTURE = "qwen35"
BLOCK = 32  # numbers of a row that share a scale
CLOSE = ("output.weight", "ssm_alpha.weight", "ssm_beta.weight")  # four bits are too few for them
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Placed:
    """A tensor of the file: what it is called there, its shape, the kind that it is written in, and how its values
    become those of the file (`there`) and again those of the class (`back`).
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    there: Change
    back: Change


def placed(planned: Mapping[str, Planned], config: Mapping[str, Any], kind: str) -> dict[str, Placed]:
    """Where each tensor of the class goes, by its name there, in a file whose matrices are of a `kind`.

    Raises UsageError for one that the file has no place for.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.QWEN35, config["num_hidden_layers"])
    tied = config["tie_word_embeddings"]
    found = {}
    for name, each in planned.items():
        stem, _, suffix = name.rpartition(".")
        if suffix == "dt_bias":
            stem, suffix = f"{stem}.dt_proj", "bias"
        elif suffix == "A_log":
            stem, suffix = name, ""
        mapped = names.get_name(stem)
        if mapped is None:
            raise UsageError(f"llama.cpp's {ARCHITECTURE} has no place for {name}", where="--to gguf")
        called = f"{mapped}.{suffix}" if suffix else mapped
        there, back = _changes(name, config)
        shape = (each.shape[0], each.shape[2]) if "conv1d" in name else each.shape
        found[name] = Placed(called, shape, kind_of(called, shape, kind, tied=tied), there, back)
    return found


def kind_of(name: str, shape: tuple[int, ...], kind: str, *, tied: bool) -> str:
    """The kind of a tensor: vectors and convolutions are F32, as in all of llama.cpp's files; of a file of four bits
    the head and the gates are Q8_0. A matrix whose rows are no blocks is F16.
    """
    if len(shape) < 2 or "conv1d" in name:
        return "F32"
    if kind == "Q4_0" and (name.endswith(CLOSE) or (tied and name == "token_embd.weight")):
        kind = "Q8_0"
    return "F16" if kind in ("Q4_0", "Q8_0") and shape[-1] % BLOCK else kind


def _changes(name: str, config: Mapping[str, Any]) -> tuple[Change, Change]:
    there: Change
    back: Change
    if name.endswith("A_log"):
        there, back = _decay_of, _rate_of
    elif "conv1d" in name:
        there, back = _without_middle, _with_middle
    elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        there, back = _one_more, _one_less
    else:
        there = back = _same
    order = _order(name, config)
    if order is None:
        return there, back
    dim = 1 if "out_proj" in name else 0
    again = torch.argsort(order)
    return lambda value: there(value).index_select(dim, order), lambda value: back(value.index_select(dim, again))


def _decay_of(rate: Tensor) -> Tensor:
    return -rate.exp()


def _rate_of(decay: Tensor) -> Tensor:
    return (-decay).log()


def _without_middle(taps: Tensor) -> Tensor:
    return taps[:, 0]


def _with_middle(taps: Tensor) -> Tensor:
    return taps[:, None]


def _one_more(weight: Tensor) -> Tensor:
    return weight + 1


def _one_less(weight: Tensor) -> Tensor:
    return weight - 1


def _same(value: Tensor) -> Tensor:
    return value


def _order(name: str, config: Mapping[str, Any]) -> Tensor | None:
    """The class has the value heads of a key head next to each other; llama.cpp has the first of each, then the second
    ones. None where nothing is to be moved.
    """
    keys, values = int(config["linear_num_key_heads"]), int(config["linear_num_value_heads"])
    if keys == values or "linear_attn." not in name or name.endswith("linear_attn.norm.weight"):
        return None
    heads = torch.arange(values).reshape(keys, values // keys).T.reshape(-1)
    if name.endswith(("in_proj_a.weight", "in_proj_b.weight", "A_log", "dt_bias")):
        return heads
    width = int(config["linear_value_head_dim"])
    rows: Tensor = (heads[:, None] * width + torch.arange(width)).reshape(-1)
    if name.endswith(("in_proj_z.weight", "out_proj.weight")):
        return rows
    before = 2 * keys * int(config["linear_key_head_dim"])  # queries and keys
    return torch.cat([torch.arange(before), before + rows])
