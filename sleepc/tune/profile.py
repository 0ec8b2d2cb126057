"""Devices that need not be here, as data: `devices/NAME.toml` says what each has, and who says so. Imports no torch."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from sleepc.errors import SleepcError, UsageError
from sleepc.sealed_json import Strict

FOLDER = Path(__file__).with_name("devices")
Dtype = Literal["f32", "bf16", "f16"]


class Sourced(Strict):
    """A number, and where it is from."""

    value: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    source: Annotated[str, Field(min_length=10, max_length=400)]


class Profile(Strict):
    """What a device has: bytes of `memory`, `bandwidth` of it in bytes a second, `flops` a second of products without
    sparsity by dtype, bytes of `shared` memory of a program, seconds of a
    `launch`: what an operator costs however small it is. `kind` is PyTorch's word for the device, `target`
    what kernels are compiled for. A GPU computes while it is told what is next; a processor `waits`.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    kind: Literal["cpu", "cuda"]
    target: Annotated[str, Field(pattern=r"^[a-z0-9_]{0,20}$")] = ""
    memory: Sourced
    bandwidth: Sourced
    flops: Annotated[dict[Dtype, Sourced], Field(min_length=1)]
    shared: Sourced | None = None
    launch: Sourced

    @property
    def waits(self) -> bool:
        """Is the host's time in addition to the device's?"""
        return self.kind == "cpu"

    @property
    def runtime(self) -> str:
        """The kind of device for what is not PyTorch, which calls AMD's cuda as well."""
        return "rocm" if self.target.startswith("gfx") else self.kind

    def flops_in(self, dtype: str) -> float:
        """Of a dtype; of float32 for one that the device has no figure for."""
        return next((self.flops[name].value for name in self.flops if name == dtype), self.flops["f32"].value)


def profiles() -> list[str]:
    """The names of all that are known."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_profile(name: str) -> Profile:
    """A device by name. Raises UsageError, with those that are known, for another, SleepcError for a damaged file."""
    known = profiles()
    if name not in known:
        near = get_close_matches(name, known, 1)
        here = "This machine is auto or cpu; known besides"
        fix = f"{f'Did you mean {near[0]}? ' if near else ''}{here}: {', '.join(known)}."
        raise UsageError(f"unknown device {name!r}", where="--target", fix=fix)
    return read_profile(FOLDER / f"{name}.toml")


def read_profile(path: Path) -> Profile:
    """A file of a device. Raises SleepcError if it is not one: an unknown key, a number without a source."""
    try:
        return Profile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error)
        raise SleepcError(f"not a device profile: {what}", where=str(path), fix="See sleepc/tune/devices.") from error
