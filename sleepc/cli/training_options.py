"""Options of the commands that train: each with the default of sleepc.train.settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Text = Annotated[
    list[Path] | None,
    typer.Option(help="A text file, a .jsonl file, or a folder of them; may be given several times."),
]
Dataset = Annotated[str | None, typer.Option(help="A data set of Hugging Face's: NAME or NAME:SPLIT.")]
Field = Annotated[str, typer.Option(help="Where rows of .jsonl files and data sets have their text.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The artifact directory to make; without it ARTIFACT is replaced."),
]
Train = Annotated[
    str | None,
    typer.Option(
        "--train",
        help="new (what the conversion added), low-rank (maps beside the weights, too) or all.",
        show_default="new",
    ),
]
Rank = Annotated[int | None, typer.Option(help="Of low-rank maps.", show_default="8")]
Steps = Annotated[int | None, typer.Option(help="How many, instead of --tokens.")]
Passes = Annotated[
    str | None,
    typer.Option(help="Of every sleep: 4, or 1:4, drawn for each step.", show_default="the program's own"),
]
Optimiser = Annotated[str | None, typer.Option(help="adamw, or muon for the matrices of blocks.", show_default="adamw")]
MuonLr = Annotated[float | None, typer.Option(help="Of those matrices.", show_default="0.005")]
Tokens = Annotated[int | None, typer.Option(help="Tokens to read in all.", show_default="250000")]
Length = Annotated[int | None, typer.Option(help="Tokens of a piece of text.", show_default="768")]
Batch = Annotated[int | None, typer.Option(help="Pieces of a step.", show_default="1")]
Accumulate = Annotated[int | None, typer.Option(help="Parts of a batch, one after another.", show_default="1")]
Lr = Annotated[float | None, typer.Option(help="Learning rate of memories.", show_default="0.002")]
LowRankLr = Annotated[float | None, typer.Option(help="Of low-rank maps.", show_default="0.001")]
WeightsLr = Annotated[float | None, typer.Option(help="Of the source's weights.", show_default="1e-05")]
Hard = Annotated[
    float | None, typer.Option(help="Share of stages distil and solve that evicts hard.", show_default="0")
]
Start = Annotated[
    str | None,
    typer.Option(
        help="fresh (untrained memories are set to learn fast), new (as in a new model) or kept.", show_default="fresh"
    ),
]
Precision = Annotated[
    str | None, typer.Option(help="auto, float32 or bfloat16 (for linear maps).", show_default="auto")
]
Checkpointing = Annotated[
    bool, typer.Option("--checkpointing", help="Compute activations again: less memory, more time.")
]
Truncate = Annotated[int | None, typer.Option(help="Windows that gradients go back, 0 for all.", show_default="0")]
Seed = Annotated[
    int | None, typer.Option(help="Of the order of the text, of examples, and of drawn passes.", show_default="0")
]
SaveEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints.", show_default="50")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]
Merge = Annotated[bool, typer.Option("--merge", help="Merge low-rank maps into the weights at the end.")]
Half = Annotated[bool, typer.Option("--half", help="Write the adapter in float16: half the size.")]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Start anew where a training was stopped; replace an artifact at -o; save what got worse."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is one")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
