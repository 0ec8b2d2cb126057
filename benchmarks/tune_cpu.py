"""What `sleepc tune` chose, on this CPU, against the defaults of every form and every change of one of its settings.

The program is tuned first (`--time`), or its record is used. Then the chosen way and each of the others read the same
text in turns, in one process. Ratios are medians of those of rounds, below 1 where the chosen way is faster; `spread`
is how far they may be off, `ok` says if they are at most 1.03. The last row is against the fastest of what backends and
targets do by themselves, without any option: aim 1 / 1.1 = 0.91 in a token or in reading.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from common import Row, arguments, checkpoint_of, console, machine, report

import sleepc
from sleepc.tune.measure import Runs, Times, ratio
from sleepc.tune.record import Limits
from sleepc.tune.space import Candidate
from sleepc.tuning import Tuned, Tuning

COLUMNS = (
    *("other", "kind", "token_ms", "other_token_ms", "token_ratio", "token_spread"),
    *("read_ms", "other_read_ms", "read_ratio", "read_spread", "ok"),
)
MOST = 1.03


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--artifact", type=Path, help="an artifact that is there, with its record; else one is made")
    parser.add_argument("--time", type=float, default=600, help="seconds of the tuning")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each pair")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="sleepc-bench-") as scratch:
        place = options.artifact or made(options, Path(scratch) / "artifact")
        report([machine(), *measure(place, options)], as_json=options.json, title="tuned, CPU", columns=COLUMNS)


def made(options: argparse.Namespace, place: Path) -> Path:
    """An artifact of the model, with an export."""
    with checkpoint_of(options) as checkpoint:
        program = sleepc.convert(checkpoint.folder)
        program.save(place, standalone=True)
        program.export()
    return place


def measure(place: Path, options: argparse.Namespace) -> Iterator[Row]:
    """A row for each that the chosen way is compared with, and one against the fastest defaults."""
    program = sleepc.load(place)
    with Tuning(program, time.monotonic() + options.time, lambda what, _: console.log(what), console.log) as tuning:
        tuned = tuning.run(Limits())
        yield {"kind": "tuning", "measured": len(tuned.measured), "entries": len(tuned.entries)}
        assert tuned.choice.entry is not None
        chosen = tuned.choice.entry.candidate
        console.log(f"chosen: {chosen.words()}")
        ours = tuning.runs(chosen)
        rows = [compare(tuning, ours, other, kind, options.rounds) for other, kind in others(tuning, tuned, chosen)]
    yield from rows
    yield {"kind": "fastest defaults", **fastest(rows, plain=chosen in untouched(tuning))}


def untouched(tuning: Tuning) -> list[Candidate]:
    """What every backend and target does without any option."""
    found: dict[str, Candidate] = {}
    for form in tuning.space.forms:  # the default of each comes first
        found.setdefault(form.runner, form.candidate())
    return list(found.values())


def fastest(rows: Iterable[Row], *, plain: bool) -> Row:
    """Ratios to the fastest of all that is untouched; 1 if that is what was chosen (`plain`) and nothing is faster."""
    found: Row = {}
    for name in ("token", "read"):
        least = min((row for row in rows if row["kind"] == "untouched"), key=lambda row: row[f"other_{name}_ms"])
        ratio = least[f"{name}_ratio"]
        found |= {f"{name}_ratio": max(ratio, 1.0) if plain else ratio}
    return found


def others(tuning: Tuning, tuned: Tuned, chosen: Candidate) -> Iterator[tuple[Candidate, str]]:
    """The defaults of every form, and every change of one setting of what was chosen; without those that failed."""
    failed = {each.candidate.words() for each in tuned.entries if each.figures is None}
    form = tuning.space.form_of(chosen)
    plain = untouched(tuning)
    found = [
        (each, "untouched" if each in plain else "default")
        for form in tuning.space.forms
        for each in [form.candidate()]
    ]
    found += [(each, "change") for each in (form.changes(chosen) if form else ())]
    seen = {chosen.words()} | failed
    for other, kind in found:
        if other.words() not in seen:
            seen.add(other.words())
            yield other, kind


def compare(tuning: Tuning, ours: Runs, candidate: Candidate, kind: str, rounds: int) -> Row:
    """Both read in turns."""
    other = tuning.runs(candidate)
    mine, theirs = Times(), Times()
    for turn in range(rounds):
        for each, times in ((ours, mine), (other, theirs))[:: 1 if turn % 2 else -1]:
            each.round(times)
    row: Row = {"other": candidate.words(), "kind": kind}
    for name, times_of in (("token", "decode"), ("read", "read")):
        a, b = (1e3 * median(each.of_rounds(times_of)) for each in (mine, theirs))
        found = ratio(mine, theirs, times_of)
        row |= {f"{name}_ms": a, f"other_{name}_ms": b, f"{name}_ratio": found.value, f"{name}_spread": found.spread}
    console.log(f"{candidate.words()}: token {row['token_ratio']:.2f}, reading {row['read_ratio']:.2f}")
    return row | {"ok": max(row["token_ratio"], row["read_ratio"]) <= MOST}


if __name__ == "__main__":
    main()
