"""From a model to a program at level CANONICAL, in the dtype that a recipe asks for."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from sleepc.capture.chosen_rows import chosen_rows
from sleepc.capture.dense_experts import dense_experts
from sleepc.capture.export import capture_module
from sleepc.capture.kernel_seam import open_kernel_seam
from sleepc.capture.mask_pickers import picking_all
from sleepc.capture.own_run import require_run
from sleepc.capture.plain_convolutions import plain_convolutions
from sleepc.capture.seam import open_seam
from sleepc.errors import SleepcError, UsageError
from sleepc.hf.load import load_module, max_positions, module_on_meta
from sleepc.hf.resolve import Checkpoint
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import HeldTensor
from sleepc.passes.pipeline import front_stages, functional
from sleepc.passes.runner import run_stages
from sleepc.progress import Progress, silent
from sleepc.recipe import Factors, Recipe

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def captured_in_dtype(
    module: nn.Module, checkpoint: Checkpoint | None, recipe: Recipe, progress: Progress, dump: Path | None
) -> ProgramGraphs:
    """The module as a program at level CANONICAL whose ports have the recipe's dtype, with the module's own values."""
    factors = recipe.rope_factors
    program = capture(_to_export(module, checkpoint, recipe), progress, dump, factors=factors)
    take_values(program, module)
    if any(isinstance(p, HeldTensor) and p.value.is_meta for p in program.params.values()):
        # its code makes tensors while it runs: without values if it has none itself
        program = capture(in_dtype(module, checkpoint, recipe), progress, dump, factors=factors)
        take_values(program, module)
    return program


def capture(
    module: nn.Module, progress: Progress = silent, dump: Path | None = None, *, factors: Factors = "short"
) -> ProgramGraphs:
    """A module as a program at level CANONICAL; `factors` are those of short or long calls, if it has both."""
    progress("export", None)
    folder = dump / "front" if dump else None

    def canonical(decomposed: bool) -> ProgramGraphs:
        program = capture_flat(module, decomposed=decomposed)
        return run_stages(program, front_stages(factors), progress=progress, dump=folder)

    try:
        return functional(canonical)
    except UsageError:
        raise
    except SleepcError:  # of what is not understood: is it a model at all?
        require_run(module)
        raise


def capture_flat(module: nn.Module, *, values: nn.Module | None = None, decomposed: bool = False) -> ProgramGraphs:
    """A module as a program at level ATEN; `values` is the same in the dtype of its files and gives the parameters."""
    limit = max_positions(getattr(module, "config", None))
    with ExitStack() as opened:
        for each in (open_seam, open_kernel_seam, dense_experts, chosen_rows, plain_convolutions):
            opened.enter_context(each(module))
        most = opened.enter_context(picking_all(module))
        program = capture_module(module, max_positions=limit, decomposed=decomposed)
    program.picked = min((count for count in (program.picked, most()) if count is not None), default=None)
    if values is not None:
        take_values(program, values)
    return program


def in_dtype(module: nn.Module, checkpoint: Checkpoint | None, recipe: Recipe) -> nn.Module:
    """An original in the dtype that the recipe asks for, with its code's own casts: itself if it has it already."""
    dtype = DTYPES.get(recipe.dtype)
    if dtype is None or all(p.dtype == dtype for p in module.parameters()):
        return module
    return load_module(checkpoint, dtype=recipe.dtype) if checkpoint else copy.deepcopy(module).to(dtype)


def _to_export(module: nn.Module, checkpoint: Checkpoint | None, recipe: Recipe) -> nn.Module:
    """The module to export: if another dtype is asked for, the same code in that dtype, with its own casts."""
    dtype = DTYPES.get(recipe.dtype)
    if dtype is None or all(p.dtype == dtype for p in module.parameters()):
        return module
    if checkpoint is not None:
        return module_on_meta(checkpoint, dtype, module)
    return copy.deepcopy(module).to(dtype)


def take_values(program: ProgramGraphs, module: nn.Module) -> None:
    """Let parameters and buffers have the values of `module`, in its dtype; ports say which dtype a backend runs them
    in.
    """
    values = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    for key in program.params:
        if key in values:
            program.params[key] = HeldTensor(values[key].detach())
