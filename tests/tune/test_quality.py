"""More than one pass is chosen only if its quality was measured to be better, and its sleep fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sleepc.errors import SleepcError
from sleepc.tune.quality import PassQuality, read_quality
from sleepc.tune.record import Figures, Limits


def pauses(**times: float) -> dict[int, Figures]:
    return {
        int(name[1:]): Figures(decode_ms=1, decode_p99_ms=1, read_ms=1, pause_ms=ms, pause_p99_ms=ms, memory=1)
        for name, ms in times.items()
    }


TIMES = pauses(n1=1, n2=2, n4=4)


@pytest.mark.parametrize(
    ("metric", "values", "limit", "chosen"),
    [
        ("accuracy", {1: 0.3, 2: 0.4, 4: 0.5}, None, 4),
        ("accuracy", {1: 0.3, 2: 0.4, 4: 0.5}, 3, 2),
        ("accuracy", {1: 0.3, 2: 0.4, 4: 0.5}, 0.5, 1),
        ("accuracy", {1: 0.3, 2: 0.3, 4: 0.3}, None, 1),
        ("accuracy", {1: 0.3, 2: 0.4, 4: 0.4}, None, 2),
        ("accuracy", {1: 0.3, 2: 0.2, 4: 0.1}, None, 1),
        ("perplexity", {1: 12.0, 2: 11.0, 4: 13.0}, None, 2),
        ("perplexity", {1: 12.0, 2: 12.0, 4: 13.0}, None, 1),
        ("accuracy", {1: 0.3, 8: 0.9}, None, 1),  # whose pause is not known
    ],
)
def test_how_many_passes(metric: str, values: dict[int, float], limit: float | None, chosen: int) -> None:
    assert PassQuality(metric, values).choose(TIMES, Limits(pause_ms=limit)) == chosen


def evaluation(*rows: tuple[str, Any]) -> dict[str, Any]:
    return {"metrics": ["accuracy"], "rows": [{"model": model, "accuracy": value} for model, value in rows]}


def test_reading_an_evaluation(tmp_path: Path) -> None:
    file = tmp_path / "q.json"
    rows = (("passes=1", 0.5), ("passes=1", 1), ("passes=2", 0.25), ("sliding", 0.9))
    file.write_text(json.dumps(evaluation(*rows)))
    assert read_quality(file) == PassQuality("accuracy", {1: 0.75, 2: 0.25})


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"metrics": [], "rows": []},
        evaluation(("converted", 1.0)),
        evaluation(("passes=2", 1.0), ("passes=4", 1.0)),
        evaluation(("passes=1", None), ("passes=2", 1.0)),
        evaluation(("passes=1", "1"), ("passes=2", 1.0)),
        evaluation(("passes=1", True), ("passes=2", 1.0)),
        {"metrics": ["accuracy"], "rows": [{"model": "passes=1"}]},
    ],
)
def test_what_is_no_evaluation(tmp_path: Path, data: Any) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps(data))
    with pytest.raises(SleepcError, match=r"q\.json") as caught:
        read_quality(file)
    assert "--sweep" in caught.value.on_command_line[2]
