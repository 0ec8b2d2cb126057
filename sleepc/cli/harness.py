"""`sleepc eval --harness TASKS`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.cli.display import Display, err, number, out, print_json
from sleepc.cli.opening import open_artifact
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.cli.eval_options import EvalOptions

NOT_OURS = ("task", "sweep", "against", "text", "distances", "settings", "questions", "answer", "plot")


def evaluate_by_harness(artifact: Path, options: EvalOptions, started: float) -> None:
    """Ask the converted model; print figures or JSON."""
    from sleepc.causal_lm.harness import Asking, evaluate_tasks

    for name in NOT_OURS:
        if getattr(options, name):
            option = "--set" if name == "settings" else f"--{name}"
            raise UsageError(f"--harness does not take {option}", where=option, fix=f"Leave {option} out.")
    if options.compile:
        raise UsageError("the harness asks the program itself", where="--compile", fix="Leave --compile out.")
    asking = Asking(
        [name.strip() for name in str(options.harness).split(",") if name.strip()],
        options.harness_folder,
        options.batch or 1,
        options.samples,
        options.seed,
        options.device,
        options.backend,
    )
    with Display(err).doing("eval"):
        program = open_artifact(artifact)
        found = evaluate_tasks(program, asking)
    found |= {"artifact": str(artifact), "identity": program.identity, "seconds": time.perf_counter() - started}
    if options.as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name, justify in (("task", "left"), ("metric", "left"), ("value", "right"), ("examples", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for task, figures in found["results"].items():
        examples = found["examples"].get(task, {}).get("effective")
        for metric, value in figures.items():
            name, _, way = metric.partition(",")
            if isinstance(value, float) and not name.endswith("_stderr"):
                shown = name if way in ("", "none") else f"{name} ({way})"
                table.add_row(task, shown, f"{value:.4f}", number(examples) if examples else "–")
    out.print(table)
    out.print(f"texts are read up to {number(found['longest'])} tokens   {found['seconds']:.1f} s")
