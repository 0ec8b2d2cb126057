"""Which safetensors files hold a checkpoint's weights: one answer, or a refusal that names the files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sleepc.errors import SleepcError, UsageError
from sleepc.hf.json_file import read_object
from sleepc.hf.present import is_there
from sleepc.hf.quantised import QUANTISED_DTYPES, quantised
from sleepc.ir.tensorfile import TensorFile, UnreadableDtype

PACKED = "packed.safetensors"  # beside a model's floats: the whole numbers that a GGUF file has of them
SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
SAFETENSORS = "*.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
AGAIN = "Fetch the model again."


def weight_files(folder: Path, config: dict[str, Any]) -> tuple[TensorFile, ...]:
    """The files that transformers takes, opened: those of the index, or model.safetensors. Others in the folder do not
    count.

    Raises UsageError if there are none, if two sets could be meant, or if index and files disagree; Refusal
    if a tensor is stored as only quantised ones are; SleepcError if a file is damaged.
    """
    named = config.get("transformers_weights")  # what a configuration may name instead
    index = folder / INDEX
    if named is not None:
        files = _named(folder, named)
    elif is_there(index):
        files = _indexed(index)
        if is_there(folder / SINGLE) and files != (folder / SINGLE,):
            raise UsageError(
                f"{SINGLE} and {INDEX} (of {some(p.name for p in files)}) are both present: which is the model?",
                where=str(folder),
                fix="Remove the one that is not meant; transformers would take model.safetensors.",
            )
    elif is_there(folder / SINGLE):
        files = (folder / SINGLE,)
    else:
        raise _no_weights(folder)
    opened = _open(files)
    _check_names(opened, index if named is None and index.is_file() else None)
    return opened


def _open(files: tuple[Path, ...]) -> tuple[TensorFile, ...]:
    """The headers of weight files. Raises Refusal if a tensor is stored as only quantised ones are, SleepcError
    if a file is damaged.
    """
    try:
        return tuple(TensorFile(file) for file in files)
    except UnreadableDtype as error:
        if error.dtype.startswith(QUANTISED_DTYPES):
            raise quantised(f"{error.tensor} is stored as {error.dtype}", Path(error.where)) from error
        raise


def _check_names(headers: tuple[TensorFile, ...], index: Path | None) -> None:
    """Every tensor is in one file, and in that which the index names. Raises UsageError with files and names."""
    places: dict[str, Path] = {}
    for header in headers:
        twice = [name for name in header.tensors if name in places]
        if twice:
            other = places[twice[0]].name
            raise UsageError(
                f"{header.path.name} and {other} both have {some(twice)}", where=str(header.path.parent), fix=AGAIN
            )
        places |= dict.fromkeys(header.tensors, header.path)
    if index is None:
        return
    for name, file in _weight_map(index).items():
        if name not in places or places[name].name != file:
            where = f"{places[name].name} has" if name in places else "no file has"
            raise UsageError(
                f"the index says that {name} is in {file}, which lacks it ({where} it)", where=str(index), fix=AGAIN
            )


def adapter_base(folder: Path) -> str | None:
    """The name of the model that an adapter in `folder` is of; None if there is no adapter."""
    path = folder / ADAPTER
    if not is_there(path):
        return None
    try:
        base = read_object(path).get("base_model_name_or_path")
    except SleepcError:
        return "an unknown model"  # the adapter is not applied, whatever stands there
    return str(base) if base else "an unknown model"


def only_an_adapter(folder: Path, base: str) -> UsageError:
    """What is said of a folder with an adapter and no model."""
    return UsageError(
        f"this is an adapter of {base}, without the model",
        where=str(folder),
        fix="Merge it into its model first (peft: merge_and_unload, then save_pretrained), and convert the result.",
    )


def _named(folder: Path, named: Any) -> tuple[Path, ...]:
    path = folder / str(named)
    if not isinstance(named, str) or Path(named).name != named or not _is_file(path):
        raise UsageError(
            f"transformers_weights in config.json names {_shown(str(named))}, which is not a file of this folder",
            where=str(folder),
            fix=AGAIN,
        )
    return _indexed(path) if named.endswith(".json") else (path,)


def _weight_map(index: Path) -> dict[str, str]:
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict):
        raise UsageError(f"{index.name} has no weight_map", where=str(index), fix=AGAIN)
    wrong = [name for name, file in found.items() if not isinstance(file, str)]
    if wrong or not found:
        raise UsageError(
            f"{index.name} does not say which file has {some(wrong) or 'what'}", where=str(index), fix=AGAIN
        )
    return dict(found)


def _indexed(index: Path) -> tuple[Path, ...]:
    files = []
    for name in sorted(set(_weight_map(index).values())):
        path = index.parent / name
        if Path(name).name != name:
            raise UsageError(
                f"the index names {_shown(name)}, which is not a file of this folder", where=str(index), fix=AGAIN
            )
        if not _is_file(path):
            raise UsageError(
                f"the index names {_shown(name)}, which is not there", where=str(index), fix="Fetch the missing file."
            )
        files.append(path)
    return tuple(files)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no file has such a name
        return False


def _shown(name: str) -> str:
    text = name if name.isprintable() and name else json.dumps(name)
    return text if len(text) <= 100 else text[:99] + "…"


def _no_weights(folder: Path) -> UsageError:
    base = adapter_base(folder)
    if base is not None:
        return only_an_adapter(folder, base)
    others = sorted(p.name for p in folder.glob(SAFETENSORS))
    if others:
        return UsageError(
            f"the weights are neither in {SINGLE} nor in files that {INDEX} names: there is {some(others)}",
            where=str(folder),
            fix="Fetch the index of these files, or name the one that is meant model.safetensors.",
        )
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        return UsageError(
            f"the weights are a pickle ({pickles[0]}), which can run code when it is loaded",
            where=str(folder),
            fix="Save the model as safetensors (model.save_pretrained) if you trust it.",
        )
    return UsageError(f"{folder} has no {SAFETENSORS}", where=str(folder), fix=AGAIN)


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of some names, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more
