"""GPUs that kernels are compiled and checked for, and what each of them allows: the only list. Imports no Triton."""

from __future__ import annotations

from dataclasses import dataclass

from sleepc.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU by the compiler's name for it, the threads of a warp, and the bytes of shared memory that a program
    may have, which the compiler for AMD does not look at.
    """

    name: str
    warp: int
    shared: int

    @property
    def nvidia(self) -> bool:
        """Is it NVIDIA's? All others are AMD's."""
        return self.name.startswith("sm_")

    @property
    def exact(self) -> str:
        """How float32 is multiplied there: `EXACT` of the kernels."""
        return "tf32x3" if self.nvidia else "ieee"


DEVICES = {
    each.name: each
    for each in (
        Gpu("sm_80", 32, 166912),
        Gpu("sm_90", 32, 232448),
        Gpu("sm_100", 32, 232448),
        Gpu("sm_120", 32, 101376),
        Gpu("gfx942", 64, 65536),
        Gpu("gfx950", 64, 163840),
        Gpu("gfx1100", 32, 65536),
        Gpu("gfx1201", 32, 65536),
    )
}


def find_device(name: str) -> Gpu:
    """The kind of GPU of that name. Raises UsageError for one that kernels are not checked for."""
    if name not in DEVICES:
        raise UsageError(f"unknown target {name!r}", where="--target", fix=f"Targets: {', '.join(DEVICES)}.")
    return DEVICES[name]
