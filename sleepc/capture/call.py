"""How a model is called: tokens and their positions in, logits out."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from sleepc.errors import SleepcError

VALUES = (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)
# Pairwise different and none of 0 and 1, which export would turn into constants.
BATCH, LENGTH = 3, 5


class Unfollowed(Exception):
    """Replaces one of VALUES, to whose text torch adds the whole graph so far; its cause is that one."""


class TokensToLogits(nn.Module):
    """A model as a function (tokens [B,T], positions [B,T]) -> logits [B,T,V]; `call` says how to ask it for logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        self.hugging_face = "input_ids" in accepted and "position_ids" in accepted
        self.cached = "use_cache" in accepted or _hands_on(model, "use_cache")
        self.counts_padding = {"attention_mask", "lengths"} <= set(accepted)
        self.start = 0

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """Logits [B,T,V] for tokens [B,T] at positions [B,T], counted from 0; None leaves the counting to the model."""
        options: dict[str, Any] = {"use_cache": False} if self.cached else {}
        if self.counts_padding:  # by the tokens, if it is not told; here they are tokens like any other
            options["attention_mask"] = torch.ones(tokens.shape, dtype=torch.int64, device=tokens.device)
        if positions is not None:
            for mine, theirs in zip(tokens.shape, positions.shape, strict=True):
                torch._check(mine == theirs)  # type: ignore[no-untyped-call]
            if self.hugging_face:
                options["position_ids"] = positions + self.start if self.start else positions
        try:
            result = self.model(input_ids=tokens, **options) if self.hugging_face else self.model(tokens, **options)
        except VALUES as error:
            raise Unfollowed from error
        logits = getattr(result, "logits", result)
        if isinstance(logits, tuple):
            logits = logits[0]
        if not isinstance(logits, torch.Tensor) or logits.dim() != 3:
            raise SleepcError(
                "the model does not return logits [B, T, V]",
                where=type(self.model).__name__,
                fix="sleepc converts decoder-only language models: a module called with tokens [B, T].",
            )
        return logits


def _hands_on(model: nn.Module, option: str) -> bool:
    """Does the model take what it does not name, for the model inside it, which names this option?"""
    takes = inspect.signature(model.forward).parameters.values()
    inner = getattr(model, "base_model", model)
    named = inspect.signature(inner.forward).parameters if isinstance(inner, nn.Module) else {}
    return any(each.kind is each.VAR_KEYWORD for each in takes) and option in named
