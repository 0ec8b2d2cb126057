"""What does a sleep cost that learns by gradient descent, and what is it worth without any training?

time: a step of `gradient` over a window, against a training step of the same layers in transformers: from the hidden
states before them through the last quarter of the blocks, the head and the mean next-token loss, back to the same
weights of theirs, and one plain update of these. Both in turns; medians. Beside it what reading the window takes.

surprise: the mean surprise at Python's help topics, beyond the first window, by learning rate and rank, against the
same program without steps (rate 0), and by how much it fell.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pydoc_data.topics import topics
from statistics import median
from typing import Any

import numpy as np
import torch
from common import Row, arguments, checkpoint_of, console, machine, numbers, report, some_of
from torch import Tensor
from torch.nn.functional import cross_entropy

import sleepc
from sleepc.api import Program
from sleepc.backends.table import find_trainer
from sleepc.hf.resolve import Checkpoint
from sleepc.ir.parameters import materialise
from sleepc.passes.consolidation.learning import learn_anew
from sleepc.runtime.session import Session

PARTS = ("time", "surprise")
COLUMNS = (
    "kind",
    "weights",
    "rank",
    "window",
    "blocks",
    "step_ms",
    "training_ms",
    "ratio",
    "reading_ms",
    "learned_bytes",
)
COLUMNS += ("lr", "steps", "nats", "less")
RECIPE: dict[str, Any] = {"consolidation": "gradient", "dtype": "float32", "layers": "0"}


def program_of(checkpoint: Checkpoint, options: argparse.Namespace, rank: int) -> Program:
    """The model, whose last quarter learns; one block has a memory, so that there is one."""
    recipe = {**RECIPE, "window": options.window, "gradient": {"rank": rank, "weights": options.weights}}
    return sleepc.convert(str(checkpoint.folder), recipe)


def timed(rows: list[float], work: Callable[[], object]) -> None:
    """Add the milliseconds that it takes."""
    start = time.perf_counter()
    work()
    rows.append(1e3 * (time.perf_counter() - start))


def learned(layer: Any, weights: str) -> Any:
    """The module of a layer whose parameters learn."""
    return {"mlp": layer.mlp, "down": layer.mlp.down_proj, "query": layer.self_attn.q_proj}[weights]


def training_step(model: Any, start: int, weights: str, h: Tensor, tokens: Tensor) -> Callable[[], None]:
    """One of the blocks from `start` on, on hidden states h [1,L,d] of tokens [1,L]."""
    model.requires_grad_(False)
    layers, inner = model.model.layers[start:], model.model
    learning = [p.requires_grad_() for layer in layers for p in learned(layer, weights).parameters()]
    places = torch.arange(tokens.shape[1])[None]
    turns = inner.rotary_emb(h, places)

    def work() -> None:
        x = h
        for layer in layers:
            found = layer(x, position_ids=places, position_embeddings=turns)
            x = found[0] if isinstance(found, tuple) else found
        logits = model.lm_head(inner.norm(x))
        loss = cross_entropy(logits[0, :-1], tokens[0, 1:])
        for weight, gradient in zip(learning, torch.autograd.grad(loss, learning), strict=True):
            weight.data.add_(gradient, alpha=-1e-9)

    return work


def times(checkpoint: Checkpoint, options: argparse.Namespace) -> Iterator[Row]:
    """Of every rank."""
    for rank in options.ranks:
        program = program_of(checkpoint, options, rank)
        graphs, model = program.graphs, program.original
        assert graphs.learn is not None
        steps = find_trainer().steps_on(graphs, materialise(graphs, "cpu"))
        tokens = torch.arange(7, 7 + options.window)[None] % graphs.vocab
        lengths = torch.tensor([options.window])
        with torch.no_grad():
            _, state = steps.wake_tensors(steps.new_state(1), tokens, lengths, "none")
        h = state[f"{graphs.learn.start - 1}.hidden"][:, 0]
        train = training_step(model, graphs.learn.start, options.weights, h, tokens)
        found: dict[str, list[float]] = {"step": [], "training": [], "reading": []}

        def step() -> None:
            with torch.no_grad():
                steps.learned(state)  # noqa: B023 (called in this turn only)

        def read() -> None:
            with torch.no_grad():
                steps.wake_tensors(steps.new_state(1), tokens, lengths, "all")  # noqa: B023

        for turn in range(options.repeats + 1):
            rows = found if turn else {name: [] for name in found}  # the first is not counted
            for name, work in (("step", step), ("training", train), ("reading", read)):
                timed(rows[name], work)
        medians = {f"{name}_ms": median(each) for name, each in found.items()}
        ratios = [a / b for a, b in zip(found["step"], found["training"], strict=True)]
        yield {
            "kind": "time",
            "weights": options.weights,
            "rank": rank,
            "window": options.window,
            "blocks": len(graphs.layout) - graphs.learn.start,
            **medians,
            "ratio": median(ratios),
            "learned_bytes": program.inspect().learned_bytes,
        }


def surprises(checkpoint: Checkpoint, options: argparse.Namespace) -> Iterator[Row]:
    """Of every rank and rate, after a first row without steps."""
    for rank in options.ranks:
        program = program_of(checkpoint, options, rank)
        plain = None
        for lr in [0.0, *options.rates]:
            nats = surprise(program, lr, options)
            plain = nats if plain is None else plain
            row: Row = {"kind": "surprise", "weights": options.weights, "rank": rank, "window": options.window}
            yield row | {"lr": lr, "steps": options.steps, "nats": nats, "less": plain - nats}


def surprise(program: Program, lr: float, options: argparse.Namespace) -> float:
    """Nats per token beyond the first window of every text."""
    graphs = program.graphs.clone()
    assert graphs.learn is not None
    graphs.learn = replace(graphs.learn, lr=lr, steps=options.steps if lr else 0)
    learn_anew(graphs)
    steps, found = find_trainer().steps_on(graphs, materialise(graphs, "cpu")), []
    for ids in texts(program, options):
        session = Session(steps)
        logits = session.feed(ids[: options.window], logits="last")[None]
        for start in range(options.window, options.tokens, options.window):
            piece = ids[start : start + options.window]
            out = session.feed(piece, logits="all")
            before = torch.from_numpy(np.concatenate([logits, out[:, :-1]], 1)[0])
            found.append(float(cross_entropy(before.double(), torch.tensor(piece))))
            logits = out[:, -1:]
    return float(np.mean(found))


def texts(program: Program, options: argparse.Namespace) -> list[list[int]]:
    """The longest topics, a text each."""
    if options.tiny:
        return [[(7 * i * i + k) % program.graphs.vocab for i in range(options.tokens)] for k in range(options.texts)]
    tokenizer = program.tokenizer()
    chosen = sorted(topics, key=lambda name: -len(topics[name]))[: options.texts]
    return [list(tokenizer.encode(topics[name]))[: options.tokens] for name in chosen]


def rates(text: str) -> list[float]:
    """A type of arguments: numbers with commas between them."""
    return [float(part) for part in text.split(",")]


def main() -> None:
    """Run the parts asked for."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--parts", type=some_of(PARTS), default=list(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--ranks", type=numbers, default=[16, 0], help="of what is learned, 0 for whole maps")
    parser.add_argument("--rates", type=rates, default=[0.1, 0.3, 1.0], help="learning rates")
    parser.add_argument("--weights", choices=("mlp", "down", "query"), default="mlp", help="what learns")
    parser.add_argument("--steps", type=int, default=1, help="steps of a sleep, for surprise")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=1536, help="of each text")
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if options.tiny:
        options.window, options.tokens, options.repeats, options.ranks = 16, 48, 1, [2, 0]
    made = {"time": times, "surprise": surprises}

    def rows() -> Iterator[Row]:
        yield machine()
        with checkpoint_of(options) as checkpoint:
            for part in options.parts:
                for row in made[part](checkpoint, options):
                    console.log(", ".join(f"{name} {value}" for name, value in row.items()))
                    yield row

    report(rows(), as_json=options.json, title="sleeps that learn by gradient descent", columns=COLUMNS)


if __name__ == "__main__":
    main()
