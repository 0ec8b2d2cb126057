"""A checkpoint as a module whose parameters are mapped from their files, and the way back from parameter to file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sleepc.errors import Refusal, SleepcError
from sleepc.hf.resolve import Checkpoint
from sleepc.ir.locate import Locator
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.tensorfile import TensorFile
from sleepc.ir.weights import FileTensor, HeldTensor

EXPERTS = "batched_mm"  # the other implementations do not export (docs/log.md)


def load_module(checkpoint: Checkpoint, *, dtype: str = "auto", attention: str = "eager") -> nn.Module:
    """The model, on CPU, in eval mode. With dtype "auto" parameters stay mapped to their files; no remote code is run.

    Raises SleepcError where a file is damaged or transformers cannot build the model.
    """
    for file in checkpoint.files:
        TensorFile(file)  # a damaged file is refused with its own message, before transformers meets it
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    kind = transformers.AutoModelForCausalLM
    try:
        model = kind.from_pretrained(
            checkpoint.folder, dtype=dtype, attn_implementation=attention, local_files_only=True
        )
    except Exception as error:
        raise _cannot_build(checkpoint, error) from error
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(EXPERTS)
    return as_module(model)


def _auto() -> Any:
    """transformers' class of all causal language models (untyped)."""
    import transformers

    return transformers.AutoModelForCausalLM


def as_module(model: nn.Module) -> nn.Module:
    """The model in eval mode."""
    return model.eval()


def module_on_meta(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """The model's code without its weights, in another dtype: what is exported when a program is to run in that
    dtype.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True)
    with torch.device("meta"):
        model = _auto().from_config(config, dtype=dtype, attn_implementation="eager")
    return as_module(model)


def _cannot_build(checkpoint: Checkpoint, error: Exception) -> SleepcError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    kind = checkpoint.config.get("model_type", "?")
    if "Unrecognized configuration class" in str(error) or ("does not support" in first and "attention" not in first):
        return Refusal(
            "NO_ATTENTION",
            f"transformers has no causal language model of type {kind}",
            where=str(checkpoint.folder),
            fix="sleepc converts decoder-only language models.",
        )
    return SleepcError(
        f"transformers cannot load this model ({kind}): {first}",
        where=str(checkpoint.folder),
        fix="Run with --debug for the whole trace.",
    )


def max_positions(config: Any) -> int | None:
    """How many positions the model was made for, as its configuration says; learned tables are found in the graph."""
    value = getattr(config, "max_position_embeddings", None)
    return int(value) if isinstance(value, int) and value > 0 else None


def refer_to_files(program: ProgramGraphs, files: list[TensorFile], hashes: dict[Path, dict[str, str]]) -> None:
    """Replace parameters held in memory by references to the tensors of `files` that have the same values.

    `hashes` (by file and tensor) are of their bytes. What is in no file (a computed buffer, a merged weight) stays
    held,
    and is saved in the artifact.
    """
    locator, opened = Locator(files), {file.path: file for file in files}
    for key, param in program.params.items():
        if not isinstance(param, HeldTensor):
            continue
        found = locator.find(param.value, key)
        if found is not None:
            file, name = found
            program.params[key] = FileTensor(opened[file], name, param.dtype, param.shape, hashes[file][name])
