"""Experts whose code asks which of them got tokens: while a model is captured, each of them takes all tokens.

transformers' experts are called with (hidden_states, top_k_index, top_k_weights). Most leave it to an interface how
they are run (seam.py); others loop over the experts that were hit, and gather the tokens of each. Told that all tokens
were routed to expert e, with the weights that they give it, they loop over e alone: the sum over all e is what they
compute. A token then costs as much as if it had been routed to all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.overrides import TorchFunctionMode

from sleepc.capture.replaced import forward_replaced

ARGUMENTS = ("self", "hidden_states", "top_k_index", "top_k_weights")
QUESTIONS = ["one_hot", "nonzero", "where"]
RELAYOUTS = ("index_add_", "view", "reshape", "to", "__get__")
OFFERS = "experts_interface"  # what a forward refers to that leaves it to the interface how experts are run


class _Chosen(int):
    """The number of the one expert that was hit, as code reads it out of a tensor of those."""

    def __getitem__(self, place: object) -> _Chosen:
        return self

    def item(self) -> int:
        """The number."""
        return int(self)


class _OtherwiseError(Exception):
    """The code asks otherwise than is answered."""


class _AllTokens(TorchFunctionMode):
    """What such code asks for, in this order, is answered: how many experts there are (`one_hot` of the index [N,k]),
    which were hit (`nonzero`, of [E]): one, and by which tokens (`where`, of [k,N]): by all, as their first choice.

    Raises _OtherwiseError where it asks otherwise, or would not compute the sum over all experts one by one: weights
    are taken out by place, and what is summed by `index_add_` is given back as it is, but for its shape and dtype.
    """

    def __init__(self, expert: int, index: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.expert, self.index, self.weights, self.count = expert, index, weights, 0
        self.asked: list[str] = []
        self.sums: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._check_use(getattr(func, "__name__", ""), args, kwargs)
        if func is nn.functional.one_hot:
            self.count = kwargs.get("num_classes", args[-1])
            self._asks("one_hot", args[0] is self.index and isinstance(self.count, int) and self.count > 0)
        if func in (torch.nonzero, Tensor.nonzero):
            self._asks("nonzero", not kwargs.get("as_tuple") and tuple(args[0].shape) == (self.count,))
            return [_Chosen(self.expert)]
        if func is torch.where and len(args) == 1:
            tokens, choices = self.index.shape
            self._asks("where", args[0].dim() == 2 and _same(args[0].shape, (choices, tokens)))
            every = torch.arange(tokens, device=args[0].device)
            return torch.zeros_like(every), every
        made = func(*args, **kwargs)
        if func is Tensor.index_add_ or (isinstance(made, Tensor) and self._among_sums(args, kwargs)):
            self.sums |= {id(x): x for x in (args[0], made)}
        return made

    def _asks(self, what: str, known: bool) -> None:
        self.asked.append(what)
        if not known or self.asked != QUESTIONS[: len(self.asked)]:
            raise _OtherwiseError

    def _check_use(self, name: str, args: Any, kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        if any(x is self.weights for x in given) and name not in ("__getitem__", "__get__"):
            raise _OtherwiseError
        if self._among_sums(args, kwargs) and (name not in RELAYOUTS or id(args[0]) not in self.sums):
            raise _OtherwiseError

    def _among_sums(self, args: Any, kwargs: Any) -> bool:
        return any(id(x) in self.sums for x in (*args, *kwargs.values()))


@contextmanager
def dense_experts(model: nn.Module) -> Iterator[None]:
    """Within it such experts of the model are run for all tokens."""
    with ExitStack() as replaced:
        for part in filter(_loops, model.modules()):
            replaced.enter_context(forward_replaced(part, _dense(part)))
        yield


def _loops(part: nn.Module) -> bool:
    """May it be such code? Whether it is shows when it is run: what asks otherwise is run as it is."""
    forward: Any = type(part).forward
    code = getattr(forward, "__code__", None)
    return (
        code is not None
        and tuple(inspect.signature(forward).parameters) == ARGUMENTS
        and OFFERS not in code.co_freevars
    )


def _same(shape: Any, known: tuple[Any, ...]) -> bool:
    return all(statically_known_true(n == m) for n, m in zip(shape, known, strict=True))


def _dense(part: nn.Module) -> Any:
    forward = part.forward

    def run(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """hidden_states [..,d], top_k_index, top_k_weights [N,k] -> [..,d]."""

        def of(expert: int) -> tuple[Tensor, _AllTokens]:
            weights = (top_k_weights * (top_k_index == expert)).sum(-1, keepdim=True)
            mode = _AllTokens(expert, torch.full_like(top_k_index, expert), weights)
            with mode:
                return forward(hidden_states, mode.index, weights), mode

        out = mode = None
        with suppress(Exception):  # the model's own code may raise anything where it is answered what it did not ask
            out, mode = of(0)
        if out is None or mode is None or mode.asked != QUESTIONS or id(out) not in mode.sums:
            as_it_is: Tensor = forward(hidden_states, top_k_index, top_k_weights)
            return as_it_is
        for expert in range(1, mode.count):
            try:
                out = out + of(expert)[0]
            except IndexError:
                if expert < getattr(part, "num_experts", mode.count):
                    raise
                break  # a place for tokens that go to none of the experts
        return out

    return run
