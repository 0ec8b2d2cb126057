"""What a program's kernels take on a kind of GPU that need not be here."""

from __future__ import annotations

from dataclasses import replace

from sleepc.backends.triton.compiled import taken
from sleepc.backends.triton.devices import find_device
from sleepc.backends.triton.plan import operations
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.program import ProgramGraphs


def taken_on(program: ProgramGraphs, target: str, shared: int) -> list[str]:
    """A line for every kernel that the program starts there, compiled for `target`, or one that says why there is none.
    Raises SleepcError if one wants more than `shared` bytes of shared memory, UsageError for an unknown target.
    """
    exact = find_device(target).exact
    try:
        started = [use.started for each in operations(program) for use in each.uses]
    except UsageError as error:  # the backend then computes as eager does
        return [f"no kernels were compiled: {error.what}"]
    lines = []
    for kernel, problem in dict.fromkeys((each.kernel, replace(each.problem, exact=exact)) for each in started):
        found = taken(kernel, problem, target)
        if found.shared > shared:
            raise SleepcError(
                f"the kernel {found.kernel} wants {found.shared} bytes of shared memory of {shared}",
                where=target,
                fix="Choose another backend for this device.",
            )
        spilled = f", spills {found.spilled} bytes" if found.spilled else ""
        lines.append(
            f"{found.kernel} for {target}, heads of {problem.dk} and {problem.dv}, chunks of {problem.chunk}: "
            f"{found.registers} registers, {found.shared} bytes of shared memory{spilled}"
        )
    return lines
