"""From what a person names to a file with its picture."""

from __future__ import annotations

from pathlib import Path

from sleepc.cli.display import Display
from sleepc.cli.picture.draw import draw
from sleepc.cli.picture.facts import facts_of
from sleepc.converting import look_at
from sleepc.errors import UsageError
from sleepc.inspection import Inspection
from sleepc.output_place import check_file_place


def check_picture_file(path: Path) -> None:
    """Raises UsageError if a picture cannot be written to, before any work: no folder, or a file of another kind."""
    check_file_place(path, "--svg")
    if path.exists() and not _starts_as_svg(path):
        raise UsageError(f"{path} exists and is not an SVG", where="--svg", fix="Choose another name.")


def _starts_as_svg(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"<svg"


def make_picture(target: str, display: Display) -> tuple[Inspection, str]:
    """What `inspect` tells of a model or an artifact, and its picture; a model is drawn as the defaults convert it."""
    seen, graphs, recipe = look_at(target, None, display)
    return seen, draw(facts_of(Path(target).resolve().name, seen, graphs, recipe))
