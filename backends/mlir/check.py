"""The check of an export: its weights by value, then what IREE computes with the files, against the default backend."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from sleepc.backends.check.compare import compare
from sleepc.backends.check.reading import Found, Other, Shelf, StepsReader, tokens_needed
from sleepc.backends.check.sleeps import sleeps_of
from sleepc.backends.contract import Draft
from sleepc.backends.mlir.installed import about
from sleepc.backends.mlir.manifest import ModuleManifest
from sleepc.backends.mlir.steps import IreeSteps
from sleepc.backends.mlir.weights import check_weights
from sleepc.backends.report import Report
from sleepc.backends.table import find_trainer
from sleepc.ir.parameters import materialise
from sleepc.runtime.steps import IntArray, Steps


def check(draft: Draft, manifest: ModuleManifest) -> Report:
    """Check the files of a draft against the program that they were made from. Raises SleepcError if a weight is off or
    IREE refuses a file; what they compute is in the report.
    """
    started, report = time.perf_counter(), Report()
    draft.progress("checking the weights", None)
    report.facts = {"runtime": about(), "weights": check_weights(draft.step, draft.folder / manifest.weights)}
    report.facts |= manifest.report  # what is known so far
    tokens = np.resize(np.array(draft.tokens, np.int64), tokens_needed(manifest.window))
    with tempfile.TemporaryDirectory(prefix=".check-", dir=draft.folder) as folder:
        shelf, states = Shelf(Path(folder)), draft.step.all_states()
        sleeps = [each for each in sleeps_of(draft.step, manifest.replays) if each[2]]
        run = partial(find_trainer().steps_on, parameters=materialise(draft.step, "cpu"))
        others: list[Other] = [(name, run(program)) for name, program, _ in sleeps]
        _read(run(draft.step), others, tokens, draft, shelf.put)
        del run, others

        def compared(name: str, found: Found) -> None:
            report.rows += compare(name, found, shelf.take(name), manifest.precision, states)

        steps = IreeSteps(draft.folder, manifest)
        _read(steps, [(name, steps.taking(passes)) for name, _, passes in sleeps], tokens, draft, compared)
    report.seconds = time.perf_counter() - started
    return report


def _read(
    steps: Steps, others: list[Other], tokens: IntArray, draft: Draft, hand_on: Callable[[str, Found], None]
) -> None:
    doing = f"reading with {'IREE' if isinstance(steps, IreeSteps) else 'PyTorch'}"
    StepsReader(steps, tokens, hand_on).read_all(others, lambda share: draft.progress(doing, share))
