"""How a converted program is trained: every option, checked, with its default; stored with what was trained."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sleepc.errors import UsageError

Kind = TypeVar("Kind", bound=BaseModel)
StageName = Literal["align", "distil", "lengthen", "solve"]
What = Literal["new", "low-rank", "all"]
STAGES: tuple[StageName, ...] = ("align", "distil", "lengthen", "solve")
TAUGHT: tuple[StageName, ...] = ("align", "distil")  # those that follow a teacher
HARD: tuple[StageName, ...] = ("distil", "solve")  # those of which a share may run with hard eviction
SHARES = {"align": 1.0, "distil": 3.0, "lengthen": 1.0, "solve": 1.0}  # of the tokens, if --stages does not say
MOST_PASSES = 64
DOUBLINGS = 2  # how often `lengthen` doubles the length of pieces


class Settings(BaseModel):
    """Options of `sleepc distil` and `sleepc train`. `tokens` is the whole budget, or `steps` if they are not 0.

    `batch` counts pieces per step, of all processes and accumulated parts together. `truncate` is how many windows
    gradients go back through sleeps, 0 for all of a piece. `precision` is the dtype that the program runs in; trained
    parameters, gates and states are float32 in any. `recall` is the share of pieces that get stretches which were read
    more than a window before, `planted` that of pieces that become conversations about facts told in them, `studied`
    that of others in which the teacher asks itself (sleepc.train.tutor), and `hard` the share of stages distil and
    solve that evicts hard. `weigh`: how much more a token counts for each nat that the teacher knows it better
    (sleepc.train.weighing). `start`: `fresh` sets memories that were never trained to learn fast (sleepc.train.start),
    `new` makes them as layers of a new model are, `kept` begins from them as they are.

    `passes` are those of every sleep: "" the program's own, "4", or "1:4", a number that is drawn for each step.
    `predict` is how many tokens at the end of a piece of text stage solve learns, 0 for all of them. Learning rates are
    those at their height. With `optimiser` muon, matrices of the source's blocks are Muon's, all else is AdamW's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stages: str = Field(default="distil", max_length=200)
    train: What = "new"
    rank: int = Field(default=8, ge=1, le=1024)
    tokens: int = Field(default=250_000, ge=1)
    steps: int = Field(default=0, ge=0)
    passes: str = Field(default="", max_length=20)
    predict: int = Field(default=0, ge=0)
    length: int = Field(default=768, ge=2)
    batch: int = Field(default=1, ge=1, le=1 << 16)
    accumulate: int = Field(default=1, ge=1, le=1 << 16)
    lr: float = Field(default=2e-3, gt=0, lt=1)
    low_rank_lr: float = Field(default=1e-3, gt=0, lt=1)
    weights_lr: float = Field(default=1e-5, gt=0, lt=1)
    optimiser: Literal["adamw", "muon"] = "adamw"
    muon_lr: float = Field(default=5e-3, gt=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    warm_up: float = Field(default=0.05, ge=0, le=1)
    hard: float = Field(default=0.0, ge=0, le=1)
    recall: float = Field(default=0.5, ge=0, le=1)
    planted: float = Field(default=0.0, ge=0, le=1)
    studied: float = Field(default=0.0, ge=0, le=1)
    weigh: float = Field(default=0.0, ge=0, le=100)
    start: Literal["fresh", "new", "kept"] = "fresh"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpointing: bool = False
    truncate: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    save_every: int = Field(default=50, ge=1)


@dataclass(frozen=True)
class Phase:
    """Steps with pieces of one length. `start` counts from the beginning of its stage, which is `whole` steps long."""

    stage: StageName
    length: int
    steps: int
    start: int
    whole: int


def make_settings(options: dict[str, Any]) -> Settings:
    """Checked settings. Raises UsageError that names the option."""
    fix = "`sleepc distil --help` and `sleepc train --help` list the options."
    settings = checked(Settings, options, fix)
    parse_stages(settings.stages)
    parse_passes(settings.passes)
    if settings.planted + settings.studied > 1:
        both = f"--planted {settings.planted} and --studied {settings.studied}"
        raise UsageError(f"{both} are shares of the same samples", where="--studied", fix="Together at most 1.")
    return settings


def checked(kind: type[Kind], options: dict[str, Any], fix: str) -> Kind:
    """Settings of some kind. Raises UsageError that names the option."""
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{name} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}",
            where=f"--{name.replace('_', '-')}",
            fix=fix,
        ) from None


def parse_stages(text: str) -> list[tuple[StageName, float]]:
    """Stages in order, with the share of the tokens that each gets.

    >>> parse_stages("align,distil")
    [('align', 0.25), ('distil', 0.75)]
    >>> parse_stages("distil:4,lengthen:1")
    [('distil', 0.8), ('lengthen', 0.2)]
    """
    found: list[tuple[StageName, float]] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([a-z]+)(?::(\d{1,9}(?:\.\d{1,9})?))?\s*", part)
        name = next((stage for stage in STAGES if match and stage == match[1]), None)
        share = float(match[2]) if match and match[2] else SHARES.get(name or "", 0.0)
        if name is None or share <= 0:
            raise UsageError(
                f"cannot read stages {text!r}",
                where="--stages",
                fix="Names of align, distil, lengthen, solve, with shares of the tokens if need be: align:1,distil:3.",
            )
        found.append((name, share))
    if [STAGES.index(name) for name, _ in found] != sorted({STAGES.index(name) for name, _ in found}):
        raise UsageError(
            f"stages {text!r} are not in order", where="--stages", fix="Each once, as in align,distil,lengthen."
        )
    whole = sum(share for _, share in found)
    return [(name, share / whole) for name, share in found]


def parse_passes(text: str) -> tuple[int, int] | None:
    """The fewest and the most passes of a sleep; None for those of the program.

    >>> parse_passes("4"), parse_passes("1:4"), parse_passes("")
    ((4, 4), (1, 4), None)
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,3})(?::(\d{1,3}))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match and text.isascii() else (0, 0)
    if not 1 <= least <= most <= MOST_PASSES:
        raise UsageError(
            f"cannot read passes {text!r}",
            where="--passes",
            fix=f"A number from 1 to {MOST_PASSES}, or a range as 1:4.",
        )
    return least, most


def passes_of(settings: Settings, step: int) -> int | None:
    """Those of the sleeps of step number `step`, the same in every process and after a resume; None: the program's."""
    found = parse_passes(settings.passes)
    if found is None:
        return None
    least, most = found
    return int(np.random.default_rng([settings.seed, step]).integers(least, most + 1))


def phases(settings: Settings) -> list[Phase]:
    """The whole of a training in order: `lengthen` doubles the length of pieces, the others keep it.

    >>> [(p.stage, p.length, p.steps) for p in phases(Settings(stages="distil,lengthen", tokens=16 * 768))]
    [('distil', 768, 12), ('lengthen', 1536, 1), ('lengthen', 3072, 1)]
    """
    made: list[Phase] = []
    for stage, share in parse_stages(settings.stages):
        lengths = [settings.length]
        if stage == "lengthen":
            lengths = [settings.length << n for n in range(1, DOUBLINGS + 1)]
        tokens = settings.tokens * share / len(lengths)
        steps = settings.steps * share / len(lengths)
        counts = [max(round(steps or tokens / (length * settings.batch)), 1) for length in lengths]
        starts = [sum(counts[:n]) for n in range(len(counts))]
        made += [
            Phase(stage, length, steps, start, sum(counts))
            for length, steps, start in zip(lengths, counts, starts, strict=True)
        ]
    return made
