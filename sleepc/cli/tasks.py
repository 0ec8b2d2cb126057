"""`sleepc tasks [NAME]`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sleepc.cli.display import out, print_json
from sleepc.cli.option_groups import SEVERAL
from sleepc.cli.options import SETTING
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sleepc.tasks.puzzle import Example

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help=f"{SETTING}{SEVERAL}"),
]


def tasks(
    name: Annotated[str | None, typer.Argument(help="A task; without it, all are listed.")] = None,
    count: Annotated[int, typer.Option("--n", min=1, max=10_000, help="Number of examples.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the examples.")] = 0,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what `sleepc eval --task NAME` asks: examples of a task, or the list of tasks."""
    from sleepc.tasks.puzzle import examples
    from sleepc.tasks.puzzles import PUZZLES, make_puzzle, settings_of, spell_setting
    from sleepc.tasks.ruler import RULER

    if name is None:
        _list(settings, as_json)
        return
    if name in RULER:
        _show_ruler(name, count, seed, settings or (), as_json)
        return
    if name not in PUZZLES:
        raise UsageError(
            f"there are no examples of {name!r}", fix=f"Tasks with examples: {', '.join((*PUZZLES, *RULER))}."
        )
    puzzle = make_puzzle(name, settings or ())
    found = examples(puzzle, count, seed)
    chosen = settings_of(puzzle)
    if as_json:
        facts = {"task": name, "settings": chosen, "seed": seed, "by": puzzle.by}
        print_json({**facts, "vocabulary": puzzle.vocabulary, "examples": [asdict(example) for example in found]})
        return
    shown = "  ".join(f"{key}={spell_setting(value)}" for key, value in chosen.items())
    out.print(f"[bold]{name}[/]  {shown}")
    for i, example in enumerate(found, 1):
        _show(i, example, puzzle.by)


def _list(settings: list[str] | None, as_json: bool) -> None:
    from sleepc.tasks.puzzles import PUZZLES
    from sleepc.tasks.ruler import RULER

    if settings:
        raise UsageError("--set only applies to tasks", where="--set", fix="Name the task: sleepc tasks NAME --set ...")
    lines = {name: (kind.__doc__ or "").splitlines()[0] for name, kind in {**PUZZLES, **RULER}.items()}
    if as_json:
        print_json(lines)
        return
    for name, line in lines.items():
        out.print(f"{name:14} {line}")


def _show(number: int, example: Example, by: str) -> None:
    from sleepc.tasks.puzzle import text_of

    out.print(f"\n[bold]{number}[/]  {text_of(example.context).strip()}")
    for question in example.questions:
        asked, answer = text_of(question.asked).strip(), text_of(question.answer).strip()
        out.print(f"   {asked}  →  [bold]{answer}[/]   [dim]{by} {question.depth}[/]")


def _show_ruler(name: str, count: int, seed: int, settings: Sequence[str], as_json: bool) -> None:
    """Texts of RULER, whose length is counted in words here: an evaluation counts the model's tokens."""
    from sleepc.tasks.puzzles import settings_of, spell_setting, with_settings
    from sleepc.tasks.ruler import RULER, ruler_documents

    kind = with_settings(RULER[name], name, settings)
    chosen = settings_of(kind)
    documents = ruler_documents(kind, count, seed, lambda text: len(text.split()))
    if as_json:
        print_json({"task": name, "settings": chosen, "seed": seed, "examples": [asdict(each) for each in documents]})
        return
    out.print(f"[bold]{name}[/]  {'  '.join(f'{key}={spell_setting(value)}' for key, value in chosen.items())}")
    for i, document in enumerate(documents, 1):
        out.print(f"\n[bold]{i}[/]  {document.text}", highlight=False)
        for question in document.questions:
            out.print(f"   {question.question}  →  [bold]{' '.join(question.answers)}[/]", highlight=False)
