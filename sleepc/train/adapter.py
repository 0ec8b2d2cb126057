"""What training changed, as one file: other values for parameters of a program, and where they come from."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, Json, ValidationError
from torch import Tensor

from sleepc.digests import dtype_name, sha256_of, tensors_digest
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.tensorfile import TensorFile
from sleepc.ir.weights import HeldTensor, is_learned
from sleepc.json_file import json_text
from sleepc.manifest import Sha256
from sleepc.passes.adapt.add_low_rank import AddLowRank, low_rank_keys
from sleepc.passes.adapt.merge_low_rank import MergeLowRank
from sleepc.passes.base import Pass, Stage
from sleepc.passes.rewrite.kept_pairs import PROBE, probe_keys, probes_are_zero
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe
from sleepc.sealed_json import Strict
from sleepc.version import __version__
from sleepc.whole_file import write_whole

if TYPE_CHECKING:
    from sleepc.train.program import Trainable

FORMAT = 1
MAX_TEXT = 1 << 20  # characters of a text in the header
MAX_RANK = 1024
SHOWN = 3  # names in a message
MUCH = 0.1  # of what maps change: lost to rounding, it is worth a warning
NOT_TRAINED_FOR = {"dtype", "seed"}  # options of a recipe that training does not depend on
FETCH = "The adapter is damaged or was edited: fetch it again, or train again."


class Header(Strict):
    """The metadata of an adapter file, all of it texts. `rank` is of the LoRA matrices, 0 for none; `facts` is what is
    known of the training; `tensors_sha256` is of the values.
    """

    format: Annotated[int, Field(ge=1, le=FORMAT)]
    sleepc: Annotated[str, Field(max_length=100)]
    source: Annotated[str, Field(max_length=1000)]
    weights_sha256: Sha256
    recipe: Json[Recipe]
    rank: Annotated[int, Field(ge=0, le=MAX_RANK)]
    facts: Json[dict[str, Any]]
    tensors_sha256: Sha256


@dataclass(frozen=True)
class Adapter:
    """An adapter file that was checked: `values` by key are mapped from it."""

    path: Path
    header: Header
    values: dict[str, Tensor]

    @property
    def recipe(self) -> Recipe:
        """What the program was converted with that was trained."""
        return self.header.recipe


# ---------------------------------------------------------------------------------------------- values and maps


def with_values(graphs: ProgramGraphs, values: Mapping[str, Tensor]) -> ProgramGraphs:
    """The same graphs with other values for some parameters, by key; what is new in the conversion stays new.

    A value for a weight of the source is held in memory from now on, and is saved in the artifact.
    """
    given = {key: HeldTensor(value.detach(), new=graphs.params[key].new) for key, value in values.items()}
    return replace(graphs, params={**graphs.params, **given})


def rank_of(graphs: ProgramGraphs) -> int:
    """The rank of a program's LoRA matrices, 0 if it has none."""
    return max((graphs.params[key].shape[0] for key in low_rank_keys(graphs)), default=0)


def with_rank(graphs: ProgramGraphs, rank: int) -> ProgramGraphs:
    """The program with LoRA matrices of this rank (0: none). Those of another rank go, with what they learned."""
    if rank_of(graphs) == rank:
        return graphs
    maps = {key: graphs.params[key] for key in low_rank_keys(graphs).values()}
    silent = {key: torch.zeros(param.shape, dtype=param.dtype) for key, param in maps.items()}
    graphs = _run(with_values(graphs, silent), MergeLowRank())
    return _run(graphs, AddLowRank(rank, 0)) if rank else graphs


def _run(graphs: ProgramGraphs, each: Pass) -> ProgramGraphs:
    return run_stages(graphs, (Stage("low-rank", "STEP", (each,)),))


def merge_maps(program: Trainable) -> int:
    """Merge a program's LoRA matrices into its weights, and note which weights changed, and which share of the change
    was lost to rounding (`merge_lost`); how many weights those are.
    """
    before, merge = program.graphs, MergeLowRank()
    program.graphs = _run(before, merge)
    changed = [key for key, param in program.graphs.params.items() if before.params.get(key) is not param]
    note_training(program, changed, {"merge_lost": merge.rounding.share} if changed else {})
    if (lost := merge.rounding.share) > MUCH:
        dtype = str(program.graphs.dtype).removeprefix("torch.")
        warnings.warn(
            f"rounding to {dtype} lost {min(lost, 1):.0%} of what the LoRA matrices change. Without "
            "--merge they stay separate and exact.",
            SleepcWarning,
            stacklevel=3,
        )
    return len(changed)


def note_training(program: Trainable, keys: Iterable[str], facts: Mapping[str, Any]) -> None:
    """Note in the program's report that these parameters were trained, and what is known of it. `weights` lists those
    of the source that have other values by now.
    """
    params = program.graphs.params
    weights = trained_weights(program) | {key for key in keys if not params[key].new}
    notes = {**_notes(program), **facts, "weights": sorted(weights), "rank": rank_of(program.graphs)}
    program.report["training"] = notes


def trained_weights(program: Trainable) -> set[str]:
    """The source's weights that have been trained or merged, as the program's report says."""
    found = _notes(program).get("weights")
    listed = found if isinstance(found, list) else []
    return {key for key in listed if isinstance(key, str) and key in program.graphs.params}


def _notes(program: Trainable) -> dict[str, Any]:
    found = program.report.get("training")
    return found if isinstance(found, dict) else {}


# ---------------------------------------------------------------------------------------------- writing


def name_of(model: str) -> str:
    """A model's name for a file that goes round: a hub id as it is, of a path the last part."""
    return Path(model).name if Path(model).is_absolute() or Path(model).exists() else model


def write_adapter(
    path: Path, program: Trainable, keys: Iterable[str], facts: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """Write what differs from a plain conversion: everything new, and the source's weights among `keys`, or trained
    before. Probes of a score that nothing has measured are left out. `facts` (plain data: settings, figures) go with
    it. The training is also noted in the program's report. With `dtype` values are rounded to it: float16 is half the
    size.

    The file is written whole or not at all. Raises OSError if the disk refuses.
    """
    from safetensors.torch import save

    note_training(program, keys, facts)
    params, training = program.graphs.params, program.report["training"]
    idle = set(probe_keys(program.graphs).values()) if probes_are_zero(program.graphs) else set()
    chosen = sorted({key for key, param in params.items() if is_learned(param)} - idle | set(training["weights"]))
    values = {key: params[key].materialise().detach().to("cpu", dtype).contiguous() for key in chosen}
    rows = [(k, dtype_name(v.dtype), tuple(v.shape), sha256_of(v)) for k, v in values.items()]
    header = {
        "format": str(FORMAT),
        "sleepc": __version__,
        "source": name_of(program.source.name),
        "weights_sha256": program.source.weights_sha256,
        "recipe": program.recipe.model_dump_json(),
        "rank": str(training["rank"]),
        "facts": json_text(training),
        "tensors_sha256": tensors_digest(rows),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # Clones, since safetensors refuses tensors that share memory.
    write_whole(path, save({key: value.clone() for key, value in values.items()}, metadata=header))


# ---------------------------------------------------------------------------------------------- reading


def read_adapter(path: Path) -> Adapter:
    """An adapter, all of it checked; nothing in it is executed.

    Raises UsageError if it is not an adapter, or a newer one, SleepcError for a damaged one.
    """
    if not path.is_file():
        raise UsageError(f"there is no adapter {path}", fix="`sleepc distil` and `sleepc calibrate` write adapters.")
    file = TensorFile(path)
    header = _header(path, file.metadata)
    if not all(entry.dtype.is_floating_point for entry in file.tensors.values()):
        raise SleepcError("the adapter holds values that are not floats", where=str(path), fix=FETCH)
    found = ((k, dtype_name(e.dtype), e.shape, file.sha256(k, finite=True)) for k, e in file.tensors.items())
    if tensors_digest(found) != header.tensors_sha256:
        raise SleepcError("the adapter's values were changed after it was written", where=str(path), fix=FETCH)
    return Adapter(path, header, {key: file.map(key) for key in file.tensors})


def _header(path: Path, metadata: Any) -> Header:
    version = metadata.get("format") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or "weights_sha256" not in metadata:
        raise UsageError(
            f"{path.name} is not a sleepc adapter", where=str(path), fix="`sleepc distil` writes adapters."
        )
    if version.isdecimal() and len(version) < 9 and int(version) > FORMAT:
        raise UsageError(
            f"the adapter has format {version}, and this sleepc reads format {FORMAT}",
            where=str(path),
            fix="Upgrade sleepc (pip install -U sleepc), or train again.",
        )
    if any(not isinstance(text, str) or len(text) > MAX_TEXT for text in metadata.values()):
        raise SleepcError("the adapter's header is too long to be one", where=str(path), fix=FETCH)
    try:
        return Header.model_validate(metadata)
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": ("facts",), "msg": "too deep"}
        place = ".".join(str(part) for part in first["loc"])
        raise SleepcError(
            f"the adapter's header is not valid: {place}: {first['msg']}", where=str(path), fix=FETCH
        ) from error


# ---------------------------------------------------------------------------------------------- applying


def apply_adapter(program: Trainable, adapter: Adapter) -> None:
    """Make `program` the plain conversion with what the adapter holds, whatever was trained in it before.

    Raises UsageError if the adapter is of another model, or its parameters are not those of the program. Warns
    if the program was converted with options other than those of the training.
    """
    _check_source(program, adapter)
    _check_restorable(program, adapter)
    graphs = with_rank(program.graphs, adapter.header.rank)
    adapter = _without_idle_probes(graphs, adapter)
    _check_fit(graphs, adapter)
    _warn_of_options(program.recipe, adapter)
    values = {key: value.to(graphs.params[key].dtype) for key, value in adapter.values.items()}
    program.graphs = with_values(graphs, values)
    program.report = {name: found for name, found in program.report.items() if name not in ("training", "verify")}
    note_training(program, adapter.values, adapter.header.facts)
    program.identity = ""  # of no artifact: it gets one when it is saved


def _check_source(program: Trainable, adapter: Adapter) -> None:
    ours, theirs = program.source.weights_sha256, adapter.header.weights_sha256
    if not ours or not theirs:
        warnings.warn(
            f"{'the artifact' if not ours else 'the adapter'} does not say which weights it was made of: whether both "
            "are of the same model cannot be checked",
            SleepcWarning,
            stacklevel=4,
        )
    elif ours != theirs:
        raise UsageError(
            f"the adapter was trained on other weights: {adapter.header.source} ({theirs[:12]}), and these are "
            f"{program.source.name} ({ours[:12]})",
            where=str(adapter.path),
            fix="Apply it to a conversion of the model that it was trained on.",
        )


def _check_restorable(program: Trainable, adapter: Adapter) -> None:
    """Weights that were trained or merged before are not in the source's files any more."""
    lost = sorted(trained_weights(program) - set(adapter.values))
    if lost:
        raise UsageError(
            f"{len(lost)} weights of the artifact have been trained or merged, and the adapter has none for them: "
            f"{_some(lost)}",
            where=str(program.path or adapter.path),
            fix="Convert the model again, with --adapter FILE.",
        )


def _without_idle_probes(graphs: ProgramGraphs, adapter: Adapter) -> Adapter:
    """Probes are measured as budgets are, and not learned: an adapter with some goes with a program that has none."""
    used = {key: value for key, value in adapter.values.items() if key in graphs.params or not key.endswith(PROBE)}
    return replace(adapter, values=used)


def _check_fit(graphs: ProgramGraphs, adapter: Adapter) -> None:
    values, params, probes = adapter.values, graphs.params, set(probe_keys(graphs).values())
    problems = {
        "the program has no parameters": [key for key in values if key not in params],
        "the conversion alone decides": [
            key for key in values if key in params and params[key].new and not is_learned(params[key])
        ],
        "the adapter has no values for": [
            k for k, p in params.items() if is_learned(p) and k not in {*values, *probes}
        ],
        "other shapes have": [
            f"{key} {list(values[key].shape)} instead of {list(params[key].shape)}"
            for key in values
            if key in params and tuple(values[key].shape) != params[key].shape
        ],
    }
    for what, keys in problems.items():
        if keys:
            raise UsageError(
                f"the adapter does not fit: {what} {_some(keys)}",
                where=str(adapter.path),
                fix="Convert with the options of its training, which --adapter FILE brings.",
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _warn_of_options(recipe: Recipe, adapter: Adapter) -> None:
    ours, theirs = _in_words(recipe), _in_words(adapter.recipe)
    other = [f"{n} {theirs.get(n)} → {ours.get(n)}" for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    if other:
        warnings.warn(
            f"the adapter was trained with other options: {', '.join(other)}. What it learned may not apply here.",
            SleepcWarning,
            stacklevel=4,
        )


def _in_words(recipe: Recipe) -> dict[str, str]:
    """What training depends on, each option of `keep` by itself, and of long lists the beginning."""
    options = recipe.model_dump(mode="json", exclude=NOT_TRAINED_FOR)
    keep = options.pop("keep") or {}
    every = {**options, **{f"keep.{name}": value for name, value in keep.items()}}
    return {name: value if isinstance(value, str) else reprlib.repr(value) for name, value in every.items()}
