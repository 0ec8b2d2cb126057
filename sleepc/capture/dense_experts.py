"""Experts whose code asks which of them got tokens: while a model is captured, each of them takes all tokens.

transformers' experts are called with (hidden_states, top_k_index, top_k_weights). Most leave it to an interface how
they are run (seam.py); others loop over the experts that were hit, and gather the tokens of each. Told that all tokens
were routed to expert e, with the weights that they give it, they loop over e alone: the sum over all e is what they
compute. A token then costs as much as if it had been routed to all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ARGUMENTS = ("self", "hidden_states", "top_k_index", "top_k_weights")
OFFERS = "experts_interface"  # what a forward refers to that leaves it to the interface how experts are run


class _Chosen(int):
    """The number of the one expert that was hit, as code reads it out of a tensor of those."""

    def __getitem__(self, place: object) -> _Chosen:
        return self

    def item(self) -> int:
        """The number."""
        return int(self)


class _AllTokens(TorchFunctionMode):
    """What such code asks for is answered: that one expert was hit, and by all tokens, as their first choice."""

    def __init__(self, expert: int, tokens: int) -> None:
        super().__init__()
        self.expert, self.tokens, self.count = expert, tokens, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.one_hot:
            self.count = kwargs.get("num_classes", args[-1])
        if func in (torch.nonzero, Tensor.nonzero):
            return [_Chosen(self.expert)]
        if func is torch.where and len(args) == 1:
            every = torch.arange(self.tokens, device=args[0].device)
            return torch.zeros_like(every), every
        return func(*args, **kwargs)


@contextmanager
def dense_experts(model: nn.Module) -> Iterator[None]:
    """Within it such experts of the model are run for all tokens."""
    found = [part for part in model.modules() if _loops(part)]
    for part in found:
        part.forward = _dense(part.forward)
    try:
        yield
    finally:
        for part in found:
            del part.forward


def _loops(part: nn.Module) -> bool:
    forward: Any = type(part).forward
    return tuple(inspect.signature(forward).parameters) == ARGUMENTS and OFFERS not in forward.__code__.co_freevars


def _dense(forward: Any) -> Any:
    def run(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [..,d], top_k_index, top_k_weights [N,k] -> [..,d]."""
        out: Tensor | None = None
        expert, count, tokens = 0, 1, top_k_index.shape[0]
        while expert < count:
            weights = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
            mode = _AllTokens(expert, tokens)
            try:
                with mode:
                    part = forward(hidden_states, torch.full_like(top_k_index[:, :1], expert), weights)
            except IndexError:  # a place for tokens that go to none of the experts
                break
            out = part if out is None else out + part
            expert, count = expert + 1, mode.count
        assert out is not None
        return out

    return run
