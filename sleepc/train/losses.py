"""What is minimised: the divergence from the teacher, or the surprise at what is to be said."""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional

from sleepc.train.weighing import Weighing

FLOOR = 1e-6  # massive activations are a million times the others
ROWS = 256  # tokens at once: logits of a large vocabulary are the largest tensors of a step


def kl_sum(teacher: Tensor, student: Tensor, real: Tensor, weighing: Weighing | None = None) -> Tensor:
    """Forward KL(teacher ‖ student), summed over the tokens that are real: logits [B,T,V], real bool [B,T] -> scalar
    (float32). With `weighing`, of the real tokens, it is the weighted sum.
    """
    teacher, student = teacher[real], student[real]
    weighed = weighing.split(ROWS) if weighing is not None else repeat(None)
    found = [_kl(*part) for part in zip(torch.split(teacher, ROWS), torch.split(student, ROWS), weighed, strict=False)]
    return torch.stack(found).sum() if found else student.float().sum()


def _kl(teacher: Tensor, student: Tensor, weighing: Weighing | None) -> Tensor:
    p = functional.log_softmax(teacher.detach(), -1, dtype=_wide(teacher))
    q = functional.log_softmax(student, -1, dtype=_wide(student))
    if weighing is None:
        return functional.kl_div(q, p, reduction="sum", log_target=True)
    found = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    return (found * weighing.weights(p, q)).sum()


def surprise_sum(student: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of labels, summed: logits [n,V], labels int64 [n] -> scalar (float32)."""
    return functional.cross_entropy(student.to(_wide(student)), labels, reduction="sum")


def relative_error_sum(found: Tensor, wanted: Tensor, base: Tensor, real: Tensor) -> Tensor:
    """Squared error of a block's output over that of the block left out, token by token, summed over real tokens.

    found, wanted, base (the block's input) [B,T,d], real bool [B,T] -> scalar. Token by token, since a few tokens with
    massive activations would else be all that counts in some blocks. What a block adds to a token is taken as at least
    FLOOR of what it adds to tokens on average.
    """
    wide = _wide(found)
    wanted, base = wanted[real].to(wide), base[real].to(wide)
    size = (wanted - base).square().mean(-1)
    least = FLOOR * size.mean() + torch.finfo(wide).tiny if len(size) else size
    return ((found[real].to(wide) - wanted).square().mean(-1) / torch.maximum(size, least)).sum()


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
