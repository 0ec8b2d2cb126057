"""`sleepc train ARTIFACT --task NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.cli.display import Display, typed
from sleepc.cli.option_groups import flag, flat, several, switch, with_options
from sleepc.cli.options import SETTING, Artifact
from sleepc.cli.training import Learning, load_to_train, run_training, settings_among
from sleepc.cli.training_options import LoopOptions, StepOptions, TextOptions, TrainedOptions, WorkOptions
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.train.trainer import Hooks
    from sleepc.train.training import Outcome


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What is learned, and where it goes."""

    task: str | None = flag("A task that `sleepc tasks` lists.")
    settings: list[str] | None = several(SETTING, "--set", each="NAME=VALUE")
    texts: TextOptions
    predict: int | None = flag("Number of tokens at the end of each text to learn; 0: all.", shown="0")
    output: Path | None = flag("The artifact directory to make; without it ARTIFACT is replaced.", "--output", "-o")
    scratch: bool = switch(
        "For an untrained model: implies --train all --start new --optimiser muon, and --weights-lr equal to --lr.",
        "--scratch",
    )
    step: StepOptions
    trained: TrainedOptions
    hard: float | None = flag("Share of the stages distil and solve that runs with hard eviction.", shown="0")
    loop: LoopOptions
    work: WorkOptions


@with_options
def train(artifact: Artifact, options: TrainOptions) -> None:
    """Train a model to answer a task, or to continue a text, through its sleeps and their passes."""
    task, texts, work = options.task, options.texts, options.work
    chosen = settings_among(flat(options))
    if sum((task is not None, bool(texts.text), texts.dataset is not None)) != 1:
        raise UsageError(
            "no training data is given",
            where="sleepc train",
            fix="Give one of --task NAME, --text FILE or --dataset NAME.",
        )
    program, settings = load_to_train(artifact), options.settings or []

    def learn(folder: Path, display: Display, hooks: Hooks) -> Outcome:
        given = {**vars(texts), "text": texts.text or (), "set": settings, "scratch": options.scratch, **work.given()}
        return program.train(task, work=folder, progress=display, hooks=hooks, **given, **chosen)

    following = _following(options.output or artifact, task, settings)
    run_training(program, Learning("train", learn, following), artifact, options.output, work)


def _following(target: Path, task: str | None, settings: list[str]) -> str:
    """The command that measures what was learned of a task; of a text, the usual."""
    return (
        " ".join([f"sleepc eval {typed(target)} --task {task}", *(f"--set {each}" for each in settings)])
        if task
        else ""
    )
