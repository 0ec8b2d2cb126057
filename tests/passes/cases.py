"""Cases of passes as text: a program, the pass, and the program after it or the refusal.

pass: {"factors": "short"}            options of the pass that the folder is named after, as Python literals
before: bound-attention {...}         a pass to run first; any number of them
program: one_block.txt                graphs of another file, instead of graphs here
vocab: 11                             a field of the program
const mask: [[0.0, -inf], [0.0, 0.0]] the numbers of a constant; those of others are zeros
param unused: [3]                     the shape of a parameter that no graph reads
block: block.0 p0=w                   a block of the layout, its class, and the keys of its parameters

graph embed { ... }

=== after                             written by `python -m tests.passes.write`, and read by people
=== refused OPERATOR: words of the refusal
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sleepc.errors import Refusal, SleepcError
from sleepc.ir.graph import Graph
from sleepc.ir.levels import FUSED, LOWERED
from sleepc.ir.program import Block, BlockClass, ProgramGraphs
from sleepc.ir.text import parse_graph
from sleepc.ir.types import TensorType
from sleepc.ir.weights import HeldTensor
from sleepc.passes.adapt.add_low_rank import AddLowRank
from sleepc.passes.adapt.merge_low_rank import MergeLowRank
from sleepc.passes.adapt.retype import Retype
from sleepc.passes.base import Pass, Stage
from sleepc.passes.consolidation.add_encoder import AddEncoder
from sleepc.passes.consolidation.add_fast_down import AddFastDown
from sleepc.passes.consolidation.add_fast_maps import AddFastMaps
from sleepc.passes.consolidation.add_learning import AddLearning
from sleepc.passes.consolidation.add_loop import AddLoop
from sleepc.passes.lower.fuse_memory import FuseMemory
from sleepc.passes.pipeline import front_stages, lower_stages, rewrite_stages
from sleepc.passes.plan import Asleep, Group, MemoryOptions
from sleepc.passes.runner import run_stages
from sleepc.recipe import Keep, make_recipe
from tests.golden.texts import print_program

FOLDER = Path(__file__).parent / "texts"
GRAPH = re.compile(r"^graph ([^ ]+) \{\n.*?^\}\n", re.MULTILINE | re.DOTALL)
LOWER = {each.name for stage in lower_stages((*LOWERED, *FUSED)) for each in stage.passes}
NO_MEMORY = {"decay": "head", "write": "sleep", "window": 4, "asleep": Asleep(recorded=True), "seed": 0}


def passes() -> dict[str, type[Pass]]:
    """Every pass of the compiler by its name."""
    recipe = make_recipe({"window": 4})
    staged = [each for stage in (*front_stages(), *rewrite_stages(recipe, 1), *lower_stages()) for each in stage.passes]
    others = (FuseMemory, AddEncoder, AddFastDown, AddFastMaps, AddLearning, AddLoop, AddLowRank, MergeLowRank, Retype)
    return {each.name: type(each) for each in staged} | {each.name: each for each in others}


@dataclass
class Case:
    """`head` is the text up to the result, `result` the rest: what is expected."""

    path: Path
    head: str
    result: str
    options: dict[str, Any] = field(default_factory=dict)
    first: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    consts: dict[str, Any] = field(default_factory=dict)
    unread: dict[str, list[int]] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    graphs: list[tuple[str, str]] = field(default_factory=list)

    def stage(self, program: ProgramGraphs) -> Stage:
        """The pass, for a program that is prepared."""
        return _stage(self.path.parent.name, self.options, program)

    def run(self) -> str:
        """What the pass makes of the program: the result of the text."""
        program = self.prepared()
        try:
            after = run_stages(program, (self.stage(program),))
        except Refusal as refusal:
            return f"=== refused {refusal.code}: {refusal.what}\n"
        except SleepcError as error:
            return f"=== refused: {error.what}\n"
        after.history.clear()
        return f"=== after\n{print_program(after, program)}".rstrip() + "\n"

    def prepared(self) -> ProgramGraphs:
        """The program that the pass gets."""
        program = self.program()
        for name, options in self.first:
            program = run_stages(program, (_stage(name, options, program),))
        return program

    def program(self) -> ProgramGraphs:
        """The program of the text, with zeros for parameters."""
        level = self.facts.pop("level", "ATEN")
        graphs = {name: parse_graph(text, level) for name, text in self.graphs}
        program = ProgramGraphs(graphs.pop("embed"), graphs.pop("head", Graph("head")), level, **self.facts)
        program.classes = {name: BlockClass(graph) for name, graph in graphs.items()}
        program.layout = self.blocks
        program.params = {name: HeldTensor(torch.zeros(shape)) for name, shape in self.unread.items()}
        for graph in (program.embed, program.head):
            self._fill(program, graph, {name: name for name in graph.ports()})
        for block in program.layout:
            self._fill(program, program.classes[block.cls].wake, block.params)
        return program

    def _fill(self, program: ProgramGraphs, graph: Graph, keys: dict[str, str]) -> None:
        for kind in ("param", "const"):
            for name, port in graph.ports(kind).items():
                known: Any = port.meta.get("type", port.meta.get("val"))
                shape = known.dims if isinstance(known, TensorType) else known.shape
                value = torch.zeros([int(size) for size in shape], dtype=known.dtype)
                if keys[name] in self.consts:
                    value = torch.tensor(self.consts[keys[name]], dtype=known.dtype).reshape(value.shape)
                program.params[keys[name]] = HeldTensor(value)


def _stage(name: str, options: dict[str, Any], program: ProgramGraphs) -> Stage:
    memory = options.get("memory")
    if memory is not None:
        given = {**memory["options"], **({"asleep": Asleep(**memory["asleep"])} if "asleep" in memory else {})}
        group = Group(tuple(memory["layers"]), MemoryOptions(**{**NO_MEMORY, **given}))
        options = {**{k: v for k, v in options.items() if k != "memory"}, "groups": (group,)}
    if "keep" in options:
        options = {**options, "keep": Keep(**options["keep"]), "keepers": frozenset(options["keepers"])}
    if "dtype" in options:
        options = {**options, "dtype": getattr(torch, options["dtype"])}
    return Stage("case", "LOWERED" if name in LOWER else program.level, (passes()[name](**options),))


def read(path: Path) -> Case:
    """The case of a file."""
    text = path.read_text(encoding="utf-8")
    at = text.index("===") if "===" in text else len(text)
    case = Case(path, text[:at], text[at:])
    lines = [line for line in GRAPH.sub("", case.head).splitlines() if line and not line.startswith("#")]
    case.graphs = [(found[1], found[0]) for found in GRAPH.finditer(case.head)]
    for line in lines:
        key, _, value = line.partition(": ")
        if key == "program":
            shared = read(FOLDER / value)
            case.graphs, case.blocks = shared.graphs, shared.blocks
            case.facts, case.consts = {**shared.facts, **case.facts}, {**shared.consts, **case.consts}
        elif key == "pass":
            case.options = ast.literal_eval(value)
        elif key == "before":
            name, _, options = value.partition(" ")
            case.first.append((name, ast.literal_eval(options or "{}")))
        elif key == "block":
            cls, *params = value.split()
            case.blocks.append(Block(cls, dict(param.split("=") for param in params)))
        elif key.startswith("param "):
            case.unread[key.removeprefix("param ")] = ast.literal_eval(value)
        elif key.startswith("const "):
            case.consts[key.removeprefix("const ")] = ast.literal_eval(value.replace("inf", "1e999"))
        else:
            case.facts[key] = value if key == "level" else getattr(torch, value, None) or ast.literal_eval(value)
    return case


def cases() -> list[Path]:
    """The files of all cases."""
    return sorted(FOLDER.glob("*/*.txt"))
