"""A program as a GGUF file: what it has to be, the file, tensor by tensor, and its check."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from sleepc.backends.contract import Draft
from sleepc.backends.gguf.check import Checked, compare_file
from sleepc.backends.gguf.metadata import describe
from sleepc.backends.gguf.tensors import ARCHITECTURE, Placed, placed
from sleepc.backends.gguf.vocabulary import add_vocabulary
from sleepc.backends.hf.dense import COMPUTED
from sleepc.backends.hf.engines import OWN
from sleepc.backends.hf.fitting import check_engine, config_of, dense_of
from sleepc.backends.report import Figure
from sleepc.errors import SleepcWarning, UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.tensorfile import Planned

ENGINE = "llama.cpp"
KINDS = {torch.float16: "F16", torch.bfloat16: "BF16"}
FILE = "model.gguf"


@dataclass(frozen=True)
class WrittenFile:
    """What the matrices are in, how many weights there are, and what the check found: figures, and perplexity."""

    kind: str
    weights: int
    rows: list[Figure]
    perplexity: dict[str, float]


def write_gguf(program: ProgramGraphs, dtype: str, draft: Draft) -> WrittenFile:
    """Write a program at level STEP in `draft.folder`, and compare it with the file as it is read.

    Raises UsageError, with all that is in the way, for a program that llama.cpp's architecture does not run.
    """
    config, planned = _of_class(program, draft)
    kind = KINDS.get(program.dtype, "F16") if dtype == "auto" else dtype.upper()
    places = placed(planned, config, kind)
    wide = sorted(each.name for each in places.values() if each.kind == "F16" != kind)
    if wide:
        text = f"rows of {wide[0]} ({len(wide)} such) are not whole blocks of 32 numbers: written as f16"
        warnings.warn(text, SleepcWarning, stacklevel=2)
    draft.progress("writing weights", None)
    _write(draft.folder, config, planned, places, kind)
    draft.progress("comparing with transformers", None)
    rows, perplexity = compare_file(Checked(program, draft, config, planned, places), FILE)
    return WrittenFile(kind, len(planned), rows, perplexity)


def _of_class(program: ProgramGraphs, draft: Draft) -> tuple[dict[str, Any], dict[str, Planned]]:
    """The class's configuration and weights, in float32: those of `--to hf`."""
    given = config_of(draft.described, "gguf")
    found = dense_of(program, draft.recipe, given, ENGINE, "gguf")
    if found is not None:
        weights = found.weights(program, torch.float32)
        planned = weights.plan()
        return found.configured(torch.float32, tied=weights.tied), planned
    if given.model_type != OWN:
        what = f"every layer is as it was, and llama.cpp's {ARCHITECTURE} is Qwen3.5's class, not {given.model_type}"
        raise UsageError(what, where="--to gguf", fix="--to hf writes it, and llama.cpp's own converter reads that.")
    check_engine(ENGINE, given.layer_types, given.rope_parameters, "gguf")
    params = {key: param for key, param in program.params.items() if not key.endswith(COMPUTED)}
    own = {key: Planned(torch.float32, param.shape, param.materialise) for key, param in params.items()}
    return {**given.to_dict(), "dtype": "float32"}, own


def _write(
    folder: Path,
    config: Mapping[str, Any],
    planned: Mapping[str, Planned],
    places: Mapping[str, Placed],
    kind: str,
) -> None:
    """The file: what it says of itself, then one tensor at a time."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quantize

    writer = GGUFWriter(folder / FILE, ARCHITECTURE)
    describe(writer, config, kind)
    for text in add_vocabulary(writer, folder, config["vocab_size"]):
        warnings.warn(f"{FILE}: {text}", SleepcWarning, stacklevel=2)
    for each in places.values():
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[each.kind]]
        count = prod(each.shape) // block * size
        own = GGMLQuantizationType[each.kind]
        writer.add_tensor_info(each.name, each.shape, np.dtype(np.float32), count, raw_dtype=own)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, each in places.items():
            value = each.there(planned[name].make().to(torch.float32)).contiguous().numpy()
            writer.write_tensor_data(quantize(value, GGMLQuantizationType[each.kind]))
    finally:
        writer.close()
