"""Before a program's first sleep memories are empty: what a distillation can leave out of a piece's first window."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx

from sleepc.backends.training_steps import Tensors, TrainingSteps
from sleepc.ir.fit import LIVE
from sleepc.ir.graph import Graph, is_call
from sleepc.ir.levels import aten
from sleepc.ir.program import ProgramGraphs

NEAR = 1e-4  # of their size: two ways to compute the same hidden states differ by less, in float32
SHAPED = (aten.unsqueeze.default, aten.expand.default, aten.reshape.default, aten.to.dtype)


def learns_later(program: ProgramGraphs, keys: Collection[str]) -> bool:
    """Do hidden states and logits not depend on the parameters `keys` before the first sleep? What tokens write for it
    may.
    """
    ends = {*program.embed.ports("param"), *program.head.ports("param")}
    if program.loop is not None or ends.intersection(keys):
        return False
    ports: dict[str, set[str]] = {}
    for block in program.layout:
        ports.setdefault(block.cls, set()).update(port for port, key in block.params.items() if key in keys)
    return not any(_reaches_h(program.classes[name].wake, trained) for name, trained in ports.items())


def _reaches_h(graph: Graph, trained: Collection[str]) -> bool:
    zero: set[fx.Node] = set()
    moved: set[fx.Node] = set()
    for node in graph.fx.nodes:
        inputs = node.all_input_nodes
        if node.op == "placeholder":
            name = node.meta["port"].name
            (zero if name in LIVE else moved if name in trained else set()).add(node)
        elif zero.intersection(inputs) and is_call(node, aten.mul.Tensor, *SHAPED):
            zero.add(node)
        elif moved.intersection(inputs):
            moved.add(node)
    return graph.results()["h"] in moved


@torch.no_grad()
def begins_alike(steps: TrainingSteps, teacher: TrainingSteps) -> bool:
    """Are hidden states before the first sleep those of the teacher, but for rounding? Measured on one window."""
    mine, other = steps.program, teacher.program
    if (len(mine.layout), mine.hidden, mine.vocab) != (len(other.layout), other.hidden, other.vocab):
        return False
    tokens = torch.arange(steps.window, device=steps.device)[None] % mine.vocab
    lengths = torch.full((1,), steps.window, device=steps.device)
    found = [borders(each, each.new_state(1), tokens, lengths)[0] for each in (steps, teacher)]
    return all(float((a - b).norm()) <= NEAR * float(b.norm()) for a, b in zip(*found, strict=True))


def borders(
    steps: TrainingSteps, state: Tensors, tokens: torch.Tensor, lengths: torch.Tensor
) -> tuple[list[torch.Tensor], Tensors]:
    """Tokens [B,T], lengths [B] -> (what goes into every block and comes out of the last one [B,T,d], state')."""
    values, new = steps.begin(state, tokens, lengths)
    found = [values["h"]]
    for i in range(len(steps.program.layout)):
        values["h"], changed = steps.wake_block(i, values, state)
        found.append(values["h"])
        new.update(changed)
    return found, new
