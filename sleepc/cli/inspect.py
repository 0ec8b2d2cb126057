"""`sleepc inspect MODEL|ARTIFACT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sleepc.cli.display import Display, cache_in_words, err, number, out, print_json, size

if TYPE_CHECKING:
    from sleepc.inspection import Inspection


def inspect(
    target: Annotated[str, typer.Argument(help="A model (directory, hub id, .gguf) or an artifact directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    why: Annotated[
        bool, typer.Option("--why", help="Explain for every block why it is rewritten, or why not.")
    ] = False,
    svg: Annotated[
        Path | None, typer.Option(help="Draw the blocks, windows, memories and the sleep into this file.")
    ] = None,
) -> None:
    """Show the blocks and attention sites of a model, what they are or would be converted to, and the cost."""
    display = Display(err)
    with display.doing("inspect"):
        seen = _look(target, svg, display)
    if as_json:
        print_json(seen.to_json())
        return
    _table(seen, why)


def _look(target: str, svg: Path | None, display: Display) -> Inspection:
    """Inspect, and draw if `svg` asks for it."""
    from sleepc import converting

    if svg is None:
        return converting.inspect(target, progress=display)
    from sleepc.cli.picture.make import check_picture_file, make_picture
    from sleepc.whole_file import write_whole

    check_picture_file(svg)
    seen, picture = make_picture(target, display)
    write_whole(svg, picture.encode())
    return seen


def _table(seen: Inspection, why: bool) -> None:
    from rich.table import Table

    tied = "tied" if seen.tied else "untied"
    limit = f", {number(seen.max_positions)} positions" if seen.max_positions else ""
    out.print(
        f"{len(seen.blocks)} blocks of {seen.classes} class{'es' if seen.classes > 1 else ''}, hidden {seen.hidden}, "
        f"vocabulary {number(seen.vocab)} ({tied}), {seen.dtype}{limit}"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("block", "class", "heads", "size", "window", "cap", "sink logits", "bias", "positions", "→"):
        table.add_column(name)
    for b in seen.blocks:
        marks = [
            str(b.window or "–"),
            f"{b.softcap:g}" if b.softcap else "–",
            "yes" if b.sink_logits else "–",
            "yes" if b.bias else "–",
        ]
        heads = (f"{b.q_heads}/{b.kv_heads}", str(b.head_size)) if b.q_heads else ("–", "–")
        table.add_row(str(b.index), b.cls, *heads, *marks, b.positions, b.becomes)
    out.print(table)
    out.print(f"sleep {seen.sleep}")
    if seen.sleep_in_tokens is not None:
        out.print(f"      as many operations as {seen.sleep_in_tokens:.1f} tokens that are read")
    out.print(f"{seen.convertible} of {seen.sites} sites convertible   +{number(seen.new_parameters)} parameters")
    out.print(f"state per sequence {size(seen.state_bytes)} at any length · {cache_in_words(seen)}")
    if seen.learned_bytes:
        out.print(f"      {size(seen.learned_bytes)} of it are what sleeps add to weights")
    if why:
        for b in seen.blocks:
            out.print(f"  block {b.index}: {b.why}")
