"""Weights in large pages: what is allocated within, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sleepc.backends.onnx import pages
from sleepc.errors import SleepcError

MIB = 1 << 20
SIZE = 40 * MIB  # memory of its own, whatever was free
here = pytest.mark.skipif(not pages.large_pages_here(), reason="this kernel gives no large pages where they are asked")


def large() -> int:
    """Bytes of this process in large pages."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) << 10
    raise AssertionError


@here
def test_what_is_allocated_within_is_in_large_pages() -> None:
    before = np.ones(SIZE, np.uint8)
    at = large()
    with pages.in_large_pages():
        weights = np.ones(SIZE, np.uint8)
    assert SIZE - 4 * MIB <= large() - at <= SIZE + 4 * MIB
    assert weights.all()
    assert before.all()


@here
def test_a_kernel_that_gives_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "COLLAPSE", 12345)
    with pytest.raises(SleepcError, match="no memory in large pages: Invalid argument"), pages.in_large_pages():
        kept = np.ones(SIZE, np.uint8)
    assert kept.all()


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([], [(10, 20)]),
        ([(0, 10), (20, 30)], [(10, 20)]),
        ([(12, 14)], [(10, 12), (14, 20)]),
        ([(5, 12), (15, 16), (18, 25)], [(12, 15), (16, 18)]),
        ([(10, 20)], []),
        ([(0, 99)], []),
    ],
)
def test_what_is_left_of_a_range(others: list[tuple[int, int]], left: list[tuple[int, int]]) -> None:
    assert pages._without((10, 20), others) == left
