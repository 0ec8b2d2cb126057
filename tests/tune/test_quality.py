"""What evaluations say, and of what: those of another artifact, or of other questions, are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sleepc.errors import SleepcError, UsageError
from sleepc.tune.quality import OWN, RECALL, QualityFile, check_qualities, read_quality

A, B = "a" * 64, "b" * 64


def evaluation(*rows: tuple[str, Any], identity: str = A, **facts: Any) -> dict[str, Any]:
    found = [{"model": model, "distance": 16, "accuracy": value} for model, value in rows]
    return {"identity": identity, "task": "copy", "metrics": ["accuracy"], "rows": found} | facts


def asked(share: float | None, identity: str = A) -> dict[str, Any]:
    """As `--task questions` prints it."""
    models = [{"model": name, "share": value, "nll": 1.0} for name, value in (("full", 1.0), ("converted", share))]
    rows = [{"model": "converted", "from": 0, "to": 128, "share": share}]
    rows += [{"model": "converted", "from": None, "to": None, "share": None}]
    return {"identity": identity, "task": "questions", "models": models, "rows": rows}


def read(folder: Path, data: Any) -> QualityFile:
    file = folder / "q.json"
    file.write_text(json.dumps(data))
    return read_quality(file)


def test_reading_a_sweep(tmp_path: Path) -> None:
    found = read(tmp_path, evaluation(("passes=1", 0.5), ("passes=1", 1), ("passes=2", 0.25), ("sliding", 0.9)))
    assert (found.identity, found.metric, found.by_passes) == (A, "accuracy", {1: 0.75, 2: 0.25})
    assert found.places[1] == ["16 tokens: 0.50", "16 tokens: 1.00"]
    assert found.is_share


def test_reading_questions(tmp_path: Path) -> None:
    found = read(tmp_path, asked(0.4))
    assert (found.metric, found.by_passes, found.places) == (RECALL, {OWN: 0.4}, {OWN: ["0 to 128 tokens: 0.40"]})
    own = read(tmp_path, evaluation(("converted", 0.5)))
    assert own.by_passes == {OWN: 0.5}


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"metrics": [], "rows": [], "identity": A},
        evaluation(("sliding", 1.0)),
        evaluation(("passes=1", None), ("passes=2", 1.0)),
        evaluation(("passes=1", "1"), ("passes=2", 1.0)),
        evaluation(("passes=1", True), ("passes=2", 1.0)),
        evaluation(("passes=1", 1.0), identity=""),
        evaluation(("passes=1", float("nan"))),
        {"metrics": ["accuracy"], "rows": [{"model": "passes=1"}], "identity": A},
        {"models": [{"model": "converted"}], "rows": [], "identity": A},
        {"models": [{"model": "converted", "share": None}], "rows": [], "identity": A},
        {"models": [{"model": 5, "share": 1.0}], "rows": [], "identity": A},
    ],
)
def test_what_is_no_evaluation(tmp_path: Path, data: Any) -> None:
    with pytest.raises(SleepcError, match=r"q\.json") as caught:
        read(tmp_path, data)
    assert caught.value.on_command_line[2]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    one, other, asks = (Path(name) for name in ("one.json", "other.json", "asks.json"))
    of_a, of_b = read(tmp_path, evaluation(("converted", 1))), read(tmp_path, evaluation(("converted", 1), identity=B))
    names = {A: "model", B: "variant"}
    check_qualities({one: of_a, other: of_b}, names, 0.5)
    with pytest.raises(UsageError, match=r"other\.json is an evaluation of another artifact \(b{12}\) than model "):
        check_qualities({one: of_a, other: of_b}, {A: "model"}, None)
    with pytest.raises(UsageError, match=r"different things cannot be compared: one\.json, asks\.json"):
        check_qualities({one: of_a, asks: read(tmp_path, asked(0.5, B))}, names, None)
    seeded = read(tmp_path, evaluation(("converted", 1), identity=B, seed=1))
    with pytest.raises(UsageError, match="cannot be compared"):
        check_qualities({one: of_a, other: seeded}, names, None)
    far = evaluation(("converted", 1), identity=B)
    far["rows"][0]["distance"] = 32
    with pytest.raises(UsageError, match="cannot be compared") as caught:
        check_qualities({one: of_a, other: read(tmp_path, far)}, names, None)
    assert "--distances" in caught.value.on_command_line[2]
    with pytest.raises(SleepcError, match="export in int8, whose weights are rounded"):
        read(tmp_path, evaluation(("converted", 1), backend="onnx", precision="int8", rounded=True))
    confusion = {"identity": A, "metrics": ["perplexity"], "rows": [{"model": "converted", "perplexity": 9}]}
    with pytest.raises(UsageError, match="no recall was measured"):
        check_qualities({one: read(tmp_path, confusion)}, names, 0.5)
