"""`sleepc verify ARTIFACT`, or an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sleepc.backends.table import exporter_of
from sleepc.cli.display import Display, err, out, print_json
from sleepc.cli.input_text import read_options
from sleepc.cli.option_groups import with_options
from sleepc.cli.verify_export import verify_an_export
from sleepc.cli.verify_options import VerifyOptions

if TYPE_CHECKING:
    from sleepc.verify.verify import Beyond, VerifyReport


@with_options
def verify(
    artifact: Annotated[Path, typer.Argument(help="An artifact or export directory.")], options: VerifyOptions
) -> None:
    """Measure the invariants on real tokens, and perplexity beyond the window, against the original model. Exit 1 if one fails."""
    words, ids = read_options(options.text, options.tokens)
    target = exporter_of(artifact)
    if target is not None:
        return verify_an_export(target, artifact, options, words, ids)
    from sleepc import api

    display = Display(err)
    program = api.load(artifact)
    with display.doing("verify"):
        report = program.verify(
            against=options.against,
            text=words,
            tokens=ids,
            hash=options.hashes,
            accept_quality=options.accept_quality,
            progress=display,
        )
    if options.as_json:
        print_json(report.to_json())
    else:
        _table(report)
    if report.beyond is not None and report.beyond.bad:
        say_beyond(report.beyond)
    if not report.ok:
        raise typer.Exit(1)


def say_beyond(beyond: Beyond) -> None:
    """A warning, or what fails, on stderr."""
    err.print(f"{'warning' if beyond.ok else 'error'}: {beyond.sentence()}")


def _table(report: VerifyReport) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("", "invariant", "check", "measured", "tolerance", ""):
        table.add_column(name)
    for c in report.checks:
        mark = "[green]ok[/]" if c.ok else "[red]FAIL[/]"
        value = "" if c.value is None else f"{c.value:.1e}"
        tolerance = "" if c.tolerance is None else f"{c.tolerance:.0e}"
        table.add_row(mark, str(c.invariant), c.name, value, tolerance, f"[dim]{c.detail}[/]")
    out.print(table)
    if report.perplexity:
        lines = Table(
            "tokens", "full attention", "sliding window", "converted", title="perplexity by distance", box=None
        )
        for row in report.perplexity:
            figures = ["–" if x is None else f"{x:.2f}" for x in (row.full, row.sliding, row.converted)]
            lines.add_row(f"{row.tokens_from}–{row.tokens_to}", *figures)
        out.print(lines)
    if report.beyond is not None:
        out.print(report.beyond.text)
    out.print(
        f"{'[red]not all invariants hold[/]' if report.failed else 'all invariants hold'}   {report.seconds:.1f} s"
    )
