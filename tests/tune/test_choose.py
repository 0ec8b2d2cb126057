"""The choice: within the limits, among what computes the same, losing least where it loses most."""

from __future__ import annotations

from dataclasses import fields
from itertools import product

import pytest

from sleepc.backends.table import DEFAULT, DEFAULT_TARGET, find_target
from sleepc.backends.tunable import TRIED
from sleepc.tune.choose import EQUAL, choose, equal, front
from sleepc.tune.here import Device
from sleepc.tune.record import Entry, Figures, Key, Limits
from sleepc.tune.report import page
from sleepc.tune.space import Candidate

KEY = Key(
    program="f" * 64, device=Device(kind="cpu", name="a CPU", threads=2, features="0" * 16), versions="1", source="0"
)


def entry(name: str, figures: tuple[float, float, float, int] | None, error: float = 0, reason: str = "") -> Entry:
    """With (ms of a token, of reading, of a pause, memory)."""
    found = None
    if figures is not None:
        decode, read, pause, memory = figures
        found = Figures(
            decode_ms=decode,
            decode_p99_ms=decode,
            read_ms=read,
            pause_ms=pause / 2,
            pause_p99_ms=pause,
            memory=memory,
            error=error,
        )
    return Entry(key=KEY, candidate=Candidate(runner=name), figures=found, reason=reason)


SLOW = entry("slow", (10, 10, 10, 10))
TOKENS = entry("tokens", (1, 8, 40, 20))  # fast in tokens alone
READS = entry("reads", (8, 1, 40, 20))
BOTH = entry("both", (1.5, 1.5, 20, 100))
WORSE = entry("worse", (1.6, 1.5, 20, 100))
FAILED = entry("failed", None, reason="<script>alert(1)</script>")
ALL = [SLOW, TOKENS, READS, BOTH, WORSE, FAILED]


@pytest.mark.parametrize(
    ("limits", "chosen"),
    [
        (Limits(), BOTH),
        (Limits(memory=100), BOTH),
        (Limits(memory=99), TOKENS),
        (Limits(pause_ms=20), BOTH),
        (Limits(pause_ms=19.9), SLOW),
        (Limits(memory=20, pause_ms=20), SLOW),
        (Limits(memory=9), None),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_what_is_chosen(limits: Limits, chosen: Entry | None, order: int) -> None:
    found = choose(ALL[::order], limits)
    wanted = READS if chosen is TOKENS and order < 0 else chosen  # which are equally far from the best
    assert found.entry is wanted


@pytest.mark.parametrize(
    ("faster", "spread", "wins"), [(0.99, 0.02, False), (0.99, 0.005, True), (0.95, 0.5, True), (1.0, 0.0, False)]
)
def test_what_is_as_good_goes_to_the_defaults(faster: float, spread: float, wins: bool) -> None:
    default, changed = entry("a", (1, 1, 1, 1)), entry("a", (faster, faster, 1, 1))
    changed = changed.model_copy(update={"candidate": Candidate(runner="a", settings={"threads": 1})})
    for at, order in product((0, 1), (1, -1)):  # whose spread it is
        pair = [default, changed]
        figures = pair[at].figures
        assert figures is not None
        pair[at] = pair[at].model_copy(update={"figures": figures.model_copy(update={"spread": spread})})
        assert choose(pair[::order], Limits()).entry is pair[wins]


def test_what_was_measured_beside_others_goes_before_what_looks_as_fast() -> None:
    proven = entry("a", (1, 1, 1, 1)).model_copy(update={"beside": ("b",)})
    for taken, wins in ((0.9, False), (0.8, True)):  # near, and clearly faster
        lucky = entry("c", (taken, taken, 1, 1))
        assert choose([lucky, proven], Limits()).entry is (lucky if wins else proven)


def test_the_front_has_what_nothing_beats() -> None:
    assert front(ALL[:-1]) == [SLOW, TOKENS, READS, BOTH]
    assert front([BOTH, BOTH.model_copy()]) == [BOTH]
    assert list(choose(ALL, Limits(memory=20)).front) == [SLOW, TOKENS, READS]


def test_what_limits_cost() -> None:
    costs = choose(ALL, Limits(memory=20, pause_ms=1000)).costs
    assert costs == (
        "the memory budget costs 0.67 times the time of a token and 5.33 times that of reading, against both",
        "the longest pause costs nothing",
    )


def test_what_comes_nearest_if_nothing_fits() -> None:
    found = choose(ALL, Limits(memory=9, pause_ms=30))
    assert (found.entry, found.nearest) == (None, SLOW)
    assert choose([FAILED], Limits()).nearest is None


def test_what_is_rounded_is_not_equal() -> None:
    figures = (1.0, 1.0, 1.0, 1)
    assert equal(entry(DEFAULT, figures, error=2 * EQUAL))  # as far off as its dtype is: it was compared
    target = find_target(DEFAULT_TARGET)
    every = dict(vars(target.options()))
    tried = [{each.name: each.metadata[TRIED][-1]} for each in fields(target.options) if each.metadata.get(TRIED)]
    assert tried
    cases = [({}, True), *((each, True) for each in tried), ({"precision": "fp16"}, False)]
    for (changes, right), error in product(cases, (0.0, 2 * EQUAL)):  # what was measured of it decides nothing
        candidate = Candidate(runner=target.name, options={**every, **changes})
        assert equal(entry(target.name, figures, error).model_copy(update={"candidate": candidate})) == right
    assert not equal(entry("car", figures))
    assert not equal(FAILED)


def test_the_page_escapes_and_fetches_nothing() -> None:
    html = page("<b>a & b</b>", ALL, choose(ALL, Limits(memory=20)))
    assert "<b>" not in html
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in html
    assert html.count("<script>") == 1
    assert "alert(1)" in html
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("<circle") == 5
    assert html.count('class="chosen"') == 1
    assert "the memory budget costs" in html
    assert "<svg" in page("nothing", [], choose([], Limits()))
