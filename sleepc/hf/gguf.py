"""GGUF -> a Hugging Face directory with safetensors, in a child process, so that the memory of dequantisation goes
with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.held_file import HeldFile
from sleepc.hf.gguf_file import refuse_part
from sleepc.hf.json_file import read_object
from sleepc.progress import Progress
from sleepc.whole_folder import written_beside

MAGIC = b"GGUF"
NEEDED = ("gguf", "accelerate")
READER = 4  # raised whenever the same file would be read in another way, so that what was kept before is not used
RECORD = "gguf.json"  # in a folder of the cache: what it was made from, and what was not carried over


def cache_folder() -> Path:
    """Where sleepc keeps what it fetched or turned into another form: SLEEPC_CACHE, or ~/.cache/sleepc."""
    return Path(os.environ.get("SLEEPC_CACHE") or Path.home() / ".cache" / "sleepc").expanduser()


@contextmanager
def writing_to_cache(folder: Path) -> Iterator[None]:
    """Raises SleepcError for what the system refuses in `folder`, which lies in the cache."""
    try:
        yield
    except OSError as error:
        raise SleepcError(
            f"cannot keep the model in the cache: {error.strerror or error}",
            where=str(folder),
            fix="Make room there, or set SLEEPC_CACHE to another folder.",
        ) from error


def gguf_to_directory(path: Path, progress: Progress) -> Path:
    """The directory of a GGUF file's model in float32, made once and kept in the cache under the file's hash.

    A SleepcWarning says what of the file is not carried over, each time. Raises UsageError unless it is a GGUF file of
    a whole model, if it asks for what transformers' model cannot do, or if the gguf package is missing; SleepcError if
    it cannot be read, or there is no room.
    """
    file = HeldFile(path)
    if file.read(0, min(len(MAGIC), file.size)) != MAGIC:
        raise UsageError(f"{path.name} is not a GGUF file", where=str(path), fix="Fetch it again.")
    refuse_part(path)
    progress("hashing the GGUF file", None)
    target = cache_folder() / f"gguf-{_sha256(path)[:16]}-r{READER}"
    if not _complete(target):
        absent = [name for name in NEEDED if find_spec(name) is None]
        if absent:
            raise UsageError(
                f"reading GGUF files needs {' and '.join(absent)}", where=str(path), fix="pip install 'sleepc[gguf]'"
            )
        progress("dequantising the GGUF file", None)
        _make(path, target)
    for note in read_object(target / RECORD).get("notes", []):
        warnings.warn(f"{path.name}: {note}", SleepcWarning, stacklevel=2)
    return target


def _complete(target: Path) -> bool:
    return (target / "config.json").is_file() and (target / RECORD).is_file()


def _make(path: Path, target: Path) -> None:
    if target.is_dir() and not _complete(target):
        shutil.rmtree(target)
    with writing_to_cache(target.parent), written_beside(target, force=True, mark=RECORD) as draft:
        notes = _convert_in_child(path, draft)
        (draft / RECORD).write_text(json.dumps({"file": path.name, "reader": READER, "notes": notes}))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_in_child(path: Path, target: Path) -> list[str]:
    # -P: no module is taken from the folder that the person happens to be in; sleepc itself is taken from where it is.
    command = [sys.executable, "-P", "-m", "sleepc.hf.gguf_child", str(path.resolve()), str(target)]
    package = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SleepcError(
            f"the GGUF file cannot be read: {_last_words(done)}",
            where=str(path),
            fix="The file may be damaged or of an architecture that transformers does not read from GGUF.",
        )
    said = json.loads(done.stdout)
    if "what" in said:
        kind = UsageError if said["exit_code"] == UsageError.exit_code else SleepcError
        raise kind(said["what"], where=str(path), fix=said["fix"])
    return list(said["notes"])


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == -signal.SIGKILL:
        return "the process that read it was killed, most likely because memory ran out"
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"exit {done.returncode}"
