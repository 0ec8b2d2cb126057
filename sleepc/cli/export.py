"""`sleepc export ARTIFACT --to TARGET`, with the options of every target that there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from sleepc.backends.contract import FLAG, Target
from sleepc.backends.table import exporters, find_exporter
from sleepc.cli.display import Display, err, out, print_json, size, tell
from sleepc.cli.input_text import read_options
from sleepc.cli.option_groups import flag, switch, with_options
from sleepc.cli.options import Artifact
from sleepc.cli.tuned import options_by_tuning
from sleepc.output_place import check_folder_inside

if TYPE_CHECKING:
    from rich.table import Table

    from sleepc.backends.report import RecallAt
    from sleepc.exporting import Exported

MANY = 6  # files that are not listed each


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Where files go, and what is read in the checks."""

    output: Path | None = flag("The folder to make.", "--output", "-o", shown="ARTIFACT/TARGET")
    force: bool = switch("Replace an export that exists.", "--force")
    text: Path | None = flag("A text file to read in the checks; Python's help topics by default.")
    tokens: Path | None = flag("A file of token ids to read instead of a text: 12 7 30 …", "--tokens")
    dump_graphs: Path | None = flag("Write the program's text after every pass of the lowering into this directory.")
    tuned: bool = flag(
        "Choose what changes speed alone by what `sleepc tune` found, if it is not given.",
        "--tuned/--no-tuned",
        default=True,
    )
    as_json: bool = switch("Print one JSON object.", "--json")


def export_command() -> Callable[..., None]:
    """The command as typer reads it, with the targets that there are now."""
    export.__annotations__["given"] = _options_of_targets()
    return with_options(export)


def _options_of_targets() -> type:
    """A dataclass of every option of every target: None if it is not given, and the target's own default then."""
    found: dict[str, tuple[Any, list[str], Any]] = {}
    names: dict[str, list[str]] = {}
    for target in map(find_exporter, exporters()):
        hints = get_type_hints(target.options)
        for each in fields(target.options):
            _, words, _ = found.get(each.name, (None, [], None))
            found[each.name] = (hints[each.name], [*words, each.metadata["help"]], each.default)
            names[each.name] = [each.metadata[FLAG]] if each.metadata[FLAG] else []
    made = [
        (name, kind | None, flag(" ".join(words), *names[name], shown=str(default)))
        for name, (kind, words, default) in found.items()
    ]
    return make_dataclass("TargetOptions", made, frozen=True, kw_only=True)


def export(
    artifact: Artifact,
    to: Annotated[str, typer.Option("--to", help=f"What to export to: {', '.join(exporters())}.")],
    given: Any,
    options: ExportOptions,
) -> None:
    """Write files that run without PyTorch, and check them: weights by value, and what a runtime computes with them; or kernels for GPUs that need not be here."""
    from sleepc import api
    from sleepc.exporting import Request, export_program

    display = Display(err if options.as_json else out)
    words, ids = read_options(options.text, options.tokens)
    if options.dump_graphs is not None:
        check_folder_inside(options.dump_graphs, "--dump-graphs")
    chosen = {name: value for name, value in vars(given).items() if value is not None}
    target = find_exporter(to)
    if options.tuned and isinstance(target, Target):
        chosen |= options_by_tuning(artifact, target, chosen, tell)
    asked = Request(options.output, to, chosen, words, ids, options.force, options.dump_graphs)
    program = api.load(artifact)
    with display.doing("export"):
        exported = export_program(program, asked, display)
    if options.as_json:
        print_json({"output": str(exported.path), "report": exported.report, "seconds": exported.seconds})
    else:
        _tell(display, exported)


def _tell(display: Display, exported: Exported) -> None:
    report = exported.report
    out.print(table(report["checks"]))
    if report["perplexity"]:
        found = report["perplexity"]
        exact = f" ({found['exact']:.2f} with activations in float32)" if "exact" in found else ""
        words = f"{found['before']:.2f} before, {found['after']:.2f} after{exact}"
        out.print(f"perplexity of {found['tokens']} tokens: {words}")
    if report.get("recall"):
        out.print(recalled(report["recall"]))
    if "fitted" in report:
        out.print(_of_text(report["fitted"]))
    if "kept" in report:
        out.print(_of_source(report["kept"], report["requantised"]))
    weights = f"{report['weights']} weights by value, " if "weights" in report else ""
    display.leave("checked", f"{weights}{len(report['checks'])} figures", report["seconds"])
    bytes_of = {name: (exported.path / name).stat().st_size for name in exported.files}
    if len(bytes_of) > MANY:
        sizes = f"{len(bytes_of)} files, {size(sum(bytes_of.values()))}"
    else:
        sizes = "   ".join(f"{name} {size(count)}" for name, count in bytes_of.items())
    display.leave("saved", f"{exported.path}/   {sizes}", exported.seconds)


def recalled(found: list[RecallAt]) -> str:
    """What is still known of what was read some time ago, in a line."""
    distances = " · ".join(str(each["tokens"]) for each in found)
    before = " · ".join(f"{each['before']:.2f}" for each in found)
    after = " · ".join(f"{each['after']:.2f}" for each in found)
    said = f"recall, as nats a token surprises less when it is read again after {distances} tokens"
    return f"{said}: {before} before, {after} after"


def _of_text(fitted: dict[str, Any]) -> str:
    """What became of the weights that a text has fitted."""
    counts = f"{fitted['four_bits']} in 4 bits, {len(fitted['eight_bits'])} in 8"
    words = f"matrices fitted to {fitted['calibrated_on']} tokens: {counts}"
    return f"{words}; {size(fitted['bytes'])} of the model's own weights, perplexity there {fitted['loss']:+.1%}"


def _of_source(kept: dict[str, int], anew: dict[str, str]) -> str:
    """What became of the weights of a quantised source."""
    counts = ", ".join(f"{count} in {kind}" for kind, count in sorted(kept.items()))
    said = f"weights as the source has them: {counts or 'none'}"
    if not anew:
        return f"{said}; lossless"
    names = ", ".join(f"{name} ({kind})" for name, kind in list(anew.items())[:MANY])
    return f"{said}; rounded anew: {names}" + (f" and {len(anew) - MANY} more" if len(anew) > MANY else "")


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
