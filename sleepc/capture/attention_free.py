"""Models without softmax attention, as distinct from models that cannot be exported for another reason."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sleepc.capture.fake_run import fake_run
from sleepc.errors import Refusal

SIGNS = ("softmax", "scaled_dot_product", "sleepc::attention")


class _AttentionWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether an operator with one of SIGNS in its name ran."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= any(sign in func.name() for sign in SIGNS)
        return func(*args, **(kwargs or {}))


def has_attention(model: nn.Module, tokens: torch.Tensor, positions: torch.Tensor) -> bool:
    """Does a run on fake tensors (no weight is read) meet attention? True if even that run fails."""
    watch = _AttentionWatch()
    try:
        fake_run(model, tokens, positions, watch)
    except Exception:  # the model's own code, which may raise anything: the caller has an error to report already
        return True
    return watch.seen


def no_attention(where: str) -> Refusal:
    """The refusal."""
    return Refusal(
        "NO_ATTENTION",
        "nothing to convert: the model has no softmax attention",
        where=where,
        fix="sleepc converts attention layers of decoder-only language models.",
    )
