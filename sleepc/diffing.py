"""Two programs, compared as text: what differs in their blocks, parameters and states, and line by line."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from sleepc.ir.graph import Graph
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import name_of
from sleepc.ir.states import StateSpec
from sleepc.ir.text import print_graph
from sleepc.ir.types import DTYPE_NAMES
from sleepc.ir.weights import FileTensor, Param

VALUE = re.compile(r"%\d+")
CONTEXT = 3


@dataclass(frozen=True)
class GraphDiff:
    """One graph of both programs: `lines` are those of a unified diff, empty if the graphs are equal."""

    name: str
    added: int
    removed: int
    lines: list[str]


@dataclass(frozen=True)
class ProgramDiff:
    """How program B differs from program A. `facts` are one value each, `parameters` and `states` are names."""

    facts: list[str] = field(default_factory=list)
    graphs: list[GraphDiff] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Is there no difference?"""
        return not (self.facts or self.graphs or self.added or self.removed or self.changed or self.states)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"equal": self.equal, **asdict(self)}


def diff_programs(a: ProgramGraphs, b: ProgramGraphs) -> ProgramDiff:
    """What of program A is otherwise in program B.

    Graphs are compared as text without the notes of where a line came from. Blocks are compared with the block at the
    same place if both programs have as many, and classes of the same name otherwise. Parameters are compared by
    shape, dtype and sha256: for an artifact the hash that it holds, which `verify --hash` compares with the bytes.
    """
    changed = [key for key in a.params if key in b.params and _identity(a.params[key]) != _identity(b.params[key])]
    return ProgramDiff(
        facts=_facts(a, b),
        graphs=[d for name, x, y in _pairs(a, b) if (d := diff_graphs(name, x, y)).lines],
        added=[key for key in b.params if key not in a.params],
        removed=[key for key in a.params if key not in b.params],
        changed=changed,
        states=_states(a, b),
    )


def _facts(a: ProgramGraphs, b: ProgramGraphs) -> list[str]:
    pairs = {
        "level": (a.level, b.level),
        "dtype": (DTYPE_NAMES[a.dtype], DTYPE_NAMES[b.dtype]),
        "blocks": (len(a.layout), len(b.layout)),
        "hidden": (a.hidden, b.hidden),
        "vocabulary": (a.vocab, b.vocab),
        "positions": (a.max_positions, b.max_positions),
        "window": (a.window, b.window),
        "loop": (_loop(a), _loop(b)),
        "learning": (_learning(a), _learning(b)),
    }
    return [f"{name} {old} → {new}" for name, (old, new) in pairs.items() if old != new]


def _loop(program: ProgramGraphs) -> str:
    loop = program.loop
    if loop is None:
        return "none"
    return f"{loop.start}:{loop.end}, {loop.passes} passes" + (f", settle {loop.settle:g}" if loop.settle else "")


def _learning(program: ProgramGraphs) -> str:
    learn = program.learn
    if learn is None:
        return "none"
    loss = "" if learn.loss == "next" else f", loss {learn.loss}{f' of {learn.span}' if learn.span else ''}"
    return f"from block {learn.start} on, {learn.steps} steps, rate {learn.lr:g}, clip {learn.clip:g}{loss}"


def _pairs(a: ProgramGraphs, b: ProgramGraphs) -> Iterator[tuple[str, Graph | None, Graph | None]]:
    """Graphs that stand at the same place, with the name that a person reads above their difference."""
    old, new = ({graph.name: graph for graph in p.graphs()} for p in (a, b))
    yield "embed", a.embed, b.embed
    of_blocks = {a.embed.name, b.embed.name}
    for title, x, y in _classes(a, b):
        # A class has graphs of its name: `block.0` itself, `block.0.sleep`, ..
        parts = [n.removeprefix(c) for c, names in ((x, old), (y, new)) for n in names if f"{n}.".startswith(f"{c}.")]
        for part in dict.fromkeys(parts):
            of_blocks |= {x + part, y + part}
            yield f"{title}: {part[1:]}" if part else title, old.get(x + part), new.get(y + part)
    for name in dict.fromkeys([*old, *new]):
        if name not in of_blocks:
            yield name, old.get(name), new.get(name)


def _classes(a: ProgramGraphs, b: ProgramGraphs) -> Iterator[tuple[str, str, str]]:
    """(title, class of A, class of B)"""
    if len(a.layout) != len(b.layout):
        for name in dict.fromkeys([*a.classes, *b.classes]):
            yield name, name, name
        return
    places: dict[tuple[str, str], list[int]] = {}
    for i, (x, y) in enumerate(zip(a.layout, b.layout, strict=True)):
        places.setdefault((x.cls, y.cls), []).append(i)
    for (x_name, y_name), at in places.items():
        both = x_name if x_name == y_name else f"{x_name} → {y_name}"
        yield f"{both} ({numbers(at, 'block')})", x_name, y_name


def numbers(values: Sequence[int], noun: str, most: int | None = None) -> str:
    """Sorted numbers for people, with their noun; of more than `most` runs only the first and the last.

    >>> numbers([0, 1, 2, 5], "block"), numbers([4], "block"), numbers(range(0, 26, 2), "block", 5)
    ('blocks 0–2, 5', 'block 4', 'blocks 0, 2, 4 … 24')
    """
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    names = [f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    short = most is not None and len(names) > most
    text = f"{', '.join(names[:3])} … {names[-1]}" if short else ", ".join(names)
    return f"{noun}{'s' if len(values) > 1 else ''} {text}"


def _states(a: ProgramGraphs, b: ProgramGraphs) -> list[str]:
    """States that are there once only or have another type, those of equal blocks in one line."""
    old, new = ({s.name: s for s in p.all_states()} for p in (a, b))
    found: dict[tuple[str, str], list[int]] = {}
    single = []
    for name in dict.fromkeys([*old, *new]):
        x, y = _describe(old.get(name)), _describe(new.get(name))
        if x == y:
            continue
        spec = old.get(name) or new[name]
        if spec.block is None:
            single.append(f"{name}: {x} → {y}")
        else:
            local = name_of(spec.role, spec.part)
            found.setdefault((local, f"{x} → {y}"), []).append(spec.block)
    return single + [f"{local}: {text} ({numbers(at, 'block')})" for (local, text), at in found.items()]


def _describe(spec: StateSpec | None) -> str:
    return f"{spec.type()} {spec.update}" if spec else "none"


def _identity(param: Param) -> tuple[object, ...]:
    digest = param.sha256 if isinstance(param, FileTensor) and param.sha256 else hash_of(param.materialise())
    return param.shape, param.dtype, digest


def hash_of(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's bytes, as a safetensors file holds them."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


# -------------------------------------------------------------------------------------------- line by line


def diff_graphs(name: str, a: Graph | None, b: Graph | None) -> GraphDiff:
    """The lines of a unified diff. A line that only has new numbers, for the same values, is equal."""
    old, new = lines_of(a), lines_of(b)
    rows = list(_rows(old, new))
    added, removed = (sum(mark == sign for mark, _ in rows) for sign in "+-")
    return GraphDiff(name, added, removed, _around(rows) if added or removed else [])


def lines_of(graph: Graph | None) -> list[str]:
    """A graph's text without its name and without the notes of where a line came from."""
    if graph is None:
        return []
    copy = graph.clone()
    for node in copy.fx.nodes:
        node.meta.pop("source", None)
    return print_graph(copy).splitlines()[1:-1]


def _rows(old: list[str], new: list[str]) -> Iterator[tuple[str, str]]:
    """(' ', '-' or '+', line). Lines are put side by side without their numbers, which are then compared: a line that
    takes the values of its partner's partners is equal.
    """
    partner: dict[str, str] = {}
    bare_old, bare_new = ([VALUE.sub("%", line) for line in lines] for lines in (old, new))
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(None, bare_old, bare_new, autojunk=False).get_opcodes():
        lines, others = old[i:i_end], new[j:j_end]
        if len(lines) == len(others):  # also if a literal or a type changed: what reads the value is as it was
            partner.update((a, b) for x, y in zip(lines, others, strict=True) for a, b in [(_makes(x), _makes(y))] if a)
        if kind == "equal":
            for x, y in zip(lines, others, strict=True):
                same = [partner.get(a) for a in VALUE.findall(x)] == VALUE.findall(y)
                yield from [(" ", y)] if same else [("-", x), ("+", y)]
        else:
            yield from (("-", x) for x in lines)
            yield from (("+", y) for y in others)


def _makes(line: str) -> str:
    """The value that a line makes: `%3`, or nothing for the line of results."""
    found = VALUE.match(line.strip())
    return found[0] if found else ""


def _around(rows: list[tuple[str, str]]) -> list[str]:
    """The changed lines and a few around them, `...` where lines are left out."""
    near: set[int] = set()
    for i, (mark, _) in enumerate(rows):
        if mark != " ":
            near.update(range(i - CONTEXT, i + CONTEXT + 1))
    lines: list[str] = []
    for i, (mark, line) in enumerate(rows):
        if i in near:
            lines.append(mark + line)
        elif not lines or lines[-1] != " ...":
            lines.append(" ...")
    return lines
