"""A program as a directory that transformers loads: what class takes it, its weights, its configuration, its check."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sleepc.backends.contract import Draft
from sleepc.backends.hf.check import BOUNDS, compare
from sleepc.backends.hf.dense import CLASS, Dense
from sleepc.backends.hf.engines import ENGINE, find_engine, said
from sleepc.backends.hf.fitting import config_of, dense_of, own_kinds
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
    config = config_of(draft.described, "hf")
    found = dense_of(program, draft.recipe, config, engine, "hf")
    if found is None:
        return _own(program, draft, config, engine, dtype)
    return _dense(program, draft, found, engine, _dtype(program, dtype))


def _dtype(program: ProgramGraphs, name: str) -> torch.dtype:
    if name != "auto":
        return DTYPES[name]
    return torch.float32 if program.dtype == torch.float64 else program.dtype


def _dense(program: ProgramGraphs, draft: Draft, found: Dense, engine: str, dtype: torch.dtype) -> WrittenCheckpoint:
    weights = found.weights(program, dtype)
    planned = weights.plan()
    draft.progress("writing weights", None)
    write_weights(draft.folder, planned)
    made = found.configured(dtype, tied=weights.tied)
    if not found.attends:
        _say_no_cache(draft.folder)
    write_config(draft.folder, made)
    draft.progress("comparing with transformers", None)
    rows = compare(program, draft.folder, draft.tokens, BOUNDS[dtype], cached=found.attends)
    write_config(draft.folder, {**made, **said(engine, found.kinds)})
    _check_tokenizer(draft.folder, engine)
    return WrittenCheckpoint(CLASS, len(planned), rows)


def _say_no_cache(folder: Path) -> None:
    """transformers 5.24 asks an attention layer how long its cache is: without one, `generate` has to read anew what
    it has read for every token, and the files say so.
    """
    text = "no attention is left: transformers runs the checkpoint without a cache, so each token reads all before it"
    warnings.warn(text, SleepcWarning, stacklevel=2)
    path = folder / GENERATION
    path.write_text(json.dumps({**read_object(path), "use_cache": False}, indent=2) + "\n")


def _own(program: ProgramGraphs, draft: Draft, config: Any, engine: str, dtype: str) -> WrittenCheckpoint:
    """The original's class, with the weights that were changed. Engines want something of Qwen3.5's class alone."""
    if draft.source is None:
        raise UsageError("the original's folder is not known", where="--to hf", fix="Convert a folder of files.")
    if dtype != "auto":
        what = "a checkpoint of the original's own class is in the original's dtype"
        raise UsageError(what, where="--dtype", fix="Leave it out.")
    kinds = own_kinds(config, engine, "hf")
    said_before = draft.folder / GENERATION
    kept = said_before.read_bytes() if said_before.is_file() else None
    write_own(program, draft.source, draft.folder)
    if kept is not None:  # transformers writes one of the configuration alone
        said_before.write_bytes(kept)
    cls = (config.architectures or [type(config).__name__])[0]
    rows = compare(program, draft.folder, draft.tokens, BOUNDS[_dtype(program, "auto")])
    if kinds:
        write_config(draft.folder, {**read_object(draft.folder / CONFIG), **said(engine, kinds)})
        _check_tokenizer(draft.folder, engine)
    return WrittenCheckpoint(cls, len(program.params), rows)


def write_weights(folder: Path, planned: Mapping[str, Planned]) -> None:
    """Weights as transformers reads them: one file, or several with an index."""
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


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """config.json."""
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
