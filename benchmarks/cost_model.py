"""How well steps are predicted (sleepc/tune/predict.py): rank correlation and error against what they take on this CPU.

Plain GPTs of several widths with random weights, converted with several windows, on the eager backend; of each a
token that is read alone, a call of tokens, and a sleep, for one row and for several. Times are CPU time of one thread,
medians of rounds in turns. The profile is this CPU's own: bytes and operations a second, of single operators, and the
time of an operator however small, of a tiny program that is not among the candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from common import Row, arguments, console, machine, report
from numpy.typing import NDArray

import sleepc
from examples.nanogpt import GPT
from sleepc.backends.table import find_trainer
from sleepc.backends.training_steps import TrainingSteps
from sleepc.ir.program import ProgramGraphs
from sleepc.tune.predict import seconds
from sleepc.tune.profile import Profile, Sourced
from sleepc.tune.work import count

COLUMNS = ("case", "step", "rows", "tokens", "predicted_ms", "measured_ms", "ratio")
STEPS = ("decode", "read", "sleep")
SOURCE = "measured by benchmarks/cost_model.py"
VOCAB, BLOCKS = 2000, 4


@dataclass
class Candidate:
    """A step of a program, what it should take, and what it took."""

    case: str
    step: str
    rows: int
    tokens: int
    predicted: float
    run: Callable[[], float]
    took: list[float] = field(default_factory=list)

    def row(self) -> Row:
        """For the table."""
        facts = {"case": self.case, "step": self.step, "rows": self.rows, "tokens": self.tokens}
        times = {"predicted_ms": 1e3 * self.predicted, "measured_ms": 1e3 * median(self.took)}
        return {"kind": "cost_model", **facts, **times, "ratio": self.predicted / median(self.took)}


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=9, help="how often each step is measured")
    options = parser.parse_args()
    report(rows(options.rounds, tiny=options.tiny), as_json=options.json, title="cost model", columns=COLUMNS)


def rows(rounds: int, *, tiny: bool) -> Iterator[Row]:
    """The machine, its rates, every candidate, and how well all of them, and those of each step, were predicted."""
    torch.set_num_threads(1)
    profile = this_cpu()
    rates = {"bytes_per_second": profile.bandwidth.value, "flops": profile.flops["f32"].value}
    yield machine() | rates | {"seconds_per_operator": profile.launch.value}
    widths, windows, batches = ([32], [8], [1, 2]) if tiny else ([128, 384, 768], [32, 128, 256], [1, 8])
    found = [each for width in widths for window in windows for each in candidates(width, window, batches, profile)]
    for _ in range(2 if tiny else rounds):
        for each in found:
            each.took.append(each.run())
    yield from (each.row() for each in found)
    for step in ("", *STEPS):
        yield {"kind": "summary", "of": step or "all", **agreement([each for each in found if step in ("", each.step)])}


def candidates(width: int, window: int, batches: list[int], profile: Profile) -> Iterator[Candidate]:
    """The steps of one program."""
    console.log(f"width {width}, window {window}")
    program, steps = converted(width, window)
    for batch in batches:
        work = count(program, find_trainer(), window // 2, batch)
        half, full = (state_after(steps, batch, tokens) for tokens in (window // 2, window))
        kinds = (("decode", work.decode, 1), ("read", work.read, window // 2), ("sleep", work.sleep, 0))
        for step, ops, tokens in kinds:
            run = timed(steps, full if step == "sleep" else half, tokens)
            yield Candidate(f"{width}/{window}", step, batch, tokens, seconds(ops, profile), run)


def state_after(steps: TrainingSteps, batch: int, tokens: int) -> dict[str, torch.Tensor]:
    """The state of rows that have read so many tokens."""
    ids = torch.randint(VOCAB, (batch, tokens))
    with torch.no_grad():
        return steps.wake_tensors(steps.new_state(batch), ids, torch.full((batch,), tokens), "none")[1]


def timed(steps: TrainingSteps, state: dict[str, torch.Tensor], tokens: int) -> Callable[[], float]:
    """Seconds of CPU that a call of so many tokens takes, or of a sleep if there are none."""
    batch = len(state["since"])
    ids, lengths = torch.randint(VOCAB, (batch, tokens)), torch.full((batch,), tokens)

    def run() -> float:
        own = {name: value.clone() for name, value in state.items()}
        started = time.process_time()
        with torch.no_grad():
            if tokens:
                steps.wake_tensors(own, ids, lengths, "last")
            else:
                steps.sleep_tensors(own)
        return time.process_time() - started

    run()
    return run


def this_cpu() -> Profile:
    """Bytes a second by one row times a matrix that no cache holds, operations a second by a product of matrices, and
    seconds of an operator by a step that has nothing to compute.
    """
    weight, one, square = torch.randn(8192, 8192), torch.randn(1, 8192), torch.randn(768, 768)
    bandwidth = weight.numel() * 4 / of_one(lambda: torch.nn.functional.linear(one, weight), 5)
    flops = 2 * 768**3 / of_one(lambda: square @ square, 20)
    launch = of_an_operator()
    values = {"memory": 1e12, "bandwidth": bandwidth, "launch": launch}
    facts = {name: Sourced(value=value, source=SOURCE) for name, value in values.items()}
    return Profile(name="this CPU", kind="cpu", flops={"f32": Sourced(value=flops, source=SOURCE)}, **facts)


def of_an_operator() -> float:
    """Seconds of CPU of a token of a tiny program, by its operators."""
    program, steps = converted(16, 16)
    state = state_after(steps, 1, 8)
    run = timed(steps, state, 1)
    return median(run() for _ in range(20)) / len(count(program, find_trainer(), 1).decode)


def converted(width: int, window: int) -> tuple[ProgramGraphs, TrainingSteps]:
    """A plain GPT with random weights, and its steps."""
    torch.manual_seed(0)
    model = GPT(vocab=VOCAB, width=width, heads=max(width // 32, 1), blocks=BLOCKS, context=window + 8)
    program = sleepc.convert(model, {"window": window, "sinks": 4}).graphs
    return program, find_trainer().steps(program)


def of_one(call: Callable[[], object], times: int) -> float:
    """Seconds of CPU of one call, the median of five."""
    found = []
    with torch.no_grad():
        for _ in range(6):
            started = time.process_time()
            for _ in range(times):
                call()
            found.append((time.process_time() - started) / times)
    return median(found[1:])


def agreement(found: list[Candidate]) -> Row:
    """Spearman's rank correlation of prediction and measurement, and the median and largest factor between them."""
    predicted, measured = np.array([c.predicted for c in found]), np.array([median(c.took) for c in found])
    factors = np.exp(np.abs(np.log(predicted / measured)))
    correlation = float(np.corrcoef(ranks(predicted), ranks(measured))[0, 1])
    return {
        "candidates": len(found),
        "spearman": correlation,
        "median_factor": float(np.median(factors)),
        "largest_factor": float(factors.max()),
        "median_ratio": float(np.median(predicted / measured)),
    }


def ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """The place of each in order."""
    return np.argsort(np.argsort(values))


if __name__ == "__main__":
    main()
