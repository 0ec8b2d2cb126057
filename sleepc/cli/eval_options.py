"""The options of `sleepc eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sleepc.backends.table import DEFAULT
from sleepc.cli.evaluation_task import ANSWER, DISTANCES, EXAMPLES, STREAMS
from sleepc.cli.option_groups import flag, several, switch
from sleepc.cli.options import BACKEND, COMPILE, NATIVE_CODE, SETTING, TUNED


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """What is asked of which models."""

    task: str = flag(
        "perplexity, retrieval, copy, questions, or one that `sleepc tasks` lists.", default="", shown=False
    )
    harness: str | None = flag(
        "Instead of --task, tasks of lm-evaluation-harness, with commas between them.", metavar="TASKS"
    )
    harness_folder: Path | None = flag(
        "A folder with task files of your own for --harness; Python files that they name are run."
    )
    batch: int | None = flag("How many requests are read at a time (--harness; 1).", min=1, max=4096)
    sweep: str | None = flag("Also evaluate with other numbers of replay passes: passes=1,2,4.")
    against: str | None = flag("The model to measure full attention with.")
    text: Path | None = flag("A text file to read; Python's help topics by default.")
    distances: str | None = flag(f"Distances in windows ({DISTANCES}); perplexity reads up to the largest.")
    samples: int | None = flag(
        f"Number of streams, each with one item at every distance ({STREAMS}), or of examples ({EXAMPLES}; of --harness: all).",
        min=1,
        max=10000,
    )
    settings: list[str] | None = several(SETTING, "--set", each="NAME=VALUE")
    questions: Path | None = flag(
        "Texts with questions, as JSON lines (--task questions); the project's own by default."
    )
    answer: int | None = flag(f"Maximum number of tokens in an answer (--task questions; {ANSWER}).", min=1, max=1000)
    seed: int = flag("Seed of the items and of where they are placed.", default=0, min=0)
    plot: Path | None = flag("Draw the figures into this file (.svg or .png).")
    device: str = flag("cpu or cuda.", default="cpu")
    backend: str = flag(BACKEND, default=DEFAULT)
    compile: bool = switch(COMPILE, "--compile")
    tuned: bool = flag(TUNED, "--tuned/--no-tuned", default=True)
    native_code: bool = switch(NATIVE_CODE, "--native-code")
    as_json: bool = switch("Print one JSON object.", "--json")
