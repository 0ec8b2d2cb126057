"""The training loop: pieces in, steps of optimisers, metrics and checkpoints out. One process or many."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sleepc.errors import SleepcError, UsageError
from sleepc.json_file import json_text
from sleepc.progress import OnShare
from sleepc.tasks.lessons import NOTHING
from sleepc.train.checkpoint import Standing, checkpoints, read_standing, read_tensors, write_checkpoint
from sleepc.train.optimisers import make_optimisers
from sleepc.train.pieces import Piece, batch_of
from sleepc.train.settings import HARD, TAUGHT, Phase, Settings, StageName, passes_of, phases
from sleepc.train.student import Student, parts_of
from sleepc.whole_file import write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

Stream = Callable[[Phase, int], Iterator[Piece]]
"""The pieces of a phase, without its first so many."""

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Step:
    """What is known after a step. `loss` is per token: KL in nats, relative error of blocks, or surprise in nats.

    Of stages that learn labels, `right` is the share of them that was the most likely token, and `exact` that of pieces
    with all of them right. `passes` are those of its sleeps, None for the program's own.
    """

    step: int
    of: int
    stage: str
    eviction: str
    length: int
    loss: float
    tokens: int
    lr: float
    grad_norm: float
    seconds: float
    tokens_per_second: float
    right: float | None = None
    exact: float | None = None
    passes: int | None = None


@dataclass
class Hooks:
    """What a training tells, and asks, while it runs. `on_studying` and `on_judging` hear which share of that is
    done: of what the teacher asks itself before the first step, and of what is judged after the last.
    """

    on_start: Callable[[Trainer], None] = lambda trainer: None
    on_step: Callable[[Step], None] = lambda step: None
    on_studying: OnShare = lambda share: None
    on_judging: OnShare = lambda share: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Plan:
    """What a step does with its pieces; its loss is a mean over so many tokens or labels, of all processes."""

    stage: StageName
    eviction: str
    passes: int | None
    counted: int


@dataclass(frozen=True)
class Workplace:
    """Where a training is done: its folder, its processes, and what must match for a checkpoint to be resumed."""

    folder: Path
    accelerator: Accelerator
    facts: dict[str, Any]


class Trainer:
    """Trains a student by `settings` on the pieces of `stream`. `on_step` of the hooks sees every step's figures, and
    `should_stop` is asked after each (in any process: one is enough to stop all).
    """

    def __init__(
        self,
        student: Student,
        settings: Settings,
        stream: Stream,
        place: Workplace,
        hooks: Hooks | None = None,
    ) -> None:
        self.student, self.settings, self.stream, self.hooks = student, settings, stream, hooks or Hooks()
        self.work, self.accelerator, self.facts = place.folder, place.accelerator, place.facts
        self.phases = phases(settings)
        self.of = sum(phase.steps for phase in self.phases)
        self.done = self.tokens = 0
        self.batch = ""  # a hash of what the last step read
        self.optimisers = make_optimisers(student.program, student.masters, settings)
        self.micro = rows_at_once(settings, self.accelerator.num_processes)

    # ------------------------------------------------------------------------------------------ checkpoints

    def resume(self) -> int:
        """Go on from the last checkpoint of the folder, if there is one: how many steps are done.

        Raises UsageError if it is of another run, SleepcError if it is damaged.
        """
        found = checkpoints(self.work)
        if not found:
            return 0
        standing = read_standing(found[-1])
        other = sorted(k for k in standing.run.keys() | self.facts.keys() if standing.run.get(k) != self.facts.get(k))
        if other:
            raise UsageError(
                f"the stopped training differs in {', '.join(other)}: "
                + "; ".join(f"{k} {standing.run.get(k)} then, {self.facts.get(k)} now" for k in other[:3]),
                where=str(found[-1]),
                fix="Give the same options and the same texts again, or start over: --force instead of --resume.",
            )
        read_tensors(found[-1], self.student.masters, self.optimisers)
        self.done, self.tokens, self.batch = standing.step, standing.tokens, standing.batch
        return self.done

    def save(self) -> None:
        """A checkpoint of what is done, by the first process."""
        if self.accelerator.is_main_process:
            standing = Standing(step=self.done, tokens=self.tokens, run=self.facts, batch=self.batch)
            write_checkpoint(self.work, standing, self.student.masters, self.optimisers)

    # ------------------------------------------------------------------------------------------ the loop

    def train(self) -> bool:
        """Take the steps that are left; False if it was stopped before the end (a checkpoint is there then)."""
        self._cut_metrics()
        before = 0
        for phase in self.phases:
            skipped = min(max(self.done - before, 0), phase.steps)
            if skipped < phase.steps and not self._phase(phase, skipped):
                return False
            before += phase.steps
        self.save()
        return True

    def _phase(self, phase: Phase, done: int) -> bool:
        pieces = self._after(phase, done)
        for i in range(done, phase.steps):
            batch = list(islice(pieces, self.settings.batch))
            self._show(self._step(phase, phase.start + i, batch))
            self.batch = _hash_of(batch)
            if self._anybody_stops():
                self.save()
                return False
            if self.done % self.settings.save_every == 0:
                self.save()
        return True

    def _after(self, phase: Phase, done: int) -> Iterator[Piece]:
        """The pieces of a phase after so many steps. Raises UsageError if the last of those steps read others."""
        if not done:
            return self.stream(phase, 0)
        pieces = self.stream(phase, (done - 1) * self.settings.batch)
        if self.batch and self.batch != _hash_of(list(islice(pieces, self.settings.batch))):
            raise UsageError(
                f"step {self.done} of the stopped training read other data than it would read now",
                where=str(self.work),
                fix="Give the same texts again, or start over: --force instead of --resume.",
            )
        return pieces

    def _step(self, phase: Phase, i: int, batch: list[Piece]) -> Step:
        started = time.perf_counter()
        lr = self._schedule(phase, i)
        hard = phase.stage in HARD and i < self.settings.hard * phase.whole
        plan = Plan(phase.stage, "hard" if hard else "own", passes_of(self.settings, self.done), _counted(phase, batch))
        mine = self._mine(batch)
        try:
            figures = [self._backward(plan, mine[n : n + self.micro]) for n in range(0, len(mine), self.micro)]
        except torch.OutOfMemoryError as error:
            raise SleepcError(
                f"{self.micro} pieces at once do not fit into the GPU's memory: {_first_sentence(error)}",
                where=f"step {self.done + 1}, {phase.stage}",
                fix=f"Use --accumulate {2 * self.settings.accumulate}: the same batch, half as many at once. "
                "--checkpointing and --truncate 1 need less as well.",
            ) from error
        norm, (loss, missed, exact) = self._gather([sum(each) for each in zip(*figures, strict=True)])
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise SleepcError(
                f"the loss is {loss} and the gradient's norm {norm} at step {self.done + 1}",
                where=phase.stage,
                fix="Use a smaller learning rate" + (", and --force to start over." if checkpoints(self.work) else "."),
            )
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.done, read = self.done + 1, sum(map(len, batch))
        self.tokens += read
        seconds = time.perf_counter() - started
        labelled = phase.stage not in TAUGHT
        return Step(
            step=self.done,
            of=self.of,
            stage=phase.stage,
            eviction=plan.eviction,
            length=phase.length,
            loss=loss,
            tokens=self.tokens,
            lr=lr,
            grad_norm=norm,
            seconds=seconds,
            tokens_per_second=read / seconds,
            right=1 - missed / plan.counted if labelled else None,
            exact=exact / len(batch) if labelled else None,
            passes=plan.passes,
        )

    def _mine(self, batch: list[Piece]) -> list[Piece]:
        return batch[self.accelerator.process_index :: self.accelerator.num_processes]

    def _backward(self, plan: Plan, rows: list[Piece]) -> list[float]:
        """Gradients of some pieces' part of the mean loss; that part, the labels that were missed, and how many rows
        missed none.
        """
        tokens, lengths, labels = map(torch.from_numpy, batch_of(rows))
        carry, found = self.student.begin(len(rows)), torch.zeros((), device=self.student.device)
        for part in parts_of(tokens, lengths, labels, self.student.program.window, self.settings.truncate):
            loss, carry = self.student.read(plan.stage, plan.eviction, part, carry, plan.passes)
            loss = loss / plan.counted
            if loss.requires_grad:
                torch.autograd.backward(loss)
            carry, found = carry.detached(), found + loss.detach()
        return [float(found), float(carry.missed.sum()), float((carry.missed == 0).sum())]

    def _gather(self, figures: list[float]) -> tuple[float, list[float]]:
        """Sum gradients over processes and clip them: their norm before that, and the figures, summed as well."""
        masters = list(self.student.masters.values())
        for master in masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        if self.accelerator.num_processes > 1:
            gradients = [m.grad.flatten() for m in masters if m.grad is not None]
            flat = self.accelerator.reduce(torch.cat([*gradients, masters[0].new_tensor(figures)]), "sum")
            *parts, last = flat.split([*(m.numel() for m in masters), len(figures)])
            figures = last.tolist()
            for master, part in zip(masters, parts, strict=True):
                master.grad = part.view_as(master).clone()
        norm = torch.nn.utils.clip_grad_norm_(masters, self.settings.clip)
        return float(norm), figures

    def _schedule(self, phase: Phase, i: int) -> float:
        """Set the learning rates of a stage's step i: up over the first steps, then down along a cosine to a tenth."""
        rise = max(round(self.settings.warm_up * phase.whole), 1)
        share = (
            (i + 1) / rise
            if i < rise
            else 0.1 + 0.45 * (1 + math.cos(math.pi * (i - rise) / max(phase.whole - rise, 1)))
        )
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        for group in groups:
            group["lr"] = group["full"] * min(share, 1.0)
        return float(groups[0]["lr"])

    def _anybody_stops(self) -> bool:
        stop = torch.tensor([float(self.hooks.should_stop())], device=self.accelerator.device)
        return (
            bool(self.accelerator.reduce(stop, "sum").item() > 0) if self.accelerator.num_processes > 1 else bool(stop)
        )

    # ------------------------------------------------------------------------------------------ metrics

    def _show(self, step: Step) -> None:
        if self.accelerator.is_main_process:
            self.work.mkdir(parents=True, exist_ok=True)
            with (self.work / METRICS).open("a") as file:
                file.write(json_text(asdict(step)) + "\n")
            self.hooks.on_step(step)

    def _cut_metrics(self) -> None:
        """Drop the lines of steps that come again."""
        path = self.work / METRICS
        if self.accelerator.is_main_process and path.is_file():
            lines = path.read_text().splitlines(keepends=True)
            write_whole(path, "".join(lines[: self.done]).encode())


def _hash_of(batch: list[Piece]) -> str:
    """Of tokens and labels."""
    found = hashlib.sha256()
    for piece in batch:
        found.update(np.stack([piece.tokens, piece.asked()]).astype("<i8").tobytes())
    return found.hexdigest()[:16]


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ", 1)[0]


def _counted(phase: Phase, batch: list[Piece]) -> int:
    """Tokens, or labels, over which the loss is a mean."""
    if phase.stage in TAUGHT:
        return sum(map(len, batch))
    return max(sum(int((piece.asked() != NOTHING).sum()) for piece in batch), 1)


def rows_at_once(settings: Settings, processes: int) -> int:
    """Pieces of one forward pass. Raises UsageError if the batch cannot be divided so."""
    parts = settings.accumulate * processes
    if settings.batch % parts:
        raise UsageError(
            f"a batch of {settings.batch} pieces cannot be divided into {settings.accumulate} parts of {processes} "
            "processes",
            where="--batch",
            fix=f"Use a multiple of {parts}.",
        )
    return settings.batch // parts
