"""Schedules: by quality, within limits, and more passes only where they were measured to be better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sleepc
from sleepc.cli.schedules import _is_other
from sleepc.tune import measure
from sleepc.tune.choose import choose
from sleepc.tune.record import Figures, Limits
from sleepc.tune.report import Dot, Scatter, page
from sleepc.tune.schedules import Schedule, Wanted, compare, replayed
from sleepc.tuning import Tuning
from tests.cli.models import run_here, save_model
from tests.tune.test_choose import ALL


def schedule(passes: int, quality: float, pause: float = 1.0, artifact: str = "a", token: float = 1.0) -> Schedule:
    """In a window of 10 tokens; `own` is a with one pass."""
    figures = Figures(
        decode_ms=token, decode_p99_ms=token, read_ms=token, pause_ms=pause, pause_p99_ms=pause, memory=100
    )
    own = (artifact, passes) == ("a", 1)
    return Schedule(artifact, passes, 10, f"passes={passes}", own, quality, figures, 10)


@pytest.mark.parametrize(
    ("metric", "values", "limit", "chosen"),
    [
        ("accuracy", {1: 0.3, 2: 0.4, 4: 0.5}, None, 4),
        ("accuracy", {1: 0.3, 2: 0.4, 4: 0.5}, 3, 2),
        ("accuracy", {1: 0.3, 2: 0.4, 4: 0.5}, 0.5, None),
        ("accuracy", {1: 0.3, 2: 0.3, 4: 0.3}, None, 1),
        ("accuracy", {1: 0.3, 2: 0.4, 4: 0.4}, None, 2),
        ("accuracy", {1: 0.3, 2: 0.2, 4: 0.1}, None, 1),
        ("perplexity", {1: 12.0, 2: 11.0, 4: 13.0}, None, 2),
        ("perplexity", {1: 12.0, 2: 12.0, 4: 13.0}, None, 1),
    ],
)
def test_how_many_passes(metric: str, values: dict[int, float], limit: float | None, chosen: int | None) -> None:
    """A sleep takes as many milliseconds as it has passes."""
    found = compare((schedule(n, q, n) for n, q in values.items()), metric, Wanted(Limits(pause_ms=limit)))
    assert (found.chosen.passes if found.chosen else None) == chosen
    if chosen is None:
        assert found.nearest is not None
        assert found.nearest.passes == 1


BIG, SMALL, LONG = schedule(1, 0.9, 40), schedule(1, 0.7, 4, "b"), schedule(1, 0.8, 4, "c", token=3.0)


@pytest.mark.parametrize(
    ("recall", "limits", "chosen"),
    [
        (None, Limits(), BIG),
        (0.6, Limits(), SMALL),  # 1.4 ms a token with its share of the sleep, where c takes 3.4 and a 5
        (0.75, Limits(), LONG),
        (0.85, Limits(), BIG),
        (0.85, Limits(pause_ms=10), None),
        (0.95, Limits(), None),
        (None, Limits(pause_ms=10), LONG),
        (None, Limits(memory=99), None),
    ],
)
def test_the_fastest_that_recalls_enough(recall: float | None, limits: Limits, chosen: Schedule | None) -> None:
    found = compare([SMALL, LONG, BIG], "recall", Wanted(limits, recall))
    assert found.chosen is chosen
    assert set(found.front) == {BIG, SMALL, LONG}


def test_passes_are_not_taken_for_speed() -> None:
    fast = schedule(2, 0.9, 10)  # by noise: it sleeps more
    assert compare([BIG, fast], "recall", Wanted(Limits(), 0.5)).chosen is BIG


def test_what_each_limit_costs() -> None:
    costs = compare([SMALL, LONG, BIG], "recall", Wanted(Limits(pause_ms=10), 0.75)).costs
    assert costs == (
        "the longest pause costs nothing",
        "the least recall: 2.43 times the time of a token, recall 0.8 and not 0.7, against b passes=1",
    )


@pytest.mark.parametrize(("spread", "chosen"), [(0.0, "b"), (0.1, "a")])
def test_what_is_faster_by_noise_is_not_proposed(spread: float, chosen: str) -> None:
    own, other = schedule(1, 0.9), schedule(1, 0.9, artifact="b", token=0.95)
    own = replace(own, figures=own.figures.model_copy(update={"spread": spread}))
    found = compare([own, other], "recall", Wanted(Limits())).chosen
    assert found is not None
    assert found.artifact == chosen


def test_a_variant_is_of_the_same_model() -> None:
    def of(vocab: int, weights: str) -> Any:
        return SimpleNamespace(graphs=SimpleNamespace(vocab=vocab), source=SimpleNamespace(weights_sha256=weights))

    cases = [((9, "a"), False), ((9, ""), False), ((9, "b"), True), ((8, "a"), True)]
    assert [_is_other(of(9, "a"), of(*case)) for case, _ in cases] == [other for _, other in cases]


def test_what_cannot_be_replayed_is_left_out() -> None:
    found = replayed(compare([BIG, SMALL], "recall", Wanted(Limits(pause_ms=50))), lambda each: None)
    assert (found.chosen, list(found.found)) == (None, [])


def test_what_breaks_a_limit_in_a_replay_is_dropped() -> None:
    done: list[str] = []

    def replay(each: Schedule) -> Schedule:
        done.append(each.artifact)
        pause = 30.0 if each is LONG else 5.0
        return replace(each, figures=each.figures.model_copy(update={"pause_p99_ms": pause, "sleeps": 9}))

    found = replayed(compare([SMALL, LONG, BIG], "recall", Wanted(Limits(pause_ms=10))), replay)
    assert done == ["c", "b"]
    assert found.chosen is not None
    assert (found.chosen.artifact, found.chosen.figures.sleeps) == ("b", 9)


def test_the_page_shows_them() -> None:
    places = replace(SMALL, places=("<16> tokens: 0.50",))
    html = page("model", ALL, choose(ALL, Limits()), compare([places, BIG], "recall", Wanted(Limits())))
    assert html.count("<circle") == 5 + 2
    assert "&lt;16&gt; tokens: 0.50" in html
    assert html.count('class="chosen"') == 2
    assert "a passes=1: 0.9 recall, 5.00 ms per token" in html


@pytest.mark.parametrize(
    ("values", "from_zero", "ticks"),
    [
        ([0.62, 0.38], False, [0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65]),
        ([22.4, 167.6], True, [0, 50, 100, 150, 200]),
        ([3.0], False, [2.5, 3, 3.5]),
        ([], True, [0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]),
    ],
)
def test_axes_have_round_numbers(values: list[float], from_zero: bool, ticks: list[float]) -> None:
    dots = [Dot(value, value, "other", "", "", "") for value in values]
    found = Scatter(dots, "x", "y", from_zero).ticks("x")
    assert found == pytest.approx(ticks)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_picture_shows_them(kind: str) -> None:
    pytest.importorskip("matplotlib")
    from sleepc.cli.tune_plot import drawn_choice

    found = compare([SMALL, BIG], "recall", Wanted(Limits()))
    picture = drawn_choice("a model", ALL, choose(ALL, Limits()), found, kind)
    assert picture.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    assert picture == drawn_choice("a model", ALL, choose(ALL, Limits()), found, kind)
    if kind == "svg":
        assert all(words in picture.decode() for words in ("a passes=1", "b passes=1", "recall", "chosen"))
        candidates = drawn_choice("a model", ALL, choose(ALL, Limits()), None, kind).decode()
        assert "both" in candidates
        assert ">recall<" not in candidates


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two conversions of one model, with windows of 8 and 6 tokens."""
    model = save_model(tmp_path_factory.mktemp("schedules") / "model")
    found = [
        sleepc.convert(model, {"window": window, "sinks": 2}).save(model.parent / f"w{window}") for window in (8, 6)
    ]
    return found[0], found[1]


def test_on_the_command_line(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measure.figures, "__defaults__", (1,))
    monkeypatch.setattr(Tuning, "candidates", lambda tuning, limits: iter([tuning.default()]))
    first, other = pair
    files = [tmp_path / "first.json", tmp_path / "other.json"]
    for place, file in zip(pair, files, strict=True):
        options = ("--task", "retrieval", "--sweep", "passes=1,2", "--samples", 2, "--distances", "1", "--json")
        code, said, told = run_here(capsys, "eval", place, *options)
        assert code == 0, told
        data = json.loads(said)
        for row in data["rows"]:
            row["distance"] = 8
            row["accuracy"] = 0.9 if place == first else 0.5
        file.write_text(json.dumps(data | {"tokens": 64}))  # distances are in windows: other windows, other streams
    tune = ("tune", first)
    refused = run_here(capsys, *tune, "--quality", files[1])
    assert (refused[0], "other.json is an evaluation of another artifact" in refused[2]) == (2, True)
    assert run_here(capsys, *tune, "--min-recall", 0.5)[0] == 2
    assert "there is no evaluation of w6" in run_here(capsys, *tune, "--variant", other, "--quality", files[0])[2]
    both = (*tune, "--variant", other, "--quality", files[0], "--quality", files[1])
    code, said, told = run_here(capsys, *both, "--min-recall", 0.8, "--json", "--report", tmp_path / "r.html")
    found = json.loads(said)["schedules"]
    assert (found["chosen"], found["metric"]) == ("w8 window=8 passes=1", "accuracy")
    assert [each["quality"] for each in found["schedules"]] == [0.9, 0.5, 0.9, 0.5]
    assert (tmp_path / "r.html").read_text().count("<circle") == 1 + 4
    bytes_of = {each["artifact"]: each["state_bytes"] for each in found["schedules"]}
    budget = found["schedules"][1]["figures"]["memory"]
    assert bytes_of["w6"] < bytes_of["w8"]
    code, said, _ = run_here(capsys, *both, "--budget-memory", budget, "--json")
    found = json.loads(said)["schedules"]
    chosen = next(each for each in found["schedules"] if each["figures"]["sleeps"])
    assert (found["chosen"], chosen["figures"]["memory"]) == ("w6 window=6 passes=1", budget)
    assert np.isfinite(chosen["figures"]["pause_p99_ms"])
    code, _, told = run_here(capsys, *both, "--budget-memory", budget - 1)
    assert (code, "w6 window=6 passes=1 comes nearest" in told) == (2, True)
    assert run_here(capsys, *both, "--budget-memory", budget, "--min-recall", 0.6)[0] == 2
