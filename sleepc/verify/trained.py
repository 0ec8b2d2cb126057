"""The original with the weights that a training has left in a converted program: what the oracle reads then."""

from __future__ import annotations

from dataclasses import replace

import torch

from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import Param
from sleepc.passes.adapt.merge_low_rank import MergeLowRank, low_rank_ports
from sleepc.passes.base import Stage
from sleepc.passes.runner import run_stages


def has_low_rank(program: ProgramGraphs) -> bool:
    """Does it have LoRA matrices?"""
    return any(low_rank_ports(cls) for cls in program.classes.values())


def with_weights_of(canonical: ProgramGraphs, step: ProgramGraphs) -> tuple[ProgramGraphs, bool]:
    """`canonical` (before rewriting) with the own weights of `step`, LoRA matrices merged into them; are any of them
    other than the original's?
    """
    merged = run_stages(step, (Stage("low-rank", "STEP", (MergeLowRank(),)),))
    layout = [
        replace(block, params={port: found.params[port] for port in block.params})
        for block, found in zip(canonical.layout, merged.layout, strict=True)
    ]
    ports = {key: key for graph in (canonical.embed, canonical.head) for key in graph.ports("param")}
    for block, found in zip(canonical.layout, layout, strict=True):
        wake = canonical.classes[block.cls].wake
        ports |= {found.params[port]: block.params[port] for port in wake.ports("param")}
    changed = [key for key, old in ports.items() if not _equal(merged.params[key], canonical.params[old])]
    if not changed:
        return canonical, False
    params = {**canonical.params, **{key: merged.params[key] for key in ports}}
    return replace(canonical, layout=layout, params=params), True


def _equal(a: Param, b: Param) -> bool:
    """Have both the same values? A tensor in a file may have been read in another dtype."""
    if a is b or a == b:
        return True
    if a.shape != b.shape:
        return False
    dtype = torch.promote_types(a.dtype, b.dtype)
    return torch.equal(a.materialise().to(dtype), b.materialise().to(dtype))
