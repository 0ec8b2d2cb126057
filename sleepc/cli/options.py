"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Artifact = Annotated[Path, typer.Argument(help="An artifact directory; with --backend onnx also an export.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from the most likely tokens of this mass.")]
TopK = Annotated[int, typer.Option(min=0, help="Sample from so many most likely tokens; 0 is all.")]
Seed = Annotated[int | None, typer.Option(help="Of the sampling.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given several times.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Dtype = Annotated[
    str | None, typer.Option(help="Run in this dtype: the artifact's own or a wider one (not with --backend onnx).")
]
Backend = Annotated[str, typer.Option(help="eager, or onnx: its export in ONNX Runtime, which needs no PyTorch.")]
