"""Ctrl-C, SIGTERM, a terminal that closes: a step comes to its end, what was done is kept, and what is said is so."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sleepc as package
from sleepc import __main__ as command_line
from sleepc.backends.eager.steps import EagerSteps
from sleepc.cli.display import counted
from sleepc.cli.ending import Ended, endable, stopping
from tests.cli.models import ROOT, run_here, save_model

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
WORDS = " ".join(f"w{i % 60 + 1}" for i in range(700))
load = cache(package.load)
At = Callable[..., None]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ending")
    return package.convert(save_model(folder / "model"), {"window": 8, "sinks": 2}).save(folder / "artifact")


@pytest.fixture(autouse=True)
def _as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The handlers of a new process; a test runner in the background may have others."""
    usual: list[Any] = [signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL]
    before = [signal.signal(kind, handler) for kind, handler in zip(SIGNALS, usual, strict=True)]
    monkeypatch.setattr("sleepc.api.load", load)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    yield
    assert [signal.getsignal(kind) for kind in SIGNALS] == usual, "a command puts them back"
    for kind, handler in zip(SIGNALS, before, strict=True):
        signal.signal(kind, handler)


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_that_comes_while_something_is_freed_is_not_lost(kind: signal.Signals) -> None:
    """Python prints what is raised there, and goes on."""

    class Freed:
        def __del__(self) -> None:
            os.kill(os.getpid(), kind)
            raise AssertionError("the handler has raised before")

    def command() -> None:
        Freed()
        time.sleep(5)
        pytest.fail("it went on")

    with pytest.raises((Ended, KeyboardInterrupt)), endable():
        command()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> At:
    """Send signals in the middle of the n-th step of a model, from 0."""

    def plan(number: int, *signals: signal.Signals) -> None:
        wake, done = EagerSteps.wake, iter(range(1_000_000))

        def interrupted(*arguments: Any) -> Any:
            if next(done) == number:
                for each in signals:
                    signal.raise_signal(each)
            return wake(*arguments)

        monkeypatch.setattr(EagerSteps, "wake", interrupted)

    return plan


@pytest.mark.parametrize("sent", SIGNALS)
def test_the_token_is_finished_and_the_state_kept(
    sent: signal.Signals, at: At, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt, state = ("w1 w2 w3", "--json", "--max-tokens"), tmp_path / "state"
    whole = json.loads(run_here(capsys, "run", artifact, *prompt, 20)[1])["tokens"]
    at(6, sent)
    code, said, told = run_here(capsys, "run", artifact, *prompt, 20, "--state", state)
    found = json.loads(said)
    assert (code, found["interrupted"], len(found["tokens"])) == (128 + sent, True, 6)
    assert f"after 6 tokens; the state up to here is in {state}" in told
    code, said, _ = run_here(capsys, "run", artifact, "--state", state, "--json", "--max-tokens", 14)
    assert (code, found["tokens"] + json.loads(said)["tokens"]) == (0, whole)


@pytest.mark.parametrize("sent", SIGNALS)
def test_in_the_middle_of_a_long_text(
    sent: signal.Signals, at: At, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    at(40, sent)  # a step reads 8 tokens, and 256 are read between two looks
    code, said, told = run_here(capsys, "run", artifact, WORDS, "--state", state)
    assert (code, said) == (128 + sent, "")
    assert f"after 512 of 700 tokens read; the state up to here is in {state}" in told
    loaded, fed = load(artifact).session(), load(artifact).session()
    loaded.load_state(state)
    fed.feed(load(artifact).tokenizer().encode(WORDS)[:512])
    named = fed.steps.to_named_arrays
    for name, array in named(fed.snapshot().state).items():
        np.testing.assert_allclose(named(loaded.snapshot().state)[name], array, rtol=1e-5, atol=1e-6, err_msg=name)
    assert run_here(capsys, "run", artifact, "--state", state, "--max-tokens", 2)[0] == 0, "there is what to go on from"


def test_a_second_one_gives_up_and_leaves_the_old_state(
    at: At, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    assert run_here(capsys, "run", artifact, "w1 w2", "--state", state, "--max-tokens", 1)[0] == 0
    before = state.read_bytes()
    at(2, signal.SIGINT, signal.SIGINT)
    code, _, told = run_here(capsys, "run", artifact, "--state", state)
    assert (code, state.read_bytes()) == (130, before)
    assert f"{state} is as it was before" in told
    at(2, signal.SIGINT)
    assert "the state is not kept (--state FILE keeps it)" in run_here(capsys, "run", artifact, "w1")[2]


def test_a_reader_that_goes_away_loses_no_state(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sleepc.cli.run import AnswerPrinter

    emit, written = AnswerPrinter._emit, iter(range(1000))

    def gone(self: AnswerPrinter, piece: str) -> None:
        if next(written) == 5:
            raise OSError(5, "Input/output error")  # as a terminal that was closed
        emit(self, piece)

    monkeypatch.setattr(AnswerPrinter, "_emit", gone)
    state = tmp_path / "state"
    assert run_here(capsys, "run", artifact, "w1 w2", "--state", state)[0] == 1
    session = load(artifact).session()
    session.load_state(state)
    assert session.since.tolist() == [0], "2 + 6 tokens, and a sleep after the 8th"


@pytest.mark.parametrize("sent", SIGNALS[1:])
def test_a_conversation_keeps_the_turn_in_progress(
    sent: signal.Signals,
    at: At,
    artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sleepc.runtime.state_file import read_note

    monkeypatch.setattr(sys, "stdin", io.StringIO("w1 w2\nw3\n"))
    state = tmp_path / "state"
    at(7, sent)
    code, said, _ = run_here(capsys, "chat", artifact, "--state", state)
    (turn,) = json.loads(read_note(state, "chat") or "")["turns"]
    assert (code, turn["said"], turn["answer"].split()) == (128 + sent, 7, said.split())


def test_other_commands_clear_away_what_they_began(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sleepc.artifact as module

    save, seen = module._write_params, []

    def interrupted(draft: Path, *arguments: Any) -> Any:
        seen.append(draft.is_dir())
        signal.raise_signal(signal.SIGTERM)
        return save(draft, *arguments)

    monkeypatch.setattr(module, "_write_params", interrupted)
    before = sorted(artifact.parent.iterdir())
    options = ("-o", artifact.parent / "other", "--window", 8, "--no-verify")
    code, _, told = run_here(capsys, "convert", artifact.parent / "model", *options)
    assert (code, seen, sorted(artifact.parent.iterdir())) == (128 + signal.SIGTERM, [True], before)
    assert told == "ended by SIGTERM: nothing half-written was left; the same command starts over\n"


def test_signals_that_are_ignored_stay_so() -> None:
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with endable(), stopping() as stopped:
            signal.raise_signal(signal.SIGHUP)
            assert not stopped()
            signal.raise_signal(signal.SIGTERM)
            assert stopped() == signal.SIGTERM
            with pytest.raises(Ended, match="ended by SIGTERM"):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_runs_in_a_thread_that_has_no_signals() -> None:
    seen = []

    def work() -> None:
        with endable(), stopping() as stopped:
            seen.append(stopped())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]


def test_ctrl_c_while_it_imports(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "sleepc.cli.main", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted: nothing was begun\n")


class Interrupting:
    """Ctrl-C as soon as the command line is imported."""

    def find_spec(self, name: str, *others: object) -> None:
        if name == "sleepc.cli.main":
            raise KeyboardInterrupt


def test_in_a_process_of_its_own(artifact: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = ["run", artifact, "w1 w2 w3", "--max-tokens", 1_000_000, "--state", state]
    process = subprocess.Popen(
        [sys.executable, "-m", "sleepc", *map(str, command)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where a shell runs the tests in the background, Ctrl-C is ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    words = os.read(process.stdout.fileno(), 40)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=200)
    said, told = (words + rest).split(), errors.decode()
    assert process.returncode == 130, told
    assert f"interrupted: after {counted(len(said), 'token')}; the state up to here is in {state}" in told
    session = load(artifact).session()
    session.load_state(state)
    assert session.since.tolist() == [(3 + len(said)) % 8]
