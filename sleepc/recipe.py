"""The recipe of a conversion: every option, checked, with its default; stored in the artifact."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sleepc.errors import UsageError

Strategy = Literal["parallel", "insert"]
Dtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]


class Recipe(BaseModel):
    """What `convert` does to a model. The defaults are those of semantics.md, section 5."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Strategy = "parallel"
    rule: Literal["gated_delta"] = "gated_delta"
    layers: str = "all"
    window: int = Field(default=256, ge=1, le=1 << 20)
    passes: int = Field(default=1, ge=1, le=64)
    consolidation: Literal["replay"] = "replay"
    eviction: Literal["sliding", "hard"] = "sliding"
    sinks: int = Field(default=4, ge=0, le=1 << 16)
    write: Literal["default", "sleep", "online"] = "default"
    dtype: Dtype = "auto"
    seed: int = Field(default=0, ge=0, lt=1 << 31)

    @property
    def write_time(self) -> Literal["sleep", "online"]:
        """The write time, `default` resolved: sleep for parallel, online for insert."""
        if self.write != "default":
            return self.write
        return "sleep" if self.strategy == "parallel" else "online"

    def chosen_layers(self, count: int) -> tuple[int, ...]:
        """The blocks to convert, of `count`. Raises UsageError for a layer that the model does not have or a text it
        cannot read.
        """
        return parse_layers(self.layers, count)


def make_recipe(options: Recipe | dict[str, Any] | None) -> Recipe:
    """A checked recipe. Raises UsageError that names the option, its value and what is allowed."""
    if isinstance(options, Recipe):
        return options
    try:
        return Recipe.model_validate(options or {})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            _explain(name, first), where=f"--{name}", fix="`sleepc convert --help` lists the options."
        ) from None


def _explain(name: str, first: Any) -> str:
    if first["type"] == "extra_forbidden":
        return f"there is no option named {name!r}"
    return f"{name} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def parse_layers(text: str, count: int) -> tuple[int, ...]:
    """`all`, `every:2` (2nd, 4th, ..), or numbers and ranges from 0, both ends included.

    >>> parse_layers("every:2", 6)
    (1, 3, 5)
    >>> parse_layers("0,2-3", 6)
    (0, 2, 3)
    """
    if text == "all":
        return tuple(range(count))
    every = re.fullmatch(r"every:([1-9]\d{0,5})", text)
    if every:
        step = int(every[1])
        return _in_range(range(step - 1, count, step), text, count)
    chosen: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if not found:
            raise UsageError(f"cannot read layers {text!r}", where="--layers", fix='Use "all", "every:2" or "3,5,7-9".')
        first, last = int(found[1]), int(found[2] or found[1])
        chosen.update(range(first, last + 1))
    return _in_range(sorted(chosen), text, count)


def _in_range(chosen: Iterable[int], text: str, count: int) -> tuple[int, ...]:
    layers = tuple(chosen)
    outside = [i for i in layers if i >= count]
    if outside or not layers:
        what = f"layer {outside[0]} does not exist" if outside else "no layer is chosen"
        raise UsageError(
            f"{what}: the model has blocks 0 to {count - 1}",
            where=f"--layers {text}",
            fix='Use "all", "every:2" or "3,5,7-9".',
        )
    return layers
