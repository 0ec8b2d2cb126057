"""What two commits have written for one case (see same_worker.py), compared to the bit."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Arrays = dict[str, np.ndarray[Any, Any]]


# What is compared of a case: that it runs at all, what it computes as converted and as the base's artifact, that it
# continues from the base's state, and its export.
PARTS = ("error", "converted", "loaded", "state", "export")


@dataclass(frozen=True)
class Told:
    """Do they differ, and what there is to say of it. `size` is the largest absolute difference if only numbers do."""

    differs: bool
    words: str = ""
    size: float = math.inf


def parts_differ(base: Path, new: Path) -> dict[str, Told]:
    """What there is to say of two folders, by part: a difference, or words about what is the same."""
    failed = _errors_differ(base / "error.txt", new / "error.txt")
    if failed.words:
        return {"error": failed}
    found = {part: arrays_differ(load_file(base / part), load_file(new / part)) for part in ("converted", "loaded")}
    found["state"] = _errors_differ(base / "state.txt", new / "state.txt")
    if not found["state"].words:
        found["state"] = arrays_differ(load_file(base / "state"), load_file(new / "state"))
    exports = [folder / "artifact" / "onnx" for folder in (base, new)]
    if exports[0].exists():
        found["export"] = exports_differ(*exports)
    return {part: told for part, told in found.items() if told.words}


def _errors_differ(*files: Path) -> Told:
    """What two commits said instead of an answer; that it is the same is no excuse if sleepc did not say it."""
    base, new = (" ".join(file.read_text().split()) if file.exists() else "works" for file in files)
    if base == new == "works":
        return Told(False)
    refused = base.startswith(("UsageError:", "Refusal:", "SleepcError:"))
    return Told(base != new or not refused, f"base: {base} | new: {new}")


def arrays_differ(base: Arrays, new: Arrays) -> Told:
    """Bit by bit. States that have other names, and all the same values, are the same."""
    if base.keys() != new.keys():
        values = [Counter(_digest(each) for each in arrays.values()) for arrays in (base, new)]
        if values[0] == values[1]:
            return Told(False, "states have other names")
        names = sorted(base.keys() ^ new.keys())
        return Told(True, f"only one has {', '.join(names[:3])}{' …' if len(names) > 3 else ''}")
    other = [name for name, a in base.items() if _kind(a) != _kind(new[name])]
    if other:
        kinds = [f"{a.dtype}{list(a.shape)}" for a in (base[other[0]], new[other[0]])]
        return Told(True, f"{other[0]} is {' and '.join(kinds)}")
    other = [name for name, a in base.items() if a.tobytes() != new[name].tobytes()]
    if not other:
        return Told(False)
    size = max(_size(base[name], new[name]) for name in other)
    words = f"{other[0]}: {_numbers(base[other[0]], new[other[0]])}"
    return Told(True, f"{words}; {len(other)} of {len(base)} arrays differ, by at most {size:.1e}", size)


def _kind(value: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...]]:
    return str(value.dtype), value.shape


def _size(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    """The largest absolute difference; without end if one has a number that is not finite."""
    size = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
    return float(size) if np.isfinite(size) else math.inf


def _digest(value: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    return *_kind(value), hashlib.sha256(value.tobytes()).digest()


def _numbers(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> str:
    bits = [np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(x.size, -1) for x in (a, b)]
    wrong = np.flatnonzero((bits[0] != bits[1]).any(axis=1))
    first = tuple(int(i) for i in np.unravel_index(wrong[0], a.shape))
    return f"{len(wrong)} of {a.size} numbers differ, the first at {first}: {a[first]!r} and {b[first]!r}"


def exports_differ(base: Path, new: Path) -> Told:
    """Files byte by byte; where they differ, the graphs' initialisers, nodes, inputs and outputs one by one, whatever
    values inside are called. Not the JSON file, which has the versions of libraries: sessions go by the rest of it, and
    their results are compared.
    """
    files = [{p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} for folder in (base, new)]
    if files[0] != files[1]:
        return Told(True, f"only one has {', '.join(sorted(files[0] ^ files[1]))}")
    other = [f for f in sorted(files[0]) if not f.endswith(".json") and _bytes_differ(base / f, new / f)]
    if not other:
        return Told(False)
    for file in sorted(f for f in files[0] if f.endswith(".onnx")):
        words = _graphs_differ(base / file, new / file)
        if words:
            return Told(True, f"{file}: {words}")
    if all(file.endswith((".onnx", ".bin")) for file in other):
        return Told(False, f"{', '.join(other)} differ in bytes, and not in nodes and initialisers")
    return Told(True, f"{', '.join(other)} differ")


def _bytes_differ(a: Path, b: Path) -> bool:
    return a.read_bytes() != b.read_bytes()


def _graphs_differ(base: Path, new: Path) -> str:
    """The first part that only one of two graphs has, in words."""
    sides = {"the base": _parts(base), "the new commit": _parts(new)}
    for (name, parts), others in zip(sides.items(), reversed(sides.values()), strict=True):
        left = Counter(part.what for part in others)
        for part in parts:
            if not left[part.what]:
                known = any(part.words == other.words for other in others)
                return f"other values of {part.words}" if known else f"only {name} has {part.words}"
            left[part.what] -= 1
    return ""


@dataclass(frozen=True)
class Part:
    """An input, output, initialiser, node or function of an ONNX file: in words, and all that it is."""

    words: str
    what: str


def _parts(path: Path) -> list[Part]:
    """All of an ONNX file. A value inside is what is computed: its name does not count, nor the order of nodes."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    graph, found = model.graph, []
    for tensor in sorted(graph.initializer, key=lambda t: t.name):
        value = numpy_helper.to_array(tensor)
        words = f"{tensor.name} {value.dtype}{list(value.shape)}"
        found.append(Part(words, _sha(words, value.tobytes())))
    values = {each.name: each.name for each in (*graph.input, *graph.initializer)}
    found += _nodes(graph.node, values)
    for each in (*graph.input, *graph.output):
        words = " ".join(str(each).split())
        found.append(Part(words, _sha(words, values[each.name])))
    for function in model.functions:
        inner = {name: name for name in function.input}
        found += [
            Part(part.words, _sha(function.name, function.overload, part.what)) for part in _nodes(function.node, inner)
        ]
        found.append(Part(function.name, _sha(*(inner[name] for name in function.output))))
    return found


def _nodes(nodes: Any, values: dict[str, str]) -> list[Part]:
    """Nodes in order; into `values`, which has what the values before them are, goes what theirs are."""
    found = []
    for node in nodes:
        words = _words(node)
        bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
        inside = [_graph(body, values) for body in bodies]
        inputs, outputs = [values[name] if name else "" for name in node.input], list(node.output)
        for body in bodies:
            body.Clear()
        del node.input[:], node.output[:]
        node.name, node.doc_string = "", ""
        kept = " ".join(str(bool(name)) for name in outputs)
        what = _sha(node.SerializeToString(deterministic=True), kept, *inside, "|", *inputs)
        values.update({name: f"{what} {i}" for i, name in enumerate(outputs) if name})
        found.append(Part(words, what))
    return found


def _graph(graph: Any, around: dict[str, str]) -> str:
    """What a graph inside a node is, whose values around it are known."""
    values = {**around, **{each.name: f"input {i}" for i, each in enumerate(graph.input)}}
    types = [_sha(each.type.SerializeToString(deterministic=True)) for each in (*graph.input, *graph.output)]
    assert not graph.initializer, "the graph around it has them"
    nodes = sorted(part.what for part in _nodes(graph.node, values))
    return _sha(*types, "|", *nodes, "|", *(values[each.name] for each in graph.output))


def _sha(*parts: str | bytes) -> str:
    """Of parts, each with its length."""
    sha = hashlib.sha256()
    for part in parts:
        each = part.encode() if isinstance(part, str) else part
        sha.update(len(each).to_bytes(8, "little") + each)
    return sha.hexdigest()


def _words(node: Any) -> str:
    """A node in one line, for people."""
    attributes = " ".join(" ".join(str(each).split()) for each in node.attribute)
    return f"{node.op_type}({', '.join(node.input)}) -> {', '.join(node.output)} {attributes[:200]}".rstrip()
