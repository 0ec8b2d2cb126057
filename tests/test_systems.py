"""The table of systems: what it names exists, docs/systems.md is it, and a name is found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from sleepc.cli.main import main, make_app
from sleepc.errors import UsageError
from sleepc.systems import SYSTEMS, as_markdown, find_systems
from sleepc.tasks.puzzles import PUZZLES

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_page_is_the_table() -> None:
    assert as_markdown() in (DOCS / "systems.md").read_text()


def test_options_and_tasks_that_are_named_exist() -> None:
    app: Any = typer.main.get_command(make_app())
    options = {opt for command in app.commands.values() for param in command.params for opt in param.opts}
    named = [option for s in SYSTEMS for option in re.findall(r"`(--[a-z-]+)", s.here + s.why)]
    assert len(named) > 10
    assert set(named) <= options
    tasks = [
        name for s in SYSTEMS for part in re.findall(r"tasks? ([a-z0-9, *-]+)", s.here) for name in part.split(", ")
    ]
    others = {"copy", "ruler-*"}
    assert len(tasks) > 10
    assert {name.strip() for name in tasks} <= {*PUZZLES, *others}


def test_every_system_says_what_it_became_or_why_not() -> None:
    for system in SYSTEMS:
        assert system.here or system.why, system.name
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)


def test_a_system_is_found_by_a_part_of_its_name_or_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert [s.name for s in find_systems("place")] == ["In-Place TTT"]
    assert [s.name for s in find_systems("2412.06464")] == ["Gated DeltaNet"]
    assert find_systems(None) == SYSTEMS
    with pytest.raises(UsageError, match="no system is called 'mamba'"):
        find_systems("mamba")
    with pytest.raises(SystemExit) as ended:
        main(["why-not", "titans", "--json"])
    assert ended.value.code in (0, None)
    (found,) = json.loads(capsys.readouterr().out)["systems"]
    assert found["source"] == "2501.00663"
