"""Which tokens count more: those that the teacher knows better, for it still sees what the program has lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sleepc.tasks.lessons import NOTHING

MOST = 4.0  # nats: by more a token does not count more


@dataclass(frozen=True)
class Weighing:
    """Labels [n], what comes after each token (or NOTHING), and how much more a token counts for each nat that the
    teacher knows its label better.
    """

    labels: Tensor
    weigh: float

    def split(self, size: int) -> list[Weighing]:
        """The same for `size` tokens at a time."""
        return [Weighing(labels, self.weigh) for labels in torch.split(self.labels, size)]

    def weights(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """log p of the teacher and log q of the program [n,V] -> weights of the tokens [n], without a gradient.

        They are 1 + weigh · min(max(log p(label) - log q(label), 0), MOST); 1 where the label is none of the V tokens.
        """
        known = (self.labels != NOTHING) & (self.labels < log_p.shape[-1])
        at = torch.where(known, self.labels, 0)[:, None]
        lead = (log_p.gather(-1, at) - log_q.gather(-1, at)).detach()[:, 0].clamp(0.0, MOST)
        return 1 + self.weigh * torch.where(known, lead, 0.0)
