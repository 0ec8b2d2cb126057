"""tests/exports.py: what equals a model before it is not exported again, and keeps its own weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import export

from sleepc.capture.call import TokensToLogits
from sleepc.capture.seam import open_seam
from sleepc.capturing import capture
from sleepc.runtime.session import Session
from sleepc.verify.original import Original
from tests.conformance.backends import load
from tests.exports import once, parts_of
from tests.families import Family, make_module


def parts(module: nn.Module) -> object:
    with open_seam(module):
        return repr(parts_of(TokensToLogits(module.eval())))


def test_each_has_its_own_weights_and_buffers() -> None:
    first, second = make_module("gemma3"), make_module("gemma3")
    with torch.no_grad():
        for tensor in (*second.parameters(), *second.buffers()):
            tensor.mul_(1.1)
    assert parts(first) == parts(second)
    tokens = list(range(3, 10))
    logits = []
    for module in (first, second):
        program, _ = Family(module, capture(module)).convert()
        logits.append(torch.as_tensor(Session(load(program)).feed([tokens]))[0])
        assert torch.allclose(logits[-1], Original(module)(torch.tensor([tokens]))[0, -1], rtol=0, atol=2e-5)
    assert not torch.allclose(logits[0], logits[1], rtol=0, atol=1e-3)


def _other_norm(module: Any) -> None:
    module.model.norm.variance_epsilon = 0.5


def _other_forward(module: Any) -> None:
    module.model.forward = lambda *args, **kwargs: None


def _other_config(module: Any) -> None:
    module.config.rope_parameters["rope_theta"] = 7.0


def _tied(module: Any) -> None:
    module.lm_head.weight = module.model.embed_tokens.weight


def _hooked(module: Any) -> None:
    module.model.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("change", [_other_norm, _other_forward, _other_config, _tied, _hooked, nn.Module.half])
def test_what_is_not_equal_is_told_apart(change: Any) -> None:
    before, after = make_module("llama"), make_module("llama")
    change(after)
    assert parts(before) != parts(after)


def test_capturing_asks_for_an_export_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it puts into a model for the time being is the same for equal models."""
    made: list[nn.Module] = []

    def counted(model: nn.Module, *args: Any, **options: Any) -> Any:
        made.append(model)
        return export(model, *args, **options)

    monkeypatch.setattr("sleepc.capture.export.export", once(counted))
    for _ in range(2):
        capture(make_module("llama"))
    assert len(made) == 1


def test_code_that_is_not_transformers_own_is_exported_each_time() -> None:
    assert parts_of(TokensToLogits(make_module("nanogpt"))) is None
