"""Verify an export in place: its files, and what must hold of any program whatever it was made from. Imports no
torch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sleepc.backends.check.measure import ERRORS, relative
from sleepc.backends.export_files import FilesExport
from sleepc.backends.report import Figure, Report
from sleepc.progress import Progress
from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, IntArray, Steps

LONG, AFTER = 256, 16  # tokens of a stream: at most up to its first sleep, and after it
PIECES = (1, 2, 3, 1, 7, 16)  # tokens of one call, in turn
ROUNDED = 0.1  # of the largest logit: kernels that round activations give other sums in calls of other lengths


def verify_export(
    program: FilesExport, runtime: str, tokens: Sequence[int], progress: Progress, like: Steps | None = None
) -> Report:
    """Check an export's files by their hashes, and its logits: read in one go and in pieces, a prompt's last ones,
    beside another row, saved and loaded; and, if `like` is given (the artifact that it was made from, in PyTorch),
    against that.

    Raises SleepcError if the files cannot be run at all.
    """
    started = time.perf_counter()
    report = Report()
    progress("checking the files", None)
    program.check_bytes()
    if program.manifest.hashes:
        report.rows.append(Figure("files", "changed", 0, 0, f"{len(program.files)} by sha256"))
    steps = program.steps()
    ids = np.resize(np.array(tokens, np.int64), min(steps.window, LONG) + AFTER)
    progress(f"reading with {runtime}", None)
    whole = _read(steps, ids, (len(ids),))
    wide = program.manifest.precision in ("int4", "int8", "source")
    bound = ROUNDED if wide else ERRORS[program.manifest.precision]
    text = f"{len(ids)} tokens"
    report.rows += [
        Figure("read in pieces", "logits", relative(_read(steps, ids, PIECES), whole), bound, text),
        Figure("a prompt's last token", "logits", relative(_last(steps, ids), whole[[-AFTER - 1, -1]]), bound, text),
        Figure("beside another row", "logits", relative(_beside(steps, ids), whole), bound, text),
        Figure("saved and loaded", "logits", _saved(program, steps, ids), 0, "bit for bit"),
    ]
    if like is not None and not wide:
        progress("reading with PyTorch", None)
        report.rows.append(
            Figure("the artifact", "logits", relative(whole, _read(like, ids, (len(ids),))), bound, text)
        )
    report.seconds = time.perf_counter() - started
    return report


def _read(steps: Steps, ids: IntArray, pieces: Sequence[int]) -> FloatArray:
    """Logits [n, V] of a stream with a forced sleep before its last AFTER tokens."""
    session, found, turn = Session(steps), [], 0
    for start, end in ((0, len(ids) - AFTER), (len(ids) - AFTER, len(ids))):
        if start:
            session.sleep()
        while start < end:
            count = min(pieces[turn % len(pieces)], end - start)
            found.append(session.feed(ids[None, start : start + count], logits="all")[0])
            start, turn = start + count, turn + 1
    return np.concatenate(found)


def _last(steps: Steps, ids: IntArray) -> FloatArray:
    """Of the same stream the logits [2, V] of the last token before the sleep and of the last one after it, each asked
    for as a prompt's are.
    """
    session = Session(steps)
    before = session.feed(ids[None, :-AFTER])
    session.sleep()
    return np.concatenate([before, session.feed(ids[None, -AFTER:])])


def _beside(steps: Steps, ids: IntArray) -> FloatArray:
    """The same of the second of two rows, of which the first reads other tokens and sleeps too."""
    session, cut = Session(steps, 2), len(ids) - AFTER
    both = np.stack([ids[::-1], ids])
    found = [session.feed(both[:, :cut], logits="all")[1]]
    session.sleep()
    return np.concatenate([*found, session.feed(both[:, cut:], logits="all")[1]])


def _saved(program: FilesExport, steps: Steps, ids: IntArray) -> float:
    """How far a session that loads a state is from the one that saved it."""
    one, other = (Session(steps, identity=program.identity) for _ in range(2))
    one.feed(ids[None, :-AFTER], logits="none")
    with tempfile.TemporaryDirectory() as folder:
        one.save_state(Path(folder) / "state")
        other.load_state(Path(folder) / "state")
    rest = ids[None, -AFTER:]
    return float(np.abs(one.feed(rest, logits="all") - other.feed(rest, logits="all")).max())
