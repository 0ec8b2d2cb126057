"""From a model to a program: convert, or inspect what converting would do."""

from __future__ import annotations

import hashlib
import platform
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from sleepc.api import Program, load, warn_untrained
from sleepc.backends.table import find_trainer
from sleepc.capturing import capture, captured_in_dtype
from sleepc.digests import weights_digest
from sleepc.errors import SleepcWarning
from sleepc.hf.class_tokenizer import class_reads_otherwise
from sleepc.hf.load import load_module, packed_beside, refer_to_files, require_answer, to_capture
from sleepc.hf.resolve import Checkpoint, is_gguf
from sleepc.hf.template import template_fault
from sleepc.inspection import Inspection, inspect_program
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.tensorfile import scan
from sleepc.manifest import MANIFEST, Source
from sleepc.models import find_model
from sleepc.passes.analysis.hybrid import fit_hybrid
from sleepc.passes.analysis.kv_cache import FACT, kv_cache, noted
from sleepc.passes.analysis.own_windows import leave_own_windows
from sleepc.passes.pipeline import check_recipe, rewrite_stages, rewritten
from sleepc.passes.runner import run_stages
from sleepc.progress import Progress, silent
from sleepc.recipe import Recipe, make_recipe
from sleepc.room import require_room
from sleepc.runtime.arguments import typed
from sleepc.tune.work import count

if TYPE_CHECKING:
    from sleepc.train.adapter import Adapter


@typed
def convert(
    model: str | Path | nn.Module,
    recipe: Recipe | dict[str, Any] | None = None,
    *,
    adapter: str | Path | Adapter | None = None,
    progress: Progress = silent,
    dump_graphs: Path | None = None,
) -> Program:
    """Convert a model (a directory, hub id, GGUF file, or a module) as `recipe` says. With an `adapter` (a file) what
    training changed is applied; options that `recipe` does not give are then those of the training.

    Raises UsageError for options that do not fit, Refusal (with a code) for a model that cannot be converted,
    SleepcError for damaged files.
    """
    from sleepc.train.adapter import apply_adapter, read_adapter
    from sleepc.train.measured_recipe import measured_recipe

    learned = read_adapter(Path(adapter)) if isinstance(adapter, (str, Path)) else adapter
    if learned is not None and not isinstance(recipe, Recipe):
        recipe = {**learned.recipe.model_dump(), **(recipe or {})}
    recipe = make_recipe(recipe)
    check_recipe(recipe)  # before any work
    started = time.perf_counter()
    checkpoint = None if isinstance(model, nn.Module) else find_model(model, progress)
    module = model if isinstance(model, nn.Module) else _load(checkpoint, progress, recipe.dtype)
    with to_capture(checkpoint):
        canonical = captured_in_dtype(module, checkpoint, recipe, progress, dump_graphs)
    _refer(canonical, checkpoint, progress)
    captured = time.perf_counter()
    source = _source(model, checkpoint).model_copy(update={"weights_sha256": weights_digest(canonical)})
    program = Program(canonical, recipe, source, canonical=canonical, original=module)
    program.recipe = measured_recipe(canonical, recipe, lambda: program.some_tokens(None), progress)
    stages = rewrite_stages(program.recipe, len(canonical.layout))
    dump = dump_graphs / "rewrite" if dump_graphs else None
    program.graphs = run_stages(canonical, stages, progress=progress, dump=dump)
    require_room(program.graphs)
    if learned is not None:
        apply_adapter(program, learned)
    program.report[FACT] = noted(kv_cache(canonical))
    program.timings = {"capture": captured - started, "rewrite": time.perf_counter() - captured}
    warn_untrained(program)
    _warn_of_template(checkpoint.folder if checkpoint is not None else None)
    _warn_of_other_ids(checkpoint)
    return program


def _refer(program: ProgramGraphs, checkpoint: Checkpoint | None, progress: Progress) -> None:
    """Let parameters that are in the checkpoint's files be those of the files."""
    if checkpoint is not None:
        files = list(checkpoint.opened)
        hashes = scan(files, lambda share: progress("reading weights", share))
        refer_to_files(program, files, hashes, packed_beside(checkpoint.folder))


def _warn_of_template(folder: Path | None) -> None:
    """Say if conversations with the model will be refused."""
    fault = template_fault(folder) if folder is not None else None
    if fault is not None:
        text = f"{fault} (conversations will be refused, and texts read)"
        warnings.warn(text, SleepcWarning, stacklevel=4)  # who called what is @typed


def _warn_of_other_ids(checkpoint: Checkpoint | None) -> None:
    """Say if transformers has other ids for the same text. A GGUF file has no class: what it says is what is read."""
    text = class_reads_otherwise(checkpoint.folder) if checkpoint is not None and not is_gguf(checkpoint.name) else None
    if text is not None:
        warnings.warn(text, SleepcWarning, stacklevel=4)  # who called what is @typed


def _load(checkpoint: Checkpoint | None, progress: Progress, dtype: str = "auto") -> nn.Module:
    """The model, once it has answered; if its own dtype is too narrow for that, `dtype` counts."""
    assert checkpoint is not None
    progress("loading", None)
    module = load_module(checkpoint)
    require_answer(module, checkpoint, dtype)
    return module


def _source(model: str | Path | nn.Module, checkpoint: Checkpoint | None) -> Source:
    from importlib.metadata import version

    versions = {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}
    if checkpoint is None:
        return Source(name=type(model).__name__, kind="module", versions=versions)
    config = (checkpoint.folder / "config.json").read_bytes()
    return Source(
        name=checkpoint.name,
        folder=str(checkpoint.folder),
        kind="huggingface",
        config_sha256=hashlib.sha256(config).hexdigest(),
        versions=versions,
    )


@typed
def inspect(
    target: str | Path | nn.Module, recipe: Recipe | dict[str, Any] | None = None, *, progress: Progress = silent
) -> Inspection:
    """What sleepc sees in a model, or what an artifact holds. For a model, `recipe` says what would be made of it."""
    seen, graphs, _ = look_at(target, recipe, progress)
    return replace(seen, sleep_in_tokens=count(graphs, find_trainer(), graphs.window).sleep_in_tokens)


def look_at(
    target: str | Path | nn.Module, recipe: Recipe | dict[str, Any] | None, progress: Progress
) -> tuple[Inspection, ProgramGraphs, Recipe]:
    """The same, with the program and its recipe."""
    if not isinstance(target, nn.Module) and (Path(target) / MANIFEST).is_file():
        program = load(target)
        _warn_of_template(program.path)
        return program.inspected(progress), program.graphs, program.recipe
    checkpoint = None if isinstance(target, nn.Module) else find_model(target, progress)
    module = target if isinstance(target, nn.Module) else _load(checkpoint, progress)
    _warn_of_template(checkpoint.folder if checkpoint is not None else None)
    with to_capture(checkpoint):
        canonical = capture(module, progress, factors=make_recipe(recipe).rope_factors)
    made = fit_hybrid(make_recipe(recipe) if recipe is not None else fitting_recipe(canonical), canonical)
    made = leave_own_windows(made, canonical)
    graphs = rewritten(canonical, made)
    return inspect_program(canonical, graphs, made), graphs, made


def fitting_recipe(canonical: ProgramGraphs) -> Recipe:
    """The default recipe, with a smaller window if the model has too few positions for it, or picks fewer keys."""
    recipe, limits = Recipe(), [n for n in (canonical.max_positions, canonical.picked) if n is not None]
    if not limits:
        return recipe
    sinks = min(recipe.sinks, min(limits) - 1)
    return Recipe(window=max(min(recipe.window, min(limits) - sinks), 1), sinks=sinks)
