"""Program.train: a model from scratch learns a task without a tokenizer, stops and goes on, and is saved."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch

import sleepc as package
from examples.nanogpt import GPT
from sleepc.api import Program
from sleepc.converting import convert
from sleepc.errors import SleepcWarning, UsageError
from sleepc.tasks.lessons import lessons
from sleepc.tasks.puzzle import Example, Question, examples
from sleepc.tasks.puzzles import make_puzzle
from sleepc.tasks.spelling import spell_as_ids
from sleepc.train.checkpoint import checkpoints
from sleepc.train.optimisers import make_optimisers
from sleepc.train.parameters import matrix_keys, trained_keys
from sleepc.train.pieces import Piece
from sleepc.train.settings import Phase, Settings
from sleepc.train.streams import task_stream
from sleepc.train.student import Student
from sleepc.train.trainer import Hooks, Step, Trainer, Workplace
from sleepc.train.training import Outcome
from tests.same import assert_same_logits, assert_same_program

if TYPE_CHECKING:
    from accelerate import Accelerator

WINDOW = 4
RULE = {"task": "rule110", "set": ["width=4", "states=2", "steps=1"]}
FAST = {"scratch": True, "device": "cpu", "batch": 8, "steps": 6, "passes": "1:3"}


@cache
def _converted() -> Program:
    torch.manual_seed(0)
    module = GPT(vocab=5, width=16, heads=2, blocks=2, context=16)
    options = {"window": WINDOW, "sinks": 0, "consolidation": "recurrent", "passes": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SleepcWarning)  # it was not trained for its passes
        return convert(module, options)


@pytest.fixture
def program() -> Program:
    return replace(_converted(), report={})


def _train(program: Program, work: Path, stop: int = 0, **options: Any) -> tuple[Outcome, list[Step]]:
    steps: list[Step] = []
    hooks = Hooks(on_step=steps.append, should_stop=lambda: len(steps) == stop)
    return program.train(**{**RULE, **FAST, "work": work, "hooks": hooks, **options}), steps


def _values(program: Program) -> dict[str, torch.Tensor]:
    return {key: param.materialise().clone() for key, param in program.graphs.params.items()}


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """With Muon, drawn passes, hard eviction first, and gradients that are cut."""
    whole, stopped, again = (replace(_converted(), report={}) for _ in range(3))
    options: dict[str, Any] = {"hard": 0.5, "truncate": 2, "seed": 3}
    outcome, steps = _train(whole, tmp_path / "whole", **options)
    assert (outcome.finished, outcome.steps) == (True, 6)
    assert [step.eviction for step in steps] == ["hard"] * 3 + ["own"] * 3
    assert len({step.passes for step in steps}) > 1
    first, _ = _train(stopped, tmp_path / "parts", stop=3, **options)
    assert (first.finished, first.steps) == (False, 3)
    assert any("momentum_buffer" in key for key in _tensors(checkpoints(tmp_path / "parts")[0]))
    second, rest = _train(again, tmp_path / "parts", resume=True, **options)
    assert (second.finished, second.steps, rest[0].step) == (True, 6, 4)
    figures = [[(s.loss, s.right, s.exact, s.passes, s.grad_norm) for s in part] for part in (steps[3:], rest)]
    assert figures[0] == figures[1]
    before, ours = _values(_converted()), _values(again)
    assert sum(not torch.equal(before[key], ours[key]) for key in before) > 20
    for key, value in _values(whole).items():
        assert torch.equal(value, ours[key]), key


def _tensors(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path / "state.safetensors", framework="numpy") as file:
        return list(file.keys())


def test_a_model_from_scratch_learns_and_is_saved(program: Program, tmp_path: Path) -> None:
    outcome, steps = _train(program, tmp_path / "work", steps=16, passes="1", lr=0.01)
    assert outcome.adapter is None, "everything was trained: the artifact holds it"
    assert steps[-1].loss < 0.8 * steps[0].loss
    assert steps[-1].right is not None
    assert steps[-1].exact is not None
    assert 0 <= steps[-1].exact <= steps[-1].right <= 1
    line = json.loads((tmp_path / "work" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["right"], line["exact"], line["stage"]) == (steps[-1].right, steps[-1].exact, "solve")
    training = program.report["training"]
    assert (training["task"], training["train"], training["optimiser"]) == (
        "rule110 width=4 states=2 steps=1", "all", "muon",
    )  # fmt: skip
    loaded = package.load(program.save(tmp_path / "artifact"))
    ids = [0, 1, 1, 0, 1, 0, 0, 1, 2, 2]
    assert_same_program(loaded.graphs, program.graphs)
    assert_same_logits(loaded.session().feed(ids), program.session().feed(ids))
    with pytest.warns(SleepcWarning, match=r"made things worse on 64 pieces .* It is kept, as asked"):
        again, _ = _train(loaded, tmp_path / "more", lr=0.3, muon_lr=0.3, force=True)
    assert again.kept
    assert np.abs(loaded.session().feed(ids) - program.session().feed(ids)).max() > 0


def test_what_the_display_says_is_what_a_session_says(program: Program, tmp_path: Path) -> None:
    """The first step's figures, against a session of the program as it was."""
    session_right = []
    pieces = list(islice(_stream(0)(Phase("solve", 0, 1, 0, 1), 0), 8))
    for piece in pieces:
        assert piece.labels is not None
        said = program.session().feed(piece.tokens.tolist(), logits="all")[0].argmax(-1)
        session_right.append((said == piece.labels)[piece.labels >= 0].tolist())
    _, steps = _train(program, tmp_path, passes="", stop=1)
    assert steps[0].right == pytest.approx(np.mean(session_right))
    assert steps[0].exact == pytest.approx(np.mean([all(row) for row in session_right]))


def _stream(seed: int, **settings: Any) -> Any:
    chosen = {"width": 4, "states": 2, "steps": 1, **settings}
    puzzle = make_puzzle("rule110", [f"{key}={value}" for key, value in chosen.items()])
    return task_stream(puzzle, partial(spell_as_ids, puzzle.vocabulary, 5), seed)


def test_no_example_is_trained_on_that_is_evaluated() -> None:
    phase = Phase("solve", 0, 1, 0, 1)
    puzzle = make_puzzle("rule110", ["width=24", "states=2"])
    for seed in (0, 1):
        learned = list(islice(_stream(seed, width=24)(phase, 0), 150))
        again = list(islice(_stream(seed, width=24)(phase, 100), 50))
        assert [_row(piece) for piece in learned[100:]] == [_row(piece) for piece in again], "a piece is its number's"
        rows = {_row(piece) for piece in learned}
        assert len(rows) == 150
        for other in (0, 1, 2):
            samples = spell_as_ids(puzzle.vocabulary, 5, examples(puzzle, 150, other))
            assert rows.isdisjoint(lesson.tokens.tobytes() for lesson in lessons(samples))


def _row(piece: Piece) -> bytes:
    return piece.tokens.tobytes()


class Curriculum:
    """The first bit again; longer from example to example."""

    by = "length"
    vocabulary = ("0", "1", "?")

    def example(self, index: int, rng: np.random.Generator) -> Example:
        bits = tuple(str(bit) for bit in rng.integers(0, 2, 6 + index // 8))
        return Example(bits, (Question(("?",), (bits[0],), 1),))


def test_a_puzzle_of_ones_own_may_go_on_with_its_examples(program: Program, tmp_path: Path) -> None:
    outcome, steps = _train(program, tmp_path, task=Curriculum(), set=(), steps=3)
    assert outcome.finished
    assert [step.tokens for step in steps] == [8 * 7, 8 * (7 + 8), 8 * (7 + 8 + 9)]
    assert program.report["training"]["task"] == "Curriculum"


def test_matrices_of_blocks_are_muons() -> None:
    graphs = _converted().graphs
    keys = trained_keys(graphs, "all")
    masters = {key: graphs.params[key].materialise().clone().requires_grad_() for key in keys}
    found = matrix_keys(graphs, keys)
    names = ("attention.qkv", "attention.out", "mlp.0", "mlp.2")
    assert found == {f"blocks.{i}.{name}.weight" for i in range(2) for name in names}
    adamw, muon = make_optimisers(graphs, masters, Settings(optimiser="muon", train="all", lr=0.1, muon_lr=0.2))
    assert {id(p) for group in muon.param_groups for p in group["params"]} == {id(masters[key]) for key in found}
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(keys) - len(found)
    assert [group["lr"] for group in muon.param_groups] == [0.2]
    assert len(make_optimisers(graphs, masters, Settings(train="all"))) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "chess"}, "unknown task 'chess' to learn"),
        ({"task": None}, "no training data is given"),
        ({"text": ["x.txt"]}, "no training data is given"),
        ({"set": ["width=1", "states=1"]}, "never reach beyond the window"),
        ({"task": "depo", "set": []}, "different words, and the model 5 tokens"),
        ({"passes": "4:1"}, "cannot read passes '4:1'"),
        ({"passes": "0"}, "cannot read passes '0'"),
        ({"stages": "distil"}, "does not take stages"),
        ({"length": 32}, "does not take length"),
        ({"optimiser": "sgd"}, "optimiser = 'sgd'"),
    ],
)
def test_what_does_not_fit_is_refused(program: Program, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("?", r"\?")):
        _train(program, tmp_path, **options)


def test_passes_need_blocks_that_run_again(tmp_path: Path) -> None:
    graphs = replace(_converted().graphs, loop=None)
    with pytest.raises(UsageError, match="run no block again"):
        _train(replace(_converted(), graphs=graphs, report={}), tmp_path)


class Two:
    """An accelerator of two processes, which both have the same."""

    process_index, num_processes, device = 0, 2, torch.device("cpu")

    def reduce(self, values: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        return values * 2


def test_processes_add_gradients_and_figures(tmp_path: Path) -> None:
    graphs = _converted().graphs
    student = Student({"own": graphs}, trained_keys(graphs, "all"), None)
    settings = Settings(stages="solve", batch=8, clip=1e9)
    trainer = Trainer(student, settings, _stream(0), Workplace(tmp_path, cast("Accelerator", Two()), {}))
    for n, master in enumerate(student.masters.values()):
        master.grad = torch.full_like(master, float(n))
    _, figures = trainer._gather([0.5, 3.0, 7.0])
    assert figures == [1.0, 6.0, 14.0]
    for n, master in enumerate(student.masters.values()):
        assert master.grad is not None
        assert torch.equal(master.grad, torch.full_like(master, 2.0 * n))
