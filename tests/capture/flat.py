"""Models as flat programs whose operators write to no argument."""

from __future__ import annotations

from torch import nn

from sleepc.capture.export import capture_module
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
