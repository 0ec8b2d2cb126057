"""`sleepc adapt ARTIFACT FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sleepc.cli.display import Display, number, out, print_json, typed
from sleepc.cli.options import Artifact

if TYPE_CHECKING:
    from sleepc.api import Program
    from sleepc.train.adapter import Adapter


def adapt(
    artifact: Artifact,
    file: Annotated[Path, typer.Argument(help="An adapter file: what a training changed.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The artifact directory to make.", show_default="replace ARTIFACT"),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge LoRA matrices into the weights.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Apply an adapter to an artifact: set the parameters that a training changed to their trained values."""
    from sleepc.artifact import check_free
    from sleepc.manifest import read_manifest

    read_manifest(artifact)  # reports first if it is not an artifact
    target = output or artifact
    check_free(target, force=force or output is None)  # before any work
    from sleepc import api

    program = api.load(artifact)
    before = program.identity
    adapter = program.adapt(file, merge=merge)
    program.save(target, force=force or output is None)
    changed = _changes(program, adapter, merge)
    if as_json:
        print_json({"output": str(target), "identity": program.identity, "before": before, **changed})
    else:
        _tell(Display(out), target, file, changed)


def _changes(program: Program, adapter: Adapter, merge: bool) -> dict[str, Any]:
    """What was set, in plain values. `rank` is of the adapter's LoRA matrices."""
    return {
        "adapter": str(adapter.path),
        "tensors": len(adapter.values),
        "parameters": sum(value.numel() for value in adapter.values.values()),
        "rank": adapter.header.rank,
        "merged": merge and adapter.header.rank > 0,
        "merge_lost": program.report["training"].get("merge_lost") if merge and adapter.header.rank else None,
        "weights": len(program.report["training"]["weights"]),
        "training": program.report["training"],
    }


def _tell(display: Display, target: Path, file: Path, changed: dict[str, Any]) -> None:
    parts = [f"{number(changed['parameters'])} parameters in {changed['tensors']} tensors from {file}"]
    if changed["rank"]:
        parts.append(f"LoRA matrices of rank {changed['rank']}{' merged' if changed['merged'] else ''}")
    if changed["merge_lost"] is not None:
        parts.append(f"rounding lost {100 * min(changed['merge_lost'], 1):.2g} % of their change")
    if changed["weights"]:
        parts.append(f"{changed['weights']} weights of the model itself")
    display.leave("adapt", " · ".join(parts))
    display.leave("saved", f"{target}/")
    display.leave(
        "next", f'sleepc run {typed(target)} "…"   ·   sleepc verify {typed(target)}   ·   sleepc eval {typed(target)}'
    )
