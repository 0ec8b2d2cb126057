"""Where a training reads and works, and its callbacks: everything but how parameters are stepped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sleepc.backends.table import DEFAULT
from sleepc.runtime.arguments import typed
from sleepc.train.texts import Texts, texts
from sleepc.train.trainer import Hooks


@dataclass(frozen=True)
class Run:
    """Options of Program.train and Program.distil that are none of sleepc.train.settings.

    Read are files or folders (`text`) or a data set, whose rows have their text in `field`. `work` holds checkpoints,
    metrics and the adapter, in float16 with `half`; `resume` continues from checkpoints there. What made things worse
    is kept with `force` only. `backend` is one that trains, `device` is cpu or cuda, a GPU by default if there is one.
    """

    text: Sequence[str | Path] = ()
    dataset: str | None = None
    field: str = "text"
    work: str | Path = "training"
    resume: bool = False
    force: bool = False
    backend: str = DEFAULT
    device: str | None = None
    half: bool = False
    hooks: Hooks | None = None

    @property
    def folder(self) -> Path:
        """Where it works."""
        return Path(self.work)

    @property
    def told(self) -> Hooks:
        """The callbacks."""
        return self.hooks or Hooks()

    def texts(self) -> Texts | None:
        """What is to be read; None if nothing is named. Raises UsageError for what is not there."""
        if not self.text and self.dataset is None:
            return None
        return texts([Path(path) for path in self.text], self.dataset, self.field)


def split_options(options: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    """Options of a training, by name: those of its run, and all others, which are settings or none at all.

    Raises UsageError for an option of another type.
    """
    own = {each.name for each in fields(Run)}
    run = {name: value for name, value in options.items() if name in own}
    return typed(Run)(**run), {name: value for name, value in options.items() if name not in own}
