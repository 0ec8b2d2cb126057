"""Graph texts of older versions: read as what they mean, and their hash is that of what is written now."""

from __future__ import annotations

import pytest

from sleepc.ir.older import aged, renewed

LINE = "  %9: bool[B,1,T,T+10] = sleepc.window_{}(%1, %2, window=8, sinks=2, {}){}\n"


@pytest.mark.parametrize("name", ["mask", "bias"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("own=0", 'sees=""'),
        ("own=5", 'sees="window(5)"'),
        ("own=0, chunk=7", 'sees="chunk(7)"'),
        ("own=5, chunk=7", 'sees="window(5)&chunk(7)"'),
    ],
)
def test_masks_were_numbers(name: str, old: str, new: str) -> None:
    rest = ", slopes=[0.5, 0.25], dtype=f32" if name == "bias" else ""
    before, after = (LINE.format(name, f"{form}{rest}", "  # own=3, sees=") for form in (old, new))
    assert renewed(before) == after
    assert aged(after) == before
    assert renewed(after) == after
    assert aged(before) == before


def test_what_is_no_mask_stays() -> None:
    text = '  %1: f32[B] = aten.add.Tensor(%0, 1)  # own=5\n  return "own=5"=%1\n'
    assert renewed(text) == aged(text) == text
