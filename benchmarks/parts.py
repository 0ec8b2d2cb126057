"""Measurements in parts: a row for each, kept in a file, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from common import Row

from sleepc.whole_file import write_whole

Case: TypeAlias = "tuple[Mapping[str, Any], Callable[[], Mapping[str, Any]]]"
"""What tells a measurement from others, and what makes it."""
REPEATS, WARM = 10, 3


class Kept:
    """Rows of this machine in a file of JSON lines, or, without a file, of this run alone."""

    def __init__(self, path: Path | None, where: Mapping[str, Any]) -> None:
        self.path, self.where = path, dict(where)
        text = path.read_text() if path is not None and path.is_file() else ""
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if path is not None and (whole := "".join(lines)) != text:  # it was cut off while it wrote its last line
            write_whole(path, whole.encode())
        self.rows: list[Row] = [row for row in map(json.loads, lines) if where.items() <= row.items()]

    def find(self, key: Mapping[str, Any]) -> Row | None:
        """The row of a measurement that was made."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def placed(self, row: Row) -> Row:
        """A row that says where it was measured."""
        return {**self.where, **row}

    def keep(self, row: Row) -> Row:
        """Put such a row down."""
        row = self.placed(row)
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row


def run_part(name: str, cases: Iterable[Case], kept: Kept, limit: float) -> Iterator[Row]:
    """The rows of a part: those that are kept already, then as many as are begun within `limit` seconds."""
    started, left = time.monotonic(), 0
    for key, measure in cases:
        key = {"part": name, **key}
        row = kept.find(key)
        if row is None and time.monotonic() - started > limit:
            left += 1
            continue
        if row is None:
            try:
                row = kept.keep({"kind": name, **key, **measure()})
            except torch.OutOfMemoryError:  # it is not kept: another process may have had the memory
                row = kept.placed({"kind": name, **key, "reason": "out of memory"})
        yield row
    if left:
        yield {"kind": "left", "what": f"{left} rows of {name}", "reason": f"{limit:.0f} s are over: run it again"}


def milliseconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median time of `run` on the GPU, or on the CPU where nothing is on one; it is warmed up."""
    for _ in range(WARM if repeats > 1 else 0):
        run()
    times = []
    for _ in range(repeats):
        _wait()
        started = time.perf_counter()
        run()
        _wait()
        times.append((time.perf_counter() - started) * 1e3)
    return sorted(times)[len(times) // 2]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
