"""The original model as a function of tokens."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from sleepc.capture.kernel_seam import plain_kernels
from sleepc.capture.quiet import quiet

KEEP = "logits_to_keep"  # transformers' name for the places whose logits are wanted


class Original:
    """A module as a function tokens [B,T] -> logits [B,T,V], without gradients. With `beyond`, what it computes in a
    call of more tokens than so many: all rows stand in the call once more, at later positions.
    """

    def __init__(self, module: nn.Module, beyond: int | None = None) -> None:
        self.module, self.beyond = module, beyond
        self.chooses = KEEP in inspect.signature(module.forward).parameters

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [B,T,V]."""
        return self._logits(tokens)

    def at(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Logits [B,n,V] at places [n]: others are not computed if the module can leave them out."""
        found = self._logits(tokens, **({KEEP: places} if self.chooses else {}))
        return found if found.shape[1] == len(places) < tokens.shape[1] else found[:, places]

    def _logits(self, tokens: Tensor, **options: Tensor) -> Tensor:
        rows, length = tokens.shape
        if self.beyond is not None:
            own = torch.arange(length).expand(rows, length)
            options["position_ids"] = torch.cat([own, own + self.beyond])
            tokens = tokens.repeat(2, 1)
        with quiet(), plain_kernels(self.module), torch.no_grad():
            result = self.module(tokens, **options)
        logits = getattr(result, "logits", result)
        found: Tensor = logits[0] if isinstance(logits, tuple) else logits
        return found[:rows]
