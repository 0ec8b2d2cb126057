"""What a pass may build on: facts about a program that are seen in the program itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from sleepc.ir.graph import is_call
from sleepc.ir.levels import mutates
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.states import with_role


@dataclass(frozen=True)
class Fact:
    """`words` complete "needs a program"; `holds` checks it."""

    words: str
    holds: Callable[[ProgramGraphs], bool]


def _calls(program: ProgramGraphs) -> list[fx.Node]:
    return [node for graph in program.graphs() for node in graph.calls()]


def _attentions(program: ProgramGraphs) -> list[fx.Node]:
    return [node for node in _calls(program) if is_call(node, torch.ops.sleepc.attention.default)]


def _is_complex(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


FLAT = Fact("that is one flat graph", lambda p: not p.layout)
FUNCTIONAL = Fact("in which nothing writes to an argument", lambda p: not any(mutates(n.target) for n in _calls(p)))
REAL = Fact("without complex numbers", lambda p: not any(map(_is_complex, _calls(p))))
MASKS_KNOWN = Fact(
    "whose attention masks are classes",
    lambda p: all(n.args[3] is None and n.kwargs.get("causal") for n in _attentions(p)),
)
BLOCKS = Fact("that is cut into blocks", lambda p: bool(p.layout))
UNCLOCKED = Fact("that does not count yet what a row has read", lambda p: not p.states)
CLOCKED = Fact("that counts what a row has read", lambda p: bool(p.states))
BOUNDED = Fact("whose attention is bounded", lambda p: not _attentions(p))
AWAKE = Fact("that does not sleep yet", lambda p: p.clock is None)
SLOTTED = Fact("that has slots", lambda p: any(with_role(cls.states, "kept") for cls in p.classes.values()))
SLEEPS = Fact("that sleeps", lambda p: p.clock is not None)
