"""`sleepc tune ARTIFACT --target h100`: how long steps would take on a device that is not here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sleepc.cli.display import out, print_json, size
from sleepc.errors import SleepcError, UsageError

if TYPE_CHECKING:
    from sleepc.tune.predict import Prediction
    from sleepc.tune.profile import Profile
    from sleepc.tune.record import Limits
    from sleepc.tune.space import Candidate

Found = dict[str, "tuple[Candidate, Prediction | None, str]"]  # by words: what is predicted, or why nothing is


def tune_elsewhere(artifact: Path, target: str, limits: Limits, *, explain: bool, as_json: bool) -> None:
    """Predict every candidate there, and print them, the fastest in decoding first. Nothing is kept. Raises UsageError
    for an unknown device, or if nothing is within the limits.
    """
    from sleepc.cli.opening import open_artifact
    from sleepc.tune.choose import fits
    from sleepc.tune.predict import candidates_for
    from sleepc.tune.profile import find_profile

    profile = find_profile(target)  # before all is loaded
    graphs = open_artifact(artifact).graphs
    found = {each.words(): (each, *_predicted(graphs, each, profile)) for each in candidates_for(profile)}
    equal = {words: it for words, (_, it, _) in found.items() if it is not None and not it.rounded}
    right = [words for words, it in equal.items() if fits(it.figures, limits)]
    best = min(right, key=lambda words: _decode(found, words), default=None)
    if as_json:
        print_json(_to_json(target, profile, found, best))
    else:
        _show(profile, found, best, explain=explain)
    if best is None:
        why = "; ".join(reason for _, _, reason in found.values() if reason) or "all that is predicted is over a limit"
        raise UsageError(f"nothing fits on {profile.name}: {why}", where="tune", fix="Give more, or another --target.")


def _predicted(graphs: object, candidate: Candidate, profile: Profile) -> tuple[Prediction | None, str]:
    from sleepc.ir.program import ProgramGraphs
    from sleepc.tune.predict import predict

    assert isinstance(graphs, ProgramGraphs)
    try:
        return predict(graphs, candidate, profile), ""
    except SleepcError as error:
        return None, error.what


def _decode(found: Found, words: str) -> float:
    prediction = found[words][1]
    return prediction.figures.decode_ms if prediction is not None else float("inf")


def _show(profile: Profile, found: Found, best: str | None, *, explain: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("", "candidate", "token ms", "reading ms", "pause ms", "memory", ""):
        table.add_column(name, justify="left" if name in ("", "candidate") else "right")
    for words in sorted(found, key=lambda each: _decode(found, each)):
        _, it, reason = found[words]
        if it is None:
            table.add_row("", words, "", "", "", "", f"[red]{reason}[/]")
        else:
            its, note = it.figures, "rounded weights, " if it.rounded else ""
            times = (f"{ms:.2f}" for ms in (its.decode_ms, its.read_ms, its.pause_ms))
            table.add_row("●" if words == best else "", words, *times, size(its.memory), f"[dim]{note}predicted[/]")
    out.print(table)
    out.print(f"device       {profile.name}: nothing was measured, every figure is predicted, and nothing is kept")
    if explain:
        for words, (_, it, _) in found.items():
            for note in it.notes if it is not None else ():
                out.print(f"[dim]{words}: {note}[/]")
        for name, fact in _facts(profile).items():
            out.print(f"[dim]{name} {fact['value']:g}: {fact['source']}[/]")


def _facts(profile: Profile) -> dict[str, dict[str, object]]:
    """Every number of a profile by name, with its source."""
    dumped = profile.model_dump(exclude_none=True)
    flops = {f"flops.{name}": fact for name, fact in dumped.pop("flops").items()}
    return {**{name: fact for name, fact in dumped.items() if isinstance(fact, dict)}, **flops}


def _to_json(target: str, profile: Profile, found: Found, best: str | None) -> dict[str, object]:
    return {
        "target": target,
        "device": profile.model_dump(),
        "predicted": True,
        "chosen": found[best][0].model_dump() if best is not None else None,
        "candidates": [
            {
                "candidate": candidate.model_dump(),
                "figures": it.figures.model_dump() if it is not None else None,
                "notes": list(it.notes) if it is not None else [],
                "rounded": it is not None and it.rounded,
                "reason": reason,
            }
            for candidate, it, reason in found.values()
        ],
    }
