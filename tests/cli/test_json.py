"""What `--json` prints, and what files of JSON say, is JSON: it has no numbers that are not finite."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

import numpy as np
import pytest

from sleepc.bisecting import Bisection, ProgramRow
from sleepc.cli.display import print_json
from sleepc.json_file import json_text
from sleepc.verify.report import Beyond, Check, PerplexityRow, VerifyReport

NAN, INF = math.nan, math.inf


def strict(text: str) -> Any:
    """As every reader of JSON but Python's does it."""

    def refuse(name: str) -> NoReturn:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (INF, None),
        ({"a": NAN, "b": {"c": [-INF, 1.5, (NAN, 2)]}}, {"a": None, "b": {"c": [None, 1.5, [None, 2]]}}),
        ([np.float64("nan"), np.float64(0.25)], [None, 0.25]),
        ({"x": "inf", "y": None, "z": True, "n": 1 << 80}, {"x": "inf", "y": None, "z": True, "n": 1 << 80}),
    ],
)
def test_numbers_that_are_not_finite_are_null(data: Any, said: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(data)
    assert strict(capsys.readouterr().out) == strict(json_text(data)) == said


def test_reports_give_their_numbers_as_they_are() -> None:
    """No report has a spelling of its own for them."""
    row = PerplexityRow(0, 8, INF, 2.0, NAN, 8)
    report = VerifyReport([Check("c", 1, False, INF, 1e-4, "")], [row], Beyond("ruined", "t", INF, row), 1.0)
    said = strict(json_text(report.to_json()))
    assert said["checks"][0]["value"] is said["perplexity"][0]["full"] is said["beyond"]["ratio"] is None
    rows = Bisection(8, 1e-4, [ProgramRow("a pass", "1", INF, False), ProgramRow("another", "1", 0.5, True)]).to_json()[
        "rows"
    ]
    assert [each["error"] for each in strict(json_text(rows))] == [None, 0.5]
