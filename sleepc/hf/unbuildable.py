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

# Builds (and runs) what the config.json of a folder describes, or fails; the files' tensors have to fit it if so told.
Build = Callable[[Path, bool], object]
PATIENCE = 20  # seconds that a field is looked for
KEPT = ("model_type", "architectures")  # without them it is another model
SIZES = 6  # so many of the files' smallest
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


def unbuildable(checkpoint: Checkpoint, error: Exception, build: Build) -> SleepcError:
    """The error of a checkpoint that transformers failed at with `error`. `build` does so without values."""
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
    if _fails(build, checkpoint.config, False):
        blamed = _blamed(checkpoint, build, text)
        said = f"config.json says {blamed}, which" if blamed else "config.json is what"
        return UsageError(f"{said} transformers cannot build a {kind} model with: {lines[0]}", where=where, fix=FIX)
    return SleepcError(
        f"transformers cannot load this model ({kind}): {lines[0]}",
        where=where,
        fix="--debug shows the full traceback.",
    )


@contextmanager
def field_named(checkpoint: Checkpoint, run: Build) -> Iterator[None]:
    """Name the field of config.json with which a model that can be built cannot run."""
    try:
        yield
    except CannotRun as error:
        with quiet():
            blamed = _blamed(checkpoint, run, error.reason) if _fails(run, checkpoint.config, False) else None
        said = f"config.json says {blamed}, with which the model cannot be called" if blamed else ""
        raise CannotRun(error.reason, str(checkpoint.folder), FIX, said) from error


def _blamed(checkpoint: Checkpoint, build: Build, reason: str) -> str | None:
    """The field without which the model can be built, or with another number in it, and what it says; None if no single
    one is found in time. One with which the files' tensors fit the model, too, is asked for first.
    """
    end, config = time.monotonic() + PATIENCE, checkpoint.config
    places = sorted(_places(config), key=lambda place: _unlikely(config, place, reason))
    for without, fitting in ((True, True), (False, True), (True, False), (False, False)):
        for place in places:
            if time.monotonic() > end:
                return None
            others = [_without(config, place)] if without else _with_others(config, place, checkpoint)
            if any(not _fails(build, other, fitting) for other in others):
                said = json.dumps(_at(config, place))
                return f"{'.'.join(place)}: {said if len(said) <= 80 else said[:79] + '…'}"
    return None


def _without(config: dict[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    rest = copy.deepcopy(config)
    del _at(rest, place[:-1])[place[-1]]
    return rest


def _with_others(config: dict[str, Any], place: tuple[str, ...], checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """A configuration with another whole number where it has one: a small one, or a size of the files' tensors. A class
    may ask for a number there, and what it takes without one may be as wrong.
    """
    if type(_at(config, place)) is not int:
        return
    sizes = {size for file in checkpoint.opened for entry in file.tensors.values() for size in entry.shape}
    for number in sorted({2, 4, *sorted(sizes)[:SIZES]} - {_at(config, place)}):
        other = copy.deepcopy(config)
        _at(other, place[:-1])[place[-1]] = number
        yield other


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


def _fails(build: Build, config: dict[str, Any], fitting: bool) -> bool:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / CONFIG).write_text(json.dumps(config))
        try:
            build(Path(scratch), fitting)
        except Exception:  # whatever a class of transformers raises
            return True
    return False
