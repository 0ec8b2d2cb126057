"""`sleepc doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sleepc.backends.table import by_export
from sleepc.cli.display import out, print_json

if TYPE_CHECKING:
    from sleepc.doctor import Finding

VERDICTS = {
    "models": "models can be converted and run here",
    "exports": f"exports can be run here (run, chat and eval with {by_export()}); all else needs PyTorch: pip install sleepc",
    "nothing": "[red]models cannot be run here yet[/]",
}
COLOURS = {"ok": "green", "missing": "yellow", "broken": "red", "note": "dim"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report what works on this machine, what does not, why, and what to install. Exit 0 if models or exports can run."""
    from sleepc.doctor import examine, exports_only, works
    from sleepc.version import __version__

    findings = examine()
    runs = "models" if works(findings) else "exports" if exports_only(findings) else "nothing"
    ok = runs != "nothing"
    if as_json:
        facts = {"ok": ok, "runs": runs, "sleepc": __version__}
        print_json({**facts, "findings": [f.to_json() for f in findings]})
    else:
        _table(findings)
        out.print(f"\n{VERDICTS[runs]}")
    if not ok:
        raise typer.Exit(1)


def _table(findings: list[Finding]) -> None:
    from rich.markup import escape

    wide = max(len(f.what) for f in findings)
    group = ""
    for f in findings:
        title = f.group if f.group != group else ""
        group = f.group
        fix = f"   → [bold]{escape(f.fix)}[/]" if f.fix else ""
        out.print(f"{title:10}{f.what:{wide}}  [{COLOURS[f.mark]}]{f.mark:8}[/]{escape(f.detail)}{fix}")
