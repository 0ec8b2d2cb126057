"""The kernels of the eager backend: a function of PyTorch for every operator of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sleepc.backends.eager.attention import kept_attention, window_attention
from sleepc.backends.eager.rows import gather
from sleepc.ir.levels import OURS, aten
from sleepc.ops import functional

ours = torch.ops.sleepc
# Our operators are called as the plain functions that they are, without the dispatcher: faster, and differentiable as
# they stand.
PLAIN: dict[Any, Callable[..., Any]] = {getattr(ours, name).default: getattr(functional, name) for name in OURS}
PLAIN[ours.window_attention.default] = window_attention
PLAIN[ours.kept_attention.default] = kept_attention
PLAIN[aten.gather.default] = gather
# If no gradient is wanted, windows and records are written in place.
IN_PLACE: dict[Any, Callable[..., Any]] = PLAIN | {ours.write_slots.default: functional.write_slots_}
