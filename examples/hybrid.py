"""Do passes of a sleep help a model that has fast weights of its own? On two cores: `python examples/hybrid.py`.

A small Qwen3.5 (gated delta rules in every other layer, attention in the rest) learns text, recall and k-hop look-up
with full attention, and is converted: attention gets a window that every sleep empties, so that what was read before is
in the model's own states alone. Then come passes over every window, as it is and after some more training with them
(docs/paper.md has what came out). It goes on where it was stopped; --quick takes some seconds.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # wherever it is started from

import sleepc
from examples.hybrid_tasks import VOCABULARY, WINDOW, Hops, Mixture, Recall, Text
from examples.trend.training import Lines, Row, one_thread
from sleepc.api import Program
from sleepc.backends.table import find_trainer
from sleepc.passes.pipeline import rewritten
from sleepc.recipe import make_recipe
from sleepc.runtime.steps import Steps
from sleepc.tasks.lessons import NOTHING, lessons
from sleepc.tasks.planting import Sample
from sleepc.tasks.programs import full_attention_for
from sleepc.tasks.puzzle import Puzzle, examples, practice
from sleepc.tasks.solving import Solving
from sleepc.tasks.spelling import spell_as_ids
from sleepc.whole_file import write_whole

LAYERS = ["linear_attention", "full_attention"] * 2
ATTENTION = ",".join(str(i) for i, kind in enumerate(LAYERS) if kind == "full_attention")
EXAMS: dict[str, Puzzle] = {"perplexity": Text(), "recall": Recall(), "hops": Hops()}
WARM_UP = 20  # steps
Read = Callable[[int], Steps]
"""Steps that read so many tokens."""
STOPPED = 130  # the exit status after Ctrl-C


@dataclass(frozen=True)
class Size:
    """Of the model and its trainings: steps with full attention, then with each of `passes`, N = 1 also with `longer`
    times as many (0: not). Rates are AdamW's and Muon's; `held_out` examples of each exam.
    """

    width: int = 64
    head: int = 16  # of the gated delta rules: states are 2 matrices head x head a layer
    batch: int = 48
    steps: int = 640
    lr: float = 5e-3
    muon_lr: float = 7e-3
    passes: tuple[int, ...] = (1, 2, 4)
    more: int = 120
    longer: int = 3
    slower: float = 0.4  # the rates of what follows full attention
    held_out: int = 192


SIZES = {
    "normal": Size(),
    "quick": Size(width=16, head=4, batch=4, steps=4, passes=(1, 2), more=4, longer=0, held_out=6),
}


@dataclass(frozen=True)
class Arm:
    """A line of the figures: a sleep (0 passes: full attention), and how many steps the model was trained with it."""

    name: str
    passes: int = 1
    steps: int = 0
    eviction: str = "hard"
    remembers: bool = True


def arms(size: Size) -> list[Arm]:
    """All lines, in order."""
    found = [
        Arm("full attention", 0),
        Arm("full attention, trained on", 0, size.more),
        Arm("window alone", remembers=False),
    ]
    found += [Arm(f"N = {n}, sliding", n, eviction="sliding") for n in size.passes]
    found += [Arm(f"N = {n}", n) for n in size.passes]
    found += [Arm(f"N = {n}, trained", n, size.more) for n in size.passes]
    if size.longer:
        found.append(Arm("N = 1, trained longer", 1, size.more * size.longer))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train and measure what is not there yet, seed by seed, and show all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="some seconds: does it run here?")
    parser.add_argument("--seeds", type=whole_numbers, default="0,1,2", help="which, with commas between them (0,1,2)")
    parser.add_argument("--work", type=Path, help="folder of models and results, in quick or normal (build/hybrid)")
    given = parser.parse_args(argv)
    name = "quick" if given.quick else "normal"
    work = (given.work or Path("build/hybrid")) / name
    one_thread()
    try:
        for seed in given.seeds:
            measure(SIZES[name], seed, work / f"seed-{seed}")
    except KeyboardInterrupt:
        print(f"Stopped. The same command goes on from {work}.", flush=True)
        return STOPPED
    found = [row for path in sorted(work.glob("seed-*/results.jsonl")) for row in Lines(path).read()]
    rows = [row for arm in arms(SIZES[name]) for row in found if row["arm"] == arm.name]
    if others := {row["arm"] for row in found} - {row["arm"] for row in rows}:
        print(f"Left out, as they are not measured any more: {', '.join(sorted(others))}")
    Lines(work / "results.jsonl").write(rows)
    print(f"\n{table(rows)}\n\n{work / 'results.jsonl'}")
    return 0


def whole_numbers(text: str) -> list[int]:
    """A type of arguments: whole numbers with commas between them."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"not whole numbers with commas between them: {text!r}")
    return [int(part) for part in text.split(",")]


def measure(size: Size, seed: int, folder: Path) -> None:
    """Add the lines of a seed that are missing to its results.jsonl."""
    results = Lines(folder / "results.jsonl")
    known = {row["arm"] for row in results.read()}
    missing = [arm for arm in arms(size) if arm.name not in known]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    model, seconds = pretrained(size, seed, folder)
    trial = Trial(size, seed, folder, model, convert(model))
    for arm in missing:
        read, took = trial.sleeping(arm) if arm.passes else trial.awake(arm)
        figures = exam(read, size, remembers=arm.remembers)
        results.add(_told(seed, arm, took if arm.steps or arm.passes else seconds, figures))


def _told(seed: int, arm: Arm, seconds: float, figures: Row) -> Row:
    row = {"seed": seed, "arm": arm.name, "passes": arm.passes, "steps": arm.steps, "eviction": arm.eviction}
    shown = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
    print(f"seed {seed}  {arm.name:<22} {seconds:5.0f} s  {shown}", flush=True)
    return {**row, "seconds": round(seconds, 1), **figures}


# ---------------------------------------------------------------------------------------------- the model


def make_model(size: Size, seed: int) -> nn.Module:
    """A Qwen3.5 whose values `seed` decides. Weights are larger than transformers' own start makes them, which is for
    wide models, and decays begin as those of Mamba-2 (arXiv 2405.21060): with transformers' own half of what is
    written is lost after a token or less, and such a model had not learned any hop after 400 steps.
    """
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        vocab_size=len(VOCABULARY), hidden_size=size.width, intermediate_size=2 * size.width,
        num_hidden_layers=len(LAYERS), layer_types=LAYERS, num_attention_heads=2, num_key_value_heads=2,
        head_dim=size.width // 2, initializer_range=0.1, tie_word_embeddings=False,
        linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=size.head,
        linear_value_head_dim=size.head,
    )  # fmt: skip
    torch.manual_seed(seed)
    model: Any = Qwen3_5ForCausalLM(config)
    nn.init.normal_(model.model.embed_tokens.weight, std=0.5)
    for layer in model.model.layers:
        if hasattr(layer, "linear_attn"):
            fast = layer.linear_attn
            step = torch.empty_like(fast.dt_bias).uniform_(math.log(0.001), math.log(0.1)).exp()
            fast.dt_bias.data, fast.A_log.data = step.expm1().log(), torch.zeros_like(fast.A_log)
            nn.init.uniform_(fast.conv1d.weight, -0.5, 0.5)
    made: nn.Module = model.eval()
    return made


def pretrained(size: Size, seed: int, folder: Path) -> tuple[nn.Module, float]:
    """The model after its training with full attention, and the seconds of processor time that this took."""
    model, path = make_model(size, seed), folder / "model.safetensors"
    if not path.is_file():
        seconds = learn(model, size, seed)
        write_whole(path, save(model.state_dict(), {"seconds": str(seconds)}))
    model.load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        return model, float(file.metadata()["seconds"])


def learn(model: nn.Module, size: Size, seed: int) -> float:
    """Train with full attention, as transformers computes it: Muon for matrices of layers, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, size.lr, weight_decay=0.0),
        torch.optim.Muon(matrices, size.muon_lr, weight_decay=0.0),
    ]
    falls = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, size.steps)) for o in optimisers]
    began = time.process_time()
    for step, (tokens, labels) in enumerate(batches(size, seed), 1):
        logits = model(tokens, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=NOTHING)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, fall in zip(optimisers, falls, strict=True):
            optimiser.step()
            fall.step()
        model.zero_grad()
        if step % 100 < 4:  # one of each kind
            print(f"seed {seed}  full attention  step {step}/{size.steps}  loss {loss:.3f}", flush=True)
    return time.process_time() - began


def _rate(step: int, of: int) -> float:
    """A share of the rate: it rises for WARM_UP steps, and falls to a tenth."""
    return min((step + 1) / WARM_UP, 0.55 + 0.45 * math.cos(math.pi * step / of))


def batches(size: Size, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """tokens and labels [B,T], as many as there are steps."""
    puzzle = Mixture(size.batch)
    for step in range(size.steps):
        made = [practice(puzzle, step * size.batch + i, seed) for i in range(size.batch)]
        rows = lessons(spell_as_ids(VOCABULARY, len(VOCABULARY), made))
        shape = (len(rows), max(len(row.tokens) for row in rows))
        tokens, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, NOTHING)
        for i, row in enumerate(rows):
            tokens[i, : len(row.tokens)] = torch.from_numpy(row.tokens)
            labels[i, : len(row.labels)] = torch.from_numpy(row.labels)
        yield tokens, labels


# ---------------------------------------------------------------------------------------------- sleep


def convert(model: nn.Module) -> Program:
    """The hybrid with a window, and no memory but its own states."""
    windowed = {"layers": ATTENTION, "strategy": "leave", "window": WINDOW}
    return sleepc.convert(model, {"window": WINDOW, "sinks": 0, "overrides": [windowed]})


@dataclass(frozen=True)
class Trial:
    """A seed's model after full attention, and the same converted."""

    size: Size
    seed: int
    folder: Path
    model: nn.Module
    plain: Program

    @property
    def later(self) -> int:
        """The seed of what is learned next: of other examples than before."""
        return self.seed + 1000

    def awake(self, arm: Arm) -> tuple[Read, float]:
        """Full attention after the steps of an arm, and the seconds of processor time of these."""
        if not arm.steps:
            return _full(self.plain), 0.0
        model, slower = copy.deepcopy(self.model), self.size.slower
        less = replace(self.size, steps=arm.steps, lr=self.size.lr * slower, muon_lr=self.size.muon_lr * slower)
        seconds = learn(model, less, self.later)
        return _full(convert(model)), seconds

    def sleeping(self, arm: Arm) -> tuple[Read, float]:
        """The converted model with the sleep of an arm after its steps, and the seconds of these."""
        assert self.plain.canonical is not None
        sleep = {"consolidation": "recurrent", "passes": arm.passes, "eviction": arm.eviction}
        given, began = make_recipe({**self.plain.recipe.model_dump(), **sleep}), time.process_time()
        program = replace(self.plain, graphs=rewritten(self.plain.canonical, given), recipe=given)
        if arm.steps:
            slow, fast = self.size.lr * self.size.slower, self.size.muon_lr * self.size.slower
            options: dict[str, Any] = {"train": "all", "start": "kept", "optimiser": "muon", "lr": slow}
            options |= {"weights_lr": slow, "muon_lr": fast, "steps": arm.steps, "batch": self.size.batch}
            work = self.folder / f"n{arm.passes}-{arm.steps}"
            mixed = Mixture(self.size.batch)
            program.train(mixed, work=work, resume=True, force=True, seed=self.later, **options)
        steps = program.steps()
        return lambda tokens: steps, time.process_time() - began


def _full(program: Program) -> Read:
    assert program.canonical is not None
    return full_attention_for(program.canonical, find_trainer().steps)


# ---------------------------------------------------------------------------------------------- figures


def exam(read: Read, size: Size, *, remembers: bool = True) -> Row:
    """Figures by name: perplexity of a window's letters after so many whole ones, shares of right answers by sleeps
    since the pair was told, and by hops. `read` makes steps for so many tokens. What does not remember reads only what
    follows the last sleep, from an empty state: hard eviction leaves attention nothing else.
    """
    figures: Row = {}
    for name, puzzle in EXAMS.items():
        held = examples(puzzle, size.held_out, seed=0)
        samples = spell_as_ids(VOCABULARY, len(VOCABULARY), held)
        if not remembers:
            samples = [Sample(s.tokens[len(s.tokens) // WINDOW * WINDOW :], s.items) for s in samples]
        task = Solving(puzzle.by, held, samples)
        for row in task.rows(read(task.length), task.length, lambda share: None):
            value = math.exp(-row["log_prob"]) if name == "perplexity" else row["accuracy"]
            figures[f"{name} {row[puzzle.by]}"] = round(value, 4)
    return figures


def table(rows: Sequence[Row]) -> str:
    """Means over seeds, and ranges, in Markdown."""
    names = [name for name in rows[0] if name.rpartition(" ")[0] in EXAMS]
    head = ["", *names, "seconds"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        here = [row for row in rows if row["arm"] == arm]
        mean = round(statistics.mean(row["seconds"] for row in here))
        lines.append([arm, *(spelled([row[name] for row in here]) for name in names), str(mean)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spelled(values: Sequence[float]) -> str:
    """Mean, and range over seeds."""
    mean, least, most = statistics.mean(values), min(values), max(values)
    return f"{mean:.2f} ({least:.2f}–{most:.2f})" if len(values) > 1 else f"{mean:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
