"""What a sleep drops of kept pairs and of the window, in the oracle: token by token, for every row and head."""

from __future__ import annotations

import torch
from torch import Tensor

from sleepc.ir.roles import name_of
from sleepc.memory.registry import find
from sleepc.passes.consolidation.contract import Pairs
from sleepc.verify.reference import Written
from sleepc.verify.rounded import rounded, stored

WIDTHS = ("k", "v")  # what is no gate


def dropped(
    rule: str, made: Written, pairs: tuple[Pairs, Pairs], start: int, end: int, dtype: str = "float"
) -> Written:
    """What the sleep after tokens start .. end-1 writes, [B,H,P,..]: of all that the stream's tokens have `made`
    [B,H,t,..] the part of tokens that each head had or read and has no more (`pairs` before and after the sleep), in
    their order, in its last places. What vectors slots held are as exact as their `dtype`.

    P is the number of tokens read, or more where a head drops more than that. At the last places it is as late as it
    was at the tokens of the window; nothing is written, and no time goes by, where there is no pair.
    """
    (before, after), read = pairs, set(range(start, end))
    out = [
        [sorted((set(had) | read) - set(has)) for had, has in zip(*heads, strict=True)]
        for heads in zip(before.tokens, after.tokens, strict=True)
    ]
    places = max(len(read), *(len(tokens) for heads in out for tokens in heads))
    gates, found = find(rule).gates, {}
    for name, values in made.items():
        nothing = 0.0 if name in WIDTHS else gates[name].at_padding
        found[name] = values.new_full((*values.shape[:2], places, *values.shape[3:]), nothing)
        if name not in WIDTHS and gates[name].of_time:
            found[name] = torch.cat([found[name][:, :, len(read) :], values[:, :, start:end]], 2)
            continue
        for row, heads in enumerate(out):
            for head, tokens in enumerate(heads):
                written = values[row, head, tokens]
                if values.dim() == 4:
                    held = torch.tensor([t < start for t in tokens], dtype=torch.bool)
                    written = torch.where(held[:, None], rounded(written, dtype), written)
                found[name][row, head, places - len(tokens) :] = written
    return found


def slots_hold(rule: str, made: Written, pairs: Pairs, *, with_v: bool, dtype: str = "float") -> dict[str, Tensor]:
    """What slots hold for the memory, by part: all heads' slots one after the other, empty ones of a head first."""
    gates = find(rule).gates
    found: dict[str, Tensor] = {}
    for name, values in made.items():
        if (name == "v" and not with_v) or (name not in WIDTHS and gates[name].of_time):
            continue
        nothing = 0.0 if name in WIDTHS else gates[name].at_padding
        rows = []
        for row, heads in enumerate(pairs.tokens):
            parts = []
            for head, (tokens, slots) in enumerate(zip(heads, pairs.budget, strict=True)):
                parts.append(values.new_full((slots - len(tokens), *values.shape[3:]), nothing))
                parts.append(values[row, head, tokens])
            rows.append(torch.cat(parts))
        found |= stored(name_of("record", name), torch.stack(rows), dtype if values.dim() == 4 else "float")
    return found
