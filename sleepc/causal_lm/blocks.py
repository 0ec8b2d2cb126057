"""Blocks of such a model as modules that are called: what stands around a module (FSDP) stands around a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from sleepc.backends.training_steps import Tensors
from sleepc.causal_lm.modules import Slot
from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs


def block_modules(root: nn.Module, program: ProgramGraphs) -> list[nn.Module]:
    """For each block, the innermost module that holds its parameters in the original. What a conversion added is in
    `blocks`. Raises UsageError if blocks share one.
    """
    added, found = "blocks.", []
    for block in program.layout:
        keys = [key.split(".") for key in block.params.values() if key in program.params and not key.startswith(added)]
        common = []
        for parts in zip(*(key[:-1] for key in keys), strict=False):
            if len(set(parts)) > 1:
                break
            common.append(parts[0])
        found.append(root.get_submodule(".".join(common)))
    if len(set(found)) < len(found) or root in found:
        what = "blocks of this model have no modules of their own"
        raise UsageError(what, where="block_modules", fix="Shard the whole model: fully_shard(model).")
    return found


def is_called(module: nn.Module) -> bool:
    """Does something stand around it that wants to know of calls?"""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def call_through(steps: Any, modules: Sequence[nn.Module], slots: Mapping[str, Slot]) -> None:
    """Let `steps` compute a block within the call of its module, with the parameters that are there then.

    Raises UsageError for a program whose sleeps run blocks again, which is done without their modules, or learn, or
    make soft tokens.
    """
    program: ProgramGraphs = steps.program
    if program.loop is not None or program.learn is not None or program.encode is not None:
        what = "sleeps of this program run blocks again, which cannot be sharded one by one"
        raise UsageError(what, where="fully_shard", fix="Shard the whole model: fully_shard(model).")

    def within(call: Callable[..., Any], i: int, values: Mapping[str, Any], state: Tensors) -> Any:
        block = program.layout[i]
        own = {name: state[name] for name in program.state_names(i).values()}

        def inside(values: Mapping[str, Any], own: Tensors) -> Any:
            steps.bind_block(i, {key: slots[key].value() for key in block.params.values()})
            return call(i, values, {**state, **own})

        return modules[i](inside, dict(values), own)

    wake, sleep = steps.wake_block, steps.sleep_block
    steps.wake_block = lambda i, values, state: within(wake, i, values, state)
    steps.sleep_block = lambda i, clock, state: within(sleep, i, clock, state)
