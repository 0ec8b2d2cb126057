"""What a GGUF file says of itself: metadata, and the names and shapes of its tensors. Nothing in it is executed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sleepc.errors import SleepcError, UsageError

PART = re.compile(r"-(\d+)-of-(\d+)\.gguf$", re.IGNORECASE)
FLOATS = ("F16", "F32", "F64", "BF16", "I8", "I16", "I32", "I64")  # kinds that are no blocks
SPLIT_FIX = "Put the parts together first, with llama.cpp's llama-gguf-split."


class GgufFile:
    """A GGUF file, open for reading. Raises SleepcError if it is damaged, UsageError if its bytes are swapped."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError, OSError) as error:
            raise SleepcError(
                f"the GGUF file cannot be read: {str(error) or repr(error)}",
                where=str(path),
                fix="It may be damaged or incomplete: fetch it again.",
            ) from error
        if self._reader.byte_order != "I":
            raise UsageError(
                "the GGUF file is written in the other byte order, so its numbers would be misread",
                where=str(path),
                fix="Convert the model's own checkpoint, or convert its byte order: gguf-convert-endian.",
            )
        self.architecture = str(self.get("general.architecture", ""))
        self.shapes = {
            tensor.name: tuple(int(size) for size in reversed(tensor.shape.tolist())) for tensor in self._reader.tensors
        }

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata key: a number, a truth value, a string, or a list of one of them."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def of_architecture(self) -> dict[str, Any]:
        """The metadata of the architecture, by key without its name."""
        prefix = f"{self.architecture}."
        return {key.removeprefix(prefix): self.get(key) for key in self._reader.fields if key.startswith(prefix)}

    def keys(self, prefix: str) -> list[str]:
        """The metadata keys that begin so."""
        return [key for key in self._reader.fields if key.startswith(prefix)]

    def values(self, name: str) -> list[float]:
        """The numbers of a small tensor; an empty list if there is none of that name."""
        return [float(value) for value in self.dequantised(name).ravel().tolist()] if name in self.shapes else []

    def quantised(self) -> Iterator[tuple[str, str, Any]]:
        """(name, kind, bytes [.., rows, bytes]) of every tensor that is in blocks."""
        for tensor in self._reader.tensors:
            if tensor.tensor_type.name not in FLOATS:
                yield tensor.name, tensor.tensor_type.name, tensor.data

    def packed_bytes(self) -> int:
        """As many bytes as packed weights take at most: one for a number, and its share of the scales."""
        return sum(math.prod(self.shapes[name]) * 5 // 4 for name, _, _ in self.quantised())

    def dequantised(self, name: str) -> Any:
        """The values of a tensor in float32, as transformers reads them."""
        from gguf import dequantize

        tensor = next(tensor for tensor in self._reader.tensors if tensor.name == name)
        return dequantize(tensor.data, tensor.tensor_type)

    def check_whole_model(self) -> None:
        """Raises UsageError for a part of a model, and for anything but a language model (an adapter, a projector)."""
        if not self.architecture:
            raise UsageError("the GGUF file does not name its architecture", where=str(self.path), fix=_NO_MODEL)
        kind = self.get("general.type", "model")
        if kind != "model" or self.keys("adapter.") or self.architecture == "clip":
            named = kind if kind != "model" else "adapter" if self.keys("adapter.") else "projector"
            raise UsageError(f"the GGUF file holds no model but {named!r}", where=str(self.path), fix=_NO_MODEL)
        if not self.shapes:
            raise UsageError("the GGUF file has no tensors", where=str(self.path), fix=_NO_MODEL)
        refuse_part(self.path, int(self.get("split.no", 0)), int(self.get("split.count", 0)))
        promised = int(self.get("split.tensors.count", 0))
        if promised > len(self.shapes):
            raise UsageError(
                f"the GGUF file has {len(self.shapes)} of the {promised} tensors of its model: it is one of several",
                where=str(self.path),
                fix=SPLIT_FIX,
            )


_NO_MODEL = "Give the GGUF file of a whole language model."


def refuse_part(path: Path, number: int = 0, count: int = 0) -> None:
    """Raises UsageError if the file is one of several, by its metadata (`number` from 0) or by its name."""
    named = PART.search(path.name)
    if count <= 1 and named is not None:
        number, count = int(named[1]) - 1, int(named[2])
    if count > 1:
        raise UsageError(
            f"{path.name} is part {number + 1} of {count} of a model, and sleepc reads GGUF files in one piece",
            where=str(path),
            fix=SPLIT_FIX,
        )


def blocks_of(names: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """(block, rest of the name) of the tensors that belong to blocks."""
    for name in names:
        if found := re.fullmatch(r"blk\.(\d+)\.(.+)", name):
            yield int(found[1]), found[2]
