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
    """Files byte by byte; where they differ, nodes and initialisers of the graphs one by one. Not the JSON file, which
    has the versions of libraries: sessions go by the rest of it, and their results are compared.
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
    parts = [_parts(path) for path in (base, new)]
    for a, b in zip(*parts, strict=False):
        if a != b:
            return f"{a[0]} and {b[0]}" if a[0] != b[0] else f"other values of {a[0]}"
    if len(parts[0]) != len(parts[1]):
        return f"{len(parts[0])} and {len(parts[1])} nodes and initialisers"
    return ""


def _parts(path: Path) -> list[tuple[str, bytes]]:
    """Inputs, outputs, initialisers (by name), nodes and functions of an ONNX file: words, and the bytes of values."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    graph = model.graph
    found = [(" ".join(str(v).split()), b"") for v in (*graph.input, *graph.output)]
    for tensor in sorted(graph.initializer, key=lambda t: t.name):
        value = numpy_helper.to_array(tensor)
        found.append((f"{tensor.name} {value.dtype}{list(value.shape)}", value.tobytes()))
    for node in [*graph.node, *(n for f in model.functions for n in f.node)]:
        node.name, node.doc_string = "", ""
        found.append((_words(node), node.SerializeToString(deterministic=True)))
    return found


def _words(node: Any) -> str:
    """A node in one line; `_parts` compares all of it."""
    attributes = " ".join(" ".join(str(each).split()) for each in node.attribute)
    return f"{node.op_type}({', '.join(node.input)}) -> {', '.join(node.output)} {attributes[:200]}".rstrip()
