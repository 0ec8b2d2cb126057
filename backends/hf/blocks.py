"""A checkpoint's blocks one by one: each is given what the program's reads, and has to make of it what that makes.

So an error is one block's, and how large it may be does not depend on how many blocks there are, nor on what the model
makes of small differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sleepc.backends.hf.calls import COMPARED, logits_in
from sleepc.backends.report import Figure
from sleepc.backends.table import find_trainer
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs

if TYPE_CHECKING:
    from collections.abc import Iterator

HALF_STEPS = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-24}  # of a number, by its dtype
LAYERS = "model.layers."


def parts_of(model: Any, program: ProgramGraphs) -> list[nn.Module] | None:
    """The layers of a model and the norm behind them, as most classes have them; None if it has others, or if they are
    not the program's blocks.
    """
    inner = getattr(model, "model", None)
    layers, norm = getattr(inner, "layers", None), getattr(inner, "norm", None)
    if not isinstance(layers, nn.ModuleList) or not isinstance(norm, nn.Module):
        return None
    numbers = [
        {key.split(".")[2] for key in block.params.values() if key.startswith(LAYERS)} for block in program.layout
    ]
    return [*layers, norm] if numbers == [{str(i)} for i in range(len(layers))] else None


@torch.no_grad()
def compare_blocks(
    program: ProgramGraphs,
    model: Any,
    parts: Sequence[nn.Module],
    tokens: Sequence[int],
    bound: float,
    calls: Mapping[str, Sequence[int]],
) -> list[Figure]:
    """A figure of the blocks and one of the logits for each of `calls`, which say how many tokens each call reads."""
    wanted, logits = hidden_states(program, tokens)
    rows = []
    for name, counts in calls.items():
        with _given(parts, wanted) as worst:
            found = logits_in(model, tokens, counts).double()
        share, block = max(worst)
        which = "the embedding" if block < 0 else f"block {block}"
        detail = f"{which} the worst, of {len(parts) - 1} blocks, {len(tokens)} tokens"
        rows.append(Figure("transformers", f"blocks, {name}", share, bound, detail))
        error = float((found - logits[-len(found) :]).abs().max() / logits.abs().max())
        rows.append(Figure("transformers", f"logits, {name}", error, bound, f"{len(tokens)} tokens"))
    return rows


def hidden_states(program: ProgramGraphs, tokens: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """What every block reads and the head [T,d] each, across sleeps, and logits [n,V] of the last tokens."""
    steps = find_trainer().steps_on(program, materialise(program, "cpu"))
    state, left = steps.new_state(1), torch.tensor([list(tokens)])
    found: list[list[Tensor]] = [[] for _ in range(len(program.layout) + 1)]
    logits: list[Tensor] = []
    while left.shape[1]:
        part, left = left[:, : program.window], left[:, program.window :]
        lengths = torch.tensor([part.shape[1]])
        values, new = steps.begin(state, part, lengths)
        for i in range(len(program.layout)):
            found[i].append(values["h"][0])
            values["h"], changed = steps.wake_block(i, values, state)
            new.update(changed)
        found[-1].append(values["h"][0])
        places = torch.arange(part.shape[1])[None] >= part.shape[1] + left.shape[1] - COMPARED
        if places.any():
            logits.append(steps.logits_at(values, places).double())
        state = steps.sleep_tensors(new) if left.shape[1] else new
    return [torch.cat(each) for each in found], torch.cat(logits)


@contextmanager
def _given(parts: Sequence[nn.Module], wanted: Sequence[Tensor]) -> Iterator[list[tuple[float, int]]]:
    """Within it every part is called with what the program's reads, whatever came before it. Yields the errors of that,
    filled call by call: (share of what the block before added, beyond what rounding its sum may do, and its number).
    """
    worst: list[tuple[float, int]] = []
    read = [0] * len(parts)  # tokens, by part

    def hook(i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        came = args[0] if args else kwargs["hidden_states"]
        start, read[i] = read[i], read[i] + came.shape[1]
        own = wanted[i][start : read[i]]
        added = own.double() - wanted[i - 1][start : read[i]].double() if i else own.double()
        step = HALF_STEPS.get(came.dtype, 0.0)
        error = (came[0].double() - own.double()).abs() - 2 * step * own.double().abs()
        worst.append((float((error.max() / added.abs().max()).clamp(min=0)), i - 1))
        given = own[None].to(came.dtype)
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})

    with ExitStack() as stack:
        for i, part in enumerate(parts):
            handle = part.register_forward_pre_hook(
                lambda _, args, kwargs, i=i: hook(i, args, kwargs), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield worst
