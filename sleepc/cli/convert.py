"""`sleepc convert MODEL -o OUT`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sleepc.cli.display import Display, cache_in_words, counted, err, number, out, print_json, size
from sleepc.cli.verify import ACCEPT, say_beyond

if TYPE_CHECKING:
    from sleepc.api import Program
    from sleepc.inspection import Inspection


def convert(
    model: Annotated[str, typer.Argument(help="A Hugging Face directory, a hub id, or a .gguf file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact directory to make.")],
    recipe_file: Annotated[
        Path | None, typer.Option("--recipe", help="A YAML file of options, by the names of these; flags win.")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Apply what a training has changed, from this file; its options are those of the training."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="parallel (a memory beside attention), insert (a mixer after it) or replace (one in its place).",
            show_default="parallel",
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="The memory's update rule: linear, gated, delta or gated_delta.", show_default="gated_delta"),
    ] = None,
    decay: Annotated[
        str | None, typer.Option(help="What decays at its own rate: head or channel.", show_default="head")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help='Which blocks: "all", "every:2" or "3,5,7-9".', show_default="all")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens that attention keeps; a sleep comes after as many.", show_default="256"),
    ] = None,
    passes: Annotated[int | None, typer.Option(help="Passes of a sleep over its window.", show_default="1")] = None,
    consolidation: Annotated[
        str | None,
        typer.Option(
            help="What passes do: replay (the memory's update again) or recurrent (blocks run again; needs training).",
            show_default="replay",
        ),
    ] = None,
    loop: Annotated[
        str | None, typer.Option(help="Blocks that recurrent passes run: all, middle or a:b.", show_default="all")
    ] = None,
    settle: Annotated[
        float | None,
        typer.Option(
            help="Recurrent passes end once one changes memories by no more than this share of what they are; 0: never.",
            show_default="0",
        ),
    ] = None,
    eviction: Annotated[str | None, typer.Option(help="sliding or hard.", show_default="sliding")] = None,
    own_windows: Annotated[
        str | None,
        typer.Option(
            help="Layers with a window of their own: leave (they keep it, without sinks and memory), narrow, or auto: "
            "leave those of up to 4 times --window.",
            show_default="auto",
        ),
    ] = None,
    last_position: Annotated[
        str | None,
        typer.Option(
            help="At the model's last position: evict (all but the sinks leave the window), or renumber (positions are "
            "counted from the oldest key that is kept; rotary positions only).",
            show_default="evict",
        ),
    ] = None,
    sinks: Annotated[
        int | None, typer.Option(help="First tokens that attention keeps for ever.", show_default="4")
    ] = None,
    write: Annotated[
        str | None,
        typer.Option(help="When memories are written: default, sleep or online.", show_default="default"),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="auto (the checkpoint's), float32, bfloat16, float16 or float64.", show_default="auto"),
    ] = None,
    rope_factors: Annotated[
        str | None,
        typer.Option(
            help="Of a model with two sets of position factors (longrope): those of short or of long texts.",
            show_default="short",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of new random parameters.", show_default="0")] = None,
    standalone: Annotated[bool, typer.Option("--standalone", help="Copy the weights into the artifact.")] = False,
    dump_graphs: Annotated[
        Path | None, typer.Option(help="Write the program's text after every pass into this directory.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that exists.")] = False,
    check: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Verify against the original before saving.")
    ] = True,
    accept_quality: Annotated[bool, typer.Option("--accept-quality", help=ACCEPT)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert a model: its attention keeps a window, and sleeps consolidate what leaves it into fast weights."""
    from sleepc.artifact import check_free
    from sleepc.output_place import check_folder_inside
    from sleepc.recipe import make_recipe
    from sleepc.recipe_file import read_recipe

    flags = {
        "strategy": strategy,
        "rule": rule,
        "decay": decay,
        "layers": layers,
        "window": window,
        "passes": passes,
        "consolidation": consolidation,
        "loop": loop,
        "settle": settle,
        "eviction": eviction,
        "own_windows": own_windows,
        "last_position": last_position,
        "sinks": sinks,
        "write": write,
        "dtype": dtype,
        "rope_factors": rope_factors,
        "seed": seed,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    options = {**(read_recipe(recipe_file) if recipe_file else {}), **given}
    make_recipe(options)
    check_free(output, force=force)  # before any work
    if dump_graphs is not None:
        check_folder_inside(dump_graphs, "--dump-graphs")
    from sleepc import api

    display = Display(err if as_json else out)
    with display.doing("convert"):
        program = api.convert(model, options, adapter=adapter, progress=display, dump_graphs=dump_graphs)
    seen = program.inspect()
    _tell_conversion(display, program, seen)
    _tell_factors(display, program)
    ok, checked = _check(display, program, accept_quality) if check else (True, None)
    if ok:
        with display.doing("save"):
            program.save(output, standalone=standalone, force=force, progress=display)
        _tell_saved(display, program, seen, output, standalone)
    if as_json:
        print_json(
            {
                "output": str(output),
                "ok": ok,
                "inspection": seen.to_json(),
                "verify": checked,
                "seconds": program.timings,
            }
        )
    if not ok:
        raise typer.Exit(1)


def _tell_conversion(display: Display, program: Program, seen: Inspection) -> None:
    first, recipe = seen.blocks[0], program.recipe
    kinds = ", ".join(
        part
        for part in (f"{first.q_heads} heads", f"{first.kv_heads} KV heads", f"d={first.head_size}", first.mask)
        if part
    )
    display.leave(
        "capture", f"{len(seen.blocks)} blocks · {seen.sites} attention sites ({kinds})", program.timings["capture"]
    )
    share = 100 * seen.new_parameters / max(seen.parameters, 1)
    kinds_made = Counter(block.becomes for block in seen.blocks)
    made = ", ".join(f"{counted(count, 'site')} → {what}" for what, count in kinds_made.items())
    display.leave(
        "rewrite",
        f"{made} ({recipe.strategy})   +{number(seen.new_parameters)} parameters ({share:.1f} %)",
        program.timings["rewrite"],
    )


def _tell_factors(display: Display, program: Program) -> None:
    """Which of its position factors the program has, where the original chooses them by the length of the call."""
    upto, beyond = program.graphs.upto, program.graphs.beyond
    if upto:
        text = f"those of texts of up to {number(upto)} tokens (--rope-factors long: of longer ones)"
    elif beyond:
        text = f"those of texts of more than {number(beyond)} tokens, from the first token on"
    else:
        return
    display.leave("factors", f"of positions: {text}")


def _check(display: Display, program: Program, accept: bool) -> tuple[bool, dict[str, Any]]:
    with display.doing("verify"):
        report = program.verify(accept_quality=accept, progress=display)
    failed = [check for check in report.checks if not check.ok]
    inside = next((c for c in report.checks if c.invariant == 2 and c.value is not None), None)
    text = f"{len(report.checks)} checks"
    if inside is not None:
        text += f" · inside the window: {inside.value:.1e}"
    display.leave("verify", f"{text} · {'all hold' if not failed else f'{len(failed)} FAIL'}", report.seconds)
    beyond = report.beyond
    if beyond is not None:
        display.leave("", beyond.text)
        if beyond.bad:
            say_beyond(beyond)
    for check in failed:
        display.leave("", f"[red]invariant {check.invariant}: {check.name}: {check.detail}[/]")
    if failed:
        err.print("error: the converted program does not do what it should: nothing was saved")
        err.print("       Please report the model; --no-verify saves it all the same.")
    elif not report.ok:
        err.print("       Nothing was saved; --accept-quality saves it all the same.")
    return report.ok, report.to_json()


def _tell_saved(display: Display, program: Program, seen: Inspection, output: Path, standalone: bool) -> None:
    from sleepc.inspection import first_emptied

    added = sum(p.stat().st_size for p in output.rglob("*") if p.is_file())
    weights = (
        "weights copied"
        if standalone or program.source.kind == "module"
        else f"weights by reference to {program.source.folder}"
    )
    display.leave("saved", f"{output}/   {weights}   {size(added)} new", program.timings["save"])
    display.leave("", f"state per sequence {size(seen.state_bytes)} at any length   ({cache_in_words(seen)})")
    emptied = first_emptied(program.graphs, program.recipe)
    if emptied is not None:
        display.leave(
            "",
            f"near the model's last position ({number(program.graphs.max_positions or 0)}) a sleep empties the window, first "
            f"after {number(emptied)} tokens; rotary positions can go on: --last-position renumber (docs/recipes.md)",
        )
    display.leave("next", f'sleepc run {output} "…"   ·   sleepc verify {output}   ·   sleepc inspect {output}')
