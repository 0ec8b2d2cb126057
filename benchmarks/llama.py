"""llama.cpp on the same weights, by its own `llama-quantize` and `llama-bench`: a GGUF file in, times and RSS out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import Row, console

from sleepc.hf.resolve import is_gguf

QUANTIZE, BENCH = "llama-quantize", "llama-bench"
TYPES = {"fp32": "F32", "fp16": "F16", "int8": "Q8_0", "int4": "Q4_0"}


def missing(model: str | Path) -> str | None:
    """Why llama.cpp cannot read the model here; None if it can."""
    absent = [tool for tool in (QUANTIZE, BENCH) if shutil.which(tool) is None]
    if absent:
        return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not on the PATH"
    return None if is_gguf(model) else f"{model} is no GGUF file"


def build(model: str | Path, precision: str, file: Path) -> Row:
    """The model's weights in llama.cpp's type for a precision; seconds (0: it was there) and the file's size."""
    started = time.perf_counter()
    if not file.is_file():
        console.log(f"{QUANTIZE}, {precision}")
        draft = file.with_suffix(".part")
        command = [QUANTIZE, "--allow-requantize", str(model), str(draft), TYPES[precision]]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{QUANTIZE} failed:\n{done.stderr[-3000:]}")
        draft.rename(file)
    return {"llama_seconds": time.perf_counter() - started, "llama_files_mb": file.stat().st_size / 1e6}


@dataclass(frozen=True)
class Llama:
    """A GGUF file that is read on so many threads. Every figure is of a process of its own, so it takes no turns."""

    file: Path
    threads: int

    def prefill(self, tokens: int) -> Row:
        """Seconds to read `tokens` at once."""
        ms, _ = self._measured(("-p", tokens), ("-n", 0), ("-d", 0))
        return {"llama_s": ms / 1e3}

    def decode(self, context: int, count: int) -> Row:
        """Milliseconds of each of `count` tokens after a context, and the most that was resident."""
        ms, megabytes = self._measured(("-p", 0), ("-n", count), ("-d", context))
        return {"llama_ms": ms / count, "llama_rss_mb": megabytes}

    def _measured(self, *what: tuple[str, int]) -> tuple[float, float]:
        """Milliseconds, median of three runs, and MB."""
        command = [BENCH, "-m", str(self.file), "-t", str(self.threads), "-ngl", "0", "-r", "3", "-o", "json"]
        command += [str(part) for pair in what for part in pair]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout is not None
            said = child.stdout.read()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(command)} exited with {child.returncode}")
        (found,) = json.loads(said)
        return median(found["samples_ns"]) / 1e6, usage.ru_maxrss * 1024 / 1e6
