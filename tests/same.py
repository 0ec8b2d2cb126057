"""What is the same of a program in memory and of one that was loaded: values to the bit, and results but for rounding.

Where a tensor begins decides how some processors add up its products: mapped from a file it may begin elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch

from sleepc.ir.compare import max_error
from sleepc.ir.program import ProgramGraphs

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-5}  # parts of some float64 models are float32


def assert_same_program(found: ProgramGraphs, wanted: ProgramGraphs) -> None:
    """Every parameter, to the bit."""
    assert found.params.keys() == wanted.params.keys()
    for key, param in wanted.params.items():
        assert torch.equal(found.params[key].materialise(), param.materialise()), key


def assert_same_logits(found: Any, wanted: Any) -> None:
    """But for rounding."""
    a, b = torch.as_tensor(found), torch.as_tensor(wanted)
    assert max_error(a, b) <= ROUNDING[b.dtype]
