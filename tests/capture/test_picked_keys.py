"""Attention whose keys an indexer picks is converted where it picks all, and a larger window is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sleepc
from sleepc.capture.call import TokensToLogits
from sleepc.capture.mask_pickers import picking_all
from sleepc.capture.picked_keys import most_picked
from sleepc.capture.seam import open_seam
from sleepc.capturing import capture
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


class _Picker(nn.Module):
    """Picks the best three pairs of neighbours, query by query, and what is left over."""

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, ...], attention_mask: Tensor, cache: object
    ) -> Tensor:
        """A mask like the one it gets."""
        picked = torch.zeros_like(attention_mask)
        for row in range(attention_mask.shape[0]):
            for query in range(attention_mask.shape[2]):
                seen = attention_mask[row, 0, query].nonzero().flatten()
                pairs = seen[: len(seen) // 2 * 2].view(-1, 2)
                best = hidden_states[row, pairs[:, 0], 0].topk(min(3, len(pairs))).indices
                picked[row, 0, query, torch.cat([pairs[best].flatten(), seen[len(pairs) * 2 :]])] = True
        return picked


class _Picking(nn.Module):
    """One attention layer whose keys are picked."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.mix, self.picker = nn.Embedding(11, 8), nn.Linear(8, 8), _Picker()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B,T] -> logits [B,T,11]."""
        h = self.words(tokens)
        seen = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril().expand(tokens.shape[0], 1, -1, -1)
        seen = seen & self.picker(h, (h, h), seen, None)
        q, k, v = self.mix(h)[:, None], h[:, None], h[:, None]
        return nn.functional.linear(
            h + nn.functional.scaled_dot_product_attention(q, k, v, seen)[:, 0], self.words.weight
        )


def test_a_part_that_picks_by_a_mask_is_asked_how_many() -> None:
    model = _Picking()
    found = capture(model)
    assert found.picked == 7  # three pairs and one
    assert "forward" not in vars(model.picker)
    with torch.no_grad():
        tokens = torch.arange(7)[None]
        wanted = model(tokens)
    torch.testing.assert_close(
        sleepc.convert(model, {"window": 7, "sinks": 0}).session().feed(tokens[0].tolist()), wanted[:, -1].numpy()
    )


def test_a_part_that_does_not_say_how_many_is_refused() -> None:
    class Whole(_Picker):
        def forward(
            self, hidden_states: Tensor, position_embeddings: tuple[Tensor, ...], attention_mask: Tensor, cache: object
        ) -> Tensor:
            """All of them."""
            return hidden_states

    model = Whole()
    with picking_all(model) as most:
        mask = torch.ones(1, 1, 2, 2, dtype=torch.bool)
        assert model(torch.zeros(1, 2, 8), (), mask, None).all()
    with pytest.raises(Refusal, match="not found up to how many"):
        most()
