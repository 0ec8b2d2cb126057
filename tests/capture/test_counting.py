"""Where a model's own counting of positions starts, and how many positions its tables have rows for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sleepc.capture.call import TokensToLogits
from sleepc.capture.counting import counting_start
from sleepc.capture.export import capture_module
from sleepc.errors import Refusal
from sleepc.ir.compare import max_error
from sleepc.ir.interp import Runner
from sleepc.passes.analysis.dependence import learned_positions

VOCAB, WIDTH, ROWS, PADDING = 17, 8, 12, 3


class Counts(nn.Module):
    """Looks up positions after `change`; those that it is not given it makes by `own`, from the tokens."""

    def __init__(self, own: Callable[[Tensor], Tensor], change: Callable[[Tensor], Tensor] = lambda p: p) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places, self.out = (
            nn.Embedding(VOCAB, WIDTH),
            nn.Embedding(ROWS, WIDTH),
            nn.Linear(WIDTH, VOCAB),
        )
        self.own, self.change = own, change

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        x = self.words(input_ids)
        if position_ids is None:
            position_ids = self.own(input_ids)
        logits: Tensor = self.out(x + self.places(self.change(position_ids).to(x.device)))
        return logits


def from_zero(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device)[None]


def behind_padding(tokens: Tensor) -> Tensor:
    real = tokens.ne(PADDING).int()
    return (real.cumsum(1).type_as(real) * real).long() + PADDING


def by_twos(tokens: Tensor) -> Tensor:
    return 2 * from_zero(tokens)


def by_words(tokens: Tensor) -> Tensor:
    return (tokens % 2).cumsum(1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("own", "start"), [(from_zero, 0), (behind_padding, PADDING + 1)])
def test_the_start_is_found(own: Callable[[Tensor], Tensor], start: int, device: str) -> None:
    assert counting_start(TokensToLogits(Counts(own).to(device))) == start


@pytest.mark.parametrize("own", [by_twos, by_words])
def test_other_counting_is_refused(own: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(Refusal) as caught:
        capture_module(Counts(own))
    assert caught.value.code == "POSITIONS"


def test_the_capture_counts_as_the_model_does() -> None:
    model = Counts(behind_padding)
    program = capture_module(model)
    values = {name: param.materialise() for name, param in program.params.items()}
    for shape in ((2, 4), (1, 7)):
        tokens = torch.randint(PADDING + 1, VOCAB, shape)
        positions = torch.arange(shape[1]).expand(shape)
        found = Runner(program.embed)({**values, "tokens": tokens, "positions": positions})["logits"]
        with torch.no_grad():
            assert max_error(found, model(tokens)) == 0


@pytest.mark.parametrize(
    ("own", "change", "rows"),
    [
        (from_zero, lambda p: p, ROWS),
        (from_zero, lambda p: p + 2, ROWS - 2),
        (behind_padding, lambda p: p, ROWS - PADDING - 1),
        (from_zero, lambda p: p * 2, ROWS // 2),
        (from_zero, lambda p: p.clamp(max=ROWS - 1), None),
    ],
)
def test_rows_are_counted_from_the_first_position(
    own: Callable[[Tensor], Tensor], change: Callable[[Tensor], Tensor], rows: int | None
) -> None:
    assert learned_positions(capture_module(Counts(own, change)).embed) == rows


def test_opt_has_the_positions_that_its_configuration_says() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        ffn_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=8,
        max_position_embeddings=20,
    )
    assert learned_positions(capture_module(OPTForCausalLM(config)).embed) == 20
