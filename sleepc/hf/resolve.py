"""What the user names as MODEL -> a local Hugging Face directory that is safe to load, or a refusal in one line."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepc.errors import Refusal, SleepcError, SleepcWarning, UsageError
from sleepc.hf.json_file import read_object
from sleepc.hf.present import is_there
from sleepc.hf.quantised import refuse_quantised
from sleepc.hf.tokenizer import files_to_copy
from sleepc.hf.weight_files import ADAPTER, adapter_base, only_an_adapter, weight_files
from sleepc.ir.tensorfile import TensorFile
from sleepc.manifest import MANIFEST, read_manifest
from sleepc.progress import Progress

CONFIG, GGUF = "config.json", ".gguf"
WANTED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICEN*", "NOTICE*", "README.md")


@dataclass(frozen=True)
class Checkpoint:
    """A local directory with config and open safetensors files; `name` is what the user called it."""

    name: str
    folder: Path
    config: dict[str, Any]
    opened: tuple[TensorFile, ...]  # what is checked is what is read later, whatever comes to stand at the paths


def resolve(model: str | Path, progress: Progress) -> Checkpoint:
    """The checkpoint that `model` names: a directory, a GGUF file (converted into the cache), or a hub id.

    Raises UsageError, Refusal or SleepcError with cause and remedy; loads no weights and runs no code of the
    checkpoint.
    """
    path = Path(model).expanduser()
    if path.is_file() and is_gguf(path):
        from sleepc.hf.gguf import gguf_to_directory

        folder = gguf_to_directory(path, progress)
    elif (path / MANIFEST).is_file():
        raise _is_ours(path)
    elif path.is_dir():
        folder = path.resolve()
    elif path.exists():
        fix = f"Name its folder: {path.parent}." if is_there(path.parent / CONFIG) else _EXPECTED
        raise UsageError(f"{path.name} is neither a model directory nor a .gguf file", where=str(path), fix=fix)
    else:
        folder = _download(str(model), progress)
    if not _is_utf8(str(folder)):
        what = "the path of the model is not UTF-8, and artifacts have to name it"
        raise UsageError(what, where=ascii(str(folder)), fix="Rename the folder.")
    return check_folder(str(model), folder)


def is_gguf(path: str | Path) -> bool:
    """Is it the name of a GGUF file?"""
    return Path(path).suffix.lower() == GGUF


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


_EXPECTED = "Give a Hugging Face directory (config.json and *.safetensors), a hub id such as org/name, or a .gguf file."


def _is_ours(path: Path) -> UsageError:
    """What to say of a folder that was converted already."""
    source = read_manifest(path).source
    original = f": {source.folder}" if source.folder else f", which was {source.name} in memory"
    return UsageError(
        f"{path} is a sleepc artifact, not a model", fix=f"Name the model that it was made from{original}"
    )


def _download(name: str, progress: Progress) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise UsageError(f"there is no {name}", fix=_EXPECTED)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    progress(f"fetching {name}", None)
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except HFValidationError as error:
        raise UsageError(f"{name!r} is neither a directory nor a hub id", fix=_EXPECTED) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise SleepcError(
            f"cannot fetch {name} from the hub, and it is not in the local cache",
            where=str(error).splitlines()[0],
            fix="Check the name and the network, or give a local directory.",
        ) from error


def check_folder(name: str, folder: Path) -> Checkpoint:
    """Check config and files of a directory before anything is loaded from it."""
    base = adapter_base(folder)
    if base is not None and not is_there(folder / CONFIG):
        raise only_an_adapter(folder, base)
    config = _config(folder)
    refuse_quantised(config, folder)
    if config.get("is_encoder_decoder"):
        raise Refusal(
            "CROSS_ATTENTION",
            "nothing to convert: this is an encoder-decoder model, whose decoder attends to an encoder",
            where=str(folder),
            fix="sleepc converts decoder-only language models.",
        )
    files_to_copy(folder)  # fails now, and not after the work
    opened = weight_files(folder, config)
    if base is not None:
        text = f"{ADAPTER} is next to the model: that adapter of {base} is not applied (to apply it, merge it first)"
        warnings.warn(text, SleepcWarning, stacklevel=2)
    return Checkpoint(name, folder, config, opened)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not is_there(path):
        files = sorted(filter(is_gguf, folder.iterdir()))
        fix = f"Name a GGUF file in it: {files[0]}." if files else _EXPECTED
        raise UsageError(f"{folder} has no {CONFIG}", where=str(folder), fix=fix)
    config = read_object(path)
    return config
