"""One system in a process of its own: reads tokens when told to, on standard input, and says how long it took.

    onnx_worker.py sleepc|genai|llama FOLDER|FILE THREADS

A line of JSON in, a line out. It runs in each one's environment: sleepc's, where it loads no torch, and those of
onnxruntime-genai and llama.cpp, which know nothing of sleepc.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class System(Protocol):
    """What is measured."""

    def start(self, room: int) -> None:
        """Begin a text of at most `room` tokens."""

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Read tokens [T] -> the last one's logits, V numbers."""


class Sleepc:
    """An export of sleepc's, run by sleepc's session in the runtime of its target."""

    def __init__(self, folder: str, threads: int) -> None:
        from sleepc.backends.contract import Target
        from sleepc.backends.table import exporter_of

        os.environ["OMP_NUM_THREADS"] = str(threads)
        target = exporter_of(Path(folder))
        assert isinstance(target, Target), f"{folder} is no export that runs"
        started = time.perf_counter()
        export = target.open(Path(folder))
        export.native_code = True  # it was made by this benchmark
        self.steps = export.steps()
        self.steps.wake(self.steps.new_state(1), np.zeros((1, 1), np.int64), np.ones(1, np.int64), "last")
        loaded = {"load_s": time.perf_counter() - started, "files_mb": export.nbytes() / 1e6}
        loaded |= {"compile_s": export.manifest.report.get("compile_seconds")}
        self.facts = {"window": self.steps.window, "runtime": target.about(), **loaded}

    def start(self, room: int) -> None:
        """`room` changes nothing: the state has its size."""
        from sleepc.runtime.session import Session

        self.session = Session(self.steps)

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """Sleeps are where they fall due."""
        return self.session.feed(tokens[None])

    def sleep(self) -> float:
        """Milliseconds of a sleep, median of three."""
        times = []
        for _ in range(3):
            self.session.feed([[1]])
            started = time.perf_counter()
            self.session.sleep()
            times.append((time.perf_counter() - started) * 1e3)
        return sorted(times)[1]


class Genai:
    """A model of onnxruntime-genai's builder, run by onnxruntime-genai."""

    def __init__(self, folder: str, threads: int) -> None:
        import onnxruntime_genai as genai

        config = genai.Config(folder)
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        started = time.perf_counter()
        self.model = genai.Model(config)
        self.start(1)
        self.read(np.ones(1, np.int64))  # 0 may be the padding, which counts as no token
        self.facts: dict[str, Any] = {name: version(name) for name in ("onnxruntime", "onnxruntime-genai")}
        self.facts |= {"load_s": time.perf_counter() - started, "files_mb": bytes_in(folder) / 1e6}

    def start(self, room: int) -> None:
        """The KV cache gets room for these tokens, and no more."""
        import onnxruntime_genai as genai

        self.generator = None  # the old cache first
        params = genai.GeneratorParams(self.model)
        params.set_search_options(max_length=room, do_sample=False)
        self.generator = genai.Generator(self.model, params)

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """The logits are asked for, as whoever samples would."""
        self.generator.append_tokens(tokens[None].astype(np.int32))
        return self.generator.get_logits()


class Llama:
    """A GGUF file, run by llama.cpp with its own defaults: pieces of 512 tokens, flash attention where it has one."""

    PIECE = 512

    def __init__(self, file: str, threads: int) -> None:
        import llama_cpp as llama

        self.llama, self.threads, self.context = llama, threads, None
        self.silent = llama.llama_log_callback(lambda *_: None)  # kept: C calls it
        llama.llama_log_set(self.silent, None)
        llama.llama_backend_init()
        started = time.perf_counter()
        self.model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.start(8)
        self.read(np.zeros(1, np.int32))
        loaded = {"load_s": time.perf_counter() - started, "files_mb": Path(file).stat().st_size / 1e6}
        self.facts = {"llama-cpp-python": version("llama-cpp-python"), **loaded}

    def start(self, room: int) -> None:
        """The KV cache gets room for these tokens, and no more."""
        if self.context is not None:
            self.llama.llama_free(self.context)  # the old cache first
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = room, self.PIECE, self.PIECE
        params.n_threads = params.n_threads_batch = self.threads
        self.context = self.llama.llama_init_from_model(self.model, params)

    def read(self, tokens: np.ndarray) -> np.ndarray:
        """The last one's logits are copied out, as whoever samples would."""
        for first in range(0, len(tokens), self.PIECE):
            piece = tokens[first : first + self.PIECE].tolist()
            held = (self.llama.llama_token * len(piece))(*piece)  # the batch has its address only
            failed = self.llama.llama_decode(self.context, self.llama.llama_batch_get_one(held, len(piece)))
            assert not failed, f"llama_decode: {failed}"
        logits = self.llama.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, (self.vocab,)).copy()


def main() -> None:
    """Answer until standard input ends."""
    kind, folder, threads = sys.argv[1:]
    system: Any = {"sleepc": Sleepc, "genai": Genai, "llama": Llama}[kind](folder, int(threads))
    random = np.random.default_rng(0)
    print(json.dumps(system.facts | memory()), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(system, json.loads(line), random)), flush=True)


def answer(system: Any, asked: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """`read` reads tokens in one call, `step` one at a time; `logits` reads the same ones whenever it is asked."""
    if asked["do"] == "start":
        system.start(asked["room"])
        return memory()
    if asked["do"] == "sleep":
        return {"ms": system.sleep()}
    if asked["do"] == "logits":
        tokens = np.random.default_rng(1).integers(0, asked["vocab"], asked["tokens"])
        return {"logits": np.asarray(system.read(tokens)).reshape(-1).tolist()}
    count, times, processor = asked["tokens"], [], time.process_time()
    tokens = random.integers(0, asked["vocab"], count)
    pieces = [tokens] if asked["do"] == "read" else np.split(tokens, count)
    for piece in pieces:
        started = time.perf_counter()
        system.read(piece)
        times.append((time.perf_counter() - started) * 1e3)
    used = (time.process_time() - processor) * 1e3 / len(pieces)  # beside busy neighbours it says more
    return {"ms": times, "cpu_ms": used, **memory()}


def bytes_in(folder: str) -> int:
    """What the files of a folder take."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def memory() -> dict[str, Any]:
    """Resident memory in MB (10^6 bytes), now and at its peak; weights that are mapped count."""
    status = Path("/proc/self/status").read_text().splitlines()
    kib = {key: int(rest.split()[0]) for key, _, rest in (line.partition(":") for line in status) if key in RSS}
    return {name: kib[key] * 1024 / 1e6 for key, name in RSS.items()} | {"torch": "torch" in sys.modules}


RSS = {"VmRSS": "rss_mb", "VmHWM": "peak_mb"}


if __name__ == "__main__":
    main()
