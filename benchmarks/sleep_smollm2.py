"""Does a longer sleep make better memories in a converted language model?

SmolLM2-135M-Instruct in bfloat16, memories beside attention in its middle blocks, `recurrent` sleep over these, hard
eviction. The task is k-hop look-up, told of people: "# Tom likes Ann. Ann knows Bob. ..", then "? Tom likes knows". The
context fills a window, a sleep follows, and then comes the question, which attention sees alone with "#", its sink. The
same model is trained with every number of passes N on the same examples, all of its weights, in two lessons: one hop,
then one and two. No example comes twice, so what is right of a training's answers is an accuracy too (of questions that
follow others, whose answers are seen): `right`, in the last fifth of the steps, and `in_time`, in those before the
processor time was over in which the first N takes all its steps. A GPU is used where there is one: seconds are then
those of the clock.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, ClassVar

import numpy as np
import torch
from common import Row, add_letters, arguments, checkpoint_of, console, machine, numbers, report

import sleepc
from sleepc.api import Program
from sleepc.backends.table import find_backend
from sleepc.hf.tokenizer import load_tokenizer
from sleepc.ir.program import ProgramGraphs
from sleepc.tasks.khop import KHop
from sleepc.tasks.programs import full_attention
from sleepc.tasks.puzzle import Example, Question, Words, examples
from sleepc.tasks.solving import Solving
from sleepc.tasks.spelling import spell_as_text
from sleepc.train.checkpoint import forget_checkpoints
from sleepc.train.trainer import METRICS, Hooks, Step, Trainer
from sleepc.verify.memory_values import without_memories

SCORES = ("accuracy", "constant", "no_memory", "right", "in_time")
COLUMNS = ("N", "seed", "lesson", "hops", "tokens", *SCORES, "step_cpu_s")
PEOPLE = ("Tom", "Ann", "Bob", "Kim", "Dan", "Eve", "Sam", "Max")  # a token each, as are these
VERBS = ("likes", "knows", "calls", "helps")
LESSONS = ((1,), (1, 2))  # the hops of each
QUESTIONS = (8, 6)  # of an example: they and their answers fill less than a window
RECIPE: dict[str, Any] = {"consolidation": "recurrent", "loop": "middle", "eviction": "hard", "sinks": 1}
RECIPE |= {"dtype": "bfloat16"}
SETTINGS: dict[str, Any] = {"train": "all", "lr": 6e-3, "weights_lr": 2e-4}
CPU = "cpu.txt"  # beside a training's metrics
GPU = torch.cuda.is_available()
HELD_OUT = 7  # the seed of what is evaluated on


@dataclass(frozen=True)
class People:
    """k-hop look-up with people for entities, and what they do for relations."""

    by: ClassVar[str] = "hops"
    entities: int = 4
    relations: int = 2
    hops: tuple[int, ...] = (1, 2)
    questions: int = 6

    @property
    def vocabulary(self) -> Words:
        """Marks, people, verbs."""
        return ("#", ".", "?", *PEOPLE, *VERBS)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        """See Puzzle."""
        plain = KHop(self.entities, self.relations, self.hops, self.questions).example(index, rng)
        words = {f"e{i}": name for i, name in enumerate(PEOPLE, 1)} | {f"r{i}": verb for i, verb in enumerate(VERBS, 1)}

        def told(plain: Words) -> Words:
            return tuple(words.get(word, word) for word in plain)

        questions = (Question(("?", *told(q.asked)), told(q.answer), q.depth) for q in plain.questions)
        return Example(("#", *told(plain.context)), tuple(questions))


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--passes", type=numbers, default="1,2,4", help="passes to compare, the quickest first")
    parser.add_argument("--seeds", type=numbers, default="0", help="a training for each: other examples")
    parser.add_argument(
        "--steps", type=numbers, default="45,45", help="of each lesson; one number: the first lesson alone"
    )
    parser.add_argument("--batch", type=int, default=16, help="examples of a step")
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--layers", default="8-21", help="those with a memory")
    parser.add_argument("--samples", type=int, default=64, help="examples that are evaluated on")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another setting of training")
    parser.add_argument("--work", type=Path, help="keep checkpoints and metrics here; goes on from there")
    options = parser.parse_args()
    if options.tiny:
        options.passes, options.steps, options.batch, options.people = [1, 2], [2, 1], 2, 2
        options.layers, options.samples = "all", 2
    gpu = {"gpu": torch.cuda.get_device_name()} if GPU else {}
    report(chain([machine() | gpu], measure(options)), as_json=options.json, title="sleep_smollm2", columns=COLUMNS)


def measure(options: argparse.Namespace) -> Iterator[Row]:
    """A row for every seed, number of passes, lesson, and number of hops; first, of the original with attention."""
    with checkpoint_of(options) as checkpoint, TemporaryDirectory(prefix="sleepc-bench-") as scratch:
        if options.tiny:
            add_letters(checkpoint.folder)
        yield from original(checkpoint.folder, options)
        times: dict[int, float] = {}  # by lesson: seconds that the first N took
        for seed in options.seeds:
            for passes in options.passes:
                program = convert(checkpoint.folder, passes, options)
                for lesson, steps in enumerate(options.steps):
                    work = (options.work or Path(scratch)) / f"seed{seed}-N{passes}-lesson{lesson + 1}"
                    taken = learn(program, lesson, work, {"seed": seed, "steps": steps}, options)
                    own = {"N": passes, "seed": seed, "lesson": lesson + 1, **figures(taken, times, lesson)}
                    for row in evaluate(program, lesson, options):
                        console.log(f"N={passes} seed {seed}: {row}")
                        yield {"kind": "sleep", **own, **row}
                    if options.json:
                        yield {"kind": "curve", **own, "curve": [step["right"] for step in taken]}


def original(folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """How many questions the original answers, which sees the context."""
    program = convert(folder, 1, options)
    graphs = full_attention(program.captured(_quiet), 4 * program.graphs.window)
    for row in _solved(graphs, _held(program, len(LESSONS) - 1, options)):
        yield {"kind": "original", "hops": row["hops"], "accuracy": row["accuracy"], "count": row["count"]}


def convert(folder: Path, passes: int, options: argparse.Namespace) -> Program:
    """The model with a window that the context fills."""
    context, *others = spell_as_text(load_tokenizer(folder), examples(_people(options, 0), 8, HELD_OUT))
    window = len(context.tokens)
    assert all(len(other.tokens) == window for other in others), "contexts differ in length"
    return sleepc.convert(folder, RECIPE | {"window": window, "passes": passes, "layers": options.layers})


def learn(
    program: Program, lesson: int, work: Path, given: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Train a program in the folder `work`; the figures of each step. Its seconds are kept beside them."""
    clock = [0.0]

    def began(trainer: Trainer) -> None:
        clock.append(_now())

    def told(step: Step) -> None:
        clock.append(_now())
        with (work / CPU).open("a") as file:
            file.write(f"{clock[-1] - clock[-2]}\n")
        if step.step % 5 == 0:
            console.log(f"{work.name}: step {step.step}/{step.of} loss {step.loss:.3f} right {step.right:.3f}")

    more = dict(text.split("=", 1) for text in options.set)
    start = "kept" if lesson else "fresh"
    program.train(
        _people(options, lesson),
        work=work,
        resume=True,
        force=True,
        hooks=Hooks(on_start=began, on_step=told),
        **{"batch": options.batch, "start": start, **SETTINGS, **given, **more},
    )
    if not options.work:
        forget_checkpoints(work)
    cpu = median(map(float, (work / CPU).read_text().split()))
    return [json.loads(line) | {"cpu": cpu} for line in (work / METRICS).read_text().splitlines()]


def figures(taken: list[dict[str, Any]], times: dict[int, float], lesson: int) -> Row:
    """What a lesson cost, by the median step, and by `_now`; what was right at its end, and when the time was over that
    the first N took.
    """
    right, second = [step["right"] for step in taken], taken[0]["cpu"]
    fifth = max(len(taken) // 5, 1)
    until = max(min(int(times.setdefault(lesson, second * len(taken)) / second), len(taken)), fifth)
    ends = {"right": mean(right[-fifth:]), "in_time": mean(right[until - fifth : until])}
    return {
        "steps": len(taken),
        "tokens": taken[-1]["tokens"],
        "step_s": median(step["seconds"] for step in taken),
        "step_cpu_s": second,
        **ends,
    }


def evaluate(program: Program, lesson: int, options: argparse.Namespace) -> Iterator[Row]:
    """By hops: how many questions are right, each asked right after the sleep, and how many without memories."""
    held = _held(program, lesson, options)
    empty = _solved(without_memories(program.graphs), held)
    for row, without in zip(_solved(program.graphs, held), empty, strict=True):
        same = {name: row[name] for name in ("hops", "count", "accuracy", "log_prob")}
        yield same | {"constant": row["constant_accuracy"], "no_memory": without["accuracy"]}


def _held(program: Program, lesson: int, options: argparse.Namespace) -> Solving:
    held = examples(_people(options, lesson), options.samples, HELD_OUT)
    return Solving("hops", held, spell_as_text(program.tokenizer(), held))


def _solved(graphs: ProgramGraphs, task: Solving) -> list[Row]:
    return task.rows(find_backend().steps(graphs, device="cuda" if GPU else "cpu"), task.length, lambda share: None)


def _people(options: argparse.Namespace, lesson: int) -> People:
    return People(options.people, hops=LESSONS[lesson], questions=4 if options.tiny else QUESTIONS[lesson])


def _now() -> float:
    """Seconds of this process alone: others use this machine too. A GPU's work has no such clock."""
    return perf_counter() if GPU else process_time()


def _quiet(what: str, share: float | None) -> None:
    del what, share


if __name__ == "__main__":
    main()
