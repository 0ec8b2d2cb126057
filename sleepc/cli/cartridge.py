"""`sleepc cartridge ARTIFACT FILE --out OUT`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sleepc.cli.display import Display, counted, err, number, out, print_json, size
from sleepc.cli.input_text import read_text
from sleepc.cli.option_groups import flag, switch, with_options
from sleepc.cli.options import Artifact
from sleepc.output_place import check_file_place

if TYPE_CHECKING:
    from sleepc.train.cartridge import Made

SETTINGS = ("slots", "lessons", "part", "steps", "batch", "lr", "seed")  # of sleepc.train.cartridge
Text = Annotated[Path, typer.Argument(help="A text file: the document.")]


@dataclass(frozen=True, kw_only=True)
class CartridgeMaking:
    """How long it learns, and where it goes."""

    out: Path = flag("The file to make.", "--out", "-o", default=...)
    slots: int | None = flag(
        "Pairs for every KV head, on average, of the slots that the program has; the rest is for what is read later, "
        "and for other cartridges.",
        shown="all",
    )
    lessons: int | None = flag("Number of things that the model asks itself and answers, or reads again.", shown="256")
    part: int | None = flag("Tokens of the part of the document that a lesson is about.", shown="512")
    steps: int | None = flag("Steps of Adam; 0 keeps the pairs that reading leaves.", shown="100")
    batch: int | None = flag("Lessons in a step.", shown="8")
    lr: float | None = flag("Learning rate, as a share of the size of keys and values.", shown="0.02")
    seed: int | None = flag("Seed of what is asked, and of its order.", shown="0")
    against: str | None = flag("The original model, if it has moved.")
    as_json: bool = switch("Print one JSON object.", "--json")


@with_options
def cartridge(artifact: Artifact, file: Text, options: CartridgeMaking) -> None:
    """Make a cartridge of a document: keys and values that stand for it, which `run` and `chat` begin with. Takes minutes."""
    from sleepc import api
    from sleepc.runtime.cartridge import check_place

    check_file_place(options.out, "--out")  # before any work
    check_place(options.out)
    text = read_text(file)
    assert text is not None
    program, display = api.load(artifact), Display(err)
    with display.doing("cartridge"):
        if options.against is not None:
            program.captured(display, program.load_original(options.against, display))
        given = {name: value for name, value in vars(options).items() if name in SETTINGS and value is not None}
        made = program.cartridge(text, progress=display, **given)
        made.cartridge.save(options.out)
    facts = _facts(made)
    if options.as_json:
        print_json({"artifact": str(artifact), "output": str(options.out), **facts})
        return
    out.print(
        f"{number(made.cartridge.tokens)} tokens in {number(facts['pairs'])} slots, {size(made.cartridge.nbytes)}; of "
        f"{number(facts['slots'])} slots {number(facts['slots'] - facts['pairs'])} are left for what is read later"
    )
    out.print(
        f"cross entropy to the original on {counted(made.held_out, 'lesson')} not learned from   "
        f"{made.before:.3f} as kept · {made.after:.3f} after {counted(made.best, 'step')}"
    )
    if not made.best:
        out.print("[dim]training did not help: these are the pairs that reading the document leaves[/]")
    out.print(f'sleepc run {artifact} --cartridge {options.out} "…"', highlight=False)


def _facts(made: Made) -> dict[str, Any]:
    """What there is to say of it, as data."""
    return {
        "tokens": made.cartridge.tokens,
        "document": made.cartridge.document,
        "position": made.cartridge.position,
        "pairs": sum(map(sum, made.cartridge.pairs.values())),
        "slots": made.slots,
        "bytes": made.cartridge.nbytes,
        "lessons": made.lessons,
        "held_out": made.held_out,
        "before": made.before,
        "after": made.after,
        "steps": made.best,
    }
