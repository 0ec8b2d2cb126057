"""What IREE compiles for, and what it is asked for by. Imports no torch."""

from __future__ import annotations

import platform
from dataclasses import dataclass

CPU = "llvm-cpu"


@dataclass(frozen=True)
class IreeDevice:
    """What IREE calls a device, the flag that says its architecture, and those that were compiled for; the first is the
    default. `refused` are those that IREE 3.13 does not compile for, with what to use instead.
    """

    backend: str
    flag: str = ""
    known: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    instead: str = ""
    more: tuple[str, ...] = ()


HERE = "x86-64-v3" if platform.machine() == "x86_64" else "generic"
DEVICES = {
    CPU: IreeDevice(CPU, "--iree-llvmcpu-target-cpu", (HERE, "host", "generic")),
    "cuda": IreeDevice(
        "cuda", "--iree-cuda-target", ("sm_86", "sm_80", "sm_89"), ("sm_90", "sm_90a", "sm_100", "h100"), "sm_89"
    ),
    "rocm": IreeDevice("rocm", "--iree-rocm-target", ("gfx942", "gfx1100")),
    # of what IREE takes for any device: no integers of 64 bits, which positions are
    "vulkan": IreeDevice("vulkan-spirv", "--iree-vulkan-target", ("ampere", "rdna3")),
    "metal": IreeDevice("metal-spirv", more=("--iree-metal-compile-to-metallib=false",)),
}
