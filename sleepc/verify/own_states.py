"""The model's own convolutions and recurrences in the oracle: loops over tokens, from all that the stream has read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from sleepc.ir.graph import Graph
from sleepc.passes.analysis.find_sites import recurrences_of
from sleepc.verify import reference

Own = dict[str, Tensor]
"""By the names of states: what a convolution has seen so far [B,t,channels], or what a recurrence holds."""


def own_answer(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], own: Own) -> tuple[Tensor, Own]:
    """What the convolution or recurrence of that name answers to a window whose call from an empty state has these
    arguments, and `own` after it.
    """
    if name.startswith("tail"):
        x, weight = args[:2]
        seen = torch.cat([own.get(name, x[:, :0]), x], 1)
        return reference.causal_conv(seen, weight.to(x.dtype))[:, seen.shape[1] - x.shape[1] :], {**own, name: seen}
    q, k, v, g, beta, (empty,) = args
    written = {"k": k, "v": v, "g": g, "beta": beta}
    out, memory = reference.answer(kwargs["rule"], q, written, [own.get(name, empty)], [], online=True)
    return kwargs["scale"] * out, {**own, name: memory[0]}


def own_states(wake: Graph, own: Own) -> Own:
    """The states of a block after what it has read, by their names."""
    found = {}
    for name, node in recurrences_of(wake).items():
        if name not in own:
            continue
        found[name] = own[name]
        if name.startswith("tail"):
            taps = _last_of(node)
            seen = torch.nn.functional.pad(own[name].transpose(1, 2), (taps, 0))
            found[name] = seen[:, :, seen.shape[2] - taps :]
    return found


def _last_of(node: fx.Node) -> int:
    """K - 1 of a convolution."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return int(weight.meta["type"].dims[1]) - 1
