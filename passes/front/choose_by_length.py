"""What a model chooses by the length of its call (the factors of longrope) is chosen once: a stream has no length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from sleepc.errors import Refusal
from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.dependence import find_dependence
from sleepc.passes.analysis.read_mask import at_positions
from sleepc.passes.base import Effect, Pass
from sleepc.passes.facts import FLAT, FUNCTIONAL, MASKS_KNOWN, Fact
from sleepc.passes.lib.emit import aten
from sleepc.passes.lib.values import FlatEmit, is_tensor, same_type, val
from sleepc.recipe import Factors

WHERE = (aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
FAR = 1 << 20  # tokens: longer than any call, if the model does not say how many positions it has


@dataclass(frozen=True)
class ChooseByLength(Pass):
    """Replace each `where` whose condition is one truth for the whole call, made of its positions, by what it gives in
    calls that are `short` (of one token) or `long` (of all positions that the model has).

    Notes the border: up to how many tokens, or beyond how many, the original computes the same. Masks are evaluated
    before. Raises Refusal(POSITIONS) if another number for the whole call depends on its length.
    """

    factors: Factors
    name: ClassVar[str] = "choose-by-length"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (FLAT, FUNCTIONAL, MASKS_KNOWN)

    def run(self, program: ProgramGraphs) -> int:
        """The number of choices made."""
        graph, borders = program.embed, []
        for node in [n for n in _of_the_call(program) if val(n).dtype == torch.bool]:
            readers = [user for user in node.users if is_call(user, *WHERE) and user.args[0] is node]
            border = _border(program, node) if readers else None
            if border is not None:
                borders += [border] * len(readers)
                truth = bool(_at(program, node, 1 if self.factors == "short" else _far(program)))
                for reader in readers:
                    _choose(program, reader, truth)
        graph.drop_dead()
        for node in _of_the_call(program):
            if not torch.equal(_at(program, node, 1), _at(program, node, _far(program))):
                raise _refusal(node)
        if borders and self.factors == "short":
            program.upto = min(borders)
        elif borders:
            program.beyond = max(borders)
        return len(borders)


def _of_the_call(program: ProgramGraphs) -> Iterator[fx.Node]:
    """Tensors of one element that are made of the positions of a call, in order."""
    positions = find_dependence(program.embed, ("tokens",), ("positions",)).positions
    for node in list(program.embed.calls()):
        if node in positions and is_tensor(node) and all(str(size) == "1" for size in val(node).shape):
            yield node


def _far(program: ProgramGraphs) -> int:
    return program.max_positions or FAR


def _at(program: ProgramGraphs, node: fx.Node, length: int) -> Tensor:
    """The value in a call of one row of `length` tokens."""
    return at_positions(program, node, torch.zeros(1, length, dtype=torch.int64))


def _border(program: ProgramGraphs, node: fx.Node) -> int | None:
    """The longest call for which a truth is what it is for one token; None if it is the same for all."""
    short, same, other = bool(_at(program, node, 1)), 1, _far(program)
    if bool(_at(program, node, other)) == short:
        return None
    while other - same > 1:
        middle = (same + other) // 2
        same, other = (middle, other) if bool(_at(program, node, middle)) == short else (same, middle)
    return same


def _choose(program: ProgramGraphs, reader: fx.Node, truth: bool) -> None:
    chosen: Any = reader.args[1 if truth else 2]
    if isinstance(chosen, fx.Node) and same_type(chosen, reader):
        reader.replace_all_uses_with(chosen)
        program.embed.fx.erase_node(reader)
        return
    e = FlatEmit(program.embed, str(reader.meta.get("source", "")), reader)
    reader.args = (e.call(aten.full.default, [], truth, dtype=torch.bool), *reader.args[1:])


def _refusal(node: fx.Node) -> Refusal:
    return Refusal(
        "POSITIONS",
        "the model computes with the length of its call, and a stream has no length",
        where=f"{node.meta.get('source', '')} {node.target}".strip(),
        fix="sleepc converts models in which a token's position means the same in calls of any length, or one of two "
        "things (--rope-factors).",
    )
