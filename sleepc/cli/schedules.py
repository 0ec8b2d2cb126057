"""What `sleepc tune` says of ways to sleep: those that were evaluated, their front, and what is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.cli.display import out, size
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.api import Program
    from sleepc.scheduling import Subjects
    from sleepc.tune.schedules import Schedules


def subjects_of(
    artifact: Path, program: Program, variants: Sequence[Path], files: Sequence[Path], min_recall: float | None
) -> Subjects:
    """The artifact and its variants, by name, each with its evaluation. Raises UsageError, before anything is measured,
    for an evaluation of something else, and for an artifact without one.
    """
    from sleepc.cli.opening import open_artifact
    from sleepc.tune.quality import FIX, check_qualities, read_quality

    places = [artifact, *variants]
    programs = {name: program if place is artifact else open_artifact(place) for name, place in _named(places)}
    for name, each in programs.items():
        if _is_other(program, each):
            fix = "Give other conversions of the model that the artifact is of."
            raise UsageError(f"{name} is a conversion of another model", where="--variant", fix=fix)
    found = {path: read_quality(path) for path in files}
    check_qualities(found, {each.identity: name for name, each in programs.items()}, min_recall)
    by_identity: dict[str, Any] = {}
    for path, quality in found.items():
        if quality.identity in by_identity:
            what = f"{path.name} is a second evaluation of the same artifact"
            raise UsageError(what, where="--quality", fix="Give one of each.")
        by_identity[quality.identity] = quality
    for name, each in programs.items():
        if each.identity not in by_identity:
            raise UsageError(f"there is no evaluation of {name}", where="--quality", fix=FIX)
    return {name: (each, by_identity[each.identity]) for name, each in programs.items()}


def _is_other(program: Program, variant: Program) -> bool:
    """Is it surely of another model? By the vocabulary, and the original's parameters where both manifests say them."""
    one, other = program.source.weights_sha256, variant.source.weights_sha256
    return program.graphs.vocab != variant.graphs.vocab or bool(one and other and one != other)


def _named(places: Sequence[Path]) -> list[tuple[str, Path]]:
    """Folders by their last part, or as they were given if that is not theirs alone."""
    last = [place.resolve().name for place in places]
    return [(name if last.count(name) == 1 else str(place), place) for name, place in zip(last, places, strict=True)]


def show_schedules(found: Schedules, *, explain: bool) -> None:
    """A table, what is chosen, and what limits cost; recall by distance for `explain`."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("", "schedule", found.metric, "token ms", "reading ms", "pause ms", "p99", "state", "memory"):
        table.add_column(name, justify="left" if name in ("", "schedule") else "right")
    for each in found.found:
        mark = "●" if each is found.chosen else "○" if each in found.front else ""
        its = each.figures
        times = (f"{ms:.2f}" for ms in (each.token_ms, each.read_ms, its.pause_ms, its.pause_p99_ms))
        table.add_row(mark, each.name(), f"{each.quality:.3g}", *times, size(each.state_bytes), size(its.memory))
    out.print(table)
    if found.chosen is not None:
        out.print(f"schedule     {_proposed(found)}")
    for words in found.costs:
        out.print(f"limit        {words}")
    if explain:
        for each in found.found:
            for place in each.places:
                out.print(f"[dim]{each.name()}: {found.metric} at {place}[/]", highlight=False)


def _proposed(found: Schedules) -> str:
    """What to do for the chosen one."""
    chosen = found.chosen
    assert chosen is not None
    if chosen.own:
        return f"{chosen.words} stays: nothing that fits was measured to be better"
    own = next((each for each in found.found if each.own), None)
    if own is not None and chosen.artifact == own.artifact:
        return f"{chosen.words}: convert with --passes {chosen.passes} for it"
    return f"{chosen.name()}: tune and run {chosen.artifact}"


def to_json(found: Schedules) -> dict[str, Any]:
    """Plain data."""

    def each(it: Any) -> dict[str, Any]:
        facts = {
            name: getattr(it, name) for name in ("artifact", "passes", "window", "words", "quality", "state_bytes")
        }
        times = {"token_ms": it.token_ms, "read_ms": it.read_ms, "places": list(it.places)}
        return facts | times | {"figures": it.figures.model_dump()}

    return {
        "metric": found.metric,
        "schedules": [each(it) for it in found.found],
        "front": [it.name() for it in found.front],
        "chosen": found.chosen.name() if found.chosen else None,
        "limits": list(found.costs),
    }


def no_schedule_fits(found: Schedules) -> UsageError:
    """What comes nearest."""
    nearest = found.nearest
    assert nearest is not None
    its = nearest.figures
    figures = f"{found.metric} {nearest.quality:.3g}, {size(its.memory)} and sleeps of {its.pause_p99_ms:.1f} ms"
    return UsageError(
        f"no schedule is within these limits; {nearest.name()} comes nearest, with {figures}",
        where="--min-recall, --budget-memory, --max-pause",
        fix="Ask for less, or evaluate other conversions and name them with --variant: a smaller --window, more --keep.",
    )
