"""Options that several commands have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sleepc.errors import UsageError

Artifact = Annotated[Path, typer.Argument(help="An artifact directory; with --backend onnx also an export.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from the most likely tokens of this mass.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample from so many most likely tokens; 0 is all.")]
Seed = Annotated[int | None, typer.Option(help="Of the sampling.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given several times.")]
TokenFile = Annotated[
    Path | None, typer.Option("--tokens", help="A file of token ids to read instead of a text: 12 7 30 …")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[
    str | None, typer.Option(help="Run in this dtype: the artifact's own or a wider one (not with --backend onnx).")
]
Backend = Annotated[str, typer.Option(help="eager, or onnx: its export in ONNX Runtime, which needs no PyTorch.")]
TemplateName = Annotated[str | None, typer.Option("--template", help="Which of the model's chat templates.")]
TemplateArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--template-arg",
        help="A variable of the chat template, as NAME=VALUE; may be given several times.",
        metavar="NAME=VALUE",
    ),
]

SPELLED = {"True": True, "False": False, "None": None}


def read_template_args(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE -> values: JSON where they are JSON (true, 3, "3"), also as Python spells it (True, None), else texts.
    Raises UsageError.
    """
    found: dict[str, Any] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise UsageError(
                f"cannot read {each!r}", where="--template-arg", fix="Give NAME=VALUE: enable_thinking=false."
            )
        if name in found:
            raise UsageError(f"{name} is given twice", where="--template-arg", fix="Give each variable once.")
        try:
            found[name] = SPELLED[value] if value in SPELLED else json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found
