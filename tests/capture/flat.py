"""Models as flat programs whose operators write to no argument."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sleepc.capture.export import capture_module
from sleepc.ir.interp import Runner
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Stage
from sleepc.passes.front.join_pieces import JoinPieces
from sleepc.passes.front.make_functional import MakeFunctional
from sleepc.passes.pipeline import functional
from sleepc.passes.runner import run_stages


def captured(model: nn.Module) -> ProgramGraphs:
    """A module at level ATEN after the passes that make it functional."""
    stage = Stage("functional", "ATEN", (JoinPieces(), MakeFunctional()))
    return functional(lambda decomposed: run_stages(capture_module(model, decomposed=decomposed), (stage,)))


class Through(nn.Module):
    """Tokens, embedded, through a function of features [B,T,6]."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.change = nn.Embedding(11, 6), change

    def forward(self, tokens: Tensor) -> Tensor:
        return self.change(self.table(tokens) * 1.5)


def outputs(program: ProgramGraphs, tokens: Tensor) -> Tensor:
    """Logits [B,T,V] of a flat program."""
    values = {name: param.materialise() for name, param in program.params.items()}
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    found: Tensor = Runner(program.embed)({**values, "tokens": tokens, "positions": positions})["logits"]
    return found
