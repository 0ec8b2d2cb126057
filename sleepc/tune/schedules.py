"""Which way of sleeping to take, of those whose quality was measured: windows, passes, what is kept. No torch.

A schedule changes what is computed. So none is proposed but by its quality, and more than one pass only if that was
measured to be better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sleepc.tune.choose import excess
from sleepc.tune.quality import better
from sleepc.tune.record import Figures, Limits


@dataclass(frozen=True)
class Schedule:
    """A number of passes of an artifact: its `window`, what its recipe says in `words`, its quality, in words by
    distance too, and figures by the default backend. `own`: the artifact as it is.
    """

    artifact: str
    passes: int
    window: int
    words: str
    own: bool
    quality: float
    figures: Figures
    state_bytes: int
    places: Sequence[str] = ()

    @property
    def token_ms(self) -> float:
        """Of a token that is read alone, with its share of the sleep."""
        return self.figures.decode_ms + self.figures.pause_ms / self.window

    @property
    def read_ms(self) -> float:
        """Of a token of a call of many, with its share of the sleep."""
        return self.figures.read_ms + self.figures.pause_ms / self.window

    def name(self) -> str:
        """For people."""
        return f"{self.artifact} {self.words}"


@dataclass(frozen=True)
class Wanted:
    """The limits, and the least recall."""

    limits: Limits
    min_recall: float | None = None

    def excess(self, each: Schedule) -> float:
        """How many times it is over the limit that it is furthest from: at most 1 if it fits."""
        short = 0.0 if self.min_recall is None else self.min_recall / max(each.quality, 1e-9)
        return max(excess(each.figures, self.limits), short)


@dataclass(frozen=True)
class Schedules:
    """What was compared by a `metric`, what of it nothing beats in everything, and what is chosen (None if nothing
    fits). `costs` say what each limit costs, in words.
    """

    metric: str
    found: Sequence[Schedule]
    wanted: Wanted
    front: Sequence[Schedule] = field(default_factory=tuple)
    chosen: Schedule | None = None
    nearest: Schedule | None = None
    costs: Sequence[str] = ()


def compare(found: Iterable[Schedule], metric: str, wanted: Wanted) -> Schedules:
    """With a bound on recall the fastest that holds it; without, the best within the limits. Of equals, as far as the
    spread of their times says, the artifact's own, then the one of the fewest passes; more passes than others of the
    same artifact only if they are better.
    """
    every = sorted(found, key=lambda each: (not each.own, each.passes))
    proposed = [each for each in every if not any(_for_nothing(each, other, metric) for other in every)]
    chosen = _best(proposed, metric, wanted)
    nearest = min(proposed, key=wanted.excess, default=None) if chosen is None else None
    costs = tuple(_costs(proposed, metric, wanted))
    return Schedules(metric, every, wanted, _front(every, metric), chosen, nearest, costs)


def _for_nothing(each: Schedule, other: Schedule, metric: str) -> bool:
    """Does it take more passes than the other, for no better quality?"""
    same = each.artifact == other.artifact and each.passes > other.passes
    return same and not better(metric, each.quality, other.quality)


def replayed(schedules: Schedules, replay: Callable[[Schedule], Schedule | None]) -> Schedules:
    """Choose again until what is chosen holds the limits in a replay. What cannot be replayed (None) is left out."""
    done: set[str] = set()
    while schedules.wanted.limits != Limits() and (chosen := schedules.chosen) and chosen.name() not in done:
        done.add(chosen.name())
        changed = (replay(each) if each is chosen else each for each in schedules.found)
        schedules = compare([each for each in changed if each is not None], schedules.metric, schedules.wanted)
    return schedules


def _best(every: Sequence[Schedule], metric: str, wanted: Wanted) -> Schedule | None:
    fit = [each for each in every if wanted.excess(each) <= 1]
    if not fit:
        return None
    if wanted.min_recall is None:
        fit = [each for each in fit if not any(better(metric, other.quality, each.quality) for other in fit)]
    token, read = min(each.token_ms for each in fit), min(each.read_ms for each in fit)

    def regret(each: Schedule) -> float:
        return max(each.token_ms / token, each.read_ms / read)

    best = min(fit, key=regret)
    own = next((each for each in fit if each.own), best)  # what is faster by noise is no reason to convert anew
    spread = max(best.figures.spread, own.figures.spread)
    return own if regret(own) <= regret(best) * (1 + spread) else best


def _front(every: Sequence[Schedule], metric: str) -> tuple[Schedule, ...]:
    """Those that no other beats or equals in tokens, reading, pause, bytes and quality."""
    sign = 1.0 if better(metric, 0.0, 1.0) else -1.0
    points = [
        (each.token_ms, each.read_ms, each.figures.pause_p99_ms, float(each.figures.memory), sign * each.quality)
        for each in every
    ]
    return tuple(
        each
        for each, point in zip(every, points, strict=True)
        if not any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)
    )


def _costs(every: Sequence[Schedule], metric: str, wanted: Wanted) -> Iterable[str]:
    """What would be chosen without each limit."""
    chosen = _best(every, metric, wanted)
    bounds = {
        "the memory budget": Wanted(wanted.limits.model_copy(update={"memory": None}), wanted.min_recall),
        "the longest pause": Wanted(wanted.limits.model_copy(update={"pause_ms": None}), wanted.min_recall),
        "the least recall": Wanted(wanted.limits, None if wanted.min_recall is None else 0.0),
    }
    for name, free in bounds.items():
        other = _best(every, metric, free)
        if free == wanted or other is None:
            continue
        if chosen is None or other is chosen:
            yield f"{name} costs nothing" if chosen is not None else f"without {name}: {other.name()}"
        else:
            times = f"{chosen.token_ms / other.token_ms:.2f} times the time of a token"
            yield f"{name}: {times}, {metric} {chosen.quality:.3g} and not {other.quality:.3g}, against {other.name()}"
