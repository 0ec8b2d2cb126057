"""`sleepc diff A B`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sleepc.cli.display import Display, err, print_json

if TYPE_CHECKING:
    from sleepc.diffing import ProgramDiff
    from sleepc.ir.program import ProgramGraphs

MANY = 6  # names in one line


def diff(
    a: Annotated[str, typer.Argument(help="An artifact directory, or a model (its program before any rewriting).")],
    b: Annotated[str, typer.Argument(help="The artifact or model to compare it with.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two programs: recipes, blocks, parameters, states, and their text. Exit 0 if equal, 1 if not."""
    from sleepc.diffing import diff_programs

    display = Display(err)
    with display.doing("diff"):
        program_a, recipe_a = _read(a, display)
        program_b, recipe_b = _read(b, display)
        found = diff_programs(program_a, program_b)
    recipes = _between(recipe_a, recipe_b)
    equal = found.equal and not recipes
    if as_json:
        print_json({"a": a, "b": b, **found.to_json(), "equal": equal, "recipe": recipes})
    else:
        _tell(a, b, recipes, found, equal)
    if not equal:
        raise typer.Exit(1)


def _read(target: str, display: Display) -> tuple[ProgramGraphs, dict[str, Any]]:
    """The program of an artifact with its recipe, or a model's at level CANONICAL with none."""
    from sleepc import api
    from sleepc.capturing import capture
    from sleepc.hf.load import load_module
    from sleepc.manifest import MANIFEST
    from sleepc.models import find_model

    if (Path(target) / MANIFEST).is_file():
        program = api.load(target)
        return program.graphs, program.recipe.model_dump()
    return capture(load_module(find_model(target, display)), display), {}


def _between(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    if bool(a) != bool(b):
        return [f"only {'A' if a else 'B'} is converted"]
    return [f"{name} {a.get(name)} → {b.get(name)}" for name in {**a, **b} if a.get(name) != b.get(name)]


def _tell(a: str, b: str, recipes: list[str], found: ProgramDiff, equal: bool) -> None:
    if equal:
        print("equal: the programs have the same graphs, parameters and states")
        return
    print(f"--- {a}\n+++ {b}")
    rows = {"recipe": recipes, "program": found.facts, "states": found.states}
    for title, entries in rows.items():
        for entry in entries:
            print(f"{title:12}{entry}")
    for graph in found.graphs:
        print(f"{'graph':12}{graph.name}: +{graph.added} -{graph.removed} lines")
    for title, names in (("added", found.added), ("removed", found.removed), ("changed", found.changed)):
        if names:
            more = f" … and {len(names) - MANY} more" if len(names) > MANY else ""
            print(f"{'parameters':12}{len(names)} {title}: {', '.join(names[:MANY])}{more}")
    for graph in found.graphs:
        print(f"\n@@ {graph.name} @@")
        print("\n".join(graph.lines))
