"""A program as a directory that transformers loads: what class takes it, its weights, its configuration, its check."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sleepc.backends.contract import Draft
from sleepc.backends.hf import dense
from sleepc.backends.hf.check import compare
from sleepc.backends.hf.engines import ENGINE, FULL, find_engine, refusals, said
from sleepc.backends.hf.obstacles import Host, of_layers, refusal
from sleepc.backends.hf.own_class import write_own
from sleepc.backends.report import Figure
from sleepc.errors import SleepcWarning, UsageError
from sleepc.hf.class_tokenizer import reads_otherwise
from sleepc.hf.json_file import read_object
from sleepc.hf.resolve import CONFIG
from sleepc.hf.tokenizer import MAIN
from sleepc.hf.weight_files import INDEX, SINGLE
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.tensorfile import Planned, write_planned
from sleepc.passes.analysis.find_sites import find_attention
from sleepc.passes.consolidation.registry import find as find_consolidation
from sleepc.recipe import LayerPlan, Recipe

GENERATION = "generation_config.json"
SHARD = 1 << 30  # bytes of a file
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class WrittenCheckpoint:
    """The class, how many weights it has, and what the check found."""

    cls: str
    weights: int
    rows: list[Figure]


def write_checkpoint(program: ProgramGraphs, engine: str, dtype: str, draft: Draft) -> WrittenCheckpoint:
    """Write a program at level STEP in `draft.folder` as `engine` wants it, and compare it with transformers.

    Raises UsageError, with all that is in the way, for a program that no class can express, or not one that the engine
    runs, SleepcError if transformers computes something else.
    """
    recipe = draft.recipe
    config = _config(draft.described)
    assert recipe is not None
    plans = _plans(program, recipe.plan(len(program.layout)))
    if all(plan.strategy == "leave" and plan.window is None for plan in plans):
        return _own(program, draft, config, dtype)
    host = dense.host_of(config)
    if host is None:
        raise no_host(config, plans)
    whole = [*of_sleeps(recipe, len(plans)), *dense.of_config(config)]
    layers = of_layers(plans, host)
    kinds = dense.kinds_of(plans)
    if layers or whole:
        raise refusal(host, layers, whole, plans)
    no = refusals(engine, kinds)
    if no:
        fix = "Choose another runtime (--for), or other layers: convert again with --layers every:N left as they are."
        raise UsageError("; ".join(no), where=f"--for {engine}", fix=fix)
    return _dense(program, draft, config, kinds, engine, _dtype(program, dtype))


def of_sleeps(recipe: Recipe, blocks: int) -> list[str]:
    """What sleeps do that no checkpoint can say, if anything."""
    chosen = find_consolidation(recipe.consolidation)
    return [f"its sleeps do what no class does: {chosen.in_words(recipe, blocks)}"] if chosen.changes(recipe) else []


def _plans(program: ProgramGraphs, plans: tuple[LayerPlan, ...]) -> list[LayerPlan]:
    """The recipe's, but that layers which are recurrent by themselves are as they were."""
    found = []
    for block, plan in zip(program.layout, plans, strict=True):
        alone = plan.strategy == "leave" and find_attention(program.classes[block.cls].wake) is None
        found.append(LayerPlan("leave", plan.rule, plan.decay, plan.write, None) if alone else plan)
    return found


def _config(folder: Path | None) -> Any:
    """The original's configuration, as a class of transformers. Raises UsageError if there is none."""
    from transformers import AutoConfig

    if folder is None or not (folder / CONFIG).is_file():
        what = "the original was a module in memory, and a checkpoint needs its config.json"
        raise UsageError(what, where="--to hf", fix="Save it with save_pretrained, and convert that folder.")
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def no_host(config: Any, plans: Sequence[LayerPlan]) -> UsageError:
    """What to say of a model whose blocks no class has with native layers."""
    host = Host(f"any class of transformers: none has the blocks of {config.model_type} with native layers", False)
    text = refusal(host, of_layers(plans, Host("", True)), [], plans).on_command_line[0]
    fix = f"{', '.join(dense.NORMED)} have one. Other targets write this program as it is: --to onnx."
    return UsageError(text, where="--to hf", fix=fix)


def _dtype(program: ProgramGraphs, name: str) -> torch.dtype:
    if name != "auto":
        return DTYPES[name]
    return torch.float32 if program.dtype == torch.float64 else program.dtype


def _dense(
    program: ProgramGraphs, draft: Draft, config: Any, kinds: list[str], engine: str, dtype: torch.dtype
) -> WrittenCheckpoint:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weights = dense.DenseWeights(program, kinds, dtype, width)
    planned = weights.plan()
    draft.progress("writing weights", None)
    _write(draft.folder, planned)
    cached = FULL in kinds
    made = {**dense.configured(config, kinds, dtype, tied=weights.tied), "use_cache": cached}
    if not cached:
        _say_no_cache(draft.folder)
    _write_config(draft.folder, made)
    draft.progress("comparing with transformers", None)
    rows = compare(program, draft.folder, draft.tokens, dtype, cached=cached)
    _write_config(draft.folder, {**made, **said(engine, kinds)})
    _check_tokenizer(draft.folder, engine)
    return WrittenCheckpoint(dense.CLASS, len(planned), rows)


def _say_no_cache(folder: Path) -> None:
    """transformers 5.24 asks an attention layer how long its cache is: without one, `generate` has to read anew what
    it has read for every token, and the files say so.
    """
    text = "no attention is left: transformers runs the checkpoint without a cache, so each token reads all before it"
    warnings.warn(text, SleepcWarning, stacklevel=2)
    path = folder / GENERATION
    path.write_text(json.dumps({**read_object(path), "use_cache": False}, indent=2) + "\n")


def _own(program: ProgramGraphs, draft: Draft, config: Any, dtype: str) -> WrittenCheckpoint:
    """The original's class, with the weights that were changed."""
    if draft.source is None:
        raise UsageError("the original's folder is not known", where="--to hf", fix="Convert a folder of files.")
    if dtype != "auto":
        what = "a checkpoint of the original's own class is in the original's dtype"
        raise UsageError(what, where="--dtype", fix="Leave it out.")
    said_before = draft.folder / GENERATION
    kept = said_before.read_bytes() if said_before.is_file() else None
    write_own(program, draft.source, draft.folder)
    if kept is not None:  # transformers writes one of the configuration alone
        said_before.write_bytes(kept)
    cls = (config.architectures or [type(config).__name__])[0]
    rows = compare(program, draft.folder, draft.tokens, _dtype(program, "auto"))
    return WrittenCheckpoint(cls, len(program.params), rows)


def _write(folder: Path, planned: Mapping[str, Planned]) -> None:
    """One file, or several with an index."""
    shards: list[dict[str, Planned]] = [{}]
    room = SHARD
    for name, each in planned.items():
        size = each.dtype.itemsize * torch.Size(each.shape).numel()
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD
        shards[-1][name] = each
        room -= size
    if len(shards) == 1:
        return write_planned(shards[0], folder / SINGLE)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_planned(shard, folder / file)
        places |= dict.fromkeys(shard, file)
    total = sum(each.dtype.itemsize * torch.Size(each.shape).numel() for each in planned.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _check_tokenizer(folder: Path, engine: str) -> None:
    """Raises UsageError if transformers reads texts otherwise because of what config.json calls the class."""
    kind = find_engine(engine).model_type
    if kind == find_engine(ENGINE).model_type or not (folder / MAIN).is_file():
        return
    other = reads_otherwise(folder, "tokenizer")
    if other is not None:
        raise UsageError(
            f"{engine} needs model_type {kind}, and with that {other}",
            where=f"--for {engine}",
            fix=f"Only models with that class's tokenizer can be written for it; --for {ENGINE} writes this one.",
        )
