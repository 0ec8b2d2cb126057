"""`sleepc calibrate --only budgets`: share a program's slots anew among its KV heads, and say what it then remembers.

If its score has probes, these are measured first.

Nothing is trained. What is remembered is measured on a text that was not read for it, whose beginning comes again at
the end: how much of what full attention gains by having it in view, over a window that has lost it, kept pairs give.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from sleepc.backends.table import find_trainer
from sleepc.errors import UsageError
from sleepc.hf.tokenizer import NoTokenizer
from sleepc.ir.parameters import block_key
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.keep.registry import find as find_score
from sleepc.passes.plan import budgets, may_keep
from sleepc.passes.rewrite.kept_pairs import PROBE, heads_that_keep
from sleepc.progress import Progress
from sleepc.recipe import Budgets, Recipe
from sleepc.tasks.asking import surprises
from sleepc.tasks.programs import full_attention
from sleepc.train.anew import converted_anew
from sleepc.train.budgets import measured_worth
from sleepc.train.planted_text import planted_text
from sleepc.train.probes import asked_texts, measured_probes
from sleepc.train.texts import Document
from sleepc.verify.memory_values import with_parameters, without_memories

if TYPE_CHECKING:
    from sleepc.train.program import Trainable

READ = 3072  # tokens, to see what heads look for
BETWEEN = 6  # windows between a beginning and its return
TEXTS = 4  # made-up ones, if none are given


class Recall(BaseModel):
    """What is remembered with `slots`, and what that takes: `share` of what full attention gains (1: all of it; None
    if it gains nothing), state bytes of a sequence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: int
    share: float | None
    state_bytes: int


class BudgetsReport(BaseModel):
    """The slots of every KV head of every layer; `before` those that the program had. `tokens` were read for them,
    `questions` asked for probes (None: the score has none; 0: the model can read no text with some), `tokens_apart`
    read to see what is remembered: `recall`, with half the slots, the slots and, if positions allow it, twice as many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots: int
    budgets: Budgets
    before: Budgets
    tokens: int
    questions: int | None
    tokens_apart: int
    recall: tuple[Recall, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump(mode="json")


def share_slots(program: Trainable, documents: Iterator[Document] | None, progress: Progress) -> BudgetsReport:
    """Measure budgets on texts (made-up ones for None), and probes if its score has some, and give the program them:
    `graphs` and `recipe` change, and trained values stay.

    Raises UsageError for a program that keeps no pairs, and texts that are too short.
    """
    started = time.perf_counter()
    keep = program.recipe.keep
    if keep is None:
        raise UsageError("the program keeps no pairs", where="--only budgets", fix="Convert it with --keep 128.")
    canonical = program.captured(progress)
    tokens = _tokens(program, documents)
    apart = _returning(program, tokens)
    learn = tokens[len(apart) :]
    heads = heads_that_keep(canonical, may_keep(program.recipe.plan(len(canonical.layout)), program.recipe.window))
    graphs, questions = _with_probes(program, canonical, heads, progress)
    worth = measured_worth(canonical, program.recipe, heads, learn, progress, READ)
    every = {
        slots: worth.budgets(slots)
        for slots in sorted({max(keep.slots // 2, 1), keep.slots, 2 * keep.slots})
        if slots <= max(keep.slots, worth.room)
    }
    shares = _shares(graphs, program.recipe, canonical, every, apart, progress)
    recipe = _with_slots(program.recipe, keep.slots, every[keep.slots])
    program.graphs, program.recipe = converted_anew(graphs, canonical, recipe), recipe
    found = BudgetsReport(
        slots=keep.slots,
        budgets=every[keep.slots],
        before=budgets(keep, heads),
        tokens=min(len(learn), READ),
        questions=questions,
        tokens_apart=len(apart),
        recall=shares,
        seconds=time.perf_counter() - started,
    )
    program.report["budgets"] = found.to_json()
    return found


def _with_probes(
    program: Trainable, canonical: ProgramGraphs, heads: Sequence[int], progress: Progress
) -> tuple[ProgramGraphs, int | None]:
    """The program with its probes measured, and on how many questions: None if its score has none, 0 if no text with
    questions can be read. Layers that have no slots yet may get some, and have theirs among the parameters too.
    """
    score = find_score(program.recipe.keep.score if program.recipe.keep else "")
    if not score.probed:
        return program.graphs, None
    try:
        texts = asked_texts(program.tokenizer(), canonical.max_positions)
    except NoTokenizer:
        texts = []
    if not texts:
        return program.graphs, 0
    probes = measured_probes(canonical, texts, program.recipe, score, heads, progress)
    given = {block_key(i, PROBE): probe for i, probe in probes.items()}
    return with_parameters(program.graphs, given), sum(each.questions for each in texts)


def _with_slots(recipe: Recipe, slots: int, budgets: Budgets) -> Recipe:
    assert recipe.keep is not None
    keep = recipe.keep.model_copy(update={"slots": slots, "budgets": budgets})
    return recipe.model_copy(update={"keep": keep})


# ---------------------------------------------------------------------------------------------------- what is read


def _tokens(program: Trainable, documents: Iterator[Document] | None) -> list[int]:
    """As many tokens of the texts as are needed; random ones if no text is given and the model has no tokenizer."""
    need = READ + (BETWEEN + 2) * program.graphs.window + program.recipe.sinks
    try:
        tokenizer = program.tokenizer()
    except NoTokenizer:
        if documents is not None:
            raise
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, program.graphs.vocab, (need,), generator=generator).tolist()
    if documents is None:
        texts: Iterator[str] = (planted_text(seed) for seed in count())
        texts = islice(texts, max(TEXTS, need // 500))
    else:
        texts = ("".join(parts) for parts in documents)
    found: list[int] = []
    for text in texts:
        found += tokenizer.encode(text + "\n\n")
        if len(found) >= need:
            break
    return found[:need]


def _returning(program: Trainable, tokens: Sequence[int]) -> list[int]:
    """The first tokens, some windows, and after them the first window again: as far as there are positions."""
    graphs, sinks = program.graphs, program.recipe.sinks
    room = len(tokens) // 2 if graphs.max_positions is None else min(len(tokens) // 2, graphs.max_positions)
    length = min((BETWEEN + 2) * graphs.window + sinks, room)
    if length < 3 * graphs.window + sinks:
        raise UsageError(
            f"{len(tokens)} tokens are too few to see what a program with a window of {graphs.window} remembers",
            where="--text",
            fix="Give more text, or convert the model with a smaller --window.",
        )
    return list(tokens[: length - graphs.window])


# -------------------------------------------------------------------------------------------- what is remembered


def _shares(
    own: ProgramGraphs,
    recipe: Recipe,
    canonical: ProgramGraphs,
    every: dict[int, Budgets],
    apart: list[int],
    progress: Progress,
) -> tuple[Recall, ...]:
    """With each number of slots: memories are off, so that only what is kept counts."""
    window, sinks = own.window, recipe.sinks
    text = np.array([apart + apart[sinks : sinks + window]])
    plain = converted_anew(own, canonical, recipe.model_copy(update={"keep": None}))

    def surprise(graphs: ProgramGraphs) -> float:
        steps = find_trainer().steps(graphs)
        return float(surprises(steps, text, lambda share: progress("measuring recall", share))[0, -window + 1 :].mean())

    nothing = surprise(without_memories(plain))
    gain = nothing - surprise(full_attention(canonical, text.shape[1]))
    found = []
    for slots, shared in every.items():
        graphs = converted_anew(own, canonical, _with_slots(recipe, slots, shared))
        share = (nothing - surprise(without_memories(graphs))) / gain if gain > 0 else None
        found.append(Recall(slots=slots, share=share, state_bytes=graphs.state_bytes()))
    return tuple(found)
