"""The example runs, and both of its forms of attention convert to the same numbers."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import sleepc
from examples.nanogpt import GPT, TOLERANCE, WINDOW, compare

ROOT = Path(__file__).resolve().parents[2]
FORMS = pytest.mark.parametrize("flash", [True, False], ids=["fused", "spelled out"])


def make(flash: bool = True, tied: bool = True) -> GPT:
    torch.manual_seed(0)
    return GPT(flash=flash, tied=tied).eval()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_example_runs_and_says_that_it_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "nanogpt.py"), run_name="__main__")
    assert "equals the original" in capsys.readouterr().out


@FORMS
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_equal_inside_the_window(flash: bool, tied: bool) -> None:
    assert compare(make(flash, tied)) <= TOLERANCE


@FORMS
def test_beyond_the_window_it_is_another_model(flash: bool) -> None:
    """Else the comparison above would prove nothing of the window."""
    assert compare(make(flash), 4 * WINDOW) > 100 * TOLERANCE


@FORMS
def test_every_attention_is_found(flash: bool) -> None:
    seen = sleepc.inspect(make(flash), {"window": WINDOW})
    assert (len(seen.blocks), seen.sites, seen.convertible) == (3, 3, 3)
    assert {block.mask for block in seen.blocks} == {"causal"}


def test_both_forms_convert_to_the_same_numbers_across_sleeps() -> None:
    tokens = torch.randint(0, 50, (2, 3 * WINDOW + 1), generator=torch.Generator().manual_seed(2)).tolist()
    fused, spelled = make(True), make(False)
    spelled.load_state_dict(fused.state_dict())
    got = [sleepc.convert(m, {"window": WINDOW}).session(2).feed(tokens, logits="all") for m in (fused, spelled)]
    np.testing.assert_allclose(got[0], got[1], atol=TOLERANCE)


def test_learned_positions_are_the_limit() -> None:
    """A window with sinks that is longer than the table of positions is refused before anything is computed."""
    with pytest.raises(sleepc.UsageError, match="position"):
        sleepc.convert(make(), {"window": 64, "sinks": 4})
