"""How many passes a sleep should take: more than one only if that was measured to be better. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from sleepc.errors import SleepcError
from sleepc.json_file import read_json
from sleepc.tune.choose import fits
from sleepc.tune.record import Figures, Limits

LESS_IS_BETTER = ("perplexity", "nll")
MOST = 64 << 20
FIX = "`sleepc eval ARTIFACT --task … --sweep passes=1,2,4 --json > FILE` writes one."
MODEL = re.compile(r"passes=(\d{1,3})")


@dataclass(frozen=True)
class PassQuality:
    """A metric by the number of passes: the mean over all places that were evaluated."""

    metric: str
    by_passes: Mapping[int, float]

    def better(self, a: float, b: float) -> bool:
        """Is a better than b?"""
        return a < b if self.metric in LESS_IS_BETTER else a > b

    def choose(self, pauses: Mapping[int, Figures], limits: Limits) -> int:
        """The number of passes with the best metric whose sleep fits the limits: of equal ones the fewest, and 1 if no
        other is better.
        """
        chosen = 1
        for passes, value in sorted(self.by_passes.items()):
            if passes in pauses and fits(pauses[passes], limits) and self.better(value, self.by_passes[chosen]):
                chosen = passes
        return chosen


def read_quality(path: Path) -> PassQuality:
    """What `sleepc eval --sweep … --json` printed. Raises SleepcError for anything else, and if passes=1 is missing."""
    data = read_json(path, most=MOST, fix=FIX)
    try:
        metric = str(data["metrics"][0])
        found: dict[int, list[float]] = {}
        for row in data["rows"]:
            if name := MODEL.fullmatch(row["model"]):
                found.setdefault(int(name[1]), []).append(_number(row[metric]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SleepcError(f"{path.name} is not an evaluation with figures", where="--quality", fix=FIX) from error
    if 1 not in found or len(found) < 2:
        raise SleepcError(f"{path.name} does not compare one pass with more", where="--quality", fix=FIX)
    return PassQuality(metric, {passes: fmean(values) for passes, values in found.items()})


def _number(value: Any) -> float:
    found = float(value)
    if isinstance(value, (bool, str)) or not isfinite(found):
        raise ValueError(value)
    return found
