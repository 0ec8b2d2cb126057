"""The process that reads a GGUF file: transformers dequantises, and what it leaves out is carried over or refused.

    python -m sleepc.hf.gguf_child FILE FOLDER

One JSON object on standard output: {"notes": [...]}, or the error.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sleepc.errors import SleepcError, UsageError
from sleepc.hf.gguf_config import check_numbers, complete_config
from sleepc.hf.gguf_file import GgufFile, blocks_of
from sleepc.hf.gguf_fit import packed_weights, save_packed
from sleepc.hf.gguf_rope import TABLES
from sleepc.hf.gguf_tokens import end_ids, save_tokenizer
from sleepc.hf.weight_files import SINGLE

BASE = 500 << 20  # bytes: PyTorch and transformers, imported
PER_TOKEN = 2000  # bytes: what the gguf package makes of a token, its score and its type
SHOWN = 6  # names of tensors in a message
GATE_UP = "gate_up_proj"  # of all experts in one parameter; a GGUF file has them apart


def convert(path: Path, target: Path) -> list[str]:
    """Write config, safetensors in float32 and tokenizer into `target`; what a person should know of what was lost."""
    with TemporaryDirectory() as alone:  # transformers also reads what is next to a file, maybe another model's
        link = Path(alone) / path.name
        link.symlink_to(path.resolve())
        return _convert(GgufFile(link), target)


def _convert(file: GgufFile, target: Path) -> list[str]:
    file.check_whole_model()
    check_room(file, target)
    model, notes = _load(file)
    _save_weights(model, target)
    names = {name: found & set(file.shapes) for name, found in _names(file, model).items()}
    save_packed(packed_weights(file, model.state_dict(), names), target)
    config = _plain(model.config.to_dict())
    (target / "config.json").write_text(json.dumps(config, indent=2))
    ids, more = end_ids(file, model.config.vocab_size)
    generation = {"bos_token_id": file.get("tokenizer.ggml.bos_token_id"), "eos_token_id": ids or None}
    (target / "generation_config.json").write_text(json.dumps({k: v for k, v in generation.items() if v is not None}))
    return [*notes, *more, *save_tokenizer(file, target)]


def check_room(file: GgufFile, target: Path) -> None:
    """Raises SleepcError if memory or the disk has no room for the model in float32."""
    size = sum(_count(shape) * 4 for shape in file.shapes.values()) + file.packed_bytes()
    largest = max(_count(shape) * 4 for shape in file.shapes.values())
    free = shutil.disk_usage(target).free
    if free < size:
        raise _no_room(
            file, f"{_gb(size)} on the disk, and {_gb(free)} are free", "Set SLEEPC_CACHE to another folder."
        )
    tokens = len(file.get("tokenizer.ggml.tokens") or ()) * PER_TOKEN
    needed, available = size + 2 * largest + tokens + BASE, available_memory()
    if available is not None and available < needed:
        raise _no_room(file, f"about {_gb(needed)} of memory, and {_gb(available)} are free", "Use another machine.")


def _no_room(file: GgufFile, what: str, fix: str) -> SleepcError:
    return SleepcError(f"the GGUF file, dequantised to float32, needs {what}", where=str(file.path), fix=fix)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def available_memory() -> int | None:
    """Bytes that are available without swapping: the system's, or its control group's, whichever is less."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except OSError:
        pass  # another system, or no control groups: what was found until here is what is known
    return min(found, default=None)


def _load(file: GgufFile) -> tuple[Any, list[str]]:
    """The model with every tensor of the file in it, and notes. Raises UsageError for tensors that do not come over."""
    import torch
    import transformers
    from transformers.utils.logging import set_verbosity

    set_verbosity(logging.CRITICAL)
    auto: Any = transformers.AutoModelForCausalLM
    check_numbers(file)
    folder, name = file.path.parent, file.path.name
    read = transformers.AutoConfig.from_pretrained(
        folder, gguf_file=name, local_files_only=True, trust_remote_code=False
    )
    data, notes = complete_config(file, _plain(read.to_dict()))
    config = type(read).from_dict(data)
    model, loading = auto.from_pretrained(
        folder,
        gguf_file=name,
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below, with their names
        local_files_only=True,
        trust_remote_code=False,
    )
    tied = set(model.all_tied_weights_keys) if config.tie_word_embeddings else set()
    if loading["mismatched_keys"]:
        names = [f"{name} is {tuple(found)}, not {tuple(wanted)}" for name, found, wanted in loading["mismatched_keys"]]
        raise _incomplete(file, "has tensors of other shapes than transformers' model", sorted(names))
    check_tensors(file, model, set(loading["missing_keys"]) - tied)
    return model, notes


def check_tensors(file: GgufFile, model: Any, missing: set[str]) -> None:
    """Raises UsageError unless every tensor is in the model, and every parameter of the model in the file."""
    if missing:
        raise _incomplete(file, "lacks tensors of its model", sorted(missing))
    names = dict.fromkeys(name for name in file.shapes if name not in TABLES)
    left = sorted(set(names) - set().union(*_names(file, model).values()))
    if left:
        raise _incomplete(file, "has tensors that transformers' model has no place for", left)
    here = sum(_count(file.shapes[name]) for name in names)
    there = sum(value.numel() for value in {value.data_ptr(): value for value in model.parameters()}.values())
    there += sum(value.numel() for name, value in model.named_buffers() if name in model.state_dict())
    if here != there:
        raise _incomplete(file, f"has {here:,} weights, and transformers' model {there:,}", [])


def _incomplete(file: GgufFile, what: str, names: list[str]) -> UsageError:
    shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return UsageError(
        f"the GGUF file {what}" + (f": {shown}" if names else ""),
        where=str(file.path),
        fix="Fetch it again, or convert the model's own checkpoint (config.json and safetensors).",
    )


def _names(file: GgufFile, model: Any) -> dict[str, set[str]]:
    """What each of the model's tensors may be called in the file, as the gguf package maps names."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == file.architecture)
    blocks = 1 + max((block for block, _ in blocks_of(file.shapes)), default=0)
    name_of, names = get_tensor_name_map(arch, blocks), dict[str, set[str]]()
    for name in model.state_dict():
        found = names.setdefault(name, set())
        stem, dot, suffix = name.rpartition(".")
        if suffix not in ("weight", "bias"):
            stem, dot, suffix = name, "", ""
        for spelt in (stem, stem.partition(".")[2]):  # Bloom's names are those without its head
            if mapped := name_of.get_name(spelt):
                found |= {f"{mapped}{dot}{suffix}", f"{mapped}.weight" if not dot else f"{mapped}{dot}{suffix}"}
        if stem.endswith(GATE_UP):
            block = next(part for part in stem.split(".") if part.isdigit())
            found |= {f"blk.{block}.ffn_{part}_exps.weight" for part in ("gate", "up")}
    return names


def _save_weights(model: Any, target: Path) -> None:
    from safetensors.torch import save_file

    # save_pretrained refuses a model that was loaded from GGUF, though its weights are plain floats now.
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    plain = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(plain, target / SINGLE, metadata={"format": "pt"})


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a model that is not quantised any more."""
    return {key: value for key, value in data.items() if key != "quantization_config"} | {"dtype": "float32"}


def _read_once() -> None:
    """Let transformers have the reader of the file that there is: each takes seconds, if there are many tokens."""
    import gguf

    reader = cache(gguf.GGUFReader)
    package: Any = gguf
    package.GGUFReader = lambda path: reader(str(path))


def main(path: str, target: str) -> int:
    """Convert, and say how it went."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is not part of the answer
    _read_once()
    try:
        said: dict[str, Any] = {"notes": convert(Path(path), Path(target))}
    except SleepcError as error:
        what, _, fix = error.on_command_line  # whoever raises it again puts it into Python's words
        said = {"exit_code": error.exit_code, "what": what, "fix": fix}
    print(json.dumps(said), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
