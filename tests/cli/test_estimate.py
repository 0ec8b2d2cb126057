"""Estimates of long stages: with a clock of the test's own."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest

from sleepc.cli import display
from sleepc.cli.display import Display, Screen, typed
from sleepc.cli.estimate import Estimate


def test_what_is_left_follows_from_what_was_done() -> None:
    made = Estimate()
    assert made.left(0.0, 100.0) is None
    assert made.left(0.05, 105.0) is None, "too little is done"
    assert made.left(0.25, 110.0) == pytest.approx(30)
    assert made.left(0.75, 130.0) == pytest.approx(10)


def test_a_share_that_goes_back_begins_a_stage() -> None:
    made = Estimate()
    for share, now in ((0.0, 0.0), (0.9, 900.0)):
        made.left(share, now)
    assert made.left(0.5, 1000.0) is None
    assert made.left(0.75, 1010.0) == pytest.approx(10), "what came before 0.5 is not this stage's"


def test_a_quick_stage_is_not_told() -> None:
    made = Estimate()
    assert [made.once(share, now) for share, now in ((0.0, 0.0), (0.5, 2.0), (0.6, 5.0))] == [None] * 3


def test_without_a_terminal_it_is_told_once_a_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("sleepc.cli.display.time.perf_counter", lambda: now[0])
    shown = Display(display.err)
    with shown.doing("verify"):
        for step in range(10):
            shown("reading", step / 10)
            now[0] += 30
    with shown.doing("save"):
        shown("writing")
    assert capsys.readouterr().err == "verify: about 4 min more\n"


@pytest.mark.parametrize("name", ["m[b]", "[/x]", "a[/]b", "[bold red]"])
def test_names_with_brackets_are_shown_as_they_are(name: str) -> None:
    """Between our own marks."""
    shown = io.StringIO()
    Screen(file=shown, width=80).print(f"{name}  [dim]1.0 s[/]")
    assert shown.getvalue().startswith(name)


def test_a_command_has_a_path_as_it_is_typed() -> None:
    assert shlex.split(f"sleepc run {typed(Path('a b/it is'))}") == ["sleepc", "run", "a b/it is"]
