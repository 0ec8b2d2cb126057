"""What two commits have written for one case (see same_worker.py), compared to the bit."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Told:
    """Do they differ, and what there is to say of it."""

    differs: bool
    words: str = ""


def difference(base: Path, new: Path) -> Told:
    """The first difference between two folders; words of their own have cases that fail in the same way in both."""
    failed = [_error(folder) for folder in (base, new)]
    if failed[0] != failed[1]:
        return Told(True, f"base: {failed[0] or 'works'} | new: {failed[1] or 'works'}")
    if failed[0]:
        return Told(not _meant(failed[0]), f"fails in both: {failed[0].splitlines()[0]}")
    said = []
    for part in ("made", "loaded"):
        told = arrays_differ(load_file(base / part), load_file(new / part))
        if told.differs:
            return Told(True, f"{'converted' if part == 'made' else 'artifact of the base'}: {told.words}")
        said += [told.words] if told.words else []
    exports = [folder / "artifact" / "onnx" for folder in (base, new)]
    if exports[0].exists():
        told = exports_differ(*exports)
        if told.differs:
            return told
        said += [told.words] if told.words else []
    return Told(False, ", ".join(dict.fromkeys(said)))


def _error(folder: Path) -> str:
    path = folder / "error.txt"
    return path.read_text().strip() if path.exists() else ""


def _meant(error: str) -> bool:
    """Is it sleepc that says no, for a reason?"""
    return error.startswith(("UsageError:", "Refusal:", "SleepcError:"))


def arrays_differ(base: Arrays, new: Arrays) -> Told:
    """Bit by bit. States that have other names, and all the same values, are the same."""
    if base.keys() != new.keys():
        values = [Counter(_digest(each) for each in arrays.values()) for arrays in (base, new)]
        if values[0] == values[1]:
            return Told(False, "states have other names")
        names = sorted(base.keys() ^ new.keys())
        return Told(True, f"only one has {', '.join(names[:3])}{' …' if len(names) > 3 else ''}")
    for name, a in base.items():
        b = new[name]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return Told(True, f"{name} is {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}")
        if a.tobytes() != b.tobytes():
            return Told(True, f"{name}: {_numbers(a, b)}")
    return Told(False)


def _digest(value: np.ndarray[Any, Any]) -> tuple[str, tuple[int, ...], bytes]:
    return str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).digest()


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
        return Told(True, f"export: only one has {', '.join(sorted(files[0] ^ files[1]))}")
    other = [f for f in sorted(files[0]) if not f.endswith(".json") and _bytes_differ(base / f, new / f)]
    if not other:
        return Told(False)
    for file in sorted(f for f in files[0] if f.endswith(".onnx")):
        words = _graphs_differ(base / file, new / file)
        if words:
            return Told(True, f"export, {file}: {words}")
    if all(file.endswith((".onnx", ".bin")) for file in other):
        return Told(False, f"{', '.join(other)} differ in bytes, and not in nodes and initialisers")
    return Told(True, f"export: {', '.join(other)} differ")


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
