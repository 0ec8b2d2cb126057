"""wake_one.onnx next to wake.onnx: the same tokens, one by one, from the same state, which has slept: memories are not
read before.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sleepc.backends.check.compare import compare
from sleepc.backends.check.reading import Found
from sleepc.backends.onnx.manifest import ExportManifest
from sleepc.backends.onnx.steps import OnnxSteps
from sleepc.backends.report import Figure
from sleepc.ir.states import StateSpec
from sleepc.runtime.steps import IntArray

BEFORE, AFTER = 6, 4  # tokens read at once, and then one by one


def check_one_token(folder: Path, manifest: ExportManifest, tokens: IntArray, states: list[StateSpec]) -> list[Figure]:
    """The rows of this check; none if there is no such file."""
    if manifest.wake_one is None:
        return []
    whole = OnnxSteps(folder, manifest)
    before = min(BEFORE, manifest.window - 1)
    _, state = whole.wake(whole.new_state(1), tokens[None, :before], np.array([before]), "none")
    state = whole.sleep(state, np.ones(1, np.bool_))
    begun, found = whole.to_named_arrays(state), []
    for steps in (whole, OnnxSteps(folder, manifest.model_copy(update={"wake": manifest.wake_one}))):
        state, logits = steps.from_named_arrays(begun), []
        for token in tokens[before : before + min(AFTER, manifest.window)]:
            read, state = steps.wake(state, np.array([[token]]), np.ones(1, np.int64), "last")
            assert read is not None
            logits.append(read[0])
        found.append(Found(np.stack(logits), steps.to_named_arrays(state)))
    return compare("one token, by its own graph", found[1], found[0], manifest.precision, states)
