"""The check of an export: its weights by value, then what IREE computes with the files, against the default backend."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sleepc.backends.check.compare import compare
from sleepc.backends.check.reading import Found, Other, Shelf, StepsReader, tokens_needed
from sleepc.backends.contract import Draft
from sleepc.backends.mlir.installed import about
from sleepc.backends.mlir.manifest import ModuleManifest
from sleepc.backends.mlir.steps import IreeSteps
from sleepc.backends.mlir.weights import check_weights
from sleepc.backends.report import Report
from sleepc.backends.table import find_trainer
from sleepc.passes.analysis.sleeps import passes_of
from sleepc.runtime.steps import IntArray, Steps


def check(draft: Draft, manifest: ModuleManifest) -> Report:
    """Check the files of a draft against the program that they were made from. Raises SleepcError if a weight is off or
    IREE refuses a file; what they compute is in the report.
    """
    started, report = time.perf_counter(), Report()
    draft.progress("checking the weights", None)
    report.facts = {"runtime": about(), "weights": check_weights(draft.step, draft.folder / manifest.weights)}
    tokens = np.resize(np.array(draft.tokens, np.int64), tokens_needed(manifest.window))
    with tempfile.TemporaryDirectory(prefix=".check-", dir=draft.folder) as folder:
        shelf, states = Shelf(Path(folder)), draft.step.all_states()
        _read(find_trainer().steps(draft.step), tokens, shelf.put, draft, "reading with PyTorch")

        def compared(name: str, found: Found) -> None:
            report.rows += compare(name, found, shelf.take(name), manifest.precision, states)

        _read(IreeSteps(draft.folder, manifest), tokens, compared, draft, "reading with IREE")
    report.seconds = time.perf_counter() - started
    return report


def _read(steps: Steps, tokens: IntArray, hand_on: Callable[[str, Found], None], draft: Draft, doing: str) -> None:
    passes = passes_of(draft.step)
    others: list[Other] = [(f"a sleep of {passes} pass{'es' if passes > 1 else ''}", steps)]
    StepsReader(steps, tokens, hand_on).read_all(others, lambda share: draft.progress(doing, share))
