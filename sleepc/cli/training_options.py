"""Options of the commands that train: each with the default of sleepc.train.settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepc.backends.table import DEFAULT
from sleepc.cli.option_groups import flag, several, switch
from sleepc.cli.options import TEXTS


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Texts that are read."""

    text: list[Path] | None = several(TEXTS, each="<path>")
    dataset: str | None = flag("A Hugging Face dataset: NAME or NAME:SPLIT.")
    field: str = flag("The field that holds the text in .jsonl files and datasets.", default="text")


@dataclass(frozen=True, kw_only=True)
class TrainedOptions:
    """What is trained."""

    train: str | None = flag(
        "What to train: new (what the conversion added), low-rank (LoRA on the weights, too) or all.",
        "--train",
        shown="new",
    )
    rank: int | None = flag("Rank of the LoRA matrices.", shown="8")


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What is read at a step, and how far parameters go there."""

    passes: str | None = flag("Passes per sleep: 4, or a range 1:4, drawn for each step.", shown="the program's own")
    steps: int | None = flag("Number of training steps, instead of --tokens.")
    tokens: int | None = flag("Total number of training tokens.", shown="250000")
    length: int | None = flag("Tokens per sample of text.", shown="768")
    batch: int | None = flag("Samples per step.", shown="1")
    accumulate: int | None = flag("Number of parts that a batch is split into (gradient accumulation).", shown="1")
    optimiser: str | None = flag("adamw, or muon (for the weight matrices of blocks).", shown="adamw")
    muon_lr: float | None = flag("Learning rate of the matrices that Muon trains.", shown="0.005")
    lr: float | None = flag("Learning rate of memories.", shown="0.002")
    low_rank_lr: float | None = flag("Learning rate of the LoRA matrices.", shown="0.001")
    weights_lr: float | None = flag("Learning rate of the source model's weights.", shown="1e-05")


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the steps run."""

    start: str | None = flag(
        "How untrained memories start: fresh (set to learn quickly), new (as in a new model) or kept (unchanged).",
        shown="fresh",
    )
    precision: str | None = flag("auto, float32 or bfloat16 (for linear layers).", shown="auto")
    checkpointing: bool = switch(
        "Recompute activations in the backward pass: less memory, more time.", "--checkpointing"
    )
    truncate: int | None = flag("Truncate gradients after this many windows; 0: never.", shown="0")
    seed: int | None = flag("Seed of the text's order, of examples, and of drawn passes.", shown="0")
    save_every: int | None = flag("Steps between checkpoints.", shown="50")


@dataclass(frozen=True, kw_only=True)
class WorkOptions:
    """Where steps are run, and what becomes of what they made."""

    resume: bool = switch("Resume from the last checkpoint.", "--resume")
    merge: bool = switch("Merge LoRA matrices into the weights at the end.", "--merge")
    half: bool = switch("Write the adapter in float16: half the size.", "--half")
    force: bool = switch(
        "Restart a training that was stopped; replace an artifact at -o; save even if the result got worse.", "--force"
    )
    backend: str = flag("The backend that runs the steps.", default=DEFAULT)
    device: str | None = flag("cpu or cuda.", shown="cuda if available")
    as_json: bool = switch("Print one JSON object.", "--json")

    def given(self) -> dict[str, Any]:
        """Those that a training asks for itself, by the names that it has for them."""
        return {name: getattr(self, name) for name in ("resume", "force", "backend", "device", "half")}
