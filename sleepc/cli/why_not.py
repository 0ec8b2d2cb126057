"""`sleepc why-not [NAME]`."""

from __future__ import annotations

from typing import Annotated

import typer

from sleepc.cli.display import out, print_json


def why_not(
    name: Annotated[str | None, typer.Argument(help="A system or paper, or a part of its name; else all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what became of a system of the literature here: what to type for it, or why there is nothing."""
    from rich.markup import escape

    from sleepc.systems import find_systems

    found = find_systems(name)
    if as_json:
        print_json({"systems": [system.to_json() for system in found]})
        return
    for system in found:
        out.print(f"[bold]{escape(system.name)}[/]  {system.source}: {escape(system.does)}")
        if system.here:
            out.print(f"  here      {escape(system.here.replace('`', ''))}")
        if system.why:
            out.print(f"  {'differs ' if system.here else 'why not '}  {escape(system.why)}")
