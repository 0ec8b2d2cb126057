"""What a step takes: how many operators, how many operations of products, how many bytes. Counted from the program's
graphs on tensors without contents, so that no device and no weights are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sleepc.backends.contract import TrainingBackend
from sleepc.ir.parameters import dtypes_of
from sleepc.ir.program import ProgramGraphs
from sleepc.ops import functional
from sleepc.ops.library import NAMESPACE

aten = torch.ops.aten
META = torch.device("meta")
# They read of their first argument what they give, and no more; and write into it what they are given last.
LOOK_UPS = (aten.embedding.default, aten.index.Tensor, aten.gather.default, aten.index_select.default)
STORES = (aten.index_put_.default, aten.index_copy_.default, aten.copy_.default, aten.scatter_.src)
# No work, or work of the compiler's own.
FREE = (aten._unsafe_view.default, aten.promote_types.default, aten.empty.memory_format)


@dataclass(frozen=True)
class Op:
    """One operator: operations (two for a multiplication that is added), bytes that it reads and writes, its dtype."""

    flops: float
    bytes: int
    dtype: torch.dtype


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it operators of PyTorch, and ours, are counted. They are called on meta tensors: a number that a kernel
    asks for is 0, and a place that may be true is. Tensors in `shares` count for a share of their bytes.
    """

    def __init__(self, shares: Mapping[int, float] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self._shares = shares or {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Call an operator, and note what it takes."""
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return 0.0 if args[0].dtype.is_floating_point else 0
        if func is aten.nonzero.default:
            return torch.empty(args[0].numel(), args[0].dim(), dtype=torch.int64, device=META)
        out = func(*args, **kwargs)
        if not func.is_view and func not in FREE:
            self._note(func, args, kwargs, out)
        return out

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        if not made:
            return
        if func in LOOK_UPS:
            given = [*made, *given[1:]]
        elif func in STORES:
            given, made = given[1:], given[-1:]
        size = sum(_bytes(value) * self._shares.get(_storage(value), 1.0) for value in (*given, *made))
        self.ops.append(Op(self._flops(func, args, kwargs, out), int(size), made[0].dtype))

    def _flops(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> float:
        """Of products; those of an operator of ours are those of the functions that it stands for."""
        if func.namespace == NAMESPACE:
            with Counter() as within:
                getattr(functional, func.overloadpacket.__name__)(*args, **kwargs)
            return float(sum(op.flops for op in within.ops))
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            return float(sum(prod(v.shape) for v in tree_leaves(out) if isinstance(v, Tensor)))
        return float(formula(*args, **kwargs, out_val=out))


@dataclass(frozen=True)
class Work:
    """The operators of a token that is read alone, of a call of `call` tokens, and of a sleep, of some rows; bytes of
    weights and of their state.
    """

    decode: tuple[Op, ...]
    read: tuple[Op, ...]
    sleep: tuple[Op, ...]
    call: int
    memory: int

    @property
    def sleep_in_tokens(self) -> float:
        """How many tokens are read, of a call of `call`, for the operations of a sleep."""
        return self.call * sum(op.flops for op in self.sleep) / sum(op.flops for op in self.read)


def count(
    program: ProgramGraphs, backend: TrainingBackend, call: int, rows: int = 1, *, bits: float | None = None
) -> Work:
    """What steps of a program take as a backend runs them, matrices having so many `bits` for a weight, or the
    program's. `call` tokens are at most a window's.
    """
    params = program.params
    parameters = {k: torch.empty(params[k].shape, dtype=d, device=META) for k, d in dtypes_of(program).items()}
    steps = backend.steps_on(program, parameters, device=META)
    state = steps.new_state(rows)
    matrices = [] if bits is None else [each for each in parameters.values() if each.dim() == 2]
    shares = {_storage(each): (bits or 0) / (8 * each.element_size()) for each in matrices}

    def counted(run: Callable[[], object]) -> tuple[Op, ...]:
        with Counter(shares) as counter, torch.no_grad():
            run()
        return tuple(counter.ops)

    def reads(tokens: int) -> Callable[[], object]:
        ids = torch.zeros(rows, tokens, dtype=torch.int64, device=META)
        return lambda: steps.wake_tensors(state, ids, ids[:, 0] + tokens, "last")

    held = (*parameters.values(), *state.values())
    memory = int(sum(_bytes(value) * shares.get(_storage(value), 1.0) for value in held))
    return Work(counted(reads(1)), counted(reads(call)), counted(lambda: steps.sleep_tensors(state)), call, memory)


def _storage(value: Tensor) -> int:
    """What a tensor and its views have in common."""
    return int(value.untyped_storage()._cdata)


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
