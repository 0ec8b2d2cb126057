"""How much of what a sliding window loses a trained memory brings back, by tokens of distillation.

SmolLM2-135M-Instruct, strategy parallel, window 128, 4 sinks. It is trained on the docstrings of Python's standard
library and measured on Python's help topics (`pydoc_data.topics`), pieces of 768 tokens each from one topic, over the
tokens from 128 on. `share` is how much of the gap between the sliding window and full attention is closed.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from common import Row, add_letters, arguments, checkpoint_of, console, machine, report
from training_text import docstrings, prose

import sleepc
from sleepc.api import Program
from sleepc.backends.table import find_backend, find_trainer
from sleepc.errors import UsageError
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.tasks.planting import Setup
from sleepc.tasks.programs import full_attention, with_passes
from sleepc.tasks.source import make_source
from sleepc.tasks.task import make_task
from sleepc.train.adapter import read_adapter, with_values, write_adapter
from sleepc.train.trainer import Hooks, Step, Trainer
from sleepc.verify.memory_values import without_memories

COLUMNS = ("tokens", "model", "perplexity", "share", "loss")
SETTINGS: dict[str, Any] = {
    "train": "low-rank",
    "rank": 6,
    "lr": 6e-3,
    "low_rank_lr": 2e-3,
    "recall": 0.8,
    "precision": "bfloat16",
}
KEEPING: dict[str, Any] = {  # what differs if the program keeps pairs
    "lr": 2e-3,
    "low_rank_lr": 1e-3,
    "recall": 0.5,
    "planted": 0.7,
    "weigh": 1.0,
    "start": "kept",
}
LONGER = 5 / 3  # times: its samples, so that pairs are dropped
VARIANTS: dict[str, dict[str, Any]] = {  # what each part of the recipe contributes, at FIRST tokens
    "all parts": {},
    "memories only": {"train": "new"},
    "nothing to recall": {"recall": 0.0},
    "neither": {"train": "new", "recall": 0.0},
    "align first": {"stages": "align:1,distil:3"},
    "hard eviction first": {"hard": 0.25},
}
FIRST = 46_080  # 60 pieces of 768 tokens: what the first figure is given for
ROWS = 4  # pieces that are read side by side


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--text", type=Path, action="append", help="train on these instead of docstrings")
    parser.add_argument("--keep", type=int, default=0, help="pairs that every KV head keeps, on average")
    parser.add_argument("--begin", type=Path, help="begin with what this adapter has learned")
    parser.add_argument("--tokens", type=int, default=250_000, help="tokens of training")
    parser.add_argument("--held", type=int, default=24, help="pieces that are held out")
    parser.add_argument("--length", type=int, default=768, help="tokens of a piece")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--samples", type=int, default=8, help="streams of the retrieval task")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting of training")
    parser.add_argument("--work", type=Path, help="keep checkpoints, metrics and the adapter here; goes on from there")
    parser.add_argument("--adapter", type=Path, help="write the adapter here, in float16")
    parser.add_argument(
        "--compare", action="append", choices=list(VARIANTS), help="train this variant instead; may be given again"
    )
    options = parser.parse_args()
    if options.tiny:
        options.tokens, options.held, options.length, options.window, options.samples = 700, 2, 96, 16, 1
    report([machine(), *measure(options)], as_json=options.json, title="distillation", columns=COLUMNS)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """A row for every model and point of the curve."""
    with checkpoint_of(options) as checkpoint, TemporaryDirectory(prefix="sleepc-bench-") as scratch:
        if options.tiny:
            add_letters(checkpoint.folder)
        plain: dict[str, Any] = {"window": options.window, "sinks": 4}
        program = sleepc.convert(checkpoint.folder, plain)
        held = held_out(program, options)
        full = full_attention(program.captured(_quiet), options.length)
        ends = {
            "full": perplexity(full, held, options.window),
            "sliding": perplexity(without_memories(program.graphs), held, options.window),
        }
        if options.keep:
            program = sleepc.convert(checkpoint.folder, {**plain, "keep": {"slots": options.keep}})
        found = {**ends, **_before(program, held, options)}
        facts = {"kind": "distillation", "held": len(held), "length": options.length, "window": options.window}
        for name, value in found.items():
            yield facts | {"tokens": 0, "model": name, "perplexity": value, "share": share(value, ends)}
        work = options.work or Path(scratch)
        text = options.text or (prose(work) if options.keep else [docstrings(work / "docstrings.txt")])
        for name in options.compare or ():
            curve = Curve(name, held, options, ends, work / name.replace(" ", "-"))
            _train(replace(program, report={}), curve, text, VARIANTS[name], options)
            yield from (facts | row for row in curve.rows)
        if not options.compare:
            curve = Curve("trained", held, options, ends, work)
            yield from (facts | row for row in _trained(program, curve, text, options))


def _before(program: Program, held: torch.Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Perplexity before the training: of kept pairs alone, of untrained memories, and of what the training begins with,
    which the program has from now on.
    """
    found = {"keep": perplexity(without_memories(program.graphs), held, options.window)} if options.keep else {}
    found["untrained"] = perplexity(program.graphs, held, options.window)
    if options.begin:
        program.adapt(options.begin)
        found["begun"] = perplexity(program.graphs, held, options.window)
    return found


def _trained(program: Program, curve: Curve, text: list[Path], options: argparse.Namespace) -> Iterator[Row]:
    """Train the program, and measure it: the curve, other numbers of passes, retrieval."""
    before = program.graphs
    _train(program, curve, text, {}, options)
    if options.adapter:
        write_adapter(options.adapter, program, (), _told(options), torch.float16)
    yield from curve.rows
    for passes in (2, 4):
        value = perplexity(with_passes(program.graphs, program.recipe, passes), curve.held, options.window)
        row = {"tokens": options.tokens, "model": f"N={passes}", "perplexity": value}
        yield row | {"share": share(value, curve.ends)}
    yield from retrieval(program, before, options)


def _told(options: argparse.Namespace) -> dict[str, Any]:
    """What an adapter says of its training: texts of no file, and what it began with."""
    name = "prose of Python packages with told facts" if options.keep else "docstrings of Python's standard library"
    if "studied" in _given(options):
        name += " and self-study"
    told: dict[str, Any] = {} if options.text else {"text": [name]}
    if options.begin:
        header = read_adapter(options.begin).header
        told["begun"] = {name: header.facts[name] for name in ("tokens", "text", "begun") if name in header.facts}
        told["begun"]["keep"] = header.recipe.keep is not None
    return told


def _given(options: argparse.Namespace) -> dict[str, str]:
    """Settings of the command line."""
    return dict(text.split("=", 1) for text in options.set)


def _train(
    program: Program, curve: Curve, text: list[Path], variant: dict[str, Any], options: argparse.Namespace
) -> None:
    settings = SETTINGS | {"tokens": options.tokens, "length": options.length}
    if options.keep:
        settings |= KEEPING | {"length": round(options.length * LONGER)}
    hooks = Hooks(curve.start, curve.step)
    program.distil(
        text=text, work=curve.work, resume=True, force=True, hooks=hooks, **{**settings, **variant, **_given(options)}
    )


def retrieval(program: Program, before: ProgramGraphs, options: argparse.Namespace) -> Iterator[Row]:
    """How often a pair that was told some windows ago is found: full attention, sliding window, before, after."""
    distances = tuple(round(n * options.window) for n in (0.5, 1, 2, 4, 8))
    setup = Setup(distances, options.samples, program.recipe.sinks)
    rng = np.random.default_rng(0)
    source = make_source(program.tokenizer(), None, program.graphs.vocab, 100_000, rng)
    task = make_task("retrieval", source, setup, options.window)
    models = {
        "full": full_attention(program.captured(_quiet), task.length),
        "sliding": without_memories(before),
        "untrained": before,
        "trained": program.graphs,
    }
    for name, graphs in models.items():
        for row in task.rows(find_backend().steps(graphs), task.length, lambda share: None):
            yield {"kind": "retrieval", "model": name, "samples": options.samples, **row}
        console.log(f"retrieval: {name}")


class Curve:
    """Held-out perplexity at the first figure and after every fifth of the training; kept in its folder `work`."""

    def __init__(
        self, name: str, held: torch.Tensor, options: argparse.Namespace, ends: dict[str, float], work: Path
    ) -> None:
        self.name, self.held, self.options, self.ends, self.work = name, held, options, ends, work
        self.points = {FIRST, *(options.tokens * n // 5 for n in range(1, 6))}
        self.losses: list[float] = []
        self.file = work / "curve.jsonl"
        self.rows: list[Row] = []

    def start(self, trainer: Trainer) -> None:
        """The training begins, or goes on."""
        self.trainer = trainer
        if self.file.is_file():
            rows = [json.loads(line) for line in self.file.read_text().splitlines()]
            self.rows = [row for row in rows if row["tokens"] <= trainer.tokens]
        self.points = {point for point in self.points if point > trainer.tokens}

    def step(self, step: Step) -> None:
        """A step is done."""
        self.losses.append(step.loss)
        if step.step % 10 == 0:
            mean = np.mean(self.losses[-10:])
            console.log(f"step {step.step}/{step.of} {step.stage} loss {mean:.4f} {step.tokens_per_second:.0f} tok/s")
        due = {point for point in self.points if step.tokens >= point or step.step == step.of}
        if due:
            self.points -= due
            self._measure(step)

    def _measure(self, step: Step) -> None:
        student = self.trainer.student
        value = perplexity(with_values(student.program, student.values()), self.held, self.options.window)
        loss = float(np.mean(self.losses[-20:]))
        row = {"tokens": step.tokens, "model": self.name, "perplexity": value, "share": share(value, self.ends)}
        self.rows.append(row | {"loss": loss})
        self.file.write_text("".join(json.dumps(r) + "\n" for r in self.rows))
        console.log(f"{step.tokens} tokens: perplexity {value:.3f}, {row['share']:.1%} of the gap")


def share(value: float, ends: dict[str, float]) -> float:
    """How much of the gap between sliding window and full attention is closed."""
    return (ends["sliding"] - value) / (ends["sliding"] - ends["full"])


def _quiet(what: str, share: float | None) -> None:
    del what, share


def held_out(program: Program, options: argparse.Namespace) -> torch.Tensor:
    """Token ids [pieces, length], each piece of one topic, taken at even distances from all."""
    tokenizer, length = program.tokenizer(), options.length
    texts = [tokenizer.encode(topics[name]) for name in sorted(topics)]
    pieces = [ids[at : at + length] for ids in texts for at in range(0, len(ids) - length + 1, length)]
    if len(pieces) < options.held:
        raise UsageError(f"there are {len(pieces)} pieces to hold out, not {options.held}", where="--held")
    chosen = np.linspace(0, len(pieces) - 1, options.held).astype(int)
    return torch.tensor([pieces[i] for i in chosen])


@torch.no_grad()
def perplexity(graphs: ProgramGraphs, held: torch.Tensor, first: int) -> float:
    """exp of the mean surprise at the tokens from `first` on."""
    steps = find_trainer().steps_on(graphs, materialise(graphs, "cpu"))
    losses = []
    for rows in held.split(ROWS):
        state = steps.new_state(len(rows))
        for at in range(0, rows.shape[1], graphs.window):
            tokens = rows[:, at : at + graphs.window]
            logits, state = steps.wake_tensors(state, tokens, torch.full((len(rows),), tokens.shape[1]), "all")
            assert logits is not None
            following = rows[:, at + 1 : at + 1 + graphs.window]
            known = logits[:, : following.shape[1]].flatten(0, 1)
            found = torch.nn.functional.cross_entropy(known, following.flatten(), reduction="none")
            found = found.view(len(rows), -1)
            losses.append(found[:, max(first - 1 - at, 0) :].flatten())
            if at + graphs.window < rows.shape[1]:
                state = steps.sleep_tensors(state)
    return math.exp(torch.cat(losses).double().mean())


if __name__ == "__main__":
    main()
