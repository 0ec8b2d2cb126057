"""`sleepc train ARTIFACT --task NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sleepc.cli import training_options as o
from sleepc.cli.display import Display
from sleepc.cli.options import Artifact
from sleepc.cli.tasks import Settings
from sleepc.cli.training import load_to_train, run_training, settings_among
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.train.training import Hooks, Outcome


def train(
    artifact: Artifact,
    task: Annotated[str | None, typer.Option(help="One that `sleepc tasks` lists.")] = None,
    settings: Settings = None,
    text: o.Text = None,
    dataset: o.Dataset = None,
    field: o.Field = "text",
    predict: Annotated[
        int | None,
        typer.Option(help="Learn the last so many tokens of every piece of text, 0 for all.", show_default="0"),
    ] = None,
    output: o.Output = None,
    scratch: Annotated[
        bool,
        typer.Option(
            "--scratch",
            help="For a model that knows nothing yet: --train all --start new --optimiser muon, --weights-lr as --lr.",
        ),
    ] = False,
    passes: o.Passes = None,
    steps: o.Steps = None,
    tokens: o.Tokens = None,
    length: o.Length = None,
    batch: o.Batch = None,
    accumulate: o.Accumulate = None,
    optimiser: o.Optimiser = None,
    muon_lr: o.MuonLr = None,
    lr: o.Lr = None,
    low_rank_lr: o.LowRankLr = None,
    weights_lr: o.WeightsLr = None,
    train: o.Train = None,
    rank: o.Rank = None,
    hard: o.Hard = None,
    start: o.Start = None,
    precision: o.Precision = None,
    checkpointing: o.Checkpointing = False,
    truncate: o.Truncate = None,
    seed: o.Seed = None,
    save_every: o.SaveEvery = None,
    resume: o.Resume = False,
    merge: o.Merge = False,
    half: o.Half = False,
    force: o.Force = False,
    device: o.Device = None,
    as_json: o.AsJson = False,
) -> None:
    """Train a model to say what a task asks, or what a text goes on with, through its sleeps and their passes."""
    chosen = settings_among(locals())
    if sum((task is not None, bool(text), dataset is not None)) != 1:
        raise UsageError(
            "what shall it learn?", where="sleepc train", fix="Give one of --task NAME, --text FILE or --dataset NAME."
        )
    program = load_to_train(artifact)

    def learn(work: Path, display: Display, hooks: Hooks) -> Outcome:
        return program.train(
            task,
            set=settings or (),
            text=text or (),
            dataset=dataset,
            field=field,
            scratch=scratch,
            work=work,
            resume=resume,
            force=force,
            device=device,
            half=half,
            progress=display,
            hooks=hooks,
            **chosen,
        )

    run_training(
        program,
        artifact,
        output,
        learn,
        name="train",
        following=_following(output or artifact, task, settings or []),
        resume=resume,
        force=force,
        merge=merge,
        as_json=as_json,
    )


def _following(target: Path, task: str | None, settings: list[str]) -> str:
    """The command that measures what was learned of a task; of a text, the usual."""
    return " ".join([f"sleepc eval {target} --task {task}", *(f"--set {each}" for each in settings)]) if task else ""
