"""Starting values from which memories learn fast, for those that are still as a conversion made them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sleepc.backends.table import find_trainer
from sleepc.ir.parameters import materialise
from sleepc.ir.program import Block, ProgramGraphs
from sleepc.memory.parameters import (
    CONV,
    DECAYS,
    KEY_MAP,
    MIX,
    OF_LAYERS,
    PREFIX,
    QUERY_MAP,
    STRENGTHS,
    Parameter,
)
from sleepc.passes.analysis.find_sites import find_attention, find_site
from sleepc.train.adapter import with_values

WRITES = 1 / 16  # of d_k / L: the write strength
LONGER = 8  # times: the half-lives
LASTING = 2000  # tokens, at least: the half-life of memories of a model from scratch


def start_memories(graphs: ProgramGraphs, canonical: ProgramGraphs, tokens: Tensor) -> ProgramGraphs:
    """The program with memories of strategy `parallel` that were never trained set to learn; others stay as they are.

    Keys of a head are alike (their mean has 0.9 of their length), which attention does not mind and a linear memory
    does: maps of q and k leave out the mean direction, found on tokens [B,T]. Writes are weaker, half-lives longer, the
    mix larger (docs/decisions/0009 has what each is good for).
    """
    chosen = [i for i, block in enumerate(graphs.layout) if _is_new(graphs, block)]
    if not chosen:
        return graphs
    means = mean_keys(canonical, tokens)
    values: dict[str, Tensor] = {}
    for i in chosen:
        values |= _started(graphs, graphs.layout[i], means[i])
    return with_values(graphs, values)


def new_layers(graphs: ProgramGraphs, seed: int) -> ProgramGraphs:
    """The program with memories that stand by themselves (`replace`, `insert`) as layers of this kind begin in a new
    model; those that were trained, or are next to attention, are left alone.

    A conversion starts them carefully, for a model that has learned something: convolutions pass their input on, so
    that a key is of one token, and output gates are closed. Here taps are uniform in [-1/2, 1/2] and gates normal with
    variance 1 / d; half of what is written is left after 16 windows of N passes, and after LASTING tokens at least.
    """
    generator, values = torch.Generator().manual_seed(seed), {}
    passes = graphs.loop.passes if graphs.loop is not None else 1
    decay = math.log(2) / max(LASTING, 16 * graphs.window * passes)
    for block in [block for block in graphs.layout if _passes_on(graphs, block)]:
        for name, key in block.params.items():
            old = graphs.params[key]
            known = OF_LAYERS.get(name.removeprefix(PREFIX))
            if known is not None and known.scratch is not None:
                values[key] = known.scratch(old.shape, generator)
            elif name == DECAYS.bias.port:
                values[key] = torch.full(old.shape, math.log(math.expm1(decay)))
    return with_values(graphs, {key: value.to(graphs.params[key].dtype) for key, value in values.items()})


def _started(graphs: ProgramGraphs, block: Block, means: Tensor) -> dict[str, Tensor]:
    def old(parameter: Parameter) -> Tensor:
        return graphs.params[block.params[parameter.port]].materialise()

    heads, width = means.shape
    unit = torch.nn.functional.normalize(means, dim=-1)
    without = torch.eye(width, dtype=means.dtype) - unit[:, :, None] * unit[:, None, :]
    groups = old(QUERY_MAP).shape[0] // old(KEY_MAP).shape[0]
    beta = min(WRITES * width / graphs.window, 0.5)
    made = {
        KEY_MAP: without.flatten(0, 1),
        QUERY_MAP: without.repeat_interleave(groups, 0).flatten(0, 1),
        STRENGTHS.bias: torch.full((heads,), math.log(beta / (1 - beta))),
    }
    made |= {p: torch.full_like(old(p), p.fresh) for p in OF_LAYERS.values() if p.fresh is not None}
    if DECAYS.bias.port in block.params:
        # softplus(dt) is the decay of a token
        decay = torch.nn.functional.softplus(old(DECAYS.bias).double()) / LONGER
        made[DECAYS.bias] = torch.log(torch.expm1(decay))
    return {block.params[p.port]: value.to(old(p).dtype) for p, value in made.items()}


def _is_new(graphs: ProgramGraphs, block: Block) -> bool:
    """Has it maps of keys, and gates as a conversion makes them, all zero?"""
    keys = [block.params.get(p.port) for p in (KEY_MAP, STRENGTHS.weight, STRENGTHS.bias, MIX)]
    return None not in keys and not any(graphs.params[key].materialise().any() for key in keys[1:] if key)


def _passes_on(graphs: ProgramGraphs, block: Block) -> bool:
    """Is its convolution as a conversion makes it: the last tap 1, the others 0?"""
    if CONV.port not in block.params:
        return False
    taps = graphs.params[block.params[CONV.port]].materialise()
    return bool((taps[:, -1] == 1).all() and not taps[:, :-1].any())


def mean_keys(canonical: ProgramGraphs, tokens: Tensor) -> list[Tensor]:
    """The mean of every KV head's unit keys before positions, [Hkv,d_k] for each block, with full attention over
    tokens [B,T]; nothing for a block without attention.
    """
    backend, parameters = find_trainer(), materialise(canonical, "cpu")
    blocks = {}
    for name, cls in canonical.classes.items():
        graph = cls.wake.clone()
        if find_attention(graph):
            graph.set_returns({**graph.results(), "keys": find_site(graph).k})
        blocks[name] = backend.runner(graph)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    found = []
    with torch.no_grad():
        values = backend.runner(canonical.embed)({**parameters, "tokens": tokens, "positions": positions})
        for block in canonical.layout:
            own = {port: parameters[key] for port, key in block.params.items()}
            results = blocks[block.cls]({**values, **own})
            keys = results.pop("keys", torch.zeros(0, 0, 0, 0))
            keys = torch.nn.functional.normalize(keys.to(torch.promote_types(keys.dtype, torch.float32)), dim=-1)
            found.append(keys.mean((0, 2)))
            values |= results
    return found
