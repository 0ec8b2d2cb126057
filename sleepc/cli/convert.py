"""`sleepc convert MODEL -o OUT`."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sleepc.cli.display import Display, cache_in_words, counted, err, number, out, print_json, size, typed
from sleepc.cli.option_groups import flag, switch, with_options
from sleepc.cli.verify import say_beyond
from sleepc.cli.verify_options import ACCEPT
from sleepc.errors import SleepcWarning

if TYPE_CHECKING:
    from sleepc.api import Program
    from sleepc.inspection import Inspection

GROUPS = ("gradient", "hebbian", "soft")  # options of a consolidation, which a recipe has in one


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The options of a recipe (sleepc.recipe.Recipe), by the same names."""

    strategy: str | None = flag(
        "parallel (a memory next to attention), insert (a mixer after the block) or replace (a mixer in place of attention).",
        shown="parallel",
    )
    rule: str | None = flag(
        "The memory's update rule: linear, gated, delta, gated_delta, titans, titans_mlp, ba2016, trellis, trellis_silu or lact (written by windows).",
        shown="gated_delta",
    )
    decay: str | None = flag("One decay rate per head, or per key channel: head or channel.", shown="head")
    layout: str | None = flag(
        "Of a mixer in place of attention: graph (behind the layer's own projections) or native (a layer of transformers' Qwen3.5, which `sleepc export --to hf` writes).",
        shown="graph",
    )
    features: str | None = flag(
        "What queries and keys are turned into for memories: unit (only unit length), elu (elu + 1), or dpfp1, dpfp2, dpfp3 (2, 4 or 6 times as wide).",
        shown="unit",
    )
    read: str | None = flag(
        "Of memories that every token writes: whether a token reads after its own write, or before.", shown="after"
    )
    layers: str | None = flag(
        'Blocks to convert: "all", "every:2", "3,5,7-9", or "auto:2": all but the 2 that recall most.', shown="all"
    )
    window: int | None = flag("Number of tokens that attention keeps, and after which a sleep comes (L).", shown="256")
    passes: int | None = flag("Number of passes of a sleep over its window (N).", shown="1")
    consolidation: str | None = flag(
        "What the passes of a sleep do: replay (repeat the memory's update), recurrent (run blocks again; needs training), in_place (replay, and write MLPs; needs training), gradient (replay, and take steps of gradient descent), hebbian (replay, and noise: a baseline) or tokens (replay, and make soft tokens of the window; needs training).",
        shown="replay",
    )
    loop: str | None = flag("Blocks that recurrent passes run: all, middle or a:b.", shown="all")
    settle: float | None = flag(
        "End recurrent passes once one changes the memories by at most this fraction of their norm; 0: never.",
        shown="0",
    )
    mlps: str | None = flag(
        "Blocks whose MLPs sleeps write: like --layers, or auto (in_place: blocks 0, 6, 12, ...; gradient: the last quarter).",
        shown="auto",
    )
    gradient_steps: int | None = flag("Steps of gradient descent that a sleep of gradient takes.", shown="1")
    gradient_lr: float | None = flag("Learning rate of these steps.", shown="0.3")
    gradient_clip: float | None = flag("Norm that a row's gradient is cut to.", shown="1")
    gradient_rank: int | None = flag(
        "Rank of what is learned beside each linear map; 0: all of it, which is as large as the weights.", shown="16"
    )
    gradient_weights: str | None = flag(
        "What is learned in these blocks: mlp (all linear maps of the MLP), down (the last one), query (that which makes queries) or prime (all of an MLP that is added behind the block).",
        shown="mlp",
    )
    gradient_loss: str | None = flag(
        "Which of the window's tokens a step learns from: next (all alike), late (all, later ones more) or span (one stretch, another for each step).",
        shown="next",
    )
    gradient_span: int | None = flag("Number of tokens of such a stretch.", shown="128")
    hebbian_steps: int | None = flag("Steps of noise that a sleep of hebbian takes.", shown="8")
    hebbian_inc: float | None = flag("How much a step moves weights between what is active.", shown="0.003")
    hebbian_dec: float | None = flag("The share by which it weakens weights of silent inputs.", shown="0.0003")
    hebbian_threshold: float | None = flag("What outputs have to pass, in root mean squares of all of them.", shown="1")
    soft_tokens: int | None = flag("Number of soft tokens that a sleep of tokens makes of its window.", shown="32")
    soft_windows: int | None = flag("Number of windows whose soft tokens stay.", shown="16")
    soft_encoder: str | None = flag(
        "What makes them: icae (the model with LoRA) or comprexit (gates over its layers, and optimal transport).",
        shown="icae",
    )
    soft_rank: int | None = flag("Rank of icae's LoRA matrices; 0: none.", shown="16")
    soft_width: int | None = flag("Width of comprexit's vectors.", shown="256")
    eviction: str | None = flag(
        "What a sleep does to the window: sliding (it slides on) or hard (it is emptied).", shown="sliding"
    )
    own_windows: str | None = flag(
        "Layers with a window of their own: leave (they keep it and get no memory), narrow (to --window), or auto (leave those of up to 4 times --window).",
        shown="auto",
    )
    last_position: str | None = flag(
        "At the model's last position: evict (empty the window except for the sinks) or renumber (count positions from the oldest key that is kept; rotary positions only).",
        shown="evict",
    )
    sinks: int | None = flag("Number of first tokens that attention always keeps.", shown="4")
    keep: int | None = flag(
        "Average number of (key, value) pairs that each KV head keeps of what leaves its window; sleeps choose them.",
        shown="none",
    )
    keep_score: str | None = flag("What makes a pair worth keeping: probe, key or newest.", shown="probe")
    keep_budgets: str | None = flag(
        "How heads share the slots: auto (measured on a little text), equal, or a file.", shown="auto"
    )
    keep_dtype: str | None = flag(
        "How slots hold keys and values: float (as the window does), int8 or int4.", shown="float"
    )
    write: str | None = flag("When memories are written: default, sleep or online.", shown="default")
    dtype: str | None = flag("auto (the checkpoint's), float32, bfloat16, float16 or float64.", shown="auto")
    rope_factors: str | None = flag(
        "For models with two sets of position factors (longrope): use those for short or for long texts.", shown="short"
    )
    seed: int | None = flag("Seed of new random parameters.", shown="0")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What is made of a model, and where."""

    output: Path = flag("The artifact directory to make.", "--output", "-o", default=...)
    recipe_file: Path | None = flag("A YAML file of these options by name; flags take precedence.", "--recipe")
    adapter: Path | None = flag(
        "Apply an adapter, the file of what a training changed; options default to those of that training."
    )
    recipe: RecipeOptions
    standalone: bool = switch("Copy the weights into the artifact.", "--standalone")
    dump_graphs: Path | None = flag("Write the program's text after every pass into this directory.")
    force: bool = switch("Replace an existing artifact.", "--force")
    check: bool = flag("Verify against the original before saving.", "--verify/--no-verify", default=True)
    accept_quality: bool = switch(ACCEPT, "--accept-quality")
    as_json: bool = switch("Print one JSON object.", "--json")


@with_options
def convert(
    model: Annotated[str, typer.Argument(help="A Hugging Face directory, a hub id, or a .gguf file.")],
    options: ConvertOptions,
) -> None:
    """Convert a model: its attention keeps a window, and sleeps consolidate what leaves it into fast weights."""
    from sleepc.artifact import check_free
    from sleepc.output_place import check_folder_inside
    from sleepc.recipe import make_recipe
    from sleepc.recipe_file import read_recipe

    given = _given(options.recipe)
    file = read_recipe(options.recipe_file) if options.recipe_file else {}
    for group in given.keys() & GROUPS:
        given[group] = {**(file.get(group) or {}), **given[group]}
    recipe = {**file, **given}
    make_recipe(recipe)
    check_free(options.output, force=options.force)  # before any work
    dump, as_json = options.dump_graphs, options.as_json
    if dump is not None:
        check_folder_inside(dump, "--dump-graphs")
    from sleepc import converting

    display = Display(err if as_json else out)
    with display.doing("convert"):
        program = converting.convert(model, recipe, adapter=options.adapter, progress=display, dump_graphs=dump)
    seen = program.inspect()
    _tell_conversion(display, program, seen)
    _tell_factors(display, program)
    if not options.check:
        _read_tokenizer(program)
    ok, checked = _check(display, program, options.accept_quality) if options.check else (True, None)
    if ok:
        with display.doing("save"):
            program.save(options.output, standalone=options.standalone, force=options.force, progress=display)
        _tell_saved(display, program, seen, options)
    if as_json:
        facts = {"output": str(options.output), "ok": ok, "inspection": seen.to_json()}
        print_json({**facts, "verify": checked, "seconds": program.timings})
    if not ok:
        raise typer.Exit(1)


def _given(options: RecipeOptions) -> dict[str, Any]:
    """The options of a recipe that are given."""
    from sleepc.errors import UsageError
    from sleepc.recipe_file import read_budgets

    given = {name: value for name, value in vars(options).items() if value is not None}
    how = {key: given.pop(f"keep_{key}") for key in ("score", "budgets", "dtype") if f"keep_{key}" in given}
    if how and "keep" not in given:
        what, option = "it says how pairs are kept, but no pairs are kept", f"--keep-{next(iter(how))}"
        raise UsageError(what, where=option, fix="Add --keep 128.")
    if how.get("budgets", "auto") not in ("auto", "equal"):
        how["budgets"] = read_budgets(Path(how["budgets"]))
    for group in GROUPS:
        names = [name for name in given if name.startswith(f"{group}_")]
        if names:
            given[group] = {name.removeprefix(f"{group}_"): given.pop(name) for name in names}
    if "keep" in given:
        given["keep"] = {"slots": given["keep"], **how}
    return given


def _tell_conversion(display: Display, program: Program, seen: Inspection) -> None:
    recipe = program.recipe
    first = next(block for block in seen.blocks if block.q_heads)  # layers of a hybrid's own have none
    kinds = ", ".join(
        part
        for part in (f"{first.q_heads} heads", f"{first.kv_heads} KV heads", f"d={first.head_size}", first.mask)
        if part
    )
    found = f"{counted(len(seen.blocks), 'block')} · {counted(seen.sites, 'attention site')} ({kinds})"
    display.leave("capture", found, program.timings["capture"])
    share = 100 * seen.new_parameters / max(seen.parameters, 1)
    kinds_made = Counter(block.becomes for block in seen.blocks)
    made = ", ".join(f"{counted(count, 'layer')} → {what}" for what, count in kinds_made.items())
    display.leave(
        "rewrite",
        f"{made} ({recipe.strategy})   +{number(seen.new_parameters)} parameters ({share:.1f} %)",
        program.timings["rewrite"],
    )


def _tell_factors(display: Display, program: Program) -> None:
    """Which of its position factors the program has, if the original chooses them by the length of the call."""
    upto, beyond = program.graphs.upto, program.graphs.beyond
    if upto:
        text = f"those of texts of up to {number(upto)} tokens (--rope-factors long: of longer ones)"
    elif beyond:
        text = f"those of texts of more than {number(beyond)} tokens, from the first token on"
    else:
        return
    display.leave("factors", f"of positions: {text}")


def _read_tokenizer(program: Program) -> None:
    """Raise UsageError for a tokenizer that is damaged, as verification does, and say if there is none."""
    from sleepc.hf.tokenizer import NoTokenizer

    try:
        program.tokenizer().encode("a")
    except NoTokenizer as error:
        warnings.warn(error.what, SleepcWarning, stacklevel=2)


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
        err.print("error: the converted program does not compute what it should: nothing was saved")
        err.print("       Please report the model; --no-verify saves it anyway.")
    elif not report.ok:
        err.print("       Nothing was saved; --accept-quality saves it anyway.")
    return report.ok, report.to_json()


def _learned_in_words(program: Program, there: int) -> str:
    """How many bytes of the state are what sleeps learn, and how there would be fewer."""
    text = f"{size(there)} of the state are what sleeps add to weights"
    gradient = program.recipe.gradient
    if program.recipe.consolidation == "gradient" and gradient is not None and gradient.rank == 0:
        text += "; a rank keeps less: --gradient-rank 16   (docs/recipes.md)"
    return text


def _instead(program: Program) -> str:
    """What can be done against emptied windows."""
    if program.recipe.keep is None:
        return "rotary positions can continue: --last-position renumber (docs/recipes.md)"
    return "kept pairs are dropped there, since this model's keys cannot be put at other positions (docs/keep.md)"


def _tell_saved(display: Display, program: Program, seen: Inspection, options: ConvertOptions) -> None:
    from sleepc.inspection import first_emptied
    from sleepc.passes.rewrite.kept_pairs import probes_are_zero

    output = options.output
    added = sum(p.stat().st_size for p in output.rglob("*") if p.is_file())
    weights = (
        "weights copied"
        if options.standalone or program.source.kind == "module"
        else f"weights by reference to {program.source.folder}"
    )
    display.leave("saved", f"{output}/   {weights}   {size(added)} new", program.timings["save"])
    display.leave("", f"state per sequence {size(seen.state_bytes)} at any length   ({cache_in_words(seen)})")
    if seen.learned_bytes:
        display.leave("", _learned_in_words(program, seen.learned_bytes))
    emptied = first_emptied(program.graphs, program.recipe)
    if emptied is not None:
        display.leave(
            "",
            f"near the model's last position ({number(program.graphs.max_positions or 0)}) a sleep empties the window, first "
            f"after {number(emptied)} tokens; {_instead(program)}",
        )
    if probes_are_zero(program.graphs):
        display.leave(
            "",
            "kept pairs are chosen by their keys alone so far; more is recalled after some minutes of "
            f"sleepc calibrate {typed(output)} --only budgets   (docs/keep.md)",
        )
    display.leave(
        "next",
        f'sleepc run {typed(output)} "…"   ·   sleepc verify {typed(output)}   ·   sleepc inspect {typed(output)}',
    )
