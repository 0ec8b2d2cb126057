"""What changes the masters: AdamW, and Muon for the matrices of blocks if that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sleepc.ir.program import ProgramGraphs
from sleepc.passes.adapt.add_low_rank import low_rank_keys
from sleepc.train.parameters import matrix_keys
from sleepc.train.settings import Settings


def make_optimisers(
    program: ProgramGraphs, masters: Mapping[str, Tensor], settings: Settings
) -> list[torch.optim.Optimizer]:
    """Optimisers of all masters, at their full learning rates; each group keeps its own as `full`, for the schedule."""
    muon = matrix_keys(program, masters) if settings.optimiser == "muon" else set()
    decay = settings.weight_decay
    made: list[torch.optim.Optimizer] = []
    if others := [key for key in masters if key not in muon]:
        groups = _groups(program, {key: masters[key] for key in others}, settings)
        made.append(torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=decay))
    if matrices := [masters[key] for key in masters if key in muon]:
        group = {"params": matrices, "lr": settings.muon_lr, "full": settings.muon_lr}
        made.append(torch.optim.Muon([group], weight_decay=decay))
    return made


def _groups(program: ProgramGraphs, masters: Mapping[str, Tensor], settings: Settings) -> list[dict[str, Any]]:
    """Parameters by learning rate: the memories', LoRA matrices', the source's."""
    rates = {"memory": settings.lr, "low": settings.low_rank_lr, "source": settings.weights_lr}
    groups: dict[str, list[Tensor]] = {}
    low = {*(pairs := low_rank_keys(program)), *pairs.values()}
    for key, master in masters.items():
        kind = "low" if key in low else "memory" if program.params[key].new else "source"
        groups.setdefault(kind, []).append(master)
    return [{"params": params, "lr": rates[kind], "full": rates[kind]} for kind, params in groups.items()]
