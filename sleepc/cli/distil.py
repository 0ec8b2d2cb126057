"""`sleepc distil ARTIFACT --text FILES`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sleepc.cli import training_options as o
from sleepc.cli.display import Display
from sleepc.cli.options import Artifact
from sleepc.cli.training import load_to_train, run_training, settings_among
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.api import Program
    from sleepc.train.training import Hooks, Outcome


def distil(
    artifact: Artifact,
    text: o.Text = None,
    dataset: o.Dataset = None,
    field: o.Field = "text",
    own: Annotated[bool, typer.Option("--self", help="Learn from texts that the teacher writes.")] = False,
    teacher: Annotated[
        str | None, typer.Option(help="A model with the same vocabulary; the original by default.")
    ] = None,
    output: o.Output = None,
    stages: Annotated[
        str | None,
        typer.Option(
            help="align, distil, lengthen, in this order, with shares of the tokens if need be: align:1,distil:3.",
            show_default="distil; where attention was replaced align,distil",
        ),
    ] = None,
    train: o.Train = None,
    rank: o.Rank = None,
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
    hard: o.Hard = None,
    recall: Annotated[
        float | None,
        typer.Option(help="Share of pieces with stretches that come again beyond the window.", show_default="0.5"),
    ] = None,
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
    """Train a converted model's memories to give what its original gives, from texts, with sleeps in the loop."""
    chosen = settings_among(locals())
    if sum((bool(text), dataset is not None, own)) != 1:
        raise UsageError(
            "what shall it read?", where="sleepc distil", fix="Give one of --text FILE, --dataset NAME or --self."
        )
    program = load_to_train(artifact)
    chosen.setdefault("stages", "align,distil" if _replaces(program) else "distil")

    def learn(work: Path, display: Display, hooks: Hooks) -> Outcome:
        return program.distil(
            text=text or (),
            dataset=dataset,
            field=field,
            teacher=teacher,
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
        program, artifact, output, learn, name="distil", resume=resume, force=force, merge=merge, as_json=as_json
    )


def _replaces(program: Program) -> bool:
    return any(plan.strategy == "replace" for plan in program.recipe.plan(len(program.graphs.layout)))
