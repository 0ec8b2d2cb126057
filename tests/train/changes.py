"""Other values for what a training may change, without training."""

from __future__ import annotations

import torch

from sleepc.api import Program
from sleepc.ir.weights import is_learned
from sleepc.train.adapter import with_rank, with_values


def trained(program: Program, rank: int = 0, weights: bool = False, seed: int = 0) -> list[str]:
    """Other values for what a training may change: what is new, low-rank maps, one weight of the source; their keys."""
    program.graphs = with_rank(program.graphs, rank) if rank else program.graphs
    params = program.graphs.params
    keys = [key for key in params if is_learned(params[key])]
    keys += [next(key for key in params if key.endswith("mlp.up_proj.weight"))] if weights else []
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for key in keys:
        value = params[key].materialise()
        values[key] = value + 0.1 * torch.randn(value.shape, generator=generator).to(value.dtype)
    program.graphs = with_values(program.graphs, values)
    return keys
