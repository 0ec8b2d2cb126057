"""Checkpoints of a training: masters, the optimisers' state, and where it stands; whole or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from sleepc.errors import SleepcError
from sleepc.ir.tensorfile import TensorFile, write_tensors
from sleepc.json_file import read_json
from sleepc.whole_folder import written_beside

STATE, FACTS, KEPT = "state.safetensors", "state.json", 2
MAX_FACTS = 1 << 20
MASTER = "master/"


class Standing(BaseModel):
    """Where a training stands: `step` steps are done, `tokens` tokens are read. `run` is what must not change, and
    `batch` a hash of what the last step read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int = Field(ge=0)
    tokens: int = Field(ge=0)
    run: dict[str, Any]
    batch: str = ""


def write_checkpoint(
    folder: Path, standing: Standing, masters: Mapping[str, Tensor], optimisers: Sequence[torch.optim.Optimizer]
) -> Path:
    """Write `folder`/step-00000123 next to its name and rename it; the latest two are kept.

    Raises SleepcError if the disk refuses; what was there before is whole.
    """
    target = folder / f"step-{standing.step:08d}"
    tensors = {MASTER + key: value.detach() for key, value in masters.items()} | _moments(masters, optimisers)
    try:
        with written_beside(target, force=True, mark=FACTS) as draft:
            write_tensors({name: value.cpu().contiguous() for name, value in tensors.items()}, draft / STATE)
            (draft / FACTS).write_text(standing.model_dump_json() + "\n")
            for name in (STATE, FACTS):
                with (draft / name).open("rb") as file:
                    os.fsync(file.fileno())
    except OSError as error:
        raise _unwritten(target, error.strerror or str(error)) from error
    except SleepcError as error:
        raise _unwritten(target, error.what) from error
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("step-????????"))


def forget_checkpoints(folder: Path) -> None:
    """Remove them: the training is over."""
    for path in checkpoints(folder):
        shutil.rmtree(path)


def read_standing(path: Path) -> Standing:
    """Where the training stood. Raises SleepcError for a damaged checkpoint."""
    try:
        return Standing.model_validate(read_json(path / FACTS, most=MAX_FACTS, fix=""))
    except (SleepcError, ValidationError) as error:
        raise _damaged(path, str(error).splitlines()[0]) from error


def read_tensors(path: Path, masters: Mapping[str, Tensor], optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Set masters and the optimisers' state to those of a checkpoint. Raises SleepcError if they do not fit."""
    file = TensorFile(path / STATE)
    with torch.no_grad():
        for key, master in masters.items():
            found = file.tensors.get(MASTER + key)
            if found is None or found.shape != tuple(master.shape) or found.dtype != master.dtype:
                raise _damaged(path, f"it has no tensor {key} of this shape and dtype")
            master.copy_(file.map(MASTER + key))
    named = {id(master): key for key, master in masters.items()}
    for optimiser in optimisers:
        state: dict[int, dict[str, Tensor]] = {}
        for number, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
            prefix = f"optimiser/{named[id(parameter)]}/"
            own = [name for name in file.tensors if name.startswith(prefix)]
            if own:
                state[number] = {name.removeprefix(prefix): file.map(name).clone() for name in own}
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _moments(masters: Mapping[str, Tensor], optimisers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return {
        f"optimiser/{key}/{name}": value
        for optimiser in optimisers
        for key, master in masters.items()
        for name, value in optimiser.state.get(master, {}).items()
    }


def rest_of(folder: Path) -> str:
    """What a training that broke off can go on from, in a sentence."""
    left = checkpoints(folder)
    return f"The training continues from {left[-1].name} with --resume." if left else "No checkpoint was written yet."


def _unwritten(path: Path, why: str) -> SleepcError:
    return SleepcError(
        f"the checkpoint cannot be written: {why}",
        where=str(path),
        fix="Make room there: a checkpoint is three times the trained parameters in float32, and two are kept. "
        + rest_of(path.parent),
    )


def _damaged(path: Path, why: str) -> SleepcError:
    return SleepcError(
        f"the checkpoint cannot be read: {why}",
        where=str(path),
        fix="Remove this checkpoint to resume from the one before it, or start over without --resume.",
    )
