"""A cartridge of a document, by context distillation (arXiv 2506.06266): keys and values in slots are trained until a
program that has them, and not the document, expects what the original expects with the document in view.

They begin as the pairs that the program keeps when it reads the document. The sinks are the document's first tokens and
stay as they are, and so does all that the model knows.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sleepc.backends.table import find_trainer
from sleepc.backends.training_steps import Tensors, TrainingSteps
from sleepc.errors import SleepcError, UsageError
from sleepc.progress import Progress
from sleepc.recipe import MAX_WINDOW
from sleepc.runtime.cartridge import CONVERT, FILLED, NO_SLOTS, POSITION, Cartridge, Room, check_slots
from sleepc.runtime.session import Session
from sleepc.runtime.steps import GAP, SCORE, Array
from sleepc.tasks.asking import PIECE
from sleepc.tasks.programs import full_attention_for
from sleepc.train.program import Trainable
from sleepc.train.self_study import CartridgeLesson, Study, document_ids
from sleepc.train.tutor import Tutor

HELD_OUT = 8  # one of so many lessons is not learned from
JUDGED = 10  # steps between two looks at what is held out
LONGEST = 128  # tokens of a lesson


class CartridgeSettings(BaseModel):
    """How a cartridge is made. `slots`: pairs for every KV head on average, in proportion to the slots that each has;
    None for all of them. Of `lessons` on parts of `part` tokens `batch` are read in a step; `lr` is the rate of Adam,
    as a share of the size that keys, or values, of a layer have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: int | None = Field(default=None, ge=1)
    lessons: int = Field(default=256, ge=2)
    part: int = Field(default=512, ge=16)
    steps: int = Field(default=100, ge=0)
    batch: int = Field(default=8, ge=1)
    lr: float = Field(default=0.02, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=1 << 31)


@dataclass(frozen=True)
class Made:
    """A cartridge, and how far it is from the teacher on lessons that it did not learn from (cross entropy, nats): as
    it began, and as it is, which is after `best` steps. The program has so many `slots`; the cartridge learned from so
    many `lessons`, and `held_out` are those that it did not.
    """

    cartridge: Cartridge
    before: float
    after: float
    best: int
    slots: int
    lessons: int
    held_out: int


def make_cartridge(program: Trainable, text: str, settings: CartridgeSettings, progress: Progress) -> Made:
    """A cartridge of a text. Raises UsageError for a text without words, and a program that cannot have it."""
    text = text.strip()
    if not text:
        raise UsageError("the document is empty", fix="Give a file with text.")
    making = Making(program, settings)
    begun = making.filled(document_ids(program.tokenizer(), text), text, progress)
    return making.trained(begun, make_lessons(program, text, settings, progress), progress)


def make_lessons(
    program: Trainable, text: str, settings: CartridgeSettings, progress: Progress
) -> list[CartridgeLesson]:
    """What the original teaches of a text, as far as its positions let it read a part and what comes after it."""
    canonical = program.captured(progress)
    positions = canonical.max_positions or MAX_WINDOW
    part, longest = min(settings.part, positions // 2), min(LONGEST, positions // 4)
    tutor = Tutor(full_attention_for(canonical, find_trainer().steps), program.tokenizer(), program.graphs.vocab)
    study, chance = Study(tutor, part, settings.batch, longest), random.Random(settings.seed)
    return study.lessons(text, settings.lessons, chance, lambda share: progress("self-study", share))


class Making:
    """A program in float32 or wider, whose slots are filled and trained. Raises UsageError for one that has none."""

    def __init__(self, program: Trainable, settings: CartridgeSettings) -> None:
        keep = program.recipe.keep
        if keep is None:
            raise UsageError(NO_SLOTS, fix=CONVERT)
        if settings.slots is not None and settings.slots > keep.slots:
            what = f"{settings.slots} pairs for every KV head are more than the program has slots: {keep.slots}"
            raise UsageError(what, where="--slots", fix="Give fewer, or convert with a larger --keep.")
        self.program, self.settings, self.sinks = program, settings, program.recipe.sinks
        self.share = settings.slots or keep.slots, keep.slots
        wide = torch.promote_types(program.graphs.dtype, torch.float32)
        self.steps = cast(TrainingSteps, find_trainer().steps(program.graphs, dtype=wide, train=True))
        check_slots(self.steps.signature())

    # -- how it begins ---------------------------------------------------------------------------

    def filled(self, tokens: Sequence[int], text: str, progress: Progress) -> Cartridge:
        """The pairs that the program keeps of a document's tokens."""
        session = Session(self.steps)
        for at in range(0, len(tokens), PIECE):
            progress("reading the document", at / len(tokens))
            session.feed([list(tokens[at : at + PIECE])], logits="none")
        session.sleep()
        limit = self.program.graphs.max_positions
        if session.stats.emptied:
            what = f"the document has {len(tokens)} tokens, and this model's {limit} positions cannot be counted anew"
            raise UsageError(what, fix="Give a shorter document.")
        arrays = self._behind(self.steps.to_named_arrays(session.snapshot().state), limit)
        digest = hashlib.sha256(text.encode()).hexdigest()
        begun = Cartridge(self.program.identity, _next(arrays), {}, digest, len(tokens), {})
        return self._taken(begun, arrays)

    def _behind(self, arrays: dict[str, Array], limit: int | None) -> dict[str, Array]:
        """The state once the next token is so far from all pairs in slots that it sees them. If the model's positions
        would end in the window that follows they are counted anew, as sleeps do it.
        """
        last = max(int(arrays[f"{i}.{POSITION}"].max(initial=-1)) for i in self.steps.budgets)
        if last < 0:
            raise UsageError("all of the document are sinks", fix="Give a longer document.")
        ring = max(int(name.removeprefix(GAP)) for name in arrays if name.startswith(GAP))
        arrays["position"] = arrays["position"] + max(last + ring - _next(arrays), 0)
        if limit is None or _next(arrays) + self.steps.window <= limit:
            return arrays
        if "offset" not in arrays:
            what = f"after the document no window is left of the model's {limit} positions"
            raise UsageError(what, fix="Give a shorter document.")
        slept = self.steps.sleep(self.steps.from_named_arrays(arrays), np.ones(1, np.bool_))
        return self.steps.to_named_arrays(slept)

    def _taken(self, begun: Cartridge, arrays: Mapping[str, Array]) -> Cartridge:
        """With the sinks of every window and the best pairs of every head in the state of one row."""
        own = {name: each[0, :, : self.sinks] for name, each in arrays.items() if name.partition(".")[2] in ("k", "v")}
        pairs, (share, of) = dict[int, tuple[int, ...]](), self.share
        for i, budget in self.steps.budgets.items():
            score, position = arrays[f"{i}.{SCORE}"][0], arrays[f"{i}.{POSITION}"][0]
            chosen, start = [], 0
            for slots in budget:
                held = start + np.flatnonzero(position[start : start + slots] >= 0)
                chosen.append(np.sort(held[np.argsort(-score[held], kind="stable")[: slots * share // of]]))
                start += slots
            pairs[i] = tuple(map(len, chosen))
            own |= {f"{i}.{part}": arrays[f"{i}.{part}"][0, np.concatenate(chosen)] for part in (*FILLED, POSITION)}
        return replace(begun, pairs=pairs, arrays={name: each.copy() for name, each in own.items()})

    # -- how it learns ---------------------------------------------------------------------------

    def trained(self, begun: Cartridge, lessons: Sequence[CartridgeLesson], progress: Progress) -> Made:
        """After the steps that were best on the lessons that are held out. Raises SleepcError if there are none, or
        the loss is not finite.
        """
        apart, learned = lessons[::HELD_OUT], [each for i, each in enumerate(lessons) if i % HELD_OUT]
        if not learned:
            raise UsageError("the teacher had nothing to say about the document", fix="Give a longer document.")
        slots = Slots(self.steps, begun)
        optimiser = torch.optim.Adam(slots.groups(self.settings.lr))
        best = before = slots.judged(apart, self.settings.batch)
        kept, at = slots.values(), 0
        order = _batches(learned, self.settings)
        for step in range(1, self.settings.steps + 1):
            progress("training", step / self.settings.steps)
            optimiser.zero_grad()
            loss = slots.loss(next(order))
            if not loss.isfinite():
                raise SleepcError(f"the loss of step {step} is {loss.item()}", fix="Choose a smaller --lr.")
            loss.backward()  # type: ignore[no-untyped-call]  # as published
            optimiser.step()
            if step % JUDGED == 0 or step == self.settings.steps:
                found = slots.judged(apart, self.settings.batch)
                if found < best:
                    best, kept, at = found, slots.values(), step
        slots_in_all = sum(map(sum, self.steps.budgets.values()))
        return Made(begun.filled(kept), before, best, at, slots_in_all, len(learned), len(apart))


def _next(arrays: Mapping[str, Array]) -> int:
    """The next token's position, as the model counts."""
    return int(arrays["position"][0] - arrays.get("offset", np.zeros(1, np.int64))[0])


def _batches(lessons: Sequence[CartridgeLesson], settings: CartridgeSettings) -> Iterator[list[CartridgeLesson]]:
    """Batches in another order every time round, without an end."""
    chance = random.Random(settings.seed)
    while True:
        order = chance.sample(range(len(lessons)), len(lessons))
        for at in range(0, len(order), settings.batch):
            yield [lessons[i] for i in order[at : at + settings.batch]]


class Slots:
    """The keys and values of a cartridge as what an optimiser changes, and what a program makes of lessons with them.

    What stands at position 0 stays as it is: attention rests on it (a program without sinks keeps it in slots).
    """

    def __init__(self, steps: TrainingSteps, cartridge: Cartridge) -> None:
        self.steps = steps
        arrays = steps.to_named_arrays(steps.new_state(1))
        Room(steps, cartridge.identity).place(arrays, 0, [cartridge])
        self.state: Tensors = steps.from_named_arrays(arrays)
        self.at = {i: (self.state[f"{i}.{POSITION}"][0] >= 0).nonzero()[:, 0] for i in cartridge.pairs}
        self.masters = {
            f"{i}.{part}": self.state[f"{i}.{part}"][0, at].clone().requires_grad_()
            for i, at in self.at.items()
            for part in FILLED
            if len(at)
        }
        for name, master in self.masters.items():
            free = (self.state[f"{_block(name)}.{POSITION}"][0, self.at[_block(name)]] > 0)[:, None]
            master.register_hook(lambda gradient, free=free: gradient * free)

    def groups(self, lr: float) -> list[dict[str, object]]:
        """What an optimiser steps: at `lr` times the size of each tensor's numbers."""
        return [{"params": [m], "lr": lr * float(m.detach().square().mean().sqrt())} for m in self.masters.values()]

    def values(self) -> dict[str, Array]:
        """Keys and values as they are now, by name; a copy."""
        return {name: master.detach().clone().numpy() for name, master in self.masters.items()}

    def rows(self, count: int) -> Tensors:
        """The state of so many rows that have the cartridge, differentiable in the masters."""
        own = {
            name: self.state[name].index_copy(1, self.at[_block(name)], master[None])
            for name, master in self.masters.items()
        }
        return {name: each.expand(count, *each.shape[1:]) for name, each in {**self.state, **own}.items()}

    def loss(self, lessons: Sequence[CartridgeLesson]) -> Tensor:
        """Mean cross entropy of the most likely tokens of the teacher: scalar."""
        tokens = torch.nn.utils.rnn.pad_sequence([each.tokens for each in lessons], batch_first=True)
        places = torch.nn.utils.rnn.pad_sequence([each.places for each in lessons], batch_first=True)
        lengths = torch.tensor([len(each.tokens) for each in lessons])
        state, sums, length = self.rows(len(lessons)), list[Tensor](), self.steps.window
        for start in range(0, tokens.shape[1], length):
            part = slice(start, start + length)
            real = (lengths - start).clamp(0, length)
            values, state = self.steps.wake_blocks(state, tokens[:, part], real)
            wanted = [each.between(part) for each in lessons]
            if bool(places[:, part].any()):
                log_q = self.steps.logits_at(values, places[:, part]).log_softmax(-1)
                ids, log_p = (torch.cat(each) for each in zip(*wanted, strict=True))
                sums.append(-(log_p.exp() * log_q.gather(-1, ids)).sum())
            if start + length < tokens.shape[1]:
                state = self.steps.sleep_tensors(state)
        return torch.stack(sums).sum() / places.sum()

    @torch.no_grad()
    def judged(self, lessons: Sequence[CartridgeLesson], batch: int) -> float:
        """The same as a number, over all of these."""
        parts = [lessons[at : at + batch] for at in range(0, len(lessons), batch)]
        sizes = [sum(int(each.places.sum()) for each in part) for part in parts]
        return sum(float(self.loss(part)) * size for part, size in zip(parts, sizes, strict=True)) / sum(sizes)


def _block(name: str) -> int:
    return int(name.partition(".")[0])
