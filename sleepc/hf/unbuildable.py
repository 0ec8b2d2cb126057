"""What is said if transformers cannot build the model that a configuration describes: which field is to blame."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sleepc.capture.own_run import CannotRun
from sleepc.capture.quiet import quiet
from sleepc.errors import Refusal, SleepcError, UsageError
from sleepc.hf.resolve import CONFIG, Checkpoint

PATIENCE = 20  # seconds that a field is looked for
KEPT = ("model_type", "architectures")  # without them it is another model
FIX = "Correct the configuration, or fetch the model again."


def own_code(checkpoint: Checkpoint) -> Refusal:
    """The refusal of a checkpoint whose own code alone knows the model."""
    kind = checkpoint.config.get("model_type", "?")
    return Refusal(
        "REMOTE_CODE",
        f"the checkpoint brings its own code for models of type {kind}, and sleepc runs none",
        where=str(checkpoint.folder),
        fix="Convert a version of the model that transformers knows, or give sleepc.convert a module that you trust.",
    )


def unbuildable(checkpoint: Checkpoint, error: Exception, build: Callable[[Path], object]) -> SleepcError:
    """The error of a checkpoint that transformers failed at with `error`. `build` builds what the config.json of a
    folder describes, without values, or fails.
    """
    text = str(error).strip() or repr(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kind, where = checkpoint.config.get("model_type", "?"), str(checkpoint.folder)
    if "custom code which must be executed" in text:
        return own_code(checkpoint)
    if "Unrecognized configuration class" in text or ("does not support" in lines[0] and "attention" not in lines[0]):
        return Refusal(
            "NO_ATTENTION",
            f"transformers has no causal language model of type {kind}",
            where=where,
            fix="sleepc converts decoder-only language models.",
        )
    if "alidation error" in lines[0]:  # what is wrong stands in the line after it
        what = f"config.json is not as a {kind} model needs it: {lines[min(1, len(lines) - 1)]}"
        return UsageError(what, where=where, fix=FIX)
    if _fails(build, checkpoint.config):
        blamed = _blamed(checkpoint.config, build, text)
        said = f"config.json says {blamed}, which" if blamed else "config.json is what"
        return UsageError(f"{said} transformers cannot build a {kind} model with: {lines[0]}", where=where, fix=FIX)
    return SleepcError(
        f"transformers cannot load this model ({kind}): {lines[0]}",
        where=where,
        fix="--debug shows the full traceback.",
    )


@contextmanager
def field_named(checkpoint: Checkpoint, run: Callable[[Path], object]) -> Iterator[None]:
    """Name the field of config.json with which a model that can be built cannot run. `run` builds and runs what the
    config.json of a folder describes, without values, or fails.
    """
    try:
        yield
    except CannotRun as error:
        with quiet():
            blamed = _blamed(checkpoint.config, run, error.reason) if _fails(run, checkpoint.config) else None
        said = f"config.json says {blamed}, with which the model cannot be called" if blamed else ""
        raise CannotRun(error.reason, str(checkpoint.folder), FIX, said) from error


def _blamed(config: dict[str, Any], build: Callable[[Path], object], reason: str) -> str | None:
    """The field without which the model can be built, with what it says; None if no single one is found in time."""
    end = time.monotonic() + PATIENCE
    for place in sorted(_places(config), key=lambda place: _unlikely(config, place, reason)):
        if time.monotonic() > end:
            return None
        rest = copy.deepcopy(config)
        inside = _at(rest, place[:-1])
        value = inside.pop(place[-1])
        said = json.dumps(value)
        works = not _fails(build, rest)
        if not works and type(value) is int and value < 1:  # others may ask for a number there
            inside[place[-1]] = 2
            works = not _fails(build, rest)
        if works:
            return f"{'.'.join(place)}: {said if len(said) <= 80 else said[:79] + '…'}"
    return None


def _unlikely(config: dict[str, Any], place: tuple[str, ...], reason: str) -> int:
    """Fields that the reason of the failure mentions come first, then those that say nothing or less than one."""
    value = _at(config, place)
    small = value is None or (isinstance(value, (bool, int, float)) and value < 1)
    return 0 if place[-1] in reason else 1 if small else 2


def _at(config: dict[str, Any], place: tuple[str, ...]) -> Any:
    found: Any = config
    for key in place:
        found = found[key]
    return found


def _places(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Paths to all fields, those inside others first: what is smaller says more."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((key, *place) for place in _places(value))
        if key not in KEPT:
            yield (key,)


def _fails(build: Callable[[Path], object], config: dict[str, Any]) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / CONFIG).write_text(json.dumps(config))
        try:
            build(Path(scratch))
        except Exception:  # whatever a class of transformers raises
            return True
    return False
