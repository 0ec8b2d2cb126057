"""One block alone: read window by window on given inputs, with its own sleeps, and brought nearer to the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sleepc.backends.table import find_trainer
from sleepc.backends.training_steps import Tensors, TrainingSteps
from sleepc.ir.graph import Graph
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.states import StateSpec
from sleepc.memory.parameters import OF_LAYERS, parameter_in
from sleepc.passes.stateful.share_rings import with_own_ring
from sleepc.train.losses import relative_error_sum

FAST, SLOW, DECAY, CLIP = 1e-3, 1e-4, 0.01, 1.0  # conversion.md, section 2 D
CHECKS = 20  # how often the steps of a layer look at the text that was held apart
PATIENCE = 5  # checks without a better one, after which they stop


@dataclass(frozen=True)
class LocalWindow:
    """Tokens [start, end) of some rows: what every block reads there in addition to h, and what their sleep after it
    reads (None after the last window).
    """

    start: int
    end: int
    given: dict[str, Any]
    clock: dict[str, Any] | None


@dataclass(frozen=True)
class LocalExample:
    """Pieces that a block is to read: its input h and the teacher's output [B,T,d], and which tokens are real [B,T]."""

    windows: list[LocalWindow]
    h: Tensor
    target: Tensor
    real: Tensor


@torch.no_grad()
def windows_of(steps: TrainingSteps, tokens: Tensor, lengths: Tensor) -> list[LocalWindow]:
    """tokens [B,T] padded at the right, lengths [B] -> the windows of rows that start empty, for all blocks alike.

    Rows sleep together at the end of each window: a row that has ended before has nothing more to read.
    """
    state = first(steps.program.states, len(tokens), steps.device)
    found, total = [], tokens.shape[1]
    for start in range(0, total, steps.window):
        end = min(start + steps.window, total)
        given, state = steps.begin(state, tokens[:, start:end], (lengths - start).clamp(0, end - start))
        given.pop("h")
        clock = None
        if end < total:
            clock, state = steps.begin_sleep(state)
        found.append(LocalWindow(start, end, given, clock))
    return found


def layer_output(steps: TrainingSteps, i: int, windows: Sequence[LocalWindow], h: Tensor) -> Tensor:
    """What block i makes of inputs h [B,T,d], with its windows, its memory and its sleeps: [B,T,d].

    A recurrent sleep's further passes run through other blocks too, and are left out: it writes, and evicts.
    """
    specs = [spec for spec in steps.program.all_states() if spec.block == i]
    state, out = first(specs, len(h), steps.device), []
    for window in windows:
        y, changed = steps.wake_block(i, {**window.given, "h": h[:, window.start : window.end]}, state)
        out.append(y)
        state = {**state, **changed}
        if window.clock is not None:
            state = {**state, **steps.sleep_block(i, window.clock, state)}
    return torch.cat(out, 1)


def layer_loss(
    steps: TrainingSteps, i: int, windows: Sequence[LocalWindow], h: Tensor, target: Tensor, real: Tensor
) -> Tensor:
    """The squared error of block i's output over the size of what the teacher's block adds, mean over real tokens.

    steps: loaded with train=True for gradients; windows: of `windows_of`; h, target [B,T,d]: the teacher's inputs and
    outputs of the block; real bool [B,T] -> scalar; 1 for a block that passes its input on.
    """
    found = layer_output(steps, i, windows, h)
    return relative_error_sum(found, target, h, real) / real.sum().clamp(min=1)


@torch.no_grad()
def layer_error(steps: TrainingSteps, i: int, examples: Iterable[LocalExample]) -> float:
    """The same over all examples, every token counting alike."""
    total, count = 0.0, 0
    for e in examples:
        tokens = int(e.real.sum())
        total += float(layer_loss(steps, i, e.windows, e.h, e.target, e.real)) * tokens
        count += tokens
    return total / max(count, 1)


@dataclass(frozen=True)
class Split:
    """Examples to learn from, and others to see by what it is worth."""

    learn: Sequence[LocalExample]
    apart: Sequence[LocalExample]


def local_steps(
    steps: TrainingSteps,
    i: int,
    keys: Sequence[str],
    given: Split,
    count: int,
    tell: Callable[[int, float], None] = lambda step, error: None,
) -> tuple[dict[str, Tensor], float]:
    """`count` AdamW steps on the parameters `keys` of block i, an example each: the values with the least error on
    those apart, those of the start among them, and that error. `tell` hears the step and the error now and then.
    """
    leaves = {key: steps.parameters[key].detach().clone().requires_grad_() for key in keys}
    steps.bind({**steps.parameters, **leaves})
    optimiser = torch.optim.AdamW(_groups(leaves))
    least, best, waited = layer_error(steps, i, given.apart), _copy(leaves), 0
    every = max(count // CHECKS, 1)
    for n in range(1, count + 1):
        e = given.learn[(n - 1) % len(given.learn)]
        optimiser.zero_grad()
        torch.autograd.backward(layer_loss(steps, i, e.windows, e.h, e.target, e.real))
        torch.nn.utils.clip_grad_norm_(leaves.values(), CLIP)
        optimiser.step()
        if n % every and n < count:
            continue
        error = layer_error(steps, i, given.apart)
        tell(n, error)
        waited += 1
        if error < least:
            least, best, waited = error, _copy(leaves), 0
        if waited == PATIENCE:
            break
    return best, least


def _groups(leaves: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The parameters with their learning rates: gates and maps move fast, a random projection of everything slowly;
    vectors (biases, decays) are not pulled to zero.
    """
    return [
        {
            "params": [leaf],
            "lr": SLOW if _is_slow(key) else FAST,
            "weight_decay": DECAY if leaf.dim() > 1 else 0.0,
        }
        for key, leaf in leaves.items()
    ]


def _is_slow(key: str) -> bool:
    known = OF_LAYERS.get(parameter_in(key) or "")
    return known is not None and known.slow


def _copy(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: leaf.detach().clone() for key, leaf in leaves.items()}


def first(specs: Iterable[StateSpec], batch: int, device: torch.device) -> Tensors:
    """State tensors of `batch` rows that have read nothing."""
    return {s.name: s.first(batch, device) for s in specs}


def block_steps(program: ProgramGraphs, i: int, device: str = "cpu") -> TrainingSteps:
    """Differentiable steps of block i alone, as their block 0: nothing of the other layers' weights is read."""
    part = only_block(program, i)
    return find_trainer().steps_on(part, materialise(part, device), device=device, train=True)


def embed_steps(program: ProgramGraphs, device: str = "cpu") -> TrainingSteps:
    """Steps of no block: what `windows_of` needs, whatever a program's blocks are."""
    part = only_embed(program)
    return find_trainer().steps_on(part, materialise(part, device), device=device, train=True)


def only_block(program: ProgramGraphs, i: int) -> ProgramGraphs:
    """A program of block i, without embed and head."""
    block = replace(program.layout[i], ring=None)
    classes = {block.cls: with_own_ring(program, i)}
    return replace(program, embed=_nothing(), head=_nothing(), classes=classes, layout=[block], loop=None)


def only_embed(program: ProgramGraphs) -> ProgramGraphs:
    """A program of embed alone."""
    return replace(program, head=_nothing(), classes={}, layout=[], loop=None)


def _nothing() -> Graph:
    graph = Graph("nothing")
    graph.set_returns({})
    return graph
