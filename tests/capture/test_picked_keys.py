"""Attention whose keys an indexer picks is converted where it picks all, and a larger window is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sleepc
from sleepc.capture.call import TokensToLogits
from sleepc.capture.picked_keys import most_picked
from sleepc.capture.seam import open_seam
from sleepc.converting import fitting_recipe
from sleepc.errors import Refusal
from tests.families import family, make_module

PICKED = 17


def test_how_many_are_picked_is_found() -> None:
    found = family("deepseek-v32").canonical
    assert found.picked == PICKED
    assert family("llama").canonical.picked is None
    assert not [port for port in found.classes["block.0"].wake.ports() if "index" in port]
    assert not [key for key in found.params if "indexer" in key]
    fitting = fitting_recipe(found)
    assert fitting.window + fitting.sinks == PICKED


def test_a_model_that_cannot_be_asked_is_refused() -> None:
    model = make_module("llama")
    with open_seam(model), pytest.raises(Refusal, match="not found up to how many") as caught:
        most_picked(TokensToLogits(model), torch.device("cpu"), ["indices"])
    assert caught.value.code == "UNKNOWN_OPTION"


@pytest.mark.parametrize("options", [{"window": 16}, {"window": 12, "keep": {"slots": 4, "budgets": "equal"}}])
def test_more_than_are_picked_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(sleepc.UsageError, match=r"picks up to 17 keys .* is converted where it picks all") as caught:
        family("deepseek-v32").convert(**options)
    assert caught.value.fix == f"Choose window {15 if options['window'] == 16 else 11} or less."


class _Short(nn.Module):
    """Picks 17 keys, and takes no more than 64 tokens."""

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens and positions [B,T] -> the keys that are picked."""
        if tokens.shape[1] > 64:
            raise ValueError("too many tokens")
        return (positions + tokens).topk(PICKED).indices


@pytest.mark.parametrize("how", ["indices", "numbers"])
def test_a_model_that_takes_few_tokens_is_asked_at_its_last_position(how: str) -> None:
    assert most_picked(_Short(), torch.device("cpu"), [how], 64) == PICKED
    for positions in (None, 65):
        with pytest.raises(Refusal, match="not found up to how many"):
            most_picked(_Short(), torch.device("cpu"), [how], positions)
