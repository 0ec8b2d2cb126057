"""Does a model run at all, by its own code? One that does not is no matter of what can be exported."""

from __future__ import annotations

import torch
from torch import nn

from sleepc.capture.call import BATCH, LENGTH, TokensToLogits
from sleepc.capture.export_errors import place_of
from sleepc.capture.fake_run import fake_run, left_alone
from sleepc.capture.quiet import quiet
from sleepc.errors import SleepcError, UsageError


class CannotRun(UsageError):
    """The model's own code fails; `reason` is what it says."""

    def __init__(self, reason: str, where: str, fix: str, cause: str = "") -> None:
        self.reason = reason
        cause = cause or "the model cannot be called with tokens"
        super().__init__(f"{cause}: its own code fails with {reason}", where=where, fix=fix)


@quiet()
def require_run(model: nn.Module) -> None:
    """Raises CannotRun if the model fails at a few tokens. With weights on meta it is called with fakes."""
    call, device = TokensToLogits(model.eval()), next((p.device for p in model.parameters()), torch.device("cpu"))
    tokens = torch.zeros(BATCH, LENGTH, dtype=torch.int64, device=device)
    positions = torch.arange(LENGTH, device=device).expand(BATCH, LENGTH)
    try:
        if tokens.is_meta:
            fake_run(call, tokens, positions)
        else:
            with left_alone(call), torch.no_grad():
                call(tokens, positions)
    except SleepcError:
        raise
    except Exception as error:  # the model's own code, which may raise anything
        first = next(iter(str(error).splitlines()), "").strip()
        reason = f"{type(error).__name__}: {first} ({place_of(error)})"
        fix = "Call it yourself with tokens [B, T], whole numbers; correct its code, or its configuration."
        raise CannotRun(reason, type(model).__name__, fix) from error
