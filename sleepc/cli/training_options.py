"""Options of the commands that train: each with the default of sleepc.train.settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepc.cli.option_groups import flag, switch


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Texts that are read."""

    text: list[Path] | None = flag("A text file, a .jsonl file, or a folder of them; may be given several times.")
    dataset: str | None = flag("A data set of Hugging Face's: NAME or NAME:SPLIT.")
    field: str = flag("Where rows of .jsonl files and data sets have their text.", default="text")


@dataclass(frozen=True, kw_only=True)
class TrainedOptions:
    """What is trained."""

    train: str | None = flag(
        "new (what the conversion added), low-rank (maps beside the weights, too) or all.", "--train", shown="new"
    )
    rank: int | None = flag("Of low-rank maps.", shown="8")


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What is read at a step, and how far parameters go there."""

    passes: str | None = flag("Of every sleep: 4, or 1:4, drawn for each step.", shown="the program's own")
    steps: int | None = flag("How many, instead of --tokens.")
    tokens: int | None = flag("Tokens to read in all.", shown="250000")
    length: int | None = flag("Tokens of a piece of text.", shown="768")
    batch: int | None = flag("Pieces of a step.", shown="1")
    accumulate: int | None = flag("Parts of a batch, one after another.", shown="1")
    optimiser: str | None = flag("adamw, or muon for the matrices of blocks.", shown="adamw")
    muon_lr: float | None = flag("Of those matrices.", shown="0.005")
    lr: float | None = flag("Learning rate of memories.", shown="0.002")
    low_rank_lr: float | None = flag("Of low-rank maps.", shown="0.001")
    weights_lr: float | None = flag("Of the source's weights.", shown="1e-05")


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the steps run."""

    start: str | None = flag(
        "fresh (untrained memories are set to learn fast), new (as in a new model) or kept.", shown="fresh"
    )
    precision: str | None = flag("auto, float32 or bfloat16 (for linear maps).", shown="auto")
    checkpointing: bool = switch("Compute activations again: less memory, more time.", "--checkpointing")
    truncate: int | None = flag("Windows that gradients go back, 0 for all.", shown="0")
    seed: int | None = flag("Of the order of the text, of examples, and of drawn passes.", shown="0")
    save_every: int | None = flag("Steps between checkpoints.", shown="50")


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """Where steps are run, and what becomes of what they made."""

    resume: bool = switch("Go on from the last checkpoint.", "--resume")
    merge: bool = switch("Merge low-rank maps into the weights at the end.", "--merge")
    half: bool = switch("Write the adapter in float16: half the size.", "--half")
    force: bool = switch(
        "Start anew where a training was stopped; replace an artifact at -o; save what got worse.", "--force"
    )
    device: str | None = flag("cpu or cuda.", shown="cuda where there is one")
    as_json: bool = switch("Print one JSON object.", "--json")

    def given(self) -> dict[str, Any]:
        """Those that a training asks for itself, by the names that it has for them."""
        return {name: getattr(self, name) for name in ("resume", "force", "device", "half")}
