"""The original read with full attention, block by block: what goes in and out, and how far back each head looks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sleepc.backends.table import find_trainer
from sleepc.ir.graph import Graph
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ops.functional import attention, attention_weights
from sleepc.train.local import only_block, only_embed
from sleepc.verify.rounding import widened

ATTENTION = torch.ops.sleepc.attention.default
QUERIES = 512  # rows of weights looked at at once, in float64
NEAREST = 0.5  # tokens: the least mean distance (conversion.md, section 2 B)


@dataclass(frozen=True)
class Reach:
    """What the converted layer's attention keeps: the first `sinks` tokens, and the latest `window` (None for all), or
    with `hard` eviction those of the window that the query stands in.
    """

    window: int | None
    sinks: int
    hard: bool = False

    def gone(self, queries: Tensor, tokens: int) -> Tensor:
        """Which of the tokens [T] queries at t [n] no longer see: bool [n,T]."""
        if self.window is None:
            return torch.zeros(len(queries), tokens, dtype=torch.bool)
        since = (queries % self.window + 1)[:, None] if self.hard else self.window
        return (queries[:, None] - torch.arange(tokens) >= since) & self.memorable(tokens)

    def memorable(self, tokens: int) -> Tensor:
        """Which tokens are not sinks: bool [T]."""
        return torch.arange(tokens) >= self.sinks


@dataclass(frozen=True)
class HeadStatistics:
    """Of every query head, float64 [Hq], over the tokens of some pieces; attention to sinks is left out of distances.

    distance: mean distance of what is looked at.   far: the same of what the converted attention no longer sees, 0 for
    none.   share: how much of a query's attention that is, of queries that have such tokens.   entropy: of a query's
    weights, 1 for even ones over all that it sees.   context: RMS of what comes out.   value: RMS of silu(v).
    """

    distance: Tensor
    far: Tensor
    share: Tensor
    entropy: Tensor
    context: Tensor
    value: Tensor


class Recorder:
    """Stands in for `sleepc::attention`, and sums up what it sees."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.sums: dict[str, Tensor] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
        """attention(q, k, v, ..): [B,Hq,T,dv]."""
        out = attention(q, k, v, *rest, **options)
        sums = [self._of_weights(p) for p in weights(q, k, *rest, **options)]
        for name in sums[0]:
            self._add(name, torch.stack([s[name] for s in sums]))
        heads = q.shape[1]
        self._add("context", out.double().square().sum((0, 2, 3)))
        value = torch.nn.functional.silu(v.double()).square().sum((0, 2, 3)).repeat_interleave(heads // v.shape[1])
        self._add("value", value)
        self._add("numbers", torch.full((heads,), out[:, 0].numel(), dtype=torch.float64))
        return out

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _of_weights(self, p: Tensor) -> dict[str, Tensor]:
        """Sums over rows and queries of one head's weights p [B,T,T], some queries at a time."""
        parts = [self._of_queries(p[:, at : at + QUERIES], at) for at in range(0, p.shape[1], QUERIES)]
        return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}

    def _of_queries(self, p: Tensor, start: int) -> dict[str, Tensor]:
        """The same of queries from `start` on, p [B,n,T]."""
        queries, tokens = p.shape[1:]
        p = p.double()
        at = torch.arange(start, start + queries)
        age, gone = at[:, None] - torch.arange(tokens), self.reach.gone(at, tokens)
        seen, mass = (p > 0).sum(-1), p.sum(-1)
        chosen = (seen > 1) & (mass > 0)
        even = p / mass.clamp(min=torch.finfo(torch.float64).tiny)[..., None]
        entropy = -torch.special.xlogy(even, even).sum(-1) / seen.clamp(min=2).double().log()
        near, far = p * self.reach.memorable(tokens), p * gone
        return {
            "near": near.sum(),
            "near age": (near * age).sum(),
            "far": far.sum(),
            "far age": (far * age).sum(),
            "far queries": gone.any(-1).sum().double() * len(p),
            "entropy": torch.where(chosen, entropy, 0.0).sum(),
            "entropy queries": chosen.sum().double(),
        }

    def statistics(self) -> HeadStatistics:
        """Of everything seen since the start."""
        s = self.sums
        return HeadStatistics(
            distance=_ratio(s["near age"], s["near"]).clamp(min=NEAREST),
            far=_ratio(s["far age"], s["far"]),
            share=_ratio(s["far"], s["far queries"]),
            entropy=_ratio(s["entropy"], s["entropy queries"]),
            context=_ratio(s["context"], s["numbers"]).sqrt(),
            value=_ratio(s["value"], s["numbers"]).sqrt(),
        )


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, 0 if there is nothing."""
    return torch.where(whole > 0, part / whole.clamp(min=torch.finfo(torch.float64).tiny), 0.0)


def weights(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    sink_logits: Tensor | None = None,
    by_distance: Tensor | None = None,
    *,
    slopes: Sequence[float] = (),
    **options: Any,
) -> Iterator[Tensor]:
    """attention's weights [B,T,T], one query head at a time: those of all heads take much memory."""
    count = q.shape[1] // k.shape[1]
    for j in range(q.shape[1]):
        h, own = j // count, slice(j, j + 1)
        own_mask = mask if mask is None or mask.shape[1] == 1 else mask[:, own]
        own_logits = None if sink_logits is None else sink_logits[own]
        own_numbers = None if by_distance is None else by_distance[:, own]
        own_options = {**options, "slopes": slopes[own]}
        yield attention_weights(q[:, own], k[:, h : h + 1], own_mask, own_logits, own_numbers, **own_options)[:, 0]


@dataclass(frozen=True)
class MeasuredLayer:
    """One block on pieces: its inputs and outputs [1,T,d], and the statistics of its heads over some of the pieces."""

    index: int
    h: list[Tensor]
    target: list[Tensor]
    statistics: HeadStatistics | None


Reaches = Mapping[int, Reach]


@torch.no_grad()
def layers(
    canonical: ProgramGraphs, pieces: Sequence[Tensor], reaches: Reaches, counted: Collection[int]
) -> Iterator[MeasuredLayer]:
    """The blocks of a program at level CANONICAL in order, on pieces [T] of tokens, with full attention.

    Statistics are made of the layers in `reaches`, over the pieces whose numbers are `counted`. One block's weights
    are read at a time.
    """
    program = widened(canonical, "CANONICAL", torch.float32)
    embed = _runner(program.embed)
    known = materialise(only_embed(program), "cpu")
    values = [embed({**known, "tokens": p[None], "positions": torch.arange(len(p))[None]}) for p in pieces]
    h = [each.pop("h") for each in values]
    for i, block in enumerate(program.layout):
        own = materialise(only_block(program, i), "cpu")
        bound = {port: own[key] for port, key in block.params.items()}
        recorder = Recorder(reaches[i]) if i in reaches else None
        plain = _runner(program.classes[block.cls].wake)
        recording = _runner(program.classes[block.cls].wake, recorder) if recorder is not None else plain
        out = [
            (recording if n in counted else plain)({**each, **bound, "h": h[n]})["h"] for n, each in enumerate(values)
        ]
        yield MeasuredLayer(i, h, out, recorder.statistics() if recorder is not None else None)
        h = out


def _runner(graph: Graph, recorder: Callable[..., Tensor] | None = None) -> Callable[[Mapping[str, Any]], Any]:
    return find_trainer().runner(graph, replaced=None if recorder is None else {ATTENTION: recorder})
