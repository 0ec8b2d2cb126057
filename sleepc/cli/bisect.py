"""`sleepc bisect ARTIFACT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sleepc.cli.display import Display, err, out, print_json
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.bisecting import Bisection

MANY = 6  # names in one line


def bisect(
    target: Annotated[Path, typer.Argument(metavar="artifact", help="An artifact directory.")],
    against: Annotated[str | None, typer.Option(help="The original model, if it has moved.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest allowed error of a logit; by default what the program's dtype allows.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert the original again, pass by pass, and name the first pass after which the numbers are wrong. Exit 1 if there is one."""
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise UsageError(
            f"the tolerance is {tolerance}, and must be 0 or more",
            where="--tolerance",
            fix="Give a number of at least 0.",
        )
    from sleepc.bisecting import bisect_artifact

    display = Display(err)
    with display.doing("bisect"):
        found = bisect_artifact(target, against=against, tolerance=tolerance, progress=display)
    if as_json:
        print_json(found.to_json())
    else:
        _tell(found, target)
    if not found.ok:
        raise typer.Exit(1)


def _tell(found: Bisection, target: Path) -> None:
    from rich.markup import escape

    out.print(f"{found.tokens} tokens inside the window, against the original; tolerance {found.tolerance:.0e}\n")
    wide = max(len(row.step) for row in found.rows)
    out.print(f"{'after':{wide}}  rewrites  largest error")
    for row in found.rows:
        error = "–" if row.error is None else f"{row.error:.1e}"
        mark = "[green]ok[/]" if row.ok else "[red]WRONG[/]"
        line = f"{row.step:{wide}}  {row.rewrites:>8}  {error:>13}  {mark}"
        out.print(f"{line}  [dim]{escape(row.detail)}[/]" if row.detail else line)
    out.print()
    for line in verdict(found, target):
        out.print(escape(line))


def verdict(found: Bisection, target: Path) -> list[str]:
    """What a bisection means, in words."""
    from sleepc.bisecting import CAPTURE, STORED

    lines = []
    intact = found.culprit in (None, STORED)  # the passes are
    if found.culprit == CAPTURE:
        lines.append("wrong from the start: the captured graph does not compute what the model does (sleepc/capture)")
    elif not intact:
        lines += [f"first wrong after: {found.culprit}", "`sleepc convert … --dump-graphs DIR` shows what it did."]
    if not found.stored.equal:
        here = "its recipe makes: it was changed, or made by another version of sleepc."
        lines.append(f"the artifact's program is not the one that {here if intact else 'was made here:'}")
        lines += [f"  graph {g.name}: +{g.added} -{g.removed} lines" for g in found.stored.graphs]
        lines += [f"  {text}" for text in (*found.stored.facts, *found.stored.states)]
        keys = {"changed": found.stored.changed, "added": found.stored.added, "removed": found.stored.removed}
        lines += [f"  parameters {how}: {_some(names)}" for how, names in keys.items() if names]
    if found.damaged:
        lines.append(
            f"the bytes of {len(found.damaged)} tensors are not those of the conversion: {_some(found.damaged)}"
        )
    if found.trained:
        lines.append(
            f"memories have other values than a new conversion gives (trained, or changed): {_some(found.trained)}"
        )
    if found.ok:
        lines.append(f"every pass keeps the numbers, and {target} is what they produce.")
    return lines


def _some(names: list[str]) -> str:
    more = f" … and {len(names) - MANY} more" if len(names) > MANY else ""
    return f"{', '.join(names[:MANY])}{more}"
