"""What is run before an export leaves nothing in the model, and nothing that it cannot run hides a recurrence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from sleepc.capture.export import capture_module
from sleepc.capture.recurrence import refuse_recurrence
from sleepc.errors import Refusal

VOCAB, WIDTH = 11, 8


class Remembers(nn.Module):
    """Assigns what it computes: to attributes, a buffer, a list, a dict, and an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(WIDTH))
        self.ramp: Any = torch.arange(WIDTH).float()
        self.seen: list[Any] = []
        self.cache = {"steps": SimpleNamespace(last=None)}

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        self.ramp, self.scale = self.ramp + x[0, 0], self.scale * x[0, 0]
        self.seen.append(x)
        self.cache["steps"].last = x
        self.cache["more"] = x
        logits: Tensor = self.out(x * self.scale)
        return logits


def test_nothing_stays_behind() -> None:
    model = Remembers()
    ramp, scale = model.ramp, model.scale
    assert refuse_recurrence(Call(model), torch.device("cpu")) == 0
    assert model.ramp is ramp
    assert model.scale is scale
    assert model.seen == []
    assert list(model.cache) == ["steps"]
    assert model.cache["steps"].last is None
    assert not any(isinstance(t, FakeTensor) for t in (*model.parameters(), *model.buffers()))


class Call(nn.Module):
    """A model as a function of tokens and positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, positions: Tensor) -> Any:
        return self.model(tokens)


class Asks(nn.Module):
    """A convolution over tokens behind a question that fake tensors cannot answer."""

    def __init__(self, question: Any) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 3, padding=2)
        self.question = question

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.question(tokens)
        x = x + self.mix(x.transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2)
        logits: Tensor = self.out(x)
        return logits


def _value(tokens: Tensor) -> Any:
    return tokens.max().item()


def _fails_on_short_calls(tokens: Tensor) -> Any:
    if isinstance(tokens.shape[1], int) and tokens.shape[1] == 13:
        raise ValueError("not thirteen tokens")
    return 0


@pytest.mark.parametrize("question", [_value, _fails_on_short_calls])
def test_a_recurrence_is_seen_behind_what_cannot_be_run(question: Any) -> None:
    with pytest.raises(Refusal) as caught:
        capture_module(Asks(question))
    assert caught.value.code == "RECURRENT"
