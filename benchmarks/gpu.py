"""Everything that is measured on a GPU, in parts: the memory's kernels, a token, a prefill with its sleeps, a step of
training, and ONNX Runtime's token. Each beside what it is compared with, in one run.

`--only kernels,decode` makes some parts; each begins no row after `--limit` seconds. With `--work FILE` rows are kept,
and a run that was cut off goes on where it stopped: with the same model, card, --tokens, sleepc, PyTorch and Triton.
What a GPU had no room for is tried again. For what is not there
(PyTorch with CUDA, Triton, flash-linear-attention, ONNX Runtime with CUDA) a row says why, and the exit status is 0.
`max_error` is against eager float32 on the CPU: logits of a prefill across two sleeps and of the tokens after it. The
row `kernels` of part onnx compares the committed table of CUDA kernels with what the installed ONNX Runtime registers.
`--smoke` runs it all on the CPU, tiny, with Triton's interpreter where Triton is installed. ONNX Runtime is named here,
and not asked of the table of targets: its precisions, its providers and its kernels are what is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import gpu_kernels
import numpy as np
import torch
from common import Row, add_letters, arguments, checkpoint_of, console, machine, numbers, report, some_of
from parts import Case, Kept, milliseconds, run_part

import sleepc
from sleepc.backends.table import find_backend, find_target, find_trainer
from sleepc.errors import UsageError
from sleepc.hf.resolve import Checkpoint
from sleepc.ir.parameters import materialise
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.tune.here import source_digest
from sleepc.version import __version__

PARTS = ("kernels", "decode", "prefill", "train", "onnx")
COLUMNS = ("part", "system", "kernel", "precision", "batch", "context", "ms", "tokens_per_s", "max_error")
WARM = 3
PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
MINUTES = 8


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", type=some_of(PARTS), default=list(PARTS), help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, help="a file of JSON lines that rows are kept in")
    parser.add_argument("--limit", type=float, default=60 * MINUTES, help="seconds in which a part begins rows (480)")
    parser.add_argument("--contexts", type=numbers, default="1024,16384", help="lengths of context in tokens")
    parser.add_argument("--batches", type=numbers, default="1,8", help="rows of a batch")
    parser.add_argument("--passes", type=numbers, default="1,2,4,8", help="passes of a sleep")
    parser.add_argument("--tokens", type=int, default=64, help="tokens measured at each context")
    parser.add_argument("--eager", default="float32,bfloat16", help="dtypes; float32 is among them")
    parser.add_argument("--exports", default="fp32,fp16,int4", help="precisions")
    parser.add_argument("--write-table", type=Path, help="a file for the installed ONNX Runtime's kernels")
    parser.add_argument("--device", default="cuda", choices=sorted(PROVIDERS))
    parser.add_argument("--smoke", action="store_true", help="everything, tiny, on the CPU: does it run at all?")
    options = parser.parse_args()
    if options.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
        options.tiny, options.device = True, "cpu"
    if options.tiny:
        options.contexts, options.batches, options.tokens, options.passes = [40], [1], 4, [2]
        options.eager, options.exports = "float32", "fp32"
    report(rows(options), as_json=options.json, title=f"measured, {options.device}", columns=COLUMNS)


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The machine, and what there is to measure on it."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    yield machine() | {"gpu": gpu}
    missing = {"eager": no_eager(options.device), "onnx": no_onnx(options.device)}
    missing |= {f"kernels, {name}": why for name, why in gpu_kernels.reasons(options.device).items()}
    yield from ({"kind": "skipped", "what": what, "reason": why} for what, why in missing.items() if why)
    chosen = [name for name in options.only if not missing["onnx" if name == "onnx" else "eager"]]
    if not chosen:
        return
    with checkpoint_of(options) as checkpoint, TemporaryDirectory(prefix="sleepc-gpu-") as scratch:
        if options.tiny:
            add_letters(checkpoint.folder)
        kept = Kept(options.work, {"gpu": gpu, **place(checkpoint, options)})
        models = Models(checkpoint.folder, options, Path(scratch))
        made = {"kernels": partial(gpu_kernels.cases, options.device, options.tiny), "decode": models.decode}
        made |= {"prefill": models.prefill, "train": models.train, "onnx": models.onnx}
        for name in chosen:
            console.log(name)
            yield from run_part(name, made[name](), kept, options.limit)


def place(checkpoint: Checkpoint, options: argparse.Namespace) -> Row:
    """What rows depend on that their keys do not say: the model by a hash of its files, options, and versions."""
    found = hashlib.sha256()
    for path in [checkpoint.folder / "config.json", *(file.path for file in checkpoint.opened)]:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    row = {"model": found.hexdigest()[:16], "tiny": options.tiny, "measured_tokens": options.tokens}
    row |= {"device": options.device, "torch": torch.__version__, "sleepc": __version__}
    row["source"] = [source_digest(find_backend(name)) for name in ("eager", "triton")]
    return row | {"triton": version("triton") if find_spec("triton") else None}


class Models:
    """One model in all the forms that are measured; each is made when it is first asked for."""

    def __init__(self, folder: Path, options: argparse.Namespace, scratch: Path) -> None:
        self.folder, self.options, self.scratch = folder, options, scratch
        self.made: dict[tuple[str, int], sleepc.Program] = {}

    def program(self, dtype: str = "float32", passes: int = 1) -> sleepc.Program:
        """The converted model."""
        if (dtype, passes) not in self.made:
            window = {"window": 16} if self.options.tiny else {}
            self.made[dtype, passes] = sleepc.convert(self.folder, {"dtype": dtype, "passes": passes, **window})
        return self.made[dtype, passes]

    @cached_property
    def expected(self) -> np.ndarray:
        """Logits on the CPU."""
        return logits_of(self.program().steps())

    @cached_property
    def systems(self) -> dict[str, dict[str, Any]]:
        """What reads tokens, by name: the arguments of `steps`."""
        found: dict[str, dict[str, Any]] = {"eager": {}, "triton": {"backend": "triton"}}
        try:
            find_backend("triton").check_device(self.options.device)
        except UsageError:
            del found["triton"]
        if "triton" in found and self.options.device == "cuda":
            found["triton, compiled"] = {"backend": "triton", "compile": True}
        return found

    def _sessions(self) -> Iterator[tuple[dict[str, Any], Callable[[], Steps]]]:
        for dtype in self.options.eager.split(","):
            for system, how in self.systems.items():
                key = {"system": system, "precision": dtype}
                yield key, partial(self._steps, dtype, **how)

    def _steps(self, dtype: str, **how: Any) -> Steps:
        return self.program(dtype).steps(device=self.options.device, **how)

    def decode(self) -> Iterator[Case]:
        """A token, by system, dtype, rows and context; transformers with its static cache beside it."""
        for batch in self.options.batches:
            for context in self.options.contexts:
                for key, steps in self._sessions():
                    key |= {"batch": batch, "context": context}
                    yield key, lambda steps=steps, b=batch, c=context: self._token(steps(), b, c)
                key = {"system": "transformers", "precision": "float32", "batch": batch, "context": context}
                yield key, lambda b=batch, c=context: self._original(b, c)

    def _token(self, steps: Steps, batch: int, context: int) -> Row:
        error = float(np.abs(logits_of(steps) - self.expected).max())
        return speeds(steps, batch, context, self.options.tokens) | {"max_error": error}

    def _original(self, batch: int, context: int) -> Row:
        """One token after a context whose keys are random; compiled on a GPU."""
        from transformers import AutoModelForCausalLM, StaticCache

        device, count = self.options.device, self.options.tokens + 2 * WARM
        if context + count > (limit := self._positions()):
            return {"reason": f"transformers' model has {limit} positions"}
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32, trust_remote_code=False)
        model = model.to(device).eval()
        cache = StaticCache(config=model.config, max_cache_len=context + count)
        run = torch.compile(model, fullgraph=True, mode="reduce-overhead") if device == "cuda" else model
        tokens = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        with torch.inference_mode():
            for start in range(0, context, 512):
                piece = torch.zeros(batch, min(512, context - start), dtype=torch.int64, device=device)
                model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return {"ms": milliseconds(lambda: run(tokens, past_key_values=cache, use_cache=True), self.options.tokens)}

    def _positions(self) -> int:
        from transformers import AutoConfig

        return int(AutoConfig.from_pretrained(self.folder, trust_remote_code=False).max_position_embeddings)

    def prefill(self) -> Iterator[Case]:
        """A context read at once, and a sleep by the number of its passes."""
        for batch in self.options.batches:
            for context in self.options.contexts:
                for key, steps in self._sessions():
                    if "compiled" not in key["system"]:  # calls of several tokens are not
                        key |= {"batch": batch, "context": context}
                        yield key, lambda steps=steps, b=batch, c=context: prefilled(steps(), b, c)
            for passes in self.options.passes:
                for system, how in self.systems.items():
                    key = {"system": system, "precision": "float32", "batch": batch, "passes": passes}
                    if "compiled" not in system:
                        yield key, partial(self._slept, passes, batch, how)

    def _slept(self, passes: int, batch: int, how: dict[str, Any]) -> Row:
        steps = self.program(passes=passes).steps(device=self.options.device, **how)
        return {"ms": asleep(Session(steps, batch), batch)}

    def train(self) -> Iterator[Case]:
        """A step: a window read, a sleep, a window read, and the gradients of every parameter."""
        for batch in self.options.batches:
            for system in [name for name in self.systems if "compiled" not in name]:
                key = {"system": system, "precision": "float32", "batch": batch}
                yield key, partial(self._trained, system, batch)

    def _trained(self, system: str, batch: int) -> Row:
        graphs, device = self.program().graphs, self.options.device
        values = materialise(graphs, device)
        parameters = {k: x.detach().requires_grad_(x.is_floating_point()) for k, x in values.items()}
        steps = find_trainer(system).steps_on(graphs, parameters, device=device, train=True)
        wanted = [x for x in parameters.values() if x.requires_grad]
        length = steps.window
        tokens = torch.randint(0, graphs.vocab, (batch, length), device=device)
        lengths = torch.full((batch,), length, device=device)

        def step() -> None:
            _, state = steps.wake_tensors(steps.new_state(batch), tokens, lengths, "none")
            logits, _ = steps.wake_tensors(steps.sleep_tensors(state), tokens, lengths, "all")
            assert logits is not None
            torch.autograd.grad(logits.float().logsumexp(-1).mean(), wanted, allow_unused=True)

        return {"context": 2 * length, "ms": milliseconds(step, 1 if self.options.tiny else 5)}

    def onnx(self) -> Iterator[Case]:
        """ONNX Runtime's kernels against the table, and its token."""
        provider = PROVIDERS[self.options.device]
        yield {"system": "onnx", "precision": "table"}, lambda: kernels(provider, self.options.write_table)
        for precision in self.options.exports.split(","):
            for batch in self.options.batches:
                for context in self.options.contexts:
                    key = {"system": "onnx", "precision": precision, "batch": batch, "context": context}
                    yield key, lambda p=precision, b=batch, c=context: self._token(self._exported(p), b, c)

    def _exported(self, precision: str) -> Steps:
        """An export for CUDA; on the device its state is there too."""
        folder = self.scratch / precision
        if not folder.exists():
            console.log(f"export, {precision}")
            fast = {"fast": True} if precision == "int4" else {}  # what is measured is time
            self.program().export(folder, precision=precision, ep="cuda", **fast)
        return find_target("onnx").open(folder).steps(device=self.options.device)


def no_eager(device: str) -> str | None:
    """Why PyTorch cannot be measured."""
    missing = device == "cuda" and not torch.cuda.is_available()
    return f"torch {torch.__version__} finds no CUDA device" if missing else None


def no_onnx(device: str) -> str | None:
    """Why ONNX Runtime cannot be measured."""
    target = find_target("onnx")
    reason = target.missing()
    if reason is None and PROVIDERS[device] not in target.about():
        return f"{target.about()}. Uninstall it, and install sleepc with its extra onnx-gpu"
    return reason


def kernels(provider: str, write: Path | None) -> Row:
    """Operators whose kernels are not those of the committed table; what there is instead goes into a file."""
    import onnxruntime

    from sleepc.backends.onnx.kernels import cuda_table
    from sleepc.backends.onnx.registry import as_text, registered

    table = cuda_table()
    found = registered(
        provider, {domain: list(ops) for domain, ops in table.kernels.items()}, find_target("onnx").about()
    )
    if write is not None:
        write.write_text(as_text(found))
    other = [op for d, ops in table.kernels.items() for op, known in ops.items() if found.kernels[d][op] != known]
    row = {"table": table.runtime, "installed": onnxruntime.__version__, "provider": provider}
    return row | {"operators": sum(map(len, table.kernels.values())), "different": other}


def speeds(steps: Steps, batch: int, context: int, count: int) -> Row:
    """Milliseconds of a step of one token per row, with and without its share of a sleep."""
    tokens = np.random.default_rng(0).integers(0, steps.vocab, (batch, context + WARM + count))
    session = Session(steps, batch)
    session.feed(tokens[:, :context], logits="none")
    times = [timed(partial(session.feed, tokens[:, at : at + 1])) for at in range(context, tokens.shape[1])]
    ms, sleep = median(times[WARM:]), asleep(session, batch)
    console.log(f"batch {batch} context {context}: {ms:.2f} ms per step")
    return {"ms": ms, "sleep_ms": sleep, "ms_with_sleep": ms + sleep / steps.window}


def asleep(session: Session, batch: int) -> float:
    """Milliseconds of a sleep."""
    token = np.ones((batch, 1), np.int64)
    return median([timed(session.sleep) for _ in range(3) if session.feed(token) is not None])


def prefilled(steps: Steps, batch: int, context: int) -> Row:
    """Tokens per second of a context that is read at once, with its sleeps."""
    tokens = np.random.default_rng(0).integers(0, steps.vocab, (batch, context))
    Session(steps, batch).feed(tokens)  # the first call allocates, and chooses kernels
    ms = timed(partial(Session(steps, batch).feed, tokens))
    return {"ms": ms, "tokens_per_s": 1e3 * batch * context / ms}


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    return milliseconds(call, 1)


def logits_of(steps: Steps) -> np.ndarray:
    """Logits of a prefill across two sleeps, and of tokens after it."""
    length = 2 * steps.window + 9
    tokens = np.random.default_rng(1).integers(0, steps.vocab, (1, length + 8))
    session = Session(steps)
    found = [session.feed(tokens[:, :length], logits="all")[0]]
    found += [session.feed(tokens[:, at : at + 1]) for at in range(length, length + 8)]
    return np.concatenate(found).astype(np.float32)


if __name__ == "__main__":
    main()
