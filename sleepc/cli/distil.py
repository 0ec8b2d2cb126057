"""`sleepc distil ARTIFACT --text FILES`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.cli.display import Display
from sleepc.cli.option_groups import flag, flat, switch, with_options
from sleepc.cli.options import Artifact
from sleepc.cli.training import Learning, load_to_train, run_training, settings_among
from sleepc.cli.training_options import LoopOptions, StepOptions, TextOptions, TrainedOptions, WorkOptions
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.api import Program
    from sleepc.train.trainer import Hooks
    from sleepc.train.training import Outcome


@dataclass(frozen=True, kw_only=True)
class DistilOptions:
    """What is learned from whom, and where it goes."""

    texts: TextOptions
    own: bool = switch("Learn from texts that the teacher generates.", "--self")
    teacher: str | None = flag("A model with the same vocabulary; the original by default.")
    output: Path | None = flag("The artifact directory to make; without it ARTIFACT is replaced.", "--output", "-o")
    stages: str | None = flag(
        "Any of align, distil, lengthen, in this order, optionally with shares of the tokens: align:1,distil:3.",
        shown="distil; align,distil if attention was replaced",
    )
    trained: TrainedOptions
    step: StepOptions
    hard: float | None = flag("Share of the stages distil and solve that runs with hard eviction.", shown="0")
    recall: float | None = flag("Share of samples in which stretches recur beyond the window.", shown="0.5")
    planted: float | None = flag(
        "Share of samples made into conversations: their text states facts, which are asked about later.", shown="0"
    )
    studied: float | None = flag(
        "Share of other samples made into conversations: the teacher asks itself about their text.", shown="0"
    )
    weigh: float | None = flag(
        "How much more a token counts per nat by which the teacher predicts it better; 0: all count the same.",
        shown="0",
    )
    loop: LoopOptions
    work: WorkOptions


@with_options
def distil(artifact: Artifact, options: DistilOptions) -> None:
    """Train a converted model's memories to match the original's outputs, on texts, with sleeps in the loop."""
    texts, work = options.texts, options.work
    chosen = settings_among(flat(options))
    if sum((bool(texts.text), texts.dataset is not None, options.own)) != 1:
        raise UsageError(
            "no training text is given", where="sleepc distil", fix="Give one of --text FILE, --dataset NAME or --self."
        )
    program = load_to_train(artifact)
    chosen.setdefault("stages", "align,distil" if _replaces(program) else "distil")

    def learn(folder: Path, display: Display, hooks: Hooks) -> Outcome:
        given = {**vars(texts), "text": texts.text or (), "teacher": options.teacher, **work.given()}
        return program.distil(work=folder, progress=display, hooks=hooks, **given, **chosen)

    run_training(program, Learning("distil", learn), artifact, options.output, work)


def _replaces(program: Program) -> bool:
    return any(plan.strategy == "replace" for plan in program.recipe.plan(len(program.graphs.layout)))
