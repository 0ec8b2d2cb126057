"""The recipe of a conversion: every option, checked, with its default; stored in the artifact."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from sleepc.errors import UsageError
from sleepc.names import NAME

Strategy = Literal["parallel", "insert", "replace"]
Decay = Literal["head", "channel"]
Layout = Literal["graph", "native"]
WriteTime = Literal["sleep", "online"]
ReadOrder = Literal["after", "before"]
Eviction = Literal["sliding", "hard"]
Dtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]
Factors = Literal["short", "long"]
SoftEncoder = Literal["icae", "comprexit"]
Layers = Annotated[str, Field(max_length=1000)]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
MAX_WINDOW = 1 << 20
AUTO = re.compile(r"auto:([1-9]\d{0,5})")  # `layers`: so many stay full attention, which ones is measured


class _Options(BaseModel):
    """Options by name; unknown ones are an error, and true is not the number 1."""

    model_config = ConfigDict(extra="forbid", frozen=True, revalidate_instances="always")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise PydanticCustomError("truth", "true and false are not values of this option")
        return value


class Override(_Options):
    """Other options for some layers. `window` is how many tokens their attention keeps: at least the recipe's if
    they have a memory, or `none` for all positions that the model has; with `none` and no strategy a layer keeps its
    attention as it is.
    """

    layers: Layers
    strategy: Strategy | Literal["leave"] | None = None
    rule: Name | None = None
    decay: Decay | None = None
    write: Literal["default", "sleep", "online"] | None = None
    window: Annotated[int, Field(ge=1, le=MAX_WINDOW)] | Literal["none"] | None = None

    @field_validator("strategy", mode="before")
    @classmethod
    def _older_name(cls, value: object) -> object:
        return "leave" if value == "keep" else value  # what older recipes call it


Budgets = Annotated[
    tuple[tuple[Annotated[int, Field(ge=0, le=MAX_WINDOW, strict=True)], ...], ...], Field(max_length=4096)
]
"""The slots of every KV head, for every layer."""


class Keep(_Options):
    """What sleeps keep of the pairs (k, v) that leave the windows. `slots`: how many for every KV head, on average over
    the layers that keep any; `score` chooses them; `budgets` says how slots are shared: `auto` (measured when the
    model is converted, equal until then), `equal`, or the slots of every KV head, for every layer of the model (none
    for one that keeps nothing); `dtype`: how they hold keys and values, `float` as the window does.
    """

    slots: Annotated[int, Field(ge=1, le=MAX_WINDOW)] = 128
    score: Name = "probe"
    budgets: Literal["auto", "equal"] | Budgets = "auto"
    dtype: Literal["float", "int8", "int4"] = "float"


class Gradient(_Options):
    """How sleeps of consolidation `gradient` learn: `steps` of gradient descent at the rate `lr` on the surprise at the
    window's next tokens, with the gradient of all that a row learns cut to the norm `clip`. `loss`: all tokens count
    alike (`next`), later ones more (`late`), or those of a stretch of `span` tokens (128 if that is not given), another
    one for each step (`span`). What is learned stands beside linear maps (`weights`: all of the MLPs, the
    down-projections alone, those that make queries, or all of an MLP that is added), for each row: [rank, out] behind a
    map of the inputs to `rank` numbers, or with rank 0 [in, out].
    """

    steps: Annotated[int, Field(ge=0, le=64)] = 1
    lr: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] = 0.3
    clip: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    rank: Annotated[int, Field(ge=0, le=1 << 16)] = 16
    weights: Literal["mlp", "down", "query", "prime"] = "mlp"
    loss: Literal["next", "late", "span"] = "next"
    span: Annotated[int, Field(ge=1, le=MAX_WINDOW)] | None = None


class Hebbian(_Options):
    """What noise does to memories in sleeps of consolidation `hebbian`: `steps` of it. Weights from inputs that are
    active to outputs beyond `threshold`, in root mean squares of all outputs, move by `inc`, and those from silent
    inputs become weaker by the share `dec`.
    """

    steps: Annotated[int, Field(ge=0, le=64)] = 8
    inc: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.003
    dec: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0003
    threshold: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 1.0


class Soft(_Options):
    """What sleeps of consolidation `tokens` make of windows: `tokens` soft tokens of each, and those of the latest
    `windows` stay. `encoder` icae is the model with LoRA matrices of `rank` rows (0 for none), comprexit gates over
    what its layers make of the window, and an optimal transport plan, on vectors of `width` numbers.
    """

    tokens: Annotated[int, Field(ge=1, le=1 << 12)] = 32
    windows: Annotated[int, Field(ge=1, le=1 << 12)] = 16
    encoder: SoftEncoder = "icae"
    rank: Annotated[int, Field(ge=0, le=1 << 12)] = 16
    width: Annotated[int, Field(ge=1, le=1 << 14)] = 256


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer. `window`: the tokens that its attention keeps, None for all positions. `layout`: of
    the layer that takes attention's place.
    """

    strategy: Strategy | Literal["leave"]
    rule: str
    decay: Decay
    write: WriteTime
    window: int | None
    layout: Layout = "graph"


class Recipe(_Options):
    """What `convert` does to a model. The defaults are those of semantics.md, section 5."""

    strategy: Strategy = "parallel"
    rule: Name = "gated_delta"
    decay: Decay = "head"
    layout: Layout = "graph"
    features: Name = "unit"
    read: ReadOrder = "after"
    layers: Layers = "all"
    window: int = Field(default=256, ge=1, le=MAX_WINDOW)
    passes: int = Field(default=1, ge=1, le=64)
    consolidation: Name = "replay"
    loop: str = Field(default="all", pattern=r"^(all|middle|\d{1,6}:\d{1,6})$")
    settle: float = Field(default=0, ge=0, lt=1, allow_inf_nan=False)
    mlps: Layers = "auto"
    gradient: Gradient | None = None
    hebbian: Hebbian | None = None
    soft: Soft | None = None
    eviction: Eviction = "sliding"
    own_windows: Literal["auto", "leave", "narrow"] = "auto"
    last_position: Literal["evict", "renumber"] = "evict"
    sinks: int = Field(default=4, ge=0, le=1 << 16)
    keep: Keep | None = None
    write: Literal["default", "sleep", "online"] = "default"
    dtype: Dtype = "auto"
    rope_factors: Factors = "short"
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    overrides: tuple[Override, ...] = Field(default=(), max_length=4096)

    if not TYPE_CHECKING:  # which knows the options by name

        def __init__(self, *recipes: object, **options: object) -> None:
            """Raises UsageError as `make_recipe` does."""
            if recipes:
                fix = 'Give options by name, sleepc.Recipe(window=256), or **{"window": 256}.'
                raise UsageError(f"a recipe is made of options by name, and not of {reprlib.repr(recipes[0])}", fix=fix)
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise _option_error(error, "") from None

        __init__.__pydantic_base_init__ = True  # pydantic validates what it reads without calling it

    def __setattr__(self, name: str, value: object) -> None:
        raise UsageError(f"a recipe is immutable: {name} is set when it is made", fix="Make another one.")

    @field_validator("keep", mode="before")
    @classmethod
    def _slots_alone(cls, value: object) -> object:
        return {"slots": value} if isinstance(value, int) and not isinstance(value, bool) else value

    def given(self) -> dict[str, Any]:
        """The options that are not the defaults, as a recipe file has them."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude_none=True)

    def plan(self, count: int) -> tuple[LayerPlan, ...]:
        """What becomes of each of `count` layers; of several overrides of one layer the last one wins.

        Raises UsageError for a layer that the model does not have, a text that cannot be read, or options that exclude
        each other.
        """
        _check_count(count)
        chosen = parse_layers(self.layers, count)
        plans: list[dict[str, Any]] = [
            {
                "strategy": self.strategy if i in chosen else "leave",
                "rule": self.rule,
                "decay": self.decay,
                "write": self.write,
                "window": self.window,
            }
            for i in range(count)
        ]
        for override in self.overrides:
            given = override.model_dump(exclude_none=True, exclude={"layers"})
            if given.get("window") == "none":
                given.setdefault("strategy", "leave")
            for i in parse_layers(override.layers, count, where="overrides"):
                plans[i] |= given
        if self.layout == "native" and all(options["strategy"] != "replace" for options in plans):
            raise UsageError(
                "the native layout is that of layers whose attention is replaced, and none is",
                where="--layout native",
                fix="Add --strategy replace, or leave it out.",
            )
        made = tuple(self._layer(i, options) for i, options in enumerate(plans))
        if self.read == "before":
            _check_read(made)
        return made

    def _layer(self, i: int, options: dict[str, Any]) -> LayerPlan:
        strategy, write, window = options["strategy"], options["write"], options["window"]
        if strategy == "replace" and write == "sleep":
            raise UsageError(
                "with write time sleep a memory is only read in wake, which needs attention in addition, and "
                "strategy replace has none",
                where=f"layer {i}",
                fix="Use --write online, or --strategy parallel or insert.",
            )
        if window == "none" and self.eviction == "hard":
            raise UsageError(
                "window none keeps every token, and hard eviction drops them at each sleep",
                where=f"overrides: layer {i}",
                fix="Use --eviction sliding.",
            )
        if window != "none" and window < self.window and strategy != "leave":
            raise UsageError(
                f"a window of {window} drops tokens that no sleep has consolidated: sleeps come after {self.window}",
                where=f"overrides: layer {i}",
                fix=f"Choose {self.window} or more, or none.",
            )
        if write == "default":
            write = "sleep" if strategy == "parallel" else "online"
        layout: Layout = self.layout if strategy == "replace" else "graph"
        rule, decay = options["rule"], options["decay"]
        if layout == "native" and (rule, decay) != ("gated_delta", "head"):
            raise UsageError(
                f"a native layer has the rule gated_delta and one decay for each head, not {rule} per {decay}",
                where=f"layer {i}",
                fix="Use --rule gated_delta --decay head, or --layout graph.",
            )
        return LayerPlan(strategy, rule, decay, write, None if window == "none" else window, layout)

    def loop_range(self, count: int) -> tuple[int, int]:
        """Blocks [a, b) that recurrent passes run over; `middle` leaves out a quarter at either end.

        Raises UsageError if the model, of `count` blocks, has no such range.
        """
        _check_count(count)
        if self.loop == "all":
            return 0, count
        if self.loop == "middle":
            first = min(-(-count // 4), (count - 1) // 2)
            return first, count - first
        first, end = (int(part) for part in self.loop.split(":"))
        if not first < end <= count:
            raise UsageError(
                f"the model has blocks 0 to {count - 1}: a loop over [{first}, {end}) is empty or leaves it",
                where=f"--loop {self.loop}",
                fix=f'Use "all", "middle" or a range a:b with 0 <= a < b <= {count}.',
            )
        return first, end


def _check_read(plans: tuple[LayerPlan, ...]) -> None:
    """Raises UsageError if no layer reads between writes, or one is of a class that reads after them."""
    if any(plan.layout == "native" for plan in plans):
        raise UsageError(
            "the layer of the native layout reads after it has written",
            where="--read before",
            fix="Leave it out, or use --layout graph.",
        )
    if all(plan.strategy == "leave" or plan.write == "sleep" for plan in plans):
        raise UsageError(
            "no memory is written in wake: sleeps write, and every read is before them",
            where="--read before",
            fix="Leave it out, or add --write online, with a rule that takes tokens one by one.",
        )


def make_recipe(options: Recipe | dict[str, Any] | None, where: str = "") -> Recipe:
    """A checked recipe, of options from `where`.

    Raises UsageError that names the option, its value and what is allowed; for an unknown one, the nearest known one.
    """
    if options is not None and not isinstance(options, (dict, Recipe)):
        what = f"a recipe is a dictionary of options, and not of type {type(options).__name__}"
        raise UsageError(what, where=where, fix='For example {"window": 256}; a file is read by `convert --recipe`.')
    try:
        return Recipe.model_validate(options or {})
    except ValidationError as error:
        raise _option_error(error, where) from None


def _option_error(error: ValidationError, where: str) -> UsageError:
    found = error.errors()
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    name = ".".join(str(part) for part in first["loc"])
    where = where or (f"--{name.replace('_', '-')}" if len(first["loc"]) == 1 else name)
    fix = _hint(first) or "`sleepc convert --help` lists the options."
    return UsageError(_explain(name, first), where=where, fix=fix)


def _explain(name: str, first: Any) -> str:
    if first["type"] == "extra_forbidden":
        return f"there is no option named {name!r}"
    return f"{name} = {reprlib.repr(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _hint(first: Any) -> str:
    """What to write instead: for an unknown key the known one that looks most like it, for layers a text."""
    kind, place = first["type"], first["loc"]
    if kind == "extra_forbidden":
        return _nearest(first)
    if place[-1] in ("layers", "mlps") and kind in ("string_type", "missing", "truth"):
        given = first["input"] if kind == "string_type" else 0
        numbers = given if isinstance(given, list) else [given]
        return f'Write layers as a text: layers: "{",".join(map(str, numbers[:8]))}".'
    if place == ("overrides",) or (place[:1] == ("overrides",) and kind == "model_type"):
        return 'Write a list of options for layers:  overrides: [{layers: "0", rule: delta}]'
    return ""


def _nearest(first: Any) -> str:
    names = list((Override if first["loc"][0] == "overrides" else Recipe).model_fields)
    near = get_close_matches(str(first["loc"][-1]), names, 1)
    return f"Did you mean {near[0]!r}?" if near else f"Options: {', '.join(names)}."


def _check_count(count: object) -> None:
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"the number of blocks is {reprlib.repr(count)}", fix="Give a whole number.")


def parse_layers(text: str, count: int, where: str = "--layers") -> tuple[int, ...]:
    """`all`, `every:2` (2nd, 4th, ..), or numbers and ranges from 0, both ends included.

    >>> parse_layers("every:2", 6)
    (1, 3, 5)
    >>> parse_layers("0,2-3", 6)
    (0, 2, 3)
    """
    if text == "all":
        return tuple(range(count))
    if AUTO.fullmatch(text):
        what = f"which layers {text} leaves is measured when a model is converted"
        raise UsageError(what, where=where, fix="Name them here.")
    every = re.fullmatch(r"every:([1-9]\d{0,5})", text)
    if every:
        step = int(every[1])
        return _in_range(range(step - 1, count, step), text, count, where)
    chosen: set[int] = set()
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if not found:
            raise UsageError(f"cannot read layers {text!r}", where=where, fix='Use "all", "every:2" or "3,5,7-9".')
        first, last = int(found[1]), int(found[2] or found[1])
        chosen.update(range(first, last + 1))
    return _in_range(sorted(chosen), text, count, where)


def _in_range(chosen: Iterable[int], text: str, count: int, where: str) -> tuple[int, ...]:
    layers = tuple(chosen)
    outside = [i for i in layers if i >= count]
    if outside or not layers:
        what = f"layer {outside[0]} does not exist" if outside else "no layer is chosen"
        raise UsageError(
            f"{what}: the model has blocks 0 to {count - 1}",
            where=f"{where} {text}",
            fix='Use "all", "every:2" or "3,5,7-9".',
        )
    return layers
