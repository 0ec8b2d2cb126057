"""`sleepc calibrate --only budgets`: slots are shared anew, nothing else changes, and recall is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sleepc
from sleepc.api import Program
from sleepc.backends.eager.backend import load
from sleepc.cli.budgets import _tell
from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.manifest import Source
from sleepc.tasks.asking import surprises
from sleepc.tasks.programs import full_attention
from sleepc.train.budgets import measured_worth
from sleepc.train.planted_text import planted_text
from sleepc.train.share_slots import BETWEEN, READ, BudgetsReport, share_slots
from sleepc.verify.memory_values import new_parameters, shaken, without_memories
from tests.cli.models import run_here, save_model
from tests.families import VOCAB, WINDOW, family

SINKS = 2
APART = 56  # tokens: with another window they are the 64 positions that the model has


def converted(name: str = "llama", **options: Any) -> Program:
    subject = family(name)
    keep = {"slots": 3, "budgets": "equal"}
    graphs, recipe = subject.convert(**{"window": WINDOW, "sinks": SINKS, "keep": keep, **options})
    return Program(graphs, recipe, Source(name=name, kind="module"), canonical=subject.canonical)


def quiet(what: str, share: float | None) -> None:
    """Nothing."""


def made_up() -> list[int]:
    """What is read for a model without a tokenizer."""
    count = READ + (BETWEEN + 2) * WINDOW + SINKS
    return torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def program() -> Program:
    """As it is after a training."""
    program = converted()
    program.graphs = shaken(program.graphs)
    return program


@pytest.fixture(scope="module")
def before(program: Program) -> dict[str, torch.Tensor]:
    return new_parameters(program.graphs)


@pytest.fixture(scope="module")
def found(program: Program, before: dict[str, torch.Tensor]) -> BudgetsReport:
    return share_slots(program, None, quiet)


def test_slots_are_those_of_a_text_that_recall_is_not_measured_on(program: Program, found: BudgetsReport) -> None:
    recipe = converted(keep={"slots": 3}).recipe
    worth = measured_worth(family("llama").canonical, recipe, (2, 2, 2), made_up()[APART:], quiet, READ)
    wanted = worth.budgets(3)
    assert found.budgets == wanted
    assert found.before == ((3, 3), (3, 3), (3, 3))
    assert found.tokens_apart == APART
    assert program.recipe.keep is not None
    assert program.recipe.keep.budgets == wanted
    assert [program.graphs.sizes(i).get("S", 0) for i in range(3)] == [sum(layer) for layer in wanted]


def test_trained_values_stay(program: Program, before: dict[str, torch.Tensor], found: BudgetsReport) -> None:
    after = new_parameters(program.graphs)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_recall_is_the_share_of_what_full_attention_gains(program: Program, found: BudgetsReport) -> None:
    read = made_up()[:APART]
    text = np.array([read + read[SINKS : SINKS + WINDOW]])

    def last(graphs: ProgramGraphs) -> float:
        return float(surprises(load(graphs), text, lambda _: None)[0, -WINDOW + 1 :].mean())

    full = last(full_attention(family("llama").canonical, text.shape[1]))
    window, kept = last(without_memories(converted(keep=None).graphs)), last(without_memories(program.graphs))
    (each,) = [r for r in found.recall if r.slots == 3]
    assert [r.slots for r in found.recall] == [1, 3, 6]
    assert each.state_bytes == program.graphs.state_bytes()
    assert each.share == (pytest.approx((window - kept) / (window - full)) if full < window else None)


def test_a_program_without_kept_pairs_is_refused() -> None:
    with pytest.raises(UsageError, match="keeps no pairs"):
        share_slots(converted(keep=None), None, quiet)


def test_texts_are_the_same_each_time_and_of_different_words() -> None:
    texts = [planted_text(seed) for seed in range(8)]
    assert texts == [planted_text(seed) for seed in range(8)]
    assert len({text[:200] for text in texts}) == 8
    assert all(600 < len(text.split()) < 1200 and "{" not in text for text in texts)


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    recipe = {"window": WINDOW, "sinks": SINKS, "keep": {"slots": 3, "budgets": "equal"}}
    return sleepc.convert(save_model(folder / "model"), recipe).save(folder / "artifact")


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "artifact"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(f"w{i}" for i in made_up()))
    return file


def test_the_command_writes_budgets_into_the_artifact(
    capsys: pytest.CaptureFixture[str], artifact: Path, text: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "slots.svg"
    code, said, err = run_here(
        capsys, "calibrate", artifact, "--only", "budgets", "--text", text, "--plot", plot, "--json"
    )
    assert code == 0, err
    found = json.loads(said)
    keep = sleepc.load(artifact).recipe.keep
    assert keep is not None
    assert keep.budgets == tuple(map(tuple, found["budgets"]))
    assert sum(map(sum, keep.budgets)) == 3 * 6
    assert plot.read_bytes().startswith(b"<?xml")
    assert sleepc.load(artifact).verify().ok


def test_the_picture_names_every_layer(capsys: pytest.CaptureFixture[str], artifact: Path, text: Path) -> None:
    code, said, err = run_here(capsys, "calibrate", artifact, "--only", "budgets", "--text", text)
    assert code == 0, err
    assert [line.split()[1] for line in said.splitlines() if line.startswith("layer")] == ["0", "1", "2"]
    assert "recall" in said


def test_probes_that_nothing_can_measure_are_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Texts with questions do not fit into 64 positions."""
    report = share_slots(converted(), None, quiet)
    assert report.questions == 0
    by_key = converted(keep={"slots": 3, "budgets": "equal", "score": "key"})
    assert share_slots(by_key, None, quiet).questions is None
    _tell(report, tmp_path)
    assert "the probes are as they were" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "gates"), "'gates' cannot be measured alone"),
        (("--only", "budgets", "--steps", 3), "nothing is trained"),
        (("--only", "budgets", "--resume"), "nothing is trained"),
        (("--plot", "x.svg", "--text", "README.md"), "only budgets are drawn"),
        ((), "no text is given"),
    ],
)
def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], made: Path, options: tuple[object, ...], words: str
) -> None:
    code, _, err = run_here(capsys, "calibrate", made, *options)
    assert code == 2
    assert words in err
