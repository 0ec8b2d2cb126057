"""A checkpoint as a module whose parameters are mapped from their files, and the way back from parameter to file."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sleepc.capture.own_run import CannotRun, require_finite_answer, require_run
from sleepc.capture.seam import EXPERTS, open_seam
from sleepc.errors import SleepcError, UsageError
from sleepc.hf.bounds import bounded, check_computed, check_counts
from sleepc.hf.computed import say_other_values
from sleepc.hf.finite import check_finite
from sleepc.hf.fit import check_fit, fit_nothing, load_state
from sleepc.hf.gguf import RECORD
from sleepc.hf.json_file import read_object
from sleepc.hf.present import is_there
from sleepc.hf.resolve import CONFIG, Checkpoint
from sleepc.hf.unbuildable import FIX, field_named, own_code, unbuildable
from sleepc.hf.weight_files import PACKED
from sleepc.ir.locate import Locator
from sleepc.ir.packed import StoredPacked, packed_in
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.tensorfile import TensorFile, scan
from sleepc.ir.weights import FileTensor, HeldTensor

POSITIONS = "max_position_embeddings"  # classes map their own names for it to this one
WEIGHTS = ("float32", "float64", "bfloat16", "float16")


def load_module(checkpoint: Checkpoint, *, dtype: str = "auto", attention: str = "eager") -> nn.Module:
    """The model, on CPU, in eval mode. With dtype "auto" parameters stay mapped to their files; no remote code is run.

    Raises UsageError or Refusal if the files have not the weights that the model needs, or have others, SleepcError
    if one is damaged or transformers cannot build the model.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    config = _config(checkpoint)
    skeleton = _skeleton(checkpoint, config, None, attention)
    chosen = _own_dtype(skeleton.config, checkpoint.opened) if dtype == "auto" else getattr(torch, dtype)
    try:
        tables = check_fit(skeleton, checkpoint.opened, chosen, checkpoint.folder, config)  # before anything is read
        check_computed(skeleton, checkpoint.config, checkpoint.opened, checkpoint.folder)
        state = {name: file.map(name) for file in checkpoint.opened for name in file.tensors}
        model, _ = load_state(type(skeleton), skeleton.config, state, chosen, checkpoint.folder)
    except SleepcError:
        raise
    except Exception as error:
        raise unbuildable(checkpoint, error, partial(_described, checkpoint)) from error
    say_other_values(model, checkpoint.opened, tables)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(EXPERTS)
    return as_module(model)


def as_module(model: nn.Module) -> nn.Module:
    """The model in eval mode."""
    return model.eval()


def module_on_meta(checkpoint: Checkpoint, dtype: torch.dtype, like: nn.Module) -> nn.Module:
    """The model's code without its weights, in another dtype: what is exported when a program is to run in that
    dtype. What is one parameter in `like`, the loaded model, is one here.
    """
    model = _skeleton(checkpoint, _config(checkpoint), dtype, "eager")
    loaded = dict(like.named_parameters(remove_duplicate=False))
    seen: dict[int, int] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        # A configuration may say that two are tied although the files have two.
        if name in loaded and seen.setdefault(id(parameter), id(loaded[name])) != id(loaded[name]):
            owner, _, last = name.rpartition(".")
            setattr(model.get_submodule(owner), last, nn.Parameter(torch.empty_like(parameter)))
    return as_module(model)


def to_capture(checkpoint: Checkpoint | None) -> AbstractContextManager[None]:
    """Within it a CannotRun of the checkpoint's model names the field of config.json that is to blame."""
    if checkpoint is None:
        return nullcontext()
    return field_named(checkpoint, partial(_run_without_values, checkpoint))


def to_answer(checkpoint: Checkpoint | None) -> AbstractContextManager[None]:
    """The same while the model computes with its weights."""
    return field_named(checkpoint, partial(_answer_with, checkpoint)) if checkpoint is not None else nullcontext()


def require_answer(model: nn.Module, checkpoint: Checkpoint, dtype: str = "auto") -> None:
    """Raise CannotRun, with the field of config.json, if a loaded model has no finite logits for a few tokens, and
    SleepcError, with the tensor, if that is no wonder.

    If those of its own dtype are not finite, those of `dtype` count, which may be one that holds larger numbers.
    """
    with to_answer(checkpoint):
        try:
            _answer(model)
        except CannotRun:
            scan(list(checkpoint.opened))
            if dtype == "auto":
                raise
            _answer(load_module(checkpoint, dtype=dtype))


def _answer(model: nn.Module) -> None:
    require_finite_answer(model, max_positions(model.config))


def _answer_with(checkpoint: Checkpoint, folder: Path, fitting: bool) -> None:
    """Load a checkpoint with the config.json of another folder, and let it answer: fails if it cannot."""
    del fitting  # what does not fit is not loaded
    other = replace(checkpoint, folder=folder, config=read_object(folder / CONFIG))
    with warnings.catch_warnings(action="ignore"):
        _answer(load_module(other))


def _config(checkpoint: Checkpoint) -> Any:
    """The configuration, as a class of transformers. Raises Refusal if only the checkpoint's own code knows it."""
    import transformers

    kind = checkpoint.config.get("model_type")
    if not isinstance(kind, str):
        raise UsageError(
            f"config.json says model_type: {json.dumps(kind)}, which is not the name of a model type",
            where=str(checkpoint.folder),
            fix="Fetch the model again, as transformers saves it.",
        )
    if checkpoint.config.get("auto_map") is not None and kind not in transformers.CONFIG_MAPPING:
        raise own_code(checkpoint)
    if "auto_map" in checkpoint.config and not isinstance(checkpoint.config["auto_map"], dict):
        raise UsageError(
            f"config.json says auto_map: {json.dumps(checkpoint.config['auto_map'])}, which has to map classes to code",
            where=str(checkpoint.folder),
            fix="Leave it out: sleepc runs no code of a checkpoint.",
        )
    _check_dtypes(checkpoint.config, checkpoint.folder)
    known = kind in transformers.CONFIG_MAPPING  # it has no get()
    check_finite(checkpoint.config, transformers.CONFIG_MAPPING[kind] if known else None, checkpoint.folder)
    check_counts(checkpoint.config, checkpoint.opened, checkpoint.folder)
    try:
        config = _config_in(checkpoint.folder)
    except Exception as error:
        raise unbuildable(checkpoint, error, partial(_described, checkpoint)) from error
    _check_positions(config, checkpoint.folder)
    return config


def _check_positions(config: Any, folder: Path) -> None:
    """Raise UsageError for a model of no positions, with the name that its class has for their number."""
    text = _text_config(config)
    value = getattr(text, POSITIONS, None)
    if isinstance(value, int) and value < 1:
        name = type(text).attribute_map.get(POSITIONS, POSITIONS)
        what = f"config.json says {name}: {json.dumps(value)}, and a model has at least one position"
        raise UsageError(what, where=str(folder), fix=FIX)


def _check_dtypes(config: dict[str, Any], folder: Path) -> None:
    """Raise UsageError for a dtype of weights that a model cannot be in, in a configuration or one inside it."""
    for key, value in config.items():
        if key in ("dtype", "torch_dtype") and value is not None and value not in WEIGHTS:
            raise UsageError(
                f"config.json says {key}: {json.dumps(value)}, and weights are {', '.join(WEIGHTS)}",
                where=str(folder),
                fix="Leave it out: then it is read from the weights.",
            )
        if isinstance(value, dict):
            _check_dtypes(value, folder)


def _skeleton(checkpoint: Checkpoint, config: Any, dtype: torch.dtype | None, attention: str) -> Any:
    """The model on meta, without weights; of the configuration's dtype if none is given."""
    try:
        with bounded(checkpoint.config, checkpoint.opened, checkpoint.folder):
            return _on_meta(config, dtype, attention)
    except SleepcError:
        raise
    except Exception as error:
        raise unbuildable(checkpoint, error, partial(_described, checkpoint)) from error


def _config_in(folder: Path) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _on_meta(config: Any, dtype: torch.dtype | None, attention: str) -> Any:
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    chosen = {"dtype": dtype} if dtype is not None else {}
    with torch.device("meta"):
        return auto.from_config(copy.deepcopy(config), attn_implementation=attention, trust_remote_code=False, **chosen)


def _described(checkpoint: Checkpoint, folder: Path, fitting: bool) -> nn.Module:
    """Do with the config.json of a folder what is done with that of a model: fails if it cannot be right. With
    `fitting`, the checkpoint's tensors have to fit too.
    """
    config = _config_in(folder)
    skeleton: nn.Module = _on_meta(config, None, "eager")
    if fitting:
        with warnings.catch_warnings(action="ignore"):
            check_fit(skeleton, checkpoint.opened, torch.float32, folder, config)
    else:
        fit_nothing(skeleton, folder)
    return skeleton


def _run_without_values(checkpoint: Checkpoint, folder: Path, fitting: bool) -> None:
    """Build what the config.json of a folder describes, and run it on fakes: fails if it cannot be built or run."""
    model = _described(checkpoint, folder, fitting)
    with open_seam(model):  # experts as a graph has them: which of them get tokens does not matter
        require_run(model)


def _own_dtype(config: Any, files: tuple[TensorFile, ...]) -> torch.dtype:
    """What the configuration says or, as transformers has it, the dtype of the first file's first weight by name."""
    if config.dtype is not None:
        found: torch.dtype = config.dtype
        return found
    first = files[0].tensors
    return next((first[name].dtype for name in sorted(first) if first[name].dtype.is_floating_point), torch.float32)


def max_positions(config: Any) -> int | None:
    """How many positions the model was made for, as its configuration says; learned tables are found in the graph."""
    value = getattr(_text_config(config), POSITIONS, None)
    return int(value) if isinstance(value, int) and value > 0 else None


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def refer_to_files(
    program: ProgramGraphs,
    files: Sequence[TensorFile],
    hashes: dict[Path, dict[str, str]],
    packed: Mapping[str, StoredPacked],
) -> None:
    """Replace parameters held in memory by references to the tensors of `files` that have the same bytes.

    `hashes` (by file and tensor) are of those bytes, and the keys of `packed` (what a quantised source has). What is in
    no file (a computed buffer, a merged weight) stays held, and is saved in the artifact.
    """
    locator, opened = Locator(list(files), hashes), {file.path: file for file in files}
    for key, param in program.params.items():
        if not isinstance(param, HeldTensor):
            continue
        found = locator.find(param.value, key)
        if found is not None:
            file, name = found
            sha256 = hashes[file][name]
            program.params[key] = FileTensor(
                opened[file], name, param.dtype, param.shape, sha256, packed=packed.get(sha256)
            )


def packed_beside(folder: Path) -> dict[str, StoredPacked]:
    """What a GGUF file's directory has of its quantised weights, by the hash of the floats; of another one nothing.

    Raises SleepcError if the file is damaged.
    """
    path = folder / PACKED
    return packed_in(TensorFile(path)) if is_there(folder / RECORD) and is_there(path) else {}
