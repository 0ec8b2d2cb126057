"""What IREE compiles for, and what it is asked for by. Imports no torch."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass

from sleepc.backends.processor import architecture, processor_features, some, unfit
from sleepc.errors import SleepcWarning, UsageError

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


HOST = "host"
NEEDS = {"x86-64-v3": frozenset({"avx2", "bmi2", "fma"})}  # of those that it needs, what older processors do not have
HERE = "x86-64-v3" if architecture() == "x86_64" else "generic"
DEVICES = {
    CPU: IreeDevice(CPU, "--iree-llvmcpu-target-cpu", (HERE, HOST, "generic")),
    "cuda": IreeDevice(
        "cuda",
        "--iree-cuda-target",
        ("sm_86", "sm_80", "sm_89", "sm_120"),
        ("sm_90", "sm_90a", "sm_100", "h100"),
        "sm_89",
    ),
    "rocm": IreeDevice("rocm", "--iree-rocm-target", ("gfx942", "gfx1100")),
    # of what IREE takes for any device: no integers of 64 bits, which positions are
    "vulkan": IreeDevice("vulkan-spirv", "--iree-vulkan-target", ("ampere", "rdna3")),
    "metal": IreeDevice("metal-spirv", more=("--iree-metal-compile-to-metallib=false",)),
}


def arch_of_processor(device: str, arch: str) -> str:
    """What the code for processors is compiled for if `arch` was asked for of `device`."""
    return arch if device == CPU and arch else DEVICES[CPU].known[0]


def features_for(arch: str) -> frozenset[str]:
    """What a processor has to have for code for `arch` that is compiled here, by Linux's names."""
    return processor_features() if arch == HOST else NEEDS.get(arch, frozenset())


def refuse_other_processor(machine: str, features: Collection[str], where: str, fix: str) -> None:
    """Raises UsageError if this is not a `machine` (x86_64, aarch64 …) whose processor has all `features`: the code
    would end the process. Where the system does not say what its processor has, that is a warning.
    """
    what = unfit(machine, features)
    if what is not None:
        raise UsageError(what, where=where, fix=fix)
    if features and not processor_features():
        text = f"this system does not say whether its processor has what the code needs: {some(features)}"
        warnings.warn(text, SleepcWarning, stacklevel=3)
