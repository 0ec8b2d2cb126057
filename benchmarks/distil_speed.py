"""How fast `distil` is compared with another build of sleepc: their steps taken in turns, in one run.

Both builds take the same steps (`program.distil`, float32, on the words of docstrings in the same random order), each
in a process of its own that waits while the other one computes. `ratio` is of the medians of their seconds, without
the first step; `apart` is the largest difference between their losses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import add_letters, arguments, checkpoint_of, machine, report
from distil_smollm2 import docstrings

ROOT = Path(__file__).resolve().parents[1]
WORKER = """
import json, os, sys
from itertools import islice
from resource import RUSAGE_SELF, getrusage

import numpy as np
import sleepc
from sleepc.train.pieces import Piece
from sleepc.train import trainer, training

Hooks = getattr(trainer, "Hooks", None) or training.Hooks  # older builds have it there

assert sleepc.__file__.startswith(os.environ["PYTHONPATH"]), sleepc.__file__
job = json.loads(sys.argv[1])

def tell(**what):
    print(json.dumps(what), flush=True)
    sys.stdin.readline()

def taken(step):
    tell(seconds=step.seconds, loss=step.loss, peak_mb=getrusage(RUSAGE_SELF).ru_maxrss / 1024)

def pieces(phase, done):
    rng = np.random.default_rng(0)
    return islice(iter(lambda: Piece(rng.choice(words, phase.length)), None), done, None)

def ready(trainer):
    trainer.stream = pieces  # builds cut texts, and choose what they hold out, in ways of their own
    tell(steps=trainer.of)

program = sleepc.convert(job["model"], job["recipe"])
with open(job["settings"]["text"][0], encoding="utf-8") as file:
    words = np.array(program.tokenizer().encode(file.read(20_000)))
program.distil(hooks=Hooks(on_start=ready, on_step=taken), **job["settings"])
"""
COLUMNS = ("build", "seconds", "tokens_per_second", "peak_mb")


def main() -> None:
    """Run the benchmark, or with --worker one of its processes."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--base", default="33436f8", help="the other build: a commit of this repository")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--length", type=int, default=768, help="tokens of a piece")
    parser.add_argument("--batch", type=int, default=1, help="pieces of a step")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting of training")
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME=VALUE", help="another of the conversion")
    options = parser.parse_args()
    if options.tiny:
        options.length, options.window = 96, 16
    with checkpoint_of(options) as checkpoint:
        if options.tiny:
            add_letters(checkpoint.folder)
        rows = compare(options, checkpoint.folder)
        report([machine(), *rows], as_json=options.json, title="distillation", columns=COLUMNS)


def compare(options: argparse.Namespace, model: Path) -> Iterator[dict[str, Any]]:
    """A row for each build, and one that compares them."""
    steps: dict[str, list[dict[str, Any]]] = {"base": [], "here": []}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="sleepc-bench-")))
        trees = {"base": stack.enter_context(tree_of(options.base, scratch / "base")), "here": ROOT}
        text = docstrings(scratch / "docstrings.txt")
        workers = {}
        for name, tree in trees.items():
            job = job_of(options, model, text, scratch / name)
            workers[name] = stack.enter_context(worker(tree, job))
        for _ in range(options.steps):
            for name, process in workers.items():
                steps[name].append(answer(process))
    medians = {name: statistics.median(step["seconds"] for step in rows[1:]) for name, rows in steps.items()}
    for name, rows in steps.items():
        speed = options.length * options.batch / medians[name]
        facts = {"losses": [step["loss"] for step in rows], "peak_mb": rows[-1]["peak_mb"]}
        yield {"kind": "build", "build": name, "seconds": medians[name], "tokens_per_second": speed, **facts}
    apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(steps["base"], steps["here"], strict=True))
    memory = steps["here"][-1]["peak_mb"] / steps["base"][-1]["peak_mb"]
    yield {"kind": "ratio", "ratio": medians["base"] / medians["here"], "apart": apart, "memory": memory}


@contextmanager
def tree_of(commit: str, folder: Path) -> Iterator[Path]:
    """The repository as it was at a commit, in a worktree that is removed afterwards."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def job_of(options: argparse.Namespace, model: Path, text: Path, folder: Path) -> dict[str, Any]:
    """What a worker does: all of it JSON."""
    recipe = {"window": options.window, "sinks": 4, **_pairs(options.recipe)}
    settings = {
        "precision": "float32",
        "length": options.length,
        "batch": options.batch,
        "steps": options.steps + 1,
        "start": "kept",
    }
    settings |= {"text": [str(text)], "work": str(folder), **_pairs(options.set)}
    return {"model": str(model), "recipe": recipe, "settings": settings}


@contextmanager
def worker(tree: Path, job: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A process of the build in `tree` that takes a step whenever it is asked."""
    command = [sys.executable, "-c", WORKER, json.dumps(job)]
    env = {**os.environ, "PYTHONPATH": str(tree)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=tree
    ) as process:
        answer(process, ask=False)  # it is ready
        yield process
        process.kill()


def answer(process: subprocess.Popen[str], *, ask: bool = True) -> dict[str, Any]:
    """What a process says, about its next step if that is asked for."""
    assert process.stdin is not None
    assert process.stdout is not None
    if ask:
        print("step", file=process.stdin, flush=True)
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a build stopped: {process.args}")
    found: dict[str, Any] = json.loads(line)
    return found


def _pairs(given: list[str]) -> dict[str, str]:
    return dict(text.split("=", 1) for text in given)


if __name__ == "__main__":
    main()
