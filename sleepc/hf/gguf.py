"""GGUF -> a Hugging Face directory with safetensors, in a child process, so that the memory of dequantisation goes
with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import sleepc
from sleepc.errors import SleepcError, UsageError

Progress = Callable[[str, float | None], None]
MAGIC = b"GGUF"
PIECE = 8 << 20
NEEDED = ("gguf", "accelerate")


def cache_folder() -> Path:
    """Where sleepc keeps what it fetched or turned into another form: SLEEPC_CACHE, or ~/.cache/sleepc."""
    return Path(os.environ.get("SLEEPC_CACHE") or Path.home() / ".cache" / "sleepc").expanduser()


def gguf_to_directory(path: Path, progress: Progress) -> Path:
    """The directory of a GGUF file's model in float32, made once and kept in the cache under the file's hash.

    Raises UsageError for what is no GGUF file or where the gguf package is missing, SleepcError where transformers
    cannot read it.
    """
    if _first_bytes(path) != MAGIC:
        raise UsageError(f"{path.name} is not a GGUF file", where=str(path), fix="Fetch it again.")
    progress("hashing the GGUF file", None)
    target = cache_folder() / f"gguf-{_sha256(path)[:16]}"
    if (target / "config.json").is_file():
        return target
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        raise UsageError(
            f"reading GGUF files needs {' and '.join(absent)}", where=str(path), fix="pip install 'sleepc[gguf]'"
        )
    progress("dequantising the GGUF file", None)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".gguf-", dir=target.parent))
    try:
        _convert_in_child(path, draft)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    finally:
        if draft.exists():
            shutil.rmtree(draft)
    return target


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC))
    except OSError as error:
        raise UsageError(f"cannot read {path.name}: {error.strerror}", where=str(path)) from error


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _convert_in_child(path: Path, target: Path) -> None:
    # -P: no module is taken from the folder that the person happens to be in; sleepc itself is taken from where it is.
    command = [sys.executable, "-P", "-m", "sleepc.hf.gguf", str(path.resolve()), str(target)]
    package = str(Path(sleepc.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        raise SleepcError(
            f"the GGUF file cannot be read: {lines[-1] if lines else f'exit {done.returncode}'}",
            where=str(path),
            fix="The file may be damaged or of an architecture that transformers does not read from GGUF.",
        )


def _convert(path: Path, target: Path) -> None:
    """The child's work: transformers dequantises to float32 and saves safetensors; the tokenizer goes along."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
    )
    # save_pretrained refuses a model that was loaded from GGUF, though its weights are plain floats now.
    plain = {name: value for name, value in model.state_dict().items() if value.dtype == torch.float32}
    if model.config.tie_word_embeddings:
        plain.pop("lm_head.weight", None)
    save_file(plain, target / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(target)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(target)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False).save_pretrained(target)
    config = target / "config.json"
    data = json.loads(config.read_text())
    data.pop("quantization_config", None)
    data |= {"dtype": "float32"}
    config.write_text(json.dumps(data, indent=2))


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), Path(sys.argv[2]))
