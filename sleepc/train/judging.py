"""Did a training help? The program before and after it, on pieces that it did not learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from sleepc.backends.contract import TrainingBackend
from sleepc.backends.training_steps import TrainingSteps
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.tasks.lessons import NOTHING
from sleepc.train.losses import kl_sum, surprise_sum
from sleepc.train.pieces import Piece, batch_of
from sleepc.train.student import parts_of, sleep_after

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sleepc.train.trainer import Hooks

ROOM = 0.01  # of perplexity: what a training towards a teacher may lose by chance
Model = Literal["before", "after", "teacher"]
Goal = Literal["divergence", "surprise"]


class Judgement(BaseModel):
    """Figures per token on `pieces` with `tokens`, in nats. `surprise` is at what comes next, or is asked; `divergence`
    (KL) from the teacher, if there is one. `apart`: was none of the pieces learned from? `goal` is what was lowered.
    """

    model_config = ConfigDict(frozen=True)

    pieces: int
    tokens: int
    apart: bool
    goal: Goal
    surprise: dict[Model, float]
    divergence: dict[Model, float]

    @property
    def worse(self) -> bool:
        """Did the goal's figure rise, or is it not a number? Towards a teacher perplexity may rise too, but as far as
        the teacher's own.
        """
        figures = self.surprise if self.goal == "surprise" else self.divergence
        if not figures["after"] <= figures["before"]:
            return True
        allowed = max(self.surprise["before"], self.surprise.get("teacher", 0.0)) + ROOM
        return not self.surprise["after"] <= (math.inf if self.goal == "surprise" else allowed)

    @property
    def where(self) -> str:
        """On what it was measured, for people."""
        what = f"{self.pieces} piece{'' if self.pieces == 1 else 's'} with {self.tokens} tokens"
        return f"{what} that it did not learn from" if self.apart else f"{what}, all there is, which it learned from"

    def told(self) -> str:
        """For people."""
        before, after = self.surprise["before"], self.surprise["after"]
        if not self.divergence:
            return f"NLL {before:.4f} → {after:.4f} nats · perplexity {_exp(before)} → {_exp(after)}"
        far, near = self.divergence["before"], self.divergence["after"]
        teacher = _exp(self.surprise["teacher"])
        return (
            f"KL from the teacher {far:.4f} → {near:.4f} · perplexity {_exp(before)} → {_exp(after)}, its own {teacher}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Exam:
    """What is read to judge a training, by which backend, `rows` pieces at a time. `apart` and `goal`: see Judgement. A
    teacher is compared over the first `shared` tokens of the vocabulary, all by default.
    """

    pieces: Sequence[Piece]
    backend: TrainingBackend
    apart: bool
    goal: Goal
    rows: int
    shared: int | None = None


def judge(
    before: ProgramGraphs,
    after: ProgramGraphs,
    teacher: TrainingSteps | None,
    exam: Exam,
    accelerator: Accelerator,
    hooks: Hooks,
) -> Judgement | None:
    """Read the pieces with both programs, each process its part of them; None if it is stopped."""
    device, share, pieces = accelerator.device, accelerator.num_processes, exam.pieces
    mine = pieces[accelerator.process_index :: share]
    groups = [mine[n : n + exam.rows] for n in range(0, len(mine), exam.rows)]
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in ("before", "after")}
    done = 0
    for name, graphs in (("before", before), ("after", after)):
        steps = exam.backend.steps_on(graphs, materialise(graphs, str(device)), device=device)
        for group in groups:
            if share == 1 and hooks.should_stop():
                return None
            sums[name] += read(steps, teacher, group, exam.shared)
            done += 1
            hooks.on_judging(done / (2 * len(groups)))
    found = torch.stack(list(sums.values()))
    if share > 1:
        found = accelerator.reduce(found.float().to(device), "sum").double().cpu()
    (b, a), tokens = found.tolist(), sum(map(len, pieces))
    surprise: dict[Model, float] = {"before": b[0] / b[3], "after": a[0] / a[3]}
    divergence: dict[Model, float] = {}
    if teacher is not None:
        surprise["teacher"] = b[2] / b[3]
        divergence = {"before": b[1] / tokens, "after": a[1] / tokens}
    return Judgement(
        pieces=len(pieces), tokens=tokens, apart=exam.apart, goal=exam.goal, surprise=surprise, divergence=divergence
    )


@torch.no_grad()
def read(
    steps: TrainingSteps, teacher: TrainingSteps | None, pieces: Sequence[Piece], shared: int | None = None
) -> torch.Tensor:
    """Sums over pieces, read side by side: the surprise at their labels, the divergence from the teacher on all their
    tokens, the teacher's surprise, and the number of labels: float64 [4].
    """
    tokens, lengths, labels = map(torch.from_numpy, batch_of(pieces))
    found = torch.zeros(4, dtype=torch.float64)
    state = steps.new_state(len(pieces))
    taught = teacher.new_state(len(pieces)) if teacher is not None else None
    for part in parts_of(tokens, lengths, labels, steps.window, 1):
        segment = part.to(steps.device)
        values, state = steps.wake_blocks(state, segment.tokens, segment.lengths)
        places = segment.labels != NOTHING
        asked = segment.labels[places]
        if teacher is not None and taught is not None:
            logits = steps.logits(values, segment.lengths, "all")
            wanted, taught = teacher.wake_tensors(taught, segment.tokens, segment.lengths, "all")
            assert logits is not None
            assert wanted is not None
            logits, wanted = logits[..., :shared], wanted[..., :shared]
            found[1] += float(kl_sum(wanted, logits, segment.real()))
            found[2] += float(surprise_sum(wanted[places], asked))
            found[0] += float(surprise_sum(logits[places], asked))
        elif segment.asks:
            found[0] += float(surprise_sum(steps.logits_at(values, places), asked))
        found[3] += len(asked)
        state = sleep_after(steps, segment, state)
    return found


def _exp(surprise: float) -> str:
    return f"{math.exp(surprise):.4g}" if surprise < 700 else "inf"
