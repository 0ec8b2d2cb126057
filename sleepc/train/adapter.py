"""What training changed, as one file: other values for parameters of a program, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import HeldTensor


def with_values(graphs: ProgramGraphs, values: Mapping[str, Tensor]) -> ProgramGraphs:
    """The same graphs with other values for some parameters, by key; what is new in the conversion stays new.

    A value for a weight of the source is held in memory from now on, and is saved in the artifact.
    """
    given = {key: HeldTensor(value.detach(), new=graphs.params[key].new) for key, value in values.items()}
    return replace(graphs, params={**graphs.params, **given})
