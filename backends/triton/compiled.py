"""Kernels compiled ahead of time, for GPUs that need not be here, and what the code takes: shared memory, registers,
spills. `python -m sleepc.backends.triton.compiled [--short] [sm_90 gfx942]` prints a table. Imports no torch.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sleepc.backends.triton.choices import Problem, choose, types
from sleepc.backends.triton.devices import DEVICES, find_device
from sleepc.backends.triton.kernels import channels, chunked, features, fused, gradients, replayed, single
from sleepc.errors import SleepcError

ALIGNED = 16
"""Bytes that every address is a multiple of, as PyTorch's tensors are: without it numbers are loaded one by one."""
GRADIENTS = (
    gradients.spread,
    gradients.carry_back,
    gradients.of_queries,
    gradients.of_states,
    gradients.unsolve,
    gradients.of_rights,
)
CHUNKED = (chunked.solve, chunked.prepare, chunked.carry, chunked.read)
AROUND = (fused.masked_l2norm, fused.gates, fused.mixed, fused.gated_norm)
KERNELS = {
    "head": (
        features.l2norm,
        features.convolve,
        *AROUND,
        *CHUNKED,
        single.step,
        single.recall,
        replayed.replay,
        *GRADIENTS,
    ),
    "channel": (
        fused.gates,
        channels.sums,
        channels.scores,
        *CHUNKED,
        *GRADIENTS,
        channels.of_scores,
        channels.of_sums,
    ),
}
"""Kernels by the form of decay that they are compiled for in the table."""


@dataclass(frozen=True)
class Taken:
    """What a kernel takes, compiled for a form of decay, heads of `size` and a target: registers of a thread, bytes of
    shared memory of a program, bytes that a thread spills.
    """

    kernel: str
    decay: str
    size: int
    target: str
    registers: int
    shared: int
    spilled: int

    @property
    def starts(self) -> bool:
        """Is there as much shared memory?"""
        return self.shared <= find_device(self.target).shared

    @property
    def fits(self) -> bool:
        """Does it start, and spill nothing?"""
        return self.starts and not self.spilled


def compile_for(kernel: Any, it: Problem, name: str) -> Any:
    """One kernel for a kind of GPU, as Triton compiles it, without the names of source files."""
    device, how, kinds = (
        find_device(name),
        choose(kernel.fn.__name__, kernel.arg_names, it),
        types(kernel.arg_names, it),
    )
    aligned = [["tt.divisibility", ALIGNED]]
    pointers = {(at,): aligned for at, kind in enumerate(kinds.values()) if kind.startswith("*")}
    arch = int(name.removeprefix("sm_")) if device.nvidia else name
    target = GPUTarget("cuda" if device.nvidia else "hip", arch, device.warp)
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True
        return triton.compile(ASTSource(kernel, kinds, how.constants, pointers), target=target, options=how.options)


def taken(kernel: Any, it: Problem, name: str) -> Taken:
    """Compile a kernel for a kind of GPU, and read what it takes."""
    made = compile_for(kernel, it, name)
    registers, spilled = registers_of(made, name)
    size = it.dv // 16 if kernel in (features.convolve, fused.gates) else it.dk
    return Taken(kernel.fn.__name__, it.decay, size, name, registers, made.metadata.shared, spilled)


def registers_of(made: Any, name: str) -> tuple[int, int]:
    """Registers of a thread of compiled code, and the bytes that it spills."""
    return _of_nvidia(made) if find_device(name).nvidia else _of_amd(made)


def _of_nvidia(made: Any) -> tuple[int, int]:
    """As the code itself says it, read by NVIDIA's tool that comes with Triton; what is spilled lies in the stack."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=False)
    words = done.stdout + done.stderr
    if done.returncode:
        raise SleepcError(f"cuobjdump does not read the code of {made.metadata.name}: {words.strip()}")
    return _number(r"REG:(\d+)", words), _number(r"STACK:(\d+)", words)


def _of_amd(made: Any) -> tuple[int, int]:
    """As the metadata in the assembly says it; what is spilled lies in scratch memory of the thread."""
    words = made.asm["amdgcn"]
    return _number(r"\.vgpr_count:\s+(\d+)", words), _number(r"\.private_segment_fixed_size:\s+(\d+)", words)


def _number(pattern: str, words: str) -> int:
    found = re.search(pattern, words)
    if found is None:
        raise SleepcError(f"no {pattern!r} in what the compiler says")
    return int(found[1])


def problem(kernel: Any, decay: str, size: int, name: str) -> Problem:
    """The problem of the table: the gated delta rule in a bfloat16 program, heads of `size`; convolutions have four
    taps, and 16 channels for each number of a head, as gates have columns. All around a memory is as `fused` has it.
    """
    if kernel in (features.convolve, fused.gates):
        taps = 4 if kernel is features.convolve else 1 if decay == "head" else size
        return Problem(taps, 16 * size, 16, "fp32", corrects=False, decay=decay, exact="")
    if kernel in AROUND:
        dot = "bf16" if kernel is fused.mixed else "fp32"
        return Problem(size, size, 16, dot, corrects=False, decay=decay, exact="")
    dot = "fp32" if kernel in (single.step, features.l2norm) else "bf16"
    return Problem(size, size, 64, dot, corrects=True, decay=decay, exact=find_device(name).exact)


def rows(targets: Sequence[str], short: bool) -> Iterator[list[Taken]]:
    """What every kernel takes on all targets, for heads of 64 and 128 and both forms of decay; `short` has one row of
    every kernel.
    """
    seen: set[Any] = set()
    for decay, kernels in KERNELS.items():
        for kernel in kernels:
            for size in () if short and kernel in seen else (64,) if short else (64, 128):
                yield [taken(kernel, problem(kernel, decay, size, name), name) for name in targets]
            seen.add(kernel)


HEAD = "| kernel | decay per | head |"


def table(targets: Sequence[str], short: bool) -> Iterator[str]:
    """The lines of the table: registers / shared memory / what is spilled."""
    yield f"{HEAD} {' | '.join(targets)} |"
    yield "| --- " * (3 + len(targets)) + "|"
    for row in rows(targets, short):
        cells = [f"{it.registers} / {it.shared} / {it.spilled}" for it in row]
        yield f"| {row[0].kernel} | {row[0].decay} | {row[0].size} | {' | '.join(cells)} |"


def read_table(words: str) -> Iterator[Taken]:
    """What the table in a text says."""
    lines = words[words.index(HEAD) :].split("\n\n")[0].splitlines()
    split = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    for kernel, decay, size, *cells in split[2:]:
        for target, cell in zip(split[0][3:], cells, strict=True):
            yield Taken(kernel, decay, int(size), target, *map(int, cell.split("/")))


def main() -> None:
    """Print the table for the targets that are named, or all."""
    parser = argparse.ArgumentParser(description="What kernels take, compiled for GPUs that need not be here.")
    parser.add_argument("--short", action="store_true", help="heads of 64 and one form of decay only")
    parser.add_argument("targets", nargs="*", help=f"one or more of {', '.join(DEVICES)} (all)")
    given = parser.parse_args()
    for line in table(given.targets or tuple(DEVICES), given.short):
        print(line, flush=True)


if __name__ == "__main__":
    main()
