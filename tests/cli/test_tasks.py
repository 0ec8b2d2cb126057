"""`sleepc tasks`: the list, examples for people and as JSON."""

from __future__ import annotations

import json
import re

import pytest

from sleepc.tasks.puzzles import PUZZLES
from sleepc.tasks.ruler import RULER
from tests.cli.models import ROOT, run_here


def test_without_a_name_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run_here(capsys, "tasks")
    assert code == 0
    lines = said.splitlines()
    assert [line.split()[0] for line in lines] == [*PUZZLES, *RULER]
    assert all(len(line.split()) > 5 for line in lines)
    assert list(json.loads(run_here(capsys, "tasks", "--json")[1])) == [*PUZZLES, *RULER]


@pytest.mark.parametrize("name", PUZZLES)
def test_examples_are_shown_with_their_answers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, err = run_here(capsys, "tasks", name, "--n", 3, "--seed", 4)
    assert (code, err) == (0, "")
    data = json.loads(run_here(capsys, "tasks", name, "--n", 3, "--seed", 4, "--json")[1])
    assert (data["task"], data["seed"], len(data["examples"])) == (name, 4, 3)
    questions = [question for example in data["examples"] for question in example["questions"]]
    assert said.count("→") == len(questions)
    assert all(f"{data['by']} {question['depth']}" in said for question in questions)
    assert all("".join(question["answer"]) in said.replace(" ", "") for question in questions)
    assert run_here(capsys, "tasks", name, "--n", 3, "--seed", 4)[1] == said
    assert run_here(capsys, "tasks", name, "--n", 3, "--seed", 5)[1] != said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("sudoku",), "there are no examples of 'sudoku'"),
        (("rule110", "--set", "height=3"), "rule110 cannot be set 'height=3' (--set)"),
        (("rule110", "--n", 0), "--n"),
        (("--set", "width=3"), "--set only applies to tasks"),
    ],
)
def test_what_cannot_be_shown_is_said(
    options: tuple[object, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown, err = run_here(capsys, "tasks", *options)
    assert (code, shown) == (2, "")
    assert said in err


def test_the_documentation_shows_every_task_as_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "tasks.md").read_text()
    commands = re.findall(r"^    \$ sleepc (tasks .*)$", text, re.MULTILINE)
    assert list(dict.fromkeys(command.split()[1] for command in commands)) == list(PUZZLES)
    for command in commands:
        code, said, err = run_here(capsys, *command.split())
        assert (code, err) == (0, "")
        shown = "".join(f"    {line}".rstrip() + "\n" for line in said.splitlines())
        assert f"    $ sleepc {command}\n{shown}" in text
