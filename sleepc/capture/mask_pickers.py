"""Parts of a model that pick keys by a mask: as long as there are no more keys than they may pick, they pick all.

They are called with (hidden_states, position_embeddings, attention_mask, cache) and give a bool mask like the one they
get. Their code may loop over queries and blocks of keys, which no graph can; while a model is captured, they give what
lets every key through. Up to how many keys that is what they do is found by asking copies of them.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sleepc.capture.replaced import forward_replaced
from sleepc.errors import Refusal

ARGUMENTS = ("self", "hidden_states", "position_embeddings", "attention_mask", "cache")
GIVES = (Tensor, "torch.Tensor", "Tensor")
FIRST, FAR = 32, 8192  # tokens that a copy is asked about


@contextmanager
def picking_all(model: nn.Module) -> Iterator[Callable[[], int | None]]:
    """Within it such parts of the model pick all keys; what it gives says afterwards up to how many they do so by
    themselves, None if none was called. That raises Refusal(UNKNOWN_OPTION) if it is not found.
    """
    called: dict[nn.Module, tuple[int, list[int]]] = {}
    with ExitStack() as replaced:
        for part in filter(_picks, model.modules()):
            replaced.enter_context(forward_replaced(part, _all_of(part, called)))
        yield lambda: min((_most(part, *sizes) for part, sizes in called.items()), default=None)


def _picks(part: nn.Module) -> bool:
    signature = inspect.signature(type(part).forward)
    return tuple(signature.parameters) == ARGUMENTS and signature.return_annotation in GIVES


def _all_of(part: nn.Module, called: dict[nn.Module, tuple[int, list[int]]]) -> Any:
    def run(hidden_states: Tensor, position_embeddings: Any, attention_mask: Tensor, cache: Any = None) -> Tensor:
        """hidden_states [B,T,d], position_embeddings [B,T,..], attention_mask bool [B,1,T,T] -> like the mask."""
        del cache
        called[part] = int(hidden_states.shape[-1]), [int(table.shape[-1]) for table in position_embeddings]
        return torch.ones_like(attention_mask, dtype=torch.bool)

    return run


@torch.no_grad()
def _most(part: nn.Module, width: int, tables: list[int]) -> int:
    """Up to how many keys `part` picks all, for features [1,T,width] and tables [1,T,..] of positions."""
    generator = torch.Generator().manual_seed(0)
    asked = copy.deepcopy(part).to_empty(device="cpu").float()
    for tensor in (*asked.parameters(), *asked.buffers()):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    length = FIRST
    while length <= FAR:
        seen = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        features = torch.randn(1, length, width, generator=generator)
        try:
            picked = asked(features, tuple(torch.ones(1, length, size) for size in tables), seen, None)
        except Exception as error:  # the model's own code, which may raise anything
            raise _not_found(part) from error
        if picked.dtype != torch.bool or picked.shape != seen.shape:
            raise _not_found(part)
        missed = (seen & ~picked)[0, 0].any(-1).nonzero()
        if len(missed):
            return int(missed[0])  # query i sees i + 1 keys
        length *= 2
    raise _not_found(part)


def _not_found(part: nn.Module) -> Refusal:
    return Refusal(
        "UNKNOWN_OPTION",
        "attention is told which keys to look at, and it is not found up to how many it looks at all",
        where=type(part).__name__,
        fix="Please report the model.",
    )
