"""Which of the measured candidates to run: one that fits the limits, and loses least where it loses most against the
best. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sleepc.backends.contract import Backend
from sleepc.backends.table import find_runner, runners
from sleepc.tune.record import Entry, Figures, Limits

EQUAL = 1e-3  # error of logits, as a share of their scale, up to which the same is computed in float32
TIE = 0.02  # share of time that is given for fewer settings, where noise is as large
NEAR = 1.15  # regret of the best, times this: what may be as good, by times that were taken apart
AXES = ("decode_ms", "read_ms", "pause_ms", "memory")


def equal(entry: Entry) -> bool:
    """Does it compute what the program does? A backend does, and what a target writes in its default precision: that
    was compared with the reference. What is written in another has rounded weights, however small its error is.
    """
    if entry.figures is None or entry.candidate.runner not in runners():
        return False
    runner = find_runner(entry.candidate.runner)
    return isinstance(runner, Backend) or not runner.rounds(entry.candidate.options)


@dataclass(frozen=True)
class Selection:
    """The chosen entry (None if nothing fits), the front, what each limit costs in words, and if nothing fits the entry
    that comes nearest.
    """

    entry: Entry | None
    front: tuple[Entry, ...]
    costs: tuple[str, ...] = ()
    nearest: Entry | None = None


def choose(entries: Iterable[Entry], limits: Limits) -> Selection:
    """Of entries of equal quality; those without figures are left out."""
    known = [each for each in entries if each.figures is not None]
    fit = [each for each in known if fits(_of(each), limits)]
    chosen = best(fit)
    close = min(known, key=lambda each: excess(_of(each), limits), default=None) if chosen is None else None
    return Selection(chosen, tuple(front(fit)), tuple(_costs(known, limits, chosen)), close)


def best(entries: Sequence[Entry]) -> Entry | None:
    """The one whose worse ratio, of decode or of reading, to the best there is is smallest; then the sum of both. Of
    those that are near, those that were measured beside each other alone count, if there are any: others may look as
    fast by noise. Of what is as good, as far as TIE and spread of both say, the one with the fewest settings.
    """
    near = nearest(entries)
    entries = [each for each in near if each.beside] or near
    regrets = regrets_of(entries)
    if not regrets:
        return None
    first = regrets.index(min(regrets))
    least, spread = regrets[first][0], _of(entries[first]).spread
    equals = [
        (len(each.candidate.settings), regret, i)
        for i, (each, regret) in enumerate(zip(entries, regrets, strict=True))
        if regret[0] <= least * (1 + min(TIE, max(spread, _of(each).spread)))
    ]
    return entries[min(equals)[2]]


def nearest(entries: Sequence[Entry]) -> list[Entry]:
    """Those that may be as good as the best, the best first: within NEAR, or what their spread or its says."""
    ordered = sorted(zip(regrets_of(entries), range(len(entries)), strict=True))
    if not ordered:
        return []
    (least, _), first = ordered[0]
    spread = _of(entries[first]).spread
    most = [max(NEAR, 1 + min(max(spread, _of(each).spread), 2 * (NEAR - 1))) for each in entries]
    return [entries[i] for (regret, _), i in ordered if regret <= least * most[i]]


def regrets_of(entries: Sequence[Entry]) -> list[tuple[float, float]]:
    """Of each the worse ratio, of decode or of reading, to the best of all, and the sum of both ratios."""
    decode = min((_of(each).decode_ms for each in entries), default=0.0)
    read = min((_of(each).read_ms for each in entries), default=0.0)
    ratios = [(_ratio(_of(each).decode_ms, decode), _ratio(_of(each).read_ms, read)) for each in entries]
    return [(max(pair), sum(pair)) for pair in ratios]


def front(entries: Sequence[Entry]) -> list[Entry]:
    """Those that no other beats or equals in all of AXES (of equals the first is there)."""
    found: list[Entry] = []
    for entry in entries:
        point = _point(entry)
        others = [_point(each) for each in entries if each is not entry]
        beaten = any(all(a <= b for a, b in zip(o, point, strict=True)) and o != point for o in others)
        if not beaten and point not in map(_point, found):
            found.append(entry)
    return found


def fits(figures: Figures, limits: Limits) -> bool:
    """Is it within the limits? The pause is that of the slowest sleep in a hundred."""
    return excess(figures, limits) <= 1


def excess(figures: Figures, limits: Limits) -> float:
    """How many times it is over the limit that it is furthest from: at most 1 if it fits."""
    shares = [0.0]
    if limits.memory is not None:
        shares.append(figures.memory / limits.memory)
    if limits.pause_ms is not None:
        shares.append(figures.pause_p99_ms / limits.pause_ms)
    return max(shares)


def _costs(entries: Sequence[Entry], limits: Limits, chosen: Entry | None) -> Iterable[str]:
    """What would be chosen without each limit, and how much faster it is."""
    for name, words in (("memory", "the memory budget"), ("pause_ms", "the longest pause")):
        if getattr(limits, name) is None:
            continue
        free = limits.model_copy(update={name: None})
        other = best([each for each in entries if fits(_of(each), free)])
        if other is None or other is chosen:
            yield f"{words} costs nothing"
        elif chosen is None:
            yield f"without {words}: {other.candidate.words()}"
        else:
            ours, theirs = _of(chosen), _of(other)
            decode, read = _ratio(ours.decode_ms, theirs.decode_ms), _ratio(ours.read_ms, theirs.read_ms)
            times = f"{decode:.2f} times the time of a token and {read:.2f} times that of reading"
            yield f"{words} costs {times}, against {other.candidate.words()}"


def _of(entry: Entry) -> Figures:
    assert entry.figures is not None
    return entry.figures


def _point(entry: Entry) -> tuple[float, ...]:
    return tuple(float(getattr(_of(entry), axis)) for axis in AXES)


def _ratio(a: float, b: float) -> float:
    return a / b if b else float(a > 0)
