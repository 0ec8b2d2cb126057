"""How large may the model be that a configuration describes? Bounded by what its files have, before it is built and
while it is: one number in a configuration can ask for more modules than there is time, or memory, for.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from sleepc.errors import UsageError
from sleepc.hf.unbuildable import FIX
from sleepc.ir.tensorfile import TensorFile

PER_TENSOR, BESIDE = 4, 1000  # weights of a model for one tensor of its files: some are stored in one piece
COUNTS = re.compile(r"^(n|num|number_of)_(\w+_)?(layers?|blocks?|experts|labels)$|^depth$")  # what modules are made by
WORD = (1 << 63) - 1  # the largest whole number that a tensor can have
COMPUTED = 1 << 28  # numbers that a model computes for itself, whatever its files have


def most_weights(files: tuple[TensorFile, ...]) -> int:
    """How many weights a model of these files can have."""
    return PER_TENSOR * sum(len(file.tensors) for file in files) + BESIDE


def check_counts(config: dict[str, Any], files: tuple[TensorFile, ...], folder: Path) -> None:
    """Raise UsageError for a number of layers, or of other modules, that the files cannot have, and for a number that
    nothing can have.
    """
    most = most_weights(files)
    beyond = [text for _, value, text in integers(config) if abs(value) > WORD]
    if beyond:
        raise UsageError(
            f"config.json says {', '.join(beyond)}, which is larger than any number of a model",
            where=str(folder),
            fix=FIX,
        )
    wrong = [text for key, value, text in integers(config) if COUNTS.search(key) and value > most]
    if wrong:
        raise UsageError(
            f"config.json says {', '.join(wrong)}, and the files have {_tensors(files)}", where=str(folder), fix=FIX
        )


@contextmanager
def bounded(config: dict[str, Any], files: tuple[TensorFile, ...], folder: Path) -> Iterator[None]:
    """Within it a model is built in this thread: UsageError if it gets more weights than the files can have."""
    most, thread, count = most_weights(files), threading.get_ident(), 0

    def counted(module: nn.Module, name: str, parameter: object) -> None:
        nonlocal count
        count += parameter is not None and threading.get_ident() == thread
        if count > most:
            said = [text for key, value, text in integers(config) if COUNTS.search(key) and value > 1]
            raise UsageError(
                f"the model of config.json ({', '.join(said)}) has more than {most} weights, "
                f"and the files have {_tensors(files)}",
                where=str(folder),
                fix=FIX,
            )

    handle = nn.modules.module.register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def check_computed(model: nn.Module, config: dict[str, Any], files: tuple[TensorFile, ...], folder: Path) -> None:
    """Raise UsageError for a table that the model computes for itself and out of proportion to its files."""
    most = max(COMPUTED, _numbers(files))
    for name, buffer in model.named_buffers():
        if buffer.numel() > most:
            said = [text for _, value, text in integers(config) if value == max(buffer.shape)]
            raise UsageError(
                f"config.json ({', '.join(said)}) asks for a table of {list(buffer.shape)} ({name})",
                where=str(folder),
                fix=FIX,
            )


def integers(config: dict[str, Any], place: str = "") -> Iterator[tuple[str, int, str]]:
    """(name, value, "place.name: value") of all whole numbers in a configuration, at any depth."""
    for key, value in config.items():
        if type(value) is int:
            yield key, value, f"{place}{key}: {json.dumps(value)}"
        elif isinstance(value, dict):
            yield from integers(value, f"{place}{key}.")


def _tensors(files: tuple[TensorFile, ...]) -> str:
    return f"{sum(len(file.tensors) for file in files)} tensors"


def _numbers(files: tuple[TensorFile, ...]) -> int:
    return sum(math.prod(entry.shape) for file in files for entry in file.tensors.values())
