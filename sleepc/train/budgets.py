"""How many pairs each KV head should keep: as many as it looks for when the same words come again.

A text is read twice in a row, with full attention. The second time, heads that retrieve look back at the
pairs of the first: a pair is worth to its KV head the greatest weight that a query of the second reading gives it
(as in KVzip, arXiv 2505.23416). Of all pairs of all heads those with the greatest weights get a slot each, as many
as there are slots for a text of `TEXT` tokens. Which heads these are of is a property of the model more than of the
text (docs/keep.md has figures), so that little text is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sleepc.backends.table import find_trainer
from sleepc.errors import UsageError
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ops.functional.heads import group
from sleepc.progress import Progress
from sleepc.recipe import MAX_WINDOW, Budgets, Recipe
from sleepc.train.local import only_block, only_embed
from sleepc.train.statistics import ATTENTION, weights
from sleepc.verify.rounding import widened

TEXT = 900  # tokens of the text whose best pairs get the slots
LENGTH = 1024  # tokens that are read twice in a row, at most
FEW = 512  # tokens are read by a conversion


@dataclass(frozen=True)
class Worth:
    """What the pairs of a text are worth to the KV heads, [H, tokens] for those of all layers one after the other;
    `heads`: how many of them are each layer's. A head has `room` for so many slots.
    """

    of_pairs: Tensor
    heads: Sequence[int]
    room: int

    def wanted(self, slots: int) -> Tensor:
        """How many slots each KV head wants, [H]: on average `slots`."""
        return _shares(self.of_pairs, slots * len(self.of_pairs), self.of_pairs.shape[1])

    def budgets(self, slots: int) -> Budgets:
        """The slots of every KV head of every layer, on average `slots`."""
        counts = self.wanted(slots)
        each = iter(_limited(counts, slots * len(counts), max(min(self.room, TEXT), slots)))
        return tuple(tuple(next(each) for _ in range(n)) for n in self.heads)


def measured_worth(
    canonical: ProgramGraphs,
    recipe: Recipe,
    heads: Sequence[int],
    tokens: Sequence[int],
    progress: Progress,
    read: int = FEW,
) -> Worth:
    """What is read is the same for any number of slots. `heads`: the KV heads of every layer that share them, 0 for a
    layer whose heads do not.
    """
    rows = twice(canonical, recipe, tokens, read)
    return worth_of(echo(canonical, rows, recipe.sinks, progress), heads, canonical, recipe)


def worth_of(heard: Sequence[Tensor], heads: Sequence[int], canonical: ProgramGraphs, recipe: Recipe) -> Worth:
    """The same from what was `heard` (`echo`), [n,Hkv,L] for every layer."""
    found = torch.cat([each.transpose(0, 1).flatten(1) for each, n in zip(heard, heads, strict=True) if n])
    return Worth(found, heads, room(canonical, recipe))


def room(canonical: ProgramGraphs, recipe: Recipe) -> int:
    """How many slots a KV head may have: what the model's positions leave after sinks and two windows."""
    limit = canonical.max_positions
    return MAX_WINDOW if limit is None else limit - recipe.sinks - 2 * recipe.window


def twice(canonical: ProgramGraphs, recipe: Recipe, tokens: Sequence[int], read: int) -> Tensor:
    """Texts [n, s + 2N]: the first s tokens, and N others twice; N is less than LENGTH if positions or tokens end."""
    first, rest = list(tokens[: recipe.sinks]), list(tokens[recipe.sinks :])[:read]
    room = LENGTH if canonical.max_positions is None else (canonical.max_positions - recipe.sinks) // 2
    length = min(LENGTH, room, len(rest))
    if length < 2:
        raise UsageError(
            f"{len(tokens)} tokens say nothing about what heads look for",
            where="keep.budgets",
            fix="Give a longer text, or `budgets: equal`.",
        )
    return torch.tensor([first + 2 * rest[at : at + length] for at in range(0, len(rest) - length + 1, length)])


@torch.no_grad()
def echo(canonical: ProgramGraphs, rows: Tensor, sinks: int, progress: Progress) -> list[Tensor]:
    """What each pair of the first reading is worth in the second, [n,Hkv,L] for every layer; rows [n, s + 2L]."""
    program = widened(canonical, "CANONICAL", torch.float32)
    run = find_trainer().runner
    positions = torch.arange(rows.shape[1]).expand(rows.shape).contiguous()
    known = materialise(only_embed(program), "cpu")
    values = run(program.embed)({**known, "tokens": rows, "positions": positions})
    found = []
    for i, block in enumerate(program.layout):
        progress("measuring budgets", i / len(program.layout))
        own = materialise(only_block(program, i), "cpu")
        bound = {port: own[key] for port, key in block.params.items()}
        heard = _Echo((rows.shape[1] - sinks) // 2)
        values |= run(program.classes[block.cls].wake, replaced={ATTENTION: heard})({**values, **bound})
        found.append(heard.worth)
    progress("measuring budgets", 1.0)
    return found


class _Echo:
    """Stands in for `sleepc::attention`, and notes what the last L queries give to the L tokens before them."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.worth = torch.zeros(0)  # [B,Hkv,L]; nothing in a block without attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
        """attention(q, k, v, ..): [B,Hq,T,dv]."""
        window, count = slice(-2 * self.window, -self.window), q.shape[1] // k.shape[1]
        each, out = [], []
        for head, p in enumerate(weights(q, k, *rest, **options)):
            each.append(p[:, -self.window :, window].amax(1))
            out.append(p.to(v.dtype) @ v[:, head // count])
        self.worth = group(torch.stack(each, 1), k.shape[1]).amax(2)
        return torch.stack(out, 1)


def _shares(worth: Tensor, slots: int, tokens: int) -> Tensor:
    """How many slots heads get in a text of `TEXT` tokens if the best pairs of `tokens` get them: worth [H, tokens]
    -> [H].
    """
    best = min(max(slots * tokens // TEXT, 1), worth.numel())
    chosen = torch.zeros(worth.numel(), dtype=torch.bool)
    chosen[worth.flatten().topk(best).indices] = True
    return chosen.view(worth.shape).sum(1).double() * slots / best


def _limited(counts: Tensor, slots: int, most: int) -> list[int]:
    """Whole numbers of no more than `most` whose sum is `slots` (or as many as fit); what is cut off goes to the others
    in proportion, and what is left then one by one.
    """
    left = counts.clone()
    for _ in range(len(counts)):
        over = left > most
        free = ~over
        room = slots - most * int(over.sum())
        if not over.any() or not free.any() or not float(left[free].sum()):
            break
        left = torch.where(over, float(most), left * room / left[free].sum())
    whole = left.floor().clamp(max=most).long()
    order = torch.argsort(left - whole, descending=True, stable=True)
    for i in order[: max(slots - int(whole.sum()), 0)].tolist():
        whole[i] += int(whole[i]) < most
    return [int(n) for n in whole]
