"""A GGUF file is read back by gguf-py: its weights are compared with the program's, and what they compute, by
transformers, with what the program computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sleepc.backends.contract import Draft
from sleepc.backends.gguf.tensors import Placed
from sleepc.backends.hf.calls import logits_at_once
from sleepc.backends.hf.check import BOUNDS, compare
from sleepc.backends.hf.checkpoint import write_config, write_weights
from sleepc.backends.hf.engines import FULL
from sleepc.backends.report import Figure
from sleepc.errors import SleepcError
from sleepc.hf.load import load_module
from sleepc.hf.resolve import check_folder
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.tensorfile import Planned

# What rounding may change a number by, as a share of the tensor's largest: half a step. Of Q4_0, whose steps end at one
# side, a whole one; scales are half floats.
ROUNDED = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8, "Q8_0": 1 / 254 + 2**-11, "Q4_0": 1 / 8 + 2**-10}
LOGITS = {"F32": BOUNDS[torch.float32], "F16": BOUNDS[torch.float16], "BF16": 2 * BOUNDS[torch.bfloat16]}
"""The largest error of logits, as a share of their scale. Of coarser kinds none is: rounding may change a model by any
amount, so with those transformers has the numbers before they were rounded, and what rounding costs is perplexity.
"""


@dataclass(frozen=True)
class Checked:
    """A file's program, its folder, the configuration and weights of the class, and where they are in the file."""

    program: ProgramGraphs
    draft: Draft
    config: Mapping[str, Any]
    planned: Mapping[str, Planned]
    places: Mapping[str, Placed]


def compare_file(made: Checked, file: str) -> tuple[list[Figure], dict[str, float]]:
    """The largest errors of weights, by kind, and those of logits; of coarse kinds, perplexity before and after. Raises
    SleepcError for a tensor that is missing.
    """
    read = GgufTensors(made.draft.folder / file)
    worst: dict[str, float] = {}
    for name, each in made.places.items():
        value = each.there(made.planned[name].make().to(torch.float32))
        error = read.tensor(each) - value
        share = float(error.abs().max() / value.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
        worst[each.kind] = max(worst.get(each.kind, 0.0), share)
    rows = []
    for kind, share in worst.items():
        count = sum(each.kind == kind for each in made.places.values())
        rows.append(Figure("gguf", f"weights, {kind}", share, ROUNDED[kind], f"{count} tensors by value"))
    rounded = dict(read.of_class(made.places))
    if {*worst} <= {*LOGITS}:
        with _checkpoint(made, rounded) as folder:
            return rows + _logits(made, folder, max(LOGITS[kind] for kind in worst)), {}
    with _checkpoint(made, made.planned) as folder:
        rows += _logits(made, folder, LOGITS["F32"])
        before = _perplexity(made, folder)
    with _checkpoint(made, rounded) as folder:
        return rows, {"tokens": len(_read(made)), "before": before, "after": _perplexity(made, folder)}


@contextmanager
def _checkpoint(made: Checked, weights: Mapping[str, Planned]) -> Iterator[Path]:
    """A checkpoint of the class with these weights in float32, which is not kept."""
    with TemporaryDirectory(dir=made.draft.folder.parent, prefix=".gguf-") as scratch:
        folder = Path(scratch)
        write_weights(folder, weights)
        write_config(folder, {**made.config, "dtype": "float32"})
        yield folder


def _logits(made: Checked, folder: Path, bound: float) -> list[Figure]:
    return compare(made.program, folder, made.draft.tokens, bound, cached=FULL in made.config["layer_types"])


def _perplexity(made: Checked, folder: Path) -> float:
    """Of the tokens that are read, in transformers."""
    logits = logits_at_once(load_module(check_folder(str(folder), folder)), _read(made))
    return float(cross_entropy(logits[:-1].double(), torch.tensor(_read(made)[1:])).exp())


def _read(made: Checked) -> list[int]:
    return list(made.draft.tokens[: made.program.max_positions])


class GgufTensors:
    """The tensors of a GGUF file."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        self.tensors = {each.name: each for each in GGUFReader(path).tensors}

    def tensor(self, place: Placed) -> Tensor:
        """What the file has there, in float32."""
        from gguf import dequantize

        found = self.tensors.get(place.name)
        if found is None or tuple(reversed(found.shape.tolist())) != place.shape:
            raise SleepcError(f"the file has no tensor {place.name} of {place.shape}", where=str(self.path))
        return torch.from_numpy(dequantize(found.data, found.tensor_type).copy()).reshape(place.shape)

    def of_class(self, places: Mapping[str, Placed]) -> Iterator[tuple[str, Planned]]:
        """The class's weights, each made when it is asked for."""
        for name, place in places.items():
            shape = place.shape if "conv1d" not in name else (place.shape[0], 1, place.shape[1])
            yield name, Planned(torch.float32, shape, lambda place=place: place.back(self.tensor(place)))  # type: ignore[misc]
