"""What a backend is: it runs programs in this process, and may train them. docs/backends.md has how to add one.

Imports no torch: what runs exports, and what says why something cannot run here, works without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

from sleepc.runtime.steps import Logits, Steps

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sleepc.ir.graph import Graph
    from sleepc.ir.program import ProgramGraphs

Kernels: TypeAlias = "Mapping[Any, Callable[..., Any]]"
"""Functions by operator (torch.ops.sleepc.delta_rule.default …), with the operator's signature."""
Tensors: TypeAlias = "dict[str, Tensor]"
"""The state of rows, or a part of it, by full name ("3.k")."""
Values: TypeAlias = "dict[str, Any]"
"""Values of a graph's ports by name: tensors and sizes."""


class Backend(ABC):
    """Runs programs at level STEP in this process. All that is asked of it is asked by its name, through the table."""

    name: ClassVar[str]
    """What --backend calls it."""
    dtype: ClassVar[str] = "float64"
    """The dtype of the programs of the conformance suite, the widest that it has."""
    devices: ClassVar[Mapping[str, float]] = {"cpu": 1e-9}
    """What it runs on (cpu, cuda), with the largest error of logits and states there in the conformance suite, as a
    share of their scale."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here, with what to install; None if it can. Imports nothing large, and never raises."""

    @abstractmethod
    def about(self) -> str:
        """The versions of what it runs on, for people."""

    @abstractmethod
    def check_device(self, device: str) -> None:
        """Raises UsageError for what names no device, and for one that is not here."""

    @abstractmethod
    def steps(
        self, program: ProgramGraphs, *, device: str = "cpu", dtype: torch.dtype | None = None, train: bool = False
    ) -> Steps:
        """Steps of a program, computed in `dtype` (the program's own by default). With `train`, which is asked of a
        TrainingBackend only, they are TrainingSteps. Raises UsageError if the device is not there.
        """


class TrainingBackend(Backend):
    """A backend whose steps gradients go through, on parameters that are given and change."""

    trains: ClassVar[bool] = True
    """Is it to be trained on? One that inherits this class and is not says False."""

    @abstractmethod
    def kernels(self, *, train: bool) -> Kernels:
        """The operators that it has functions for; all others are PyTorch's own. With `train` they are differentiable
        and write nothing in place.
        """

    @abstractmethod
    def steps_on(
        self,
        program: ProgramGraphs,
        parameters: Mapping[str, Tensor],
        *,
        device: str | torch.device = "cpu",
        train: bool = False,
        low: torch.dtype | None = None,
    ) -> TrainingSteps:
        """Steps on `parameters` by key, which are on `device` in the dtypes of their ports. With `low`, linear maps
        whose weights are bound in that dtype, and those of the head, are computed in it (docs/decisions/0007).
        """

    @abstractmethod
    def runner(
        self, graph: Graph, *, replaced: Kernels | None = None, device: str | torch.device = "cpu"
    ) -> Callable[[Mapping[str, Any]], Values]:
        """One graph of any level as a differentiable function of its ports, with other functions for some operators."""


class TrainingSteps(Steps, Protocol):
    """Steps in tensors, and their parts: differentiable in parameters and state. B rows, T tokens, width d."""

    program: ProgramGraphs
    device: torch.device
    parameters: dict[str, Tensor]

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Use these parameters from now on."""

    def new_state(self, batch: int) -> Tensors:
        """The state of `batch` rows that have read nothing."""

    def wake_tensors(
        self, state: Tensors, tokens: Tensor, lengths: Tensor, logits: Logits
    ) -> tuple[Tensor | None, Tensors]:
        """tokens [B,T] packed to the left, lengths [B] -> (logits [B,V], [B,T,V] or None, state')."""

    def hidden(self, state: Tensors, tokens: Tensor, lengths: Tensor) -> tuple[Values, Tensors]:
        """tokens [B,T], lengths [B] -> (what the head reads, state')."""

    def begin(self, state: Tensors, tokens: Tensor, lengths: Tensor) -> tuple[Values, Tensors]:
        """tokens [B,T], lengths [B] -> (what every block reads, with h [B,T,d], state' but for the blocks')."""

    def wake_block(self, i: int, values: Mapping[str, Any], state: Tensors) -> tuple[Tensor, Tensors]:
        """One block on `values["h"]` [B,T,d] -> (h' [B,T,d], what it changes of the state)."""

    def logits(self, values: Values, lengths: Tensor, logits: Logits) -> Tensor | None:
        """The head on what `hidden` gave -> [B,V], [B,T,V] or None."""

    def logits_at(self, values: Values, places: Tensor) -> Tensor:
        """The head on what `hidden` gave, at the places of bool [B,T] alone -> [n,V]."""

    def sleep_tensors(self, state: Tensors, passes: int | None = None) -> Tensors:
        """Every row sleeps, with so many passes instead of the program's own. Raises UsageError for passes of a program
        whose sleeps run no block again.
        """

    def begin_sleep(self, state: Tensors) -> tuple[Values, Tensors]:
        """What every block's sleep reads, and the state with its counters as they are after the sleep."""

    def sleep_block(self, i: int, clock: Mapping[str, Any], state: Tensors) -> Tensors:
        """One block consolidates and evicts: what it changes of the state. Recurrent passes are not in it."""
