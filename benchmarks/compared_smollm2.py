"""The part with a model that people have: SmolLM2-135M, converted, as it is and after the same number of tokens of
training: surprise beyond the window, questions on texts, codes by distance, a sleep's time, bytes of state.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import Row, console
from compared_cells import Options
from distil_smollm2 import KEEPING, SETTINGS, held_out, perplexity
from training_text import docstrings

import sleepc
from examples.trend.training import Lines
from sleepc.backends.table import find_backend
from sleepc.errors import SleepcWarning, UsageError
from sleepc.progress import silent
from sleepc.tasks.planting import Setup
from sleepc.tasks.programs import full_attention
from sleepc.tasks.question_file import Document, own_questions
from sleepc.tasks.readers import FULL, Reader, compared
from sleepc.tasks.recalling import Recalling, make_recalling
from sleepc.tasks.source import make_source
from sleepc.tasks.task import make_task
from sleepc.verify.memory_values import without_memories

ALONE = "window alone"
KEEP = "keep"
ANSWER = 20  # tokens
TURNS = 6  # sleeps that are timed


class Comparison:
    """Cells, one after another; what is in the file of rows already is not measured again."""

    def __init__(self, folder: Path, work: Path, options: argparse.Namespace) -> None:
        self.folder, self.work, self.options = folder, work, options
        self.lines = Lines(work / "smollm2.jsonl")
        work.mkdir(parents=True, exist_ok=True)
        self.text = docstrings(work / "docstrings.txt")
        self.asked: Recalling | None = None

    def rows(self, chosen: dict[str, Options]) -> Iterator[Row]:
        """Of all cells; of full attention with the window alone."""
        there = {(row["cell"], row["trained"]): row for row in self.lines.read()}
        for name, recipe in chosen.items():
            budgets = [0] if name == ALONE else sorted({0, self.options.tokens})
            if missing := [n for n in budgets if (name, n) not in there]:
                for row in self._measured(name, recipe, missing):
                    self.lines.add(row)
                    there[row["cell"], row["trained"]] = row
            if name == ALONE and (FULL, 0) in there:
                yield there[FULL, 0]
            yield from (there[name, n] for n in budgets if (name, n) in there)

    def _measured(self, name: str, recipe: Options, budgets: list[int]) -> Iterator[Row]:
        console.log(name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SleepcWarning)  # of what needs training
                program = sleepc.convert(self.folder, {"window": self.options.window, **recipe})
        except UsageError as error:
            yield {"kind": "smollm2", "cell": name, "trained": 0, "refused": str(error).splitlines()[0]}
            return
        if name == KEEP:
            program.share_slots()
        if name == ALONE:
            yield self._full(program)
            program = replace(program, graphs=without_memories(program.graphs))
        for tokens in sorted(budgets):
            seconds = self._train(program, name, tokens) if tokens else 0.0
            row = {"kind": "smollm2", "cell": name, "trained": tokens, **self._figures(name, program)}
            yield row | ({"training_s": seconds} if tokens else {})

    def _train(self, program: sleepc.Program, name: str, tokens: int) -> float:
        settings: dict[str, Any] = {**SETTINGS, **(KEEPING if name == KEEP else {})}
        settings |= {"tokens": tokens, "length": self.options.length}
        settings |= {"precision": "float32", "force": True}
        work = self.work / f"{name.replace(', ', '-').replace(' ', '-')}-{tokens}"
        started = time.process_time()
        program.distil(text=[self.text], work=work, resume=True, **settings)
        return time.process_time() - started

    def _full(self, program: sleepc.Program) -> Row:
        held = held_out(program, self.options)
        full = full_attention(program.captured(silent), self.options.length)
        documents, tokenizer = self._documents(), program.tokenizer()
        first, readers = self._questions(program, documents)
        first.ask(FULL, readers[FULL], tokenizer, lambda share: None)
        known = iter(first.counts)  # in the order of the texts; what full attention does not answer is not asked again
        answered = [replace(d, questions=tuple(q for q in d.questions if next(known))) for d in documents]
        self.asked, _ = self._questions(program, [d for d in answered if d.questions] or documents)
        self.asked.ask(FULL, readers[FULL], tokenizer, lambda share: None)
        counted = int(self.asked.counts.sum())
        row = {"kind": "smollm2", "cell": FULL, "trained": 0, "state_bytes": readers[FULL].state_bytes}
        row |= {"nats": math.log(perplexity(full, held, self.options.window))}
        return row | {"answered": counted, "counted": counted}

    def _figures(self, name: str, program: sleepc.Program) -> Row:
        graphs = program.graphs
        held = held_out(program, self.options)
        found: Row = {"state_bytes": graphs.state_bytes()}
        found["nats"] = math.log(perplexity(graphs, held, self.options.window))
        if self.asked is None:
            self._full(program)
        assert self.asked is not None
        steps = find_backend().steps(graphs)
        reader = Reader(lambda tokens: steps, graphs.window, graphs.state_bytes())
        self.asked.ask(name, reader, program.tokenizer(), lambda share: None)
        totals = self.asked.totals()
        found |= {key: totals[name][key] for key in ("answered", "counted", "gap")}
        return found | self._codes(program) | self._sleeps(program)

    def _documents(self) -> list[Document]:
        documents = own_questions()[: self.options.texts]
        if self.options.tiny:
            return [replace(documents[0], text=documents[0].text[-900:], questions=documents[0].questions[-3:])]
        return list(documents)

    def _questions(self, program: sleepc.Program, documents: list[Document]) -> tuple[Recalling, dict[str, Reader]]:
        canonical, graphs = program.captured(silent), program.graphs
        asked, _ = make_recalling(
            program.tokenizer(), documents, graphs.vocab, graphs.window, ANSWER, canonical.max_positions
        )
        longest = max(map(asked.tokens, asked.prompts))
        return asked, compared(canonical, program.recipe, {"": graphs}, longest, find_backend().steps)

    def _codes(self, program: sleepc.Program) -> Row:
        window = program.recipe.window
        distances = tuple(n * window for n in ((1, 2) if self.options.tiny else (1, 2, 4)))
        rng, sinks = np.random.default_rng(0), program.recipe.sinks
        samples = 1 if self.options.tiny else 4
        tokens = samples * (2 * distances[-1] + sinks + 64)
        source = make_source(program.tokenizer(), None, program.graphs.vocab, tokens, rng)
        task = make_task("retrieval", source, Setup(distances, samples, sinks), window)
        rows = task.rows(find_backend().steps(program.graphs), task.length, lambda share: None)
        return {"codes": {str(row["distance"]): row["accuracy"] for row in rows}}

    def _sleeps(self, program: sleepc.Program) -> Row:
        """Milliseconds of a sleep, which comes with the token after a window, and of a window's wake; medians."""
        session, window = program.session(), program.recipe.window
        wake, sleep = [], []
        for turn in range(TURNS + 1):
            before = session.stats
            session.feed([(7 + 31 * (turn * window + i)) % program.graphs.vocab for i in range(window)], logits="none")
            after = session.stats
            if after.sleeps > before.sleeps:
                slept = after.sleep_seconds - before.sleep_seconds
                sleep.append(slept)
                wake.append(after.seconds - before.seconds - slept)
        return {"sleep_ms": 1e3 * median(sleep), "wake_ms": 1e3 * median(wake)}
