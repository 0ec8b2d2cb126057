"""What is said if transformers cannot build the model that a configuration describes: which field is to blame."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
        blamed = _blamed(checkpoint.config, build)
        said = f"config.json says {blamed}, which" if blamed else "config.json is what"
        return UsageError(f"{said} transformers cannot build a {kind} model with: {lines[0]}", where=where, fix=FIX)
    return SleepcError(
        f"transformers cannot load this model ({kind}): {lines[0]}",
        where=where,
        fix="--debug shows the full traceback.",
    )


def _blamed(config: dict[str, Any], build: Callable[[Path], object]) -> str | None:
    """The field without which the model can be built, with what it says; None if no single one is found in time."""
    end = time.monotonic() + PATIENCE
    for place in _places(config):
        if time.monotonic() > end:
            return None
        rest = copy.deepcopy(config)
        value: Any = rest
        for key in place[:-1]:
            value = value[key]
        said = json.dumps(value.pop(place[-1]))
        if not _fails(build, rest):
            return f"{'.'.join(place)}: {said if len(said) <= 80 else said[:79] + '…'}"
    return None


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
