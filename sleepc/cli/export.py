"""`sleepc export ARTIFACT --to onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sleepc.cli.display import Display, err, out, print_json, size
from sleepc.cli.options import Artifact, TokenFile
from sleepc.cli.words import read_options

if TYPE_CHECKING:
    from rich.table import Table

    from sleepc.exporting import Exported


def export(
    artifact: Artifact,
    to: Annotated[str, typer.Option("--to", help="onnx.")],
    precision: Annotated[
        str, typer.Option(help="Of linear maps and embeddings: fp32, fp16, int8 or int4. All else is float32.")
    ] = "fp32",
    ops: Annotated[
        str, typer.Option(help="ort (ONNX Runtime's kernels, opset 23) or portable (plain operators of opset 18).")
    ] = "ort",
    ep: Annotated[str, typer.Option(help="The execution provider that the files are for: cpu or cuda.")] = "cpu",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to make.", show_default="ARTIFACT/onnx")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an export that exists.")] = False,
    text: Annotated[
        Path | None, typer.Option(help="A text file to read in the checks; Python's help topics by default.")
    ] = None,
    tokens: TokenFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write files that run without PyTorch, and check them: weights by value, and what a runtime computes with them."""
    from sleepc import api

    display = Display(err if as_json else out)
    words, ids = read_options(text, tokens)
    options: dict[str, Any] = {"to": to, "precision": precision, "ops": ops, "ep": ep, "text": words, "tokens": ids}
    program = api.load(artifact)
    with display.doing("export"):
        exported = program.export(output, **options, force=force, progress=display)
    if as_json:
        print_json({"output": str(exported.path), "report": exported.report, "seconds": exported.seconds})
    else:
        _tell(display, exported)


def _tell(display: Display, exported: Exported) -> None:
    report = exported.report
    out.print(table(report["checks"]))
    if report["perplexity"]:
        found = report["perplexity"]
        out.print(f"perplexity of {found['tokens']} tokens: {found['before']:.2f} before, {found['after']:.2f} after")
    files = {path.name: path.stat().st_size for path in sorted(exported.path.glob("*")) if path.suffix in SHOWN}
    display.leave(
        "checked", f"{report['weights']} weights by value, {len(report['checks'])} figures", report["seconds"]
    )
    display.leave(
        "saved", f"{exported.path}/   " + "   ".join(f"{n} {size(b)}" for n, b in files.items()), exported.seconds
    )


SHOWN = {".onnx", ".bin"}


def table(checks: list[dict[str, Any]]) -> Table:
    """Checks of an export's report, a line each."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("", "check", "figure", "measured", "bound", ""):
        table.add_column(name)
    for c in checks:
        mark = "[green]ok[/]" if c["ok"] else "[red]FAIL[/]"
        bound = f"{'≥' if c['least'] else '≤'} {c['bound']:.3g}"
        table.add_row(mark, c["check"], c["figure"], f"{c['value']:.2g}", bound, f"[dim]{c['detail']}[/]")
    return table
