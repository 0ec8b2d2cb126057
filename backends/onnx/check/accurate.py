"""The files with products whose activations stay as they are. Kernels round them to int8 if the files allow it: an
error of half a percent in every product, which would hide what is wrong with a graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from sleepc.backends.onnx.manifest import ExportManifest, ModelFile

EXACT, FLOATS = 0, (0, 1)  # accuracy_level: products in float32


@contextmanager
def accurate(folder: Path, manifest: ExportManifest) -> Iterator[ExportManifest]:
    """The manifest of copies next to the files, over the same weights; a file that rounds nothing is not copied."""
    parts = {name: getattr(manifest, name) for name in ("wake", "wake_one", "sleep_replay", "sleep_recurrent")}
    copies: dict[str, ModelFile] = {}
    try:
        for name, part in parts.items():
            if part is not None:
                copies[name] = part.model_copy(update={"file": _copy(folder, part.file)})
        yield manifest.model_copy(update=copies)
    finally:
        for name, part in copies.items():
            if part.file != parts[name].file:
                (folder / part.file).unlink()


def _copy(folder: Path, file: str) -> str:
    """The name of the copy, which has to lie next to the weights."""
    model = onnx.load(folder / file, load_external_data=False)
    if not _make_exact(model.graph):
        return file
    (folder / f"accurate.{file}").write_bytes(model.SerializeToString())
    return f"accurate.{file}"


def _make_exact(graph: onnx.GraphProto) -> int:
    """How many products were changed, in this graph and those inside it."""
    count = 0
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level" and attribute.i not in FLOATS:
                attribute.i = EXACT
                count += 1
            elif attribute.type == onnx.AttributeProto.GRAPH:
                count += _make_exact(attribute.g)
    return count
