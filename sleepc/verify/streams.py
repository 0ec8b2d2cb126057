"""Streams of tokens read by sessions: in any pieces, with any padding, with sleeps at given tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sleepc.ir.compare import max_error
from sleepc.runtime.session import Session
from sleepc.runtime.steps import IntArray, Logits, State, Steps

Padding = Literal["none", "left", "right", "inside"]
Ask = Literal["all", "some", "none"]
"""Which logits a session is asked for: with "some" all, unless the vocabulary is large (see `_asked`)."""
LARGE = 1 << 16  # tokens: in a vocabulary of this size or more, the head is most of the work


@dataclass(frozen=True)
class Stream:
    """Tokens [T] of one row, and the numbers of tokens after which it sleeps, no two further apart than the window."""

    tokens: IntArray
    cuts: tuple[int, ...]

    def next_cut(self, done: int) -> int:
        """Where the row's next piece has to end at the latest."""
        length = len(self.tokens)
        return min((c for c in self.cuts if done < c < length), default=length)


@dataclass(frozen=True)
class Readout:
    """What a session made of streams: logits [n,V] of each at `places` [n], and its state's tensors [B,..] by name."""

    logits: list[Tensor]
    places: list[Tensor]
    state: dict[str, Tensor]

    def row(self, index: int) -> dict[str, Tensor]:
        """The state of one row, with a batch of 1."""
        return {name: value[index : index + 1] for name, value in self.state.items()}


def state_of(session: Session) -> dict[str, Tensor]:
    """The tensors of a session's state, copied."""
    return tensors_of(session.steps, session.snapshot().state)


def tensors_of(steps: Steps, state: State) -> dict[str, Tensor]:
    """A backend's state as tensors, copied."""
    arrays = steps.to_named_arrays(state)
    bf16 = {name for name, (dtype, _) in steps.signature().items() if dtype == "bf16"}
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    return {name: t.view(torch.bfloat16) if name in bf16 else t for name, t in tensors.items()}


@dataclass(frozen=True)
class Pace:
    """Pieces are as long as sleeps allow, at most `most` tokens, and with a `seed` of random lengths, 0 included: rows
    fall out of step. If pieces differ in length, the shorter are padded with random tokens that are not to be read.
    """

    most: int | None = None
    padding: Padding = "none"
    seed: int | None = None
    ask: Ask = "some"


STEADY = Pace()


def read(
    steps: Steps,
    streams: Sequence[Stream],
    *,
    most: int | None = None,
    padding: Padding = "none",
    seed: int | None = None,
    ask: Ask = "some",
) -> Readout:
    """Read streams in one session, each as a row, at the pace that is given."""
    session = Session(steps, len(streams))
    found = advance(session, streams, [0] * len(streams), Pace(most, padding, seed, ask))
    return Readout(*found, state_of(session))


def advance(
    session: Session, streams: Sequence[Stream], done: list[int], pace: Pace = STEADY
) -> tuple[list[Tensor], list[Tensor]]:
    """Go on reading in `session` where row b has read done[b] tokens (updated): logits [n,V] of each row, and the
    tokens [n] that they follow.
    """
    choose, most, number = random.Random(pace.seed), pace.most, 0
    logits: list[list[Tensor]] = [[torch.zeros(0, session.steps.vocab)] for _ in streams]
    places: list[list[Tensor]] = [[torch.zeros(0, dtype=torch.int64)] for _ in streams]
    while any(d < len(s.tokens) for d, s in zip(done, streams, strict=True)):
        take = []
        for d, stream in zip(done, streams, strict=True):
            room = min(stream.next_cut(d) - d, most or len(stream.tokens))
            take.append(room if pace.seed is None else choose.randint(0, room))
        ids, mask = _lay_out(streams, done, take, pace.padding, choose, session.steps.vocab)
        asked = _asked(pace.ask, session.steps.vocab, number, single=most == 1)
        out = session.feed(ids, mask, logits=asked)
        for b, n in enumerate(take):
            if out is not None and n:
                found = torch.from_numpy(out[b])
                logits[b].append(found[torch.from_numpy(mask[b])] if asked == "all" else found[None])
                places[b].append(torch.arange(done[b] if asked == "all" else done[b] + n - 1, done[b] + n))
            done[b] += n
        session.sleep([b for b, s in enumerate(streams) if take[b] and done[b] in s.cuts])
        number += 1
    return [torch.cat(x[1:] or x) for x in logits], [torch.cat(x) for x in places]


def _asked(ask: Ask, vocab: int, number: int, *, single: bool) -> Logits:
    """Of the head of a large vocabulary: every logit of the first call, then the last ones of every other call, of
    single tokens of every fourth. What other tokens did is in the state, and in what follows them.
    """
    if ask != "some" or vocab < LARGE:
        return "none" if ask == "none" else "all"
    if number == 0 and not single:
        return "all"
    return "none" if number % (4 if single else 2) else "last"


def _lay_out(
    streams: Sequence[Stream], done: list[int], take: list[int], padding: Padding, choose: random.Random, vocab: int
) -> tuple[IntArray, np.ndarray[tuple[int, int], np.dtype[np.bool_]]]:
    """Ids [B,W] and mask [B,W] of the next piece of every row."""
    width = max(take) + (0 if padding == "none" else choose.randint(1, 3))
    shape = (len(streams), width)
    ids = np.array([choose.randrange(vocab) for _ in range(len(streams) * width)], dtype=np.int64).reshape(shape)
    mask = np.zeros(shape, dtype=np.bool_)
    for b, n in enumerate(take):
        places = {
            "left": range(width - n, width),
            "inside": sorted(choose.sample(range(width), n)),
        }.get(padding, range(n))
        mask[b, list(places)] = True
        ids[b, mask[b]] = streams[b].tokens[done[b] : done[b] + n]
    return ids, mask


def gap(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest error of a state's tensors, floats by their own scale; inf if names or shapes differ."""
    if found.keys() != wanted.keys():
        return math.inf
    errors = [0.0]
    for name, reference in wanted.items():
        if reference.is_floating_point():
            errors.append(max_error(found[name], reference))
        elif found[name].shape != reference.shape:
            errors.append(math.inf)
        elif reference.numel():
            errors.append(float((found[name].long() - reference.long()).abs().max()))
    return max(errors)


def gap_to_oracle(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """How far what a session holds is from what the oracle's layers hold, whose states these are. A KV window that the
    session's state has not must be that of an earlier layer: the nearest one's.
    """
    errors = [gap({n: found[n] for n in wanted if n in found}, {n: x for n, x in wanted.items() if n in found})]
    for name in wanted.keys() - found.keys():
        layer, dot, part = name.partition(".")
        earlier = [f"{i}{dot}{part}" for i in range(int(layer))] if part in ("k", "v") else []
        windows = [found[each] for each in earlier if each in found and found[each].shape == wanted[name].shape]
        near = [gap({name: window}, {name: wanted[name]}) for window in windows]
        errors.append(min(near, default=math.inf))
    return max(errors)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Bit for bit the same tensors? (NaN is not the same as anything.)"""
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)
