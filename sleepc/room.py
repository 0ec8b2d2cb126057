"""What of a program has room in this machine's memory."""

from __future__ import annotations

import os

from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs


def require_room(program: ProgramGraphs, rows: int = 1) -> None:
    """Raises UsageError if the state of so many sequences takes more memory than this machine has, with the shape of
    what takes most.
    """
    needed, there = rows * program.state_bytes(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed <= there:
        return
    most = max(program.all_states(), key=lambda spec: spec.bytes_per_row())
    shape = ", ".join(map(str, (rows, *most.dims[1:])))
    takes = rows * most.bytes_per_row()
    raise UsageError(
        f"the state takes {needed / 1e9:,.1f} GB, of which {most.name} [{shape}] {takes / 1e9:,.1f} GB, and this "
        f"machine has {there / 1e9:,.1f} GB",
        fix="Choose a smaller --window, or fewer slots to --keep." if rows == 1 else "Use fewer rows.",
    )
