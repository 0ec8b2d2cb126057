"""What evaluations say of programs, tied to the artifact that they are of. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from sleepc.backends.table import DEFAULT
from sleepc.errors import SleepcError, UsageError
from sleepc.json_file import read_json

LESS_IS_BETTER = ("perplexity", "nll")
RECALL = "recall"  # the share of the questions that full attention answers
OWN = 0  # passes: as many as the artifact has
MOST = 64 << 20
FIX = "`sleepc eval ARTIFACT --task … --json > FILE` writes one, with --sweep passes=1,2,4 for other numbers of passes."
RECALL_FIX = "`sleepc eval ARTIFACT --task questions --json > FILE` measures it; give FILE to --quality."
SWEPT = re.compile(r"passes=(\d{1,3})")
CONVERTED = "converted"
TERMS = (
    "task",
    "tokens",
    "samples",
    "seed",
    "text",
    "settings",
    "questions",
    "answer",
    "texts",
    "backend",
    "precision",
)


@dataclass(frozen=True)
class QualityFile:
    """A metric by the number of passes, the mean over all places that were evaluated, and `places` as they were
    written. `identity` is the artifact's, `terms` is what was asked: figures of other terms say nothing beside these.
    """

    identity: str
    metric: str
    by_passes: Mapping[int, float]
    terms: str
    places: Mapping[int, Sequence[str]]

    @property
    def is_share(self) -> bool:
        """Is the metric a share of what could be right?"""
        return self.metric in (RECALL, "accuracy", "exact")


def better(metric: str, a: float, b: float) -> bool:
    """Is a better than b?"""
    return a < b if metric in LESS_IS_BETTER else a > b


def read_quality(path: Path) -> QualityFile:
    """What `sleepc eval … --json` printed, of passes that were swept or of the converted model. Raises SleepcError for
    anything else, and for what does not say of which artifact it is.
    """
    data = read_json(path, most=MOST, fix=FIX)
    try:
        asked = "models" in data and isinstance(data["models"][0], dict)  # questions: shares, with their totals
        rows = data["models"] if asked else data["rows"]
        metric = RECALL if asked else str(data["metrics"][0])
        found: dict[int, list[float]] = {}
        for row in rows:
            if (passes := _passes(row["model"])) is not None:
                found.setdefault(passes, []).append(_number(row["share" if asked else metric]))
        places = _places(data["rows"], "share" if asked else metric)
        # of questions the ranges are the window's, and the share is of all
        where = [] if asked else sorted({_place(row) for row in rows if _passes(row["model"]) is not None})
        identity = str(data["identity"]) if data.get("identity") else ""
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise SleepcError(f"{path.name} is not an evaluation with figures", where="--quality", fix=FIX) from error
    if not found:
        raise SleepcError(f"{path.name} has no figures of a converted model", where="--quality", fix=FIX)
    if not identity:
        what = f"{path.name} does not say of which artifact it is: an older version wrote it"
        raise SleepcError(what, where="--quality", fix="Evaluate again.")
    if data.get("rounded"):
        what = f"{path.name} is of an export in {data.get('precision')}, whose weights are rounded, not of the artifact"
        raise SleepcError(what, where="--quality", fix=f"Evaluate with --backend {DEFAULT}.")
    terms = json.dumps([metric, where, *(data.get(name) for name in TERMS)], sort_keys=True)
    return QualityFile(identity, metric, {passes: fmean(values) for passes, values in found.items()}, terms, places)


def check_qualities(found: Mapping[Path, QualityFile], known: Mapping[str, str], min_recall: float | None) -> None:
    """Raises UsageError for an evaluation of none of the artifacts (`known`: names by identity), for two that cannot be
    compared, and for a bound on recall that none of them speaks of.
    """
    for path, quality in found.items():
        if quality.identity not in known:
            other = f"another artifact ({quality.identity[:12]}) than {', '.join(known.values())}"
            what = f"{path.name} is an evaluation of {other}"
            raise UsageError(what, where="--quality", fix="Evaluate this one, or name the other with --variant.")
    if len({quality.terms for quality in found.values()}) > 1:
        names = ", ".join(path.name for path in found)
        fix = "Give evaluations of one task, with the same texts, samples, seed, backend and --distances."
        raise UsageError(f"evaluations of different things cannot be compared: {names}", where="--quality", fix=fix)
    if min_recall is not None and not any(quality.is_share for quality in found.values()):
        raise UsageError("no recall was measured", where="--min-recall", fix=RECALL_FIX)


def _passes(model: str) -> int | None:
    """The number of passes of a model by its name; None if it is not the converted one."""
    if model == CONVERTED:
        return OWN
    swept = SWEPT.fullmatch(model)
    return int(swept[1]) if swept else None


def _places(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[int, list[str]]:
    """Each model's figures by place, in words."""
    found: dict[int, list[str]] = {}
    for row in rows:
        passes, value = _passes(row["model"]), row.get(metric)
        if passes is not None and value is not None:
            found.setdefault(passes, []).append(f"{_place(row)}: {_number(value):.2f}")
    return found


def _place(row: Mapping[str, Any]) -> str:
    """How long ago."""
    if row.get("from") is not None:
        return f"{row['from']} to {row['to']} tokens"
    return next((f"{row[name]} {words}" for name, words in PLACES.items() if row.get(name) is not None), "elsewhere")


PLACES = {"distance": "tokens", "tokens": "tokens of text", "steps": "steps", "hops": "hops"}


def _number(value: Any) -> float:
    found = float(value)
    if isinstance(value, (bool, str)) or not isfinite(found):
        raise ValueError(value)
    return found
