"""How a program at level STEP sleeps: its passes, whether others have a meaning, and what attention keeps."""

from __future__ import annotations

import torch
from torch import fx

from sleepc.ir.program import ProgramGraphs
from sleepc.memory.registry import find as find_rule


def passes_of(program: ProgramGraphs) -> int:
    """N: how many passes a sleep of this program makes over its window."""
    if program.loop is not None:
        return program.loop.passes
    return max((int(str(node.kwargs["passes"])) for node in replay_nodes(program)), default=1)


def replays(program: ProgramGraphs) -> bool:
    """Does a sleep of another number of passes make sense? It does if each replay corrects what is written, and no
    block runs again: memories of such blocks were made for their number of passes.
    """
    found = replay_nodes(program)
    return program.loop is None and bool(found) and all(find_rule(str(n.kwargs["rule"])).corrects for n in found)


def sinks_of(program: ProgramGraphs) -> int:
    """How many tokens attention keeps forever."""
    slots = torch.ops.sleepc.window_slots.default
    found = [int(str(node.kwargs["sinks"])) for node in program.embed.calls() if node.target is slots]
    return max(found, default=0)


def replay_nodes(program: ProgramGraphs) -> list[fx.Node]:
    """The calls of replay in sleeps."""
    sleeps = [cls.sleep for cls in program.classes.values() if cls.sleep is not None]
    replay = torch.ops.sleepc.replay.default
    return [node for graph in sleeps for node in graph.calls() if node.target is replay]
