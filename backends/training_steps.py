"""What training asks of a backend: the parts of wake and sleep, on tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.steps import Logits, Steps

Tensors: TypeAlias = dict[str, Tensor]
"""The state of rows, or a part of it, by full name ("3.k")."""
Values: TypeAlias = dict[str, Any]
"""Values of a graph's ports by name: tensors and sizes."""


class TrainingSteps(Steps, Protocol):
    """Steps in tensors, and their parts: differentiable in parameters and state. B rows, T tokens, width d."""

    program: ProgramGraphs
    device: torch.device
    parameters: dict[str, Tensor]

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Use these parameters from now on."""

    def bind_block(self, i: int, parameters: Mapping[str, Tensor]) -> None:
        """Use these parameters in one block from now on: all that it has."""

    def new_state(self, batch: int) -> Tensors:
        """The state of `batch` rows that have read nothing."""

    def wake_tensors(
        self, state: Tensors, tokens: Tensor, lengths: Tensor, logits: Logits
    ) -> tuple[Tensor | None, Tensors]:
        """tokens [B,T] packed to the left, lengths [B] -> (logits [B,V], [B,T,V] or None, state')."""

    def wake_blocks(self, state: Tensors, tokens: Tensor, lengths: Tensor) -> tuple[Values, Tensors]:
        """tokens [B,T], lengths [B] -> (what the head reads, state')."""

    def begin(self, state: Tensors, tokens: Tensor, lengths: Tensor) -> tuple[Values, Tensors]:
        """tokens [B,T], lengths [B] -> (what every block reads, with h [B,T,d], state' but for the blocks')."""

    def wake_block(self, i: int, values: Mapping[str, Any], state: Tensors) -> tuple[Tensor, Tensors]:
        """One block on `values["h"]` [B,T,d] -> (h' [B,T,d], what it changes of the state)."""

    def note_block(self, i: int, values: Mapping[str, Any], state: Tensors) -> Tensors:
        """What one block on `values["h"]` [B,T,d] changes of the state; h' is not computed."""

    def read_block(self, i: int, values: Mapping[str, Any], state: Tensors) -> Tensor:
        """One block on `values["h"]` [B,T,d] -> h' [B,T,d]; what it changes of the state is not computed."""

    def logits(self, values: Values, lengths: Tensor, logits: Logits) -> Tensor | None:
        """The head on what `wake_blocks` gave -> [B,V], [B,T,V] or None."""

    def logits_at(self, values: Values, places: Tensor) -> Tensor:
        """The head on what `wake_blocks` gave, at the places of bool [B,T] alone -> [n,V]."""

    def sleep_tensors(self, state: Tensors, passes: int | None = None) -> Tensors:
        """Every row sleeps, with so many passes instead of the program's own. Raises UsageError for passes of a program
        whose sleeps run no block again.
        """

    def sleep_first(self, state: Tensors) -> Tensors:
        """Every row sleeps in one pass: no block runs again."""

    def begin_refine(self, state: Tensors) -> Values:
        """What blocks read in a pass over the window that `state` holds, with its hidden states h [B,L,d]; of programs
        whose sleeps run blocks again.
        """

    def refine_block(self, i: int, values: Mapping[str, Any], state: Tensors) -> tuple[Tensor, Tensors]:
        """One pass of one block on `values["h"]` and the memories of `state` -> (h', what it writes)."""

    def moved(self, old: Tensors, new: Tensors) -> Tensor:
        """How much a pass that wrote `new` has changed the memories of each row [B], as a share."""

    def begin_sleep(self, state: Tensors) -> tuple[Values, Tensors]:
        """What every block's sleep reads, and the state with its counters as they are after the sleep."""

    def learned(self, state: Tensors) -> Tensors:
        """What steps of gradient descent make of the state that a window leaves; nothing if sleeps take none."""

    def sleep_block(self, i: int, clock: Mapping[str, Any], state: Tensors) -> Tensors:
        """One block consolidates and evicts: what it changes of the state. Recurrent passes are not in it."""
