"""Other values for what a conversion adds, under which a converted program shows more of them, or nothing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import HeldTensor
from sleepc.memory.parameters import OF_LAYERS, OUTPUT, Parameter, parameter_in
from sleepc.passes.consolidation.soft_tokens import soft_keys
from sleepc.passes.rewrite.kept_pairs import probe_keys

NOISE = 0.3


def new_parameters(program: ProgramGraphs) -> dict[str, Tensor]:
    """The parameters that the conversion added, by key: memories', probes, and an encoder's."""
    others = {*probe_keys(program).values()} | soft_keys(program)
    return {key: p.materialise() for key, p in program.params.items() if parameter_in(key) or key in others}


def with_parameters(program: ProgramGraphs, values: dict[str, Tensor]) -> ProgramGraphs:
    """The same graphs with other values for some parameters."""
    return replace(program, params={**program.params, **{key: HeldTensor(v, new=True) for key, v in values.items()}})


def shaken(program: ProgramGraphs, seed: int = 0) -> ProgramGraphs:
    """A program whose memories count for half of every mix, with gates and maps that depend on the tokens.

    A fresh conversion hides its memories: b_m = -4 gives them 2 % of the mix, an output projection is zero, gates are
    the same for all tokens. Here every new parameter gets noise, of 0.3 over the root of its columns if it is a matrix.
    """
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for key, value in new_parameters(program).items():
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64) * NOISE
        if value.dim() == 2:
            noise = noise * 2 / value.shape[1] ** 0.5
        known = _known(key)
        base = value if known is None or known.shaken is None else torch.full_like(value, known.shaken)
        values[key] = (base.double() + noise).to(value.dtype)
    return with_parameters(program, values)


def without_memories(program: ProgramGraphs) -> ProgramGraphs:
    """The sliding-window baseline: the mix is 0, and a mixer's output is multiplied by 0. Nothing is left of a
    layer whose attention was replaced.
    """
    values = {}
    for key, value in new_parameters(program).items():
        known = _known(key)
        if known is not None and known.silent is not None:
            values[key] = torch.full_like(value, known.silent)
    return with_parameters(program, values)


def is_silent(program: ProgramGraphs) -> bool:
    """Is the output of inserted mixers zero, as when they are new?"""
    return not any(v.any() for key, v in new_parameters(program).items() if _known(key) is OUTPUT)


def _known(key: str) -> Parameter | None:
    """The parameter of a memory's layer that a key is of; None for those of a rule's gates."""
    return OF_LAYERS.get(parameter_in(key) or "")
