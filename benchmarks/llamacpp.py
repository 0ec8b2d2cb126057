"""llama.cpp in an environment of its own, built there from the source package of llama-cpp-python."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import peers
from common import Row, console
from peers import CannotBuild

LLAMA = "llama-cpp-python==0.3.36"
# As a person builds it who wants it fast; without the parts that are not measured.
LEFT_OUT = "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"
FLAGS = f"-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON {LEFT_OUT}"
# GCC 12 takes it that `ldtilecfg` reads 8 of its 64 bytes, and leaves out the stores of the others as dead: AMX kernels
# then end in a segmentation fault at the first call of several tokens.
AMX = "-fno-tree-dse -fno-dse"
AGAIN = """
import sys
import llama_cpp as llama
source, target, kind = sys.argv[1:]
params = llama.llama_model_quantize_default_params()
params.ftype = getattr(llama, f"LLAMA_FTYPE_{'ALL' if kind == 'F32' else 'MOSTLY'}_{kind}")
params.allow_requantize = True
sys.exit(llama.llama_model_quantize(source.encode(), target.encode(), params))
"""


def python_of(folder: Path) -> Path:
    """The environment's Python. Raises CannotBuild where there is no compiler, or the package cannot be had."""
    flags = FLAGS
    if "amx_tile" in Path("/proc/cpuinfo").read_text():
        flags += f" '-DCMAKE_C_FLAGS={AMX}' '-DCMAKE_CXX_FLAGS={AMX}'"
    settings = {"CMAKE_ARGS": flags, "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", "2")}
    fresh = ("--no-binary", "llama-cpp-python", "--no-cache-dir")  # with these flags, whatever was built before
    return peers.environment(folder, LLAMA, *fresh, settings=settings)


def requantised(python: Path, source: Path, kind: str, folder: Path) -> tuple[Path, Row]:
    """A GGUF file of the model in blocks of `kind`, such as Q4_0, and seconds (0: it was there). Raises CannotBuild.

    Weights that were rounded once are rounded again, so this is a file to measure time with, and no other.
    """
    started, target = time.perf_counter(), folder / f"{source.stem}.{kind}.gguf"
    if not target.is_file():
        console.log(f"llama.cpp, {kind} of {source.name}")
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([str(python), "-c", AGAIN, source, target, kind], capture_output=True, text=True)
        if done.returncode:
            raise CannotBuild(f"llama.cpp made no {kind} of {source}:\n{done.stderr[-3000:]}")
    return target, {f"llama_{kind.lower()}_seconds": time.perf_counter() - started}
