"""How far back heads look: the original's own attention, against softmax written down once more in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sleepc.backends.eager.backend import BACKEND as EAGER
from sleepc.ir.program import ProgramGraphs
from sleepc.masks import Mask
from sleepc.ops.functional import attention
from sleepc.train import statistics as module
from sleepc.train.statistics import HeadStatistics, MeasuredLayer, Reach, Recorder, layers, weights
from sleepc.verify.reference import attention as reference
from tests.families import VOCAB, WINDOW, family

SINKS = 2


def texts(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, VOCAB, (n,), generator=generator) for n in lengths]


def record(canonical: ProgramGraphs, i: int, layer: MeasuredLayer, text: Tensor, n: int) -> tuple[Any, ...]:
    """What the attention of block i is given on input n, as the graph gives it: its arguments and options."""
    seen: list[Any] = []

    def note(*args: Any, **options: Any) -> Tensor:
        seen.append((args, options))
        return attention(*args, **options)

    run = EAGER.runner(canonical.embed)
    params = {key: param.materialise() for key, param in canonical.params.items()}
    values = run({**params, "tokens": text[None], "positions": torch.arange(len(text))[None]})
    block = canonical.layout[i]
    graph = canonical.classes[block.cls].wake
    noting = EAGER.runner(graph, replaced={torch.ops.sleepc.attention.default: note})
    noting({**values, **{port: params[key] for port, key in block.params.items()}, "h": layer.h[n]})
    return tuple(seen[0])


def brute(p: Tensor, window: int, hard: bool) -> dict[str, list[float]]:
    """The statistics of weights [Hq,T,T], one weight at a time."""
    found: dict[str, list[float]] = {"distance": [], "far": [], "share": [], "entropy": []}
    for head in p.tolist():
        near = near_age = far = far_age = entropy = 0.0
        queries = rows = 0
        for t, row in enumerate(head):
            gone = [s for s in range(SINKS, t) if (s // window < t // window if hard else t - s >= window)]
            queries += bool(gone)
            far += sum(row[s] for s in gone)
            far_age += sum(row[s] * (t - s) for s in gone)
            near += sum(row[SINKS : t + 1])
            near_age += sum(row[s] * (t - s) for s in range(SINKS, t + 1))
            seen = torch.tensor([x for x in row if x > 0], dtype=torch.float64)
            if len(seen) > 1:
                even = seen / seen.sum()
                entropy += float(-(even * even.log()).sum() / torch.tensor(len(seen), dtype=torch.float64).log())
                rows += 1
        found["distance"].append(max(near_age / near, 0.5))
        found["far"].append(far_age / far if far else 0.0)
        found["share"].append(far / queries)
        found["entropy"].append(entropy / rows)
    return found


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss", "bloom"])
def test_statistics_are_those_of_softmax_written_down(name: str, hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUERIES", 8)
    canonical = family(name).canonical
    text = texts(21)
    last = len(canonical.layout) - 1
    for i in (0, last):
        found = list(layers(canonical, text, {i: Reach(WINDOW, SINKS, hard)}, [0]))[i]
        (q, k, v, mask, *sinks), options = record(canonical, i, found, text[0], 0)
        assert mask is None
        at = torch.arange(21)
        see = at <= at[:, None]
        see &= Mask.parse(options.get("sees", "")).sees(at[:, None], at)
        slopes = options.get("slopes", ())
        bias = torch.stack([-s * (at[:, None] - at).double() for s in slopes]) if slopes else None
        unit = torch.eye(21, dtype=torch.float64).expand(1, k.shape[1], 21, 21)
        sink = sinks[0] if sinks else None
        p = reference(q, k, unit, see, sink, scale=options["scale"], softcap=options["softcap"], bias=bias)
        s = found.statistics
        assert s is not None
        for key, wanted in brute(p[0], WINDOW, hard).items():
            assert getattr(s, key).tolist() == pytest.approx(wanted, rel=1e-9), key
        context = reference(q, k, v, see, sink, scale=options["scale"], softcap=options["softcap"], bias=bias)
        assert s.context.tolist() == pytest.approx(context.square().mean((0, 2, 3)).sqrt().tolist(), rel=1e-9)
        assert (s.far > 0).all() == (Mask.parse(options.get("sees", "")).window == 0 or hard)


def test_weights_are_given_a_head_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 5, 4, generator=generator) for heads in (6, 3))
    mask = torch.rand(2, 6, 5, 5, generator=generator) > 0.3
    sinks, slopes = torch.randn(6, generator=generator), ()
    unit = torch.eye(5).expand(2, 3, 5, 5)
    whole = torch.ops.sleepc.attention(q, k, unit, mask, sinks, scale=0.5, causal=True)
    parts = list(weights(q, k, mask, sinks, scale=0.5, causal=True, slopes=slopes))
    assert len(parts) == 6
    assert torch.allclose(torch.stack(parts, 1), whole, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_last_output_is_what_the_originals_head_reads(name: str) -> None:
    subject = family(name)
    pieces = texts(20, 13)
    every = list(layers(subject.canonical, pieces, {}, []))
    head = subject.canonical.head
    params = {key: subject.canonical.params[key].materialise() for key in head.ports() if key != "h"}
    for text, h in zip(pieces, every[-1].target, strict=True):
        logits = EAGER.runner(head)({**params, "h": h})["logits"]
        assert torch.allclose(logits, subject.logits(text[None]), atol=1e-3)  # its softmax is float32
    assert all(a.target is b.h for a, b in pairwise(every))


def test_only_the_pieces_that_count_are_counted() -> None:
    canonical = family("llama").canonical
    reaches = {1: Reach(WINDOW, SINKS)}

    def of(pieces: list[Tensor], counted: list[int]) -> HeadStatistics:
        found = list(layers(canonical, pieces, reaches, counted))
        assert found[0].statistics is None
        assert found[1].statistics is not None
        return found[1].statistics

    first, second, other = texts(20, 17, 20)
    both = of([first, second, other], [0, 1])
    assert torch.equal(both.distance, of([first, second], [0, 1]).distance)
    assert not torch.equal(both.distance, of([first, other], [0, 1]).distance)


def test_a_window_of_everything_leaves_nothing_far() -> None:
    q = torch.randn(1, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    recorder = Recorder(Reach(None, 0))
    recorder(q, q, q, scale=0.5, causal=True)
    assert recorder.statistics().far.tolist() == [0, 0]
    assert recorder.statistics().share.tolist() == [0, 0]
