"""`sleepc chat` as a person uses it: over a pipe, on a terminal, with Ctrl-C, and with files that do not fit."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import sleepc as package
from sleepc.backends.eager.steps import EagerSteps
from sleepc.cli.main import main
from sleepc.cli.terminal import SleepMarks
from sleepc.errors import UsageError
from sleepc.hf.tokenizer import load_tokenizer
from sleepc.manifest import identity_of
from sleepc.passes.analysis.kv_cache import from_report
from sleepc.runtime.chat import Conversation, Manner
from sleepc.runtime.steps import BoolArray
from tests.cli.models import ROOT, save_model

TEMPLATE = (
    "{% for m in messages %}{{ {'system': 'w55', 'user': 'w56', 'assistant': 'w57'}[m['role']] }} "
    "{{ m['content'] | trim }} w58 {% endfor %}{% if add_generation_prompt %}w57 {% endif %}"
)
load = cache(package.load)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> package.Program:
    model = save_model(tmp_path_factory.mktemp("model"))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    (model / "generation_config.json").write_text('{"eos_token_id": 58}')
    converted = package.convert(model, {"window": 8, "sinks": 2})
    converted.save(model.parent / f"{model.name}-artifact")
    return converted


@pytest.fixture(scope="module")
def artifact(program: package.Program) -> Path:
    assert program.path is not None
    return program.path


@pytest.fixture
def talk(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[str], str]]:
    """Lines over a pipe -> the lines of stdout, and stderr. It must end with 0."""
    monkeypatch.setattr("sleepc.api.load", load)  # reading and checking an artifact takes longer than talking

    def run(
        *lines: str, options: tuple[object, ...] = ("--max-tokens", 5), target: Path = artifact
    ) -> tuple[list[str], str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        with pytest.raises(SystemExit) as caught:
            main(["chat", str(target), *map(str, options)])
        said = capsys.readouterr()
        assert caught.value.code == 0, said.err
        assert "\x1b" not in said.out + said.err
        return said.out.splitlines(), said.err

    return run


Talk = Callable[..., tuple[list[str], str]]


# ---------------------------------------------------------------------------------------------- over a pipe


def test_answers_alone_are_on_stdout_and_are_the_same_again(talk: Talk) -> None:
    answers, told = talk("w1 w2 w3", "", "w4 w5")
    assert [len(answer.split()) for answer in answers] == [5, 5]
    assert all(word.startswith("w") for word in " ".join(answers).split())
    assert "> " not in told
    assert "· 1 sleep" in told
    assert "cut off after 5 tokens" in told
    assert talk("w1 w2 w3", "w4 w5") == (answers, told)
    assert talk("w1 w2 w3", "w4 w5", options=("--max-tokens", 5, "--system", "w9"))[0] != answers


def test_undo_and_reset_lead_to_the_same_answers(talk: Talk) -> None:
    answers, _ = talk("w1 w2 w3", "w4 w5", "w6")
    undone, told = talk("w1 w2 w3", "w7 w8 w9", "/undo", "w4 w5", "w6")
    assert [undone[0], *undone[2:]] == answers
    assert 'taken back: "w7 w8 w9"' in told
    reset, _ = talk("w7 w8", "/reset", "w1 w2 w3", "w4 w5", "w6")
    assert reset[1:] == answers
    assert "no turn to undo" in talk("/undo")[1]


def test_a_conversation_goes_on_from_its_file(talk: Talk, tmp_path: Path) -> None:
    answers, _ = talk("w1 w2 w3", "w4 w5", "w6")
    file = tmp_path / "my talk"
    first, told = talk("w1 w2 w3", f"/state save {file}", "w7", f"/state load {file}", "w4 w5")
    assert [first[0], first[2]] == answers[:2]
    assert f"kept 1 turn in {file}" in told
    options = ("--max-tokens", 5, "--state", tmp_path / "state")
    assert talk("w1 w2 w3", "w4 w5", options=options)[0] == answers[:2]
    last, told = talk("/stats", "w6", options=(*options, "--system", "w3"))
    assert last == answers[2:]
    assert "continuing from" in told
    assert "--system is ignored" in told
    assert re.search(r"2 turns, \d+ tokens, [1-9] sleeps?", told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my talk", "state"]


def test_what_went_wrong_is_told_and_the_conversation_goes_on(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x00" * 50)
    lines = ("w1", f"/state load {tmp_path / 'x'}", f"/state save {tmp_path / 'no' / 'x'}", "/state", "/udno", "w2")
    answers, told = talk(*lines)
    assert answers == talk("w1", "w2")[0]
    assert told.count("error: ") == 3
    assert "the nearest is /undo" in told
    assert "Traceback" not in told
    assert "/state save FILE" in talk("/help", "/exit", "w1")[1]
    assert talk("/exit", "w1")[0] == []


def test_stats_say_what_there_is(talk: Talk) -> None:
    told = talk("w1 w2 w3", "/stats")[1]
    # w56 w1 w2 w3 w58 w57, and five of the answer; in a KV cache each is 3 blocks x 2 heads x (8 + 8) x 4 bytes.
    assert "1 turn, 11 tokens, 1 sleep" in told
    assert "tokens/s" in told
    assert f"would be {11 * 3 * 2 * 16 * 4 / 1e3:.1f} kB" in told


def test_it_sleeps_while_nothing_is_asked(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, due = ("w1 w2", "w3", "w4 w5"), ("--max-tokens", 3)  # the first two turns have 8 tokens, a window each
    slept: list[bool] = []
    sleep = EagerSteps.sleep

    def seen(steps: EagerSteps, state: dict[str, torch.Tensor], rows: BoolArray) -> dict[str, torch.Tensor]:
        slept.append(threading.current_thread() is not threading.main_thread())
        return sleep(steps, state, rows)

    monkeypatch.setattr(EagerSteps, "sleep", seen)
    found = talk(*lines, options=due)
    with monkeypatch.context() as patch:
        patch.setattr(Conversation, "rest", lambda conversation, at_least: None)
        assert talk(*lines, options=due) == found
    assert slept == [True, True, False] + 3 * [False], "the last turn's comes before its end"
    assert "2 turns, 16 tokens, 2 sleeps" in talk(*lines[:2], "/stats", options=(*due, "--idle-sleep", 1))[1]
    early = ("--max-tokens", 4, "--idle-sleep", 2)  # 9 tokens each: after the second turn two are in the window
    answers, told = talk(*lines[:2], "/stats", lines[2], "/undo", lines[2], options=early)
    assert answers[2] == answers[3], "/undo brings back what was before"
    assert "2 turns, 18 tokens, 3 sleeps" in told
    assert "2 turns, 18 tokens, 2 sleeps" in talk(*lines[:2], "/stats", options=early[:2])[1]


def test_every_sleep_is_told(talk: Talk, tmp_path: Path) -> None:
    """Also one that a command waited for, and that after the last answer."""
    state = tmp_path / "state"
    lines = ("w1 w2", "/stats", "w3", f"/state save {state}", "w4 w5", "w6")  # a sleep after each of the first two
    for count, wanted in ((1, [1]), (2, [1]), (3, [1, 1]), (4, [1, 1]), (5, [1, 2]), (6, [1, 2, 1])):
        told = talk(*lines[:count], options=("--max-tokens", 3))[1]
        assert [int(n) for n in re.findall(r"^· (\d+) sleeps?$", told, re.MULTILINE)] == wanted, count
    kept = talk(*lines[:3], options=("--max-tokens", 3, "--state", tmp_path / "kept"))[1]
    assert kept.count("· 1 sleep") == 2


@pytest.mark.parametrize(("sent", "at", "code"), [(signal.SIGTERM, 3, 128 + signal.SIGTERM), (signal.SIGINT, 0, 0)])
def test_no_sleep_begins_when_it_is_to_end_or_the_turn_was_taken_back(
    artifact: Path, talk: Talk, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals, at: int, code: int
) -> None:
    pieces, rests, write = [], [], SleepMarks.write

    def written(marks: SleepMarks, piece: str) -> None:
        write(marks, piece)
        pieces.append(piece)
        if len(pieces) == at + 1:
            signal.raise_signal(sent)

    monkeypatch.setattr(SleepMarks, "write", written)
    monkeypatch.setattr(Conversation, "rest", lambda conversation, at_least: rests.append(at_least))
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1 w2\n"))
    with pytest.raises(SystemExit) as caught:
        main(["chat", str(artifact), "--max-tokens", "5", "--idle-sleep", "1"])
    assert (caught.value.code, len(pieces), rests) == (code, at + 1, [])


@pytest.fixture(scope="module")
def keeping(program: package.Program, tmp_path_factory: pytest.TempPathFactory) -> package.Program:
    keep = {"slots": 12, "budgets": "equal"}
    converted = package.convert(program.source.folder, {"window": 8, "sinks": 2, "keep": keep})
    converted.save(tmp_path_factory.mktemp("keeping") / "artifact")
    return converted


def test_turns_are_pinned_and_dropped(keeping: package.Program, talk: Talk) -> None:
    assert keeping.path is not None
    options = ("--max-tokens", 5, "--system", "w9 w8")
    # The first turn has w55 w9 w8 w58 w56, w1 w2 w3 w58 w57, and five of the answer.
    lines = ("/pin next", "w1 w2 w3", "/spans", "/unpin 1", "/drop 1", "/spans", "w4 w5 w6 w7 w8 w9", "/pin", "/spans")
    answers, told = talk(*lines, options=options, target=keeping.path)
    assert len(answers) == 2
    assert "the next message will be pinned" in told
    assert "tokens 2 to 6 are pinned, in 30 slots" in told  # of three layers with two KV heads
    assert "tokens 7 to 9 are pinned, in the window" in told
    assert "15 tokens: 2 in the window are not pinned any more; 36 slots keep theirs" in told
    assert "15 tokens: 8 went out of the window, and " in told
    assert "2 are sinks, which stay; fast weights keep what they took of them" in told
    assert told.index("nothing is pinned") > told.index("15 tokens")
    assert told.count("are pinned") >= 3  # what is left of the second turn
    wrong = talk(
        "/pin", "w1", "/pin 2", "/pin x", "/pin 0", "/drop system", options=("--max-tokens", 5), target=keeping.path
    )
    assert wrong[1].count("error: ") == 5
    assert "there is no turn 2: 1 so far" in wrong[1]
    assert "'x' is not a turn" in wrong[1]
    assert "no system text was read" in wrong[1]
    assert talk("/pin next", "/unpin next", "/unpin", "/spans")[1].count("this program keeps no pairs") == 3
    taken_back = talk("/pin next", "/unpin next", "w1", "/spans", options=("--max-tokens", 1), target=keeping.path)[1]
    assert "the next message will not be pinned" in taken_back
    assert "nothing is pinned" in taken_back


def test_spans_of_turns_are_where_their_tokens_are(keeping: package.Program) -> None:
    tokenizer = keeping.tokenizer()
    for system, template in (("w9 w8", tokenizer.template(None, {})), ("", tokenizer.template(None, {})), ("w9", None)):
        talk = Conversation(keeping.session(), tokenizer, template, system)
        for text in ("w1 w2", "w3 w4 w5"):
            list(talk.say(text, Manner(max_tokens=3)))
        spans = [talk.span_of(1), talk.span_of(2)]
        assert [talk.ids[slice(*span)] for span in spans] == [turn.ids for turn in talk.turns]
        if system:
            opening = tokenizer.encode("w55 w9 w8 w58 w56" if template else system)
            assert talk.ids[slice(*talk.span_of_system())] == opening
        talk.undo()
        with pytest.raises(UsageError, match="no turn 2"):
            talk.span_of(2)


def test_figures_are_those_of_the_original(program: package.Program) -> None:
    assert from_report(program.report, 4) == program.inspect().cache


def test_a_line_that_goes_on_and_one_that_is_no_command(talk: Talk) -> None:
    assert talk("w1\\", "w2 w3")[0] == talk("w1 w2 w3")[0]
    assert talk("w1 w2\\")[0] == talk("w1 w2")[0]
    assert talk(" /undo w1")[0] == talk("w0 w0 w1")[0], "/ and undo are no words of the tokenizer"


def test_a_model_without_a_template_goes_on_with_the_text(talk: Talk, artifact: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(artifact, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    answers, told = talk("w1 w2", "w3", target=bare)
    assert [len(answer.split()) for answer in answers] == [5, 5]
    assert told.count("no chat template") == 1


def test_a_template_that_takes_no_system_text(talk: Talk, artifact: Path, tmp_path: Path) -> None:
    strict = shutil.copytree(artifact, tmp_path / "strict")
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    (strict / "chat_template.jinja").write_text(refusal + TEMPLATE)
    answers, told = talk("w1", target=strict, options=("--system", "w5"))
    assert answers == []
    assert "no system here" in told
    assert talk("w1", target=strict)[0] == talk("w1")[0]


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("tokenizer_config.json", "{", "cannot read"),
        ("tokenizer_config.json", "[1]", "cannot read"),
        ("chat_template.jinja", "{% for %}", "broken"),
        ("chat_template.jinja", "{{ 1 / 0 }}", "refuses"),
        ("chat_template.jinja", "{{ messages[0].__class__.__mro__ }}", "refuses"),
        ("chat_template.jinja", "{% set n = namespace(__html__=1) %}", "refuses"),
        ("chat_template.jinja", "{{ messages.append(1) }}", "refuses"),
    ],
)
def test_tokenizers_and_templates_that_cannot_be_used(
    artifact: Path, tmp_path: Path, file: str, text: str, words: str
) -> None:
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        shutil.copy(artifact / name, tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        load_tokenizer(tmp_path).chat([{"role": "user", "content": "w1"}])
    assert caught.value.fix


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--state", "absent/file"), "--state"),
        (("--state", "."), "--state"),
        (("--stop", ""), "empty"),
        (("--dtype", "int3"), "dtype"),
        (("--backend", "abacus"), "abacus"),
        (("--idle-sleep", "9"), "--idle-sleep 9 is more than the window"),
        (("--idle-sleep", "0"), "--idle-sleep"),
    ],
)
def test_options_that_do_not_fit(
    artifact: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["chat", str(artifact), *options])
    said = capsys.readouterr().err
    assert (caught.value.code, words in said) == (2, True), said


def test_a_state_of_another_conversion_is_refused_and_left(
    artifact: Path, talk: Talk, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    talk("w1", options=("--state", state))
    before = state.read_bytes()
    monkeypatch.setattr(load(artifact), "identity", "another")
    with pytest.raises(SystemExit) as caught:
        main(["chat", str(artifact), "--state", str(state)])
    said = capsys.readouterr().err
    assert (caught.value.code, "identity" in said) == (1, True), said
    assert state.read_bytes() == before


def test_identity_is_of_what_is_computed(artifact: Path, tmp_path: Path) -> None:
    from sleepc.manifest import read_manifest

    manifest = read_manifest(artifact)
    copied = read_manifest(load(artifact).save(tmp_path / "copy", standalone=True))
    assert copied.files != manifest.files
    assert identity_of(copied) == identity_of(manifest)
    key, entry = next(iter(manifest.params.items()))
    trained = {**manifest.params, key: entry.model_copy(update={"sha256": "0" * 64})}
    assert identity_of(manifest.model_copy(update={"params": trained})) != identity_of(manifest)
    graph = manifest.head.model_copy(update={"sha256": "0" * 64})
    assert identity_of(manifest.model_copy(update={"head": graph})) != identity_of(manifest)


def test_the_state_is_that_of_the_ids_and_undo_brings_the_same_bits(program: package.Program) -> None:
    session = program.session()
    arrays = session.steps.to_named_arrays
    talk = Conversation(session, program.tokenizer(), program.tokenizer().template())
    for text in ("w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11 w12"):
        before = arrays(session.snapshot().state)
        list(talk.say(text, Manner(max_tokens=7)))
    assert (len(talk.turns), talk.sleeps) == (3, session.stats.sleeps)
    at_once = program.session()
    at_once.feed(talk.ids)
    expected = at_once.steps.to_named_arrays(at_once.snapshot().state)
    for name, array in arrays(session.snapshot().state).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    talk.undo()
    for name, array in arrays(session.snapshot().state).items():
        np.testing.assert_array_equal(array, before[name], name)


# ---------------------------------------------------------------------------------------------- in a process


# In the new process signals are not ignored (as they are if a shell runs tests in the background, or nohup does), and
# Ctrl-C comes from the terminal at stdin, if that is one.
START = """
import fcntl, signal, sys, termios
from sleepc.cli.main import main
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
main(sys.argv[1:])
"""


class Terminal:
    """`sleepc chat` in a pseudo-terminal, or with `pipes` for its input and output."""

    def __init__(self, *arguments: object, pipes: bool = False) -> None:
        self.inside, outside = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "chat", *map(str, arguments)],
            env={**environment, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
            stdin=subprocess.PIPE if pipes else outside,
            stdout=subprocess.PIPE if pipes else outside,
            stderr=subprocess.STDOUT,
        )
        os.close(outside)
        stdin, stdout = self.process.stdin, self.process.stdout
        self.input = stdin.fileno() if stdin else self.inside
        self.output = stdout.fileno() if stdout else self.inside
        self.decoder = getincrementaldecoder("utf-8")()
        self.text, self.at = "", 0

    def wait(self, pattern: str) -> re.Match[str]:
        """Read until this comes after what was waited for before."""
        limit = time.monotonic() + 200  # long: machines may be busy
        while not (found := re.compile(pattern).search(self.text, self.at)):
            assert time.monotonic() < limit, self.text
            assert self._read(), f"it ended before {pattern!r}:\n{self.text}"
        self.at = found.end()
        return found

    def _read(self) -> bool:
        """Take what has come; False at the end."""
        if not select.select([self.output], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self.output, 1 << 16)
        except OSError:  # how a pseudo-terminal ends
            return False
        self.text += self.decoder.decode(data)
        return bool(data)

    def send(self, text: str) -> None:
        os.write(self.input, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C at a prompt. Python's readline misses one between the prompt and its wait for a key: wait for that."""
        limit = time.monotonic() + 60
        while Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < limit, self.text
            time.sleep(0.01)
        self.send("\x03")

    def end(self) -> int:
        """Wait for the end; the exit code."""
        limit = time.monotonic() + 200
        while self._read():
            assert time.monotonic() < limit, f"it does not end:\n{self.text}"
        return self.process.wait(timeout=60)


@pytest.fixture
def terminal(artifact: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*options: object, pipes: bool = False) -> Terminal:
        opened.append(Terminal(artifact, *options, pipes=pipes))
        return opened[-1]

    yield start
    for one in opened:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.inside)
        for stream in (one.process.stdin, one.process.stdout):
            if stream is not None:
                stream.close()


def test_ctrl_c_stops_the_answer_and_keeps_the_session(
    terminal: Callable[..., Terminal], talk: Talk, tmp_path: Path
) -> None:
    from safetensors import safe_open

    state = tmp_path / "state"
    chat = terminal("--max-tokens", 1_000_000, "--state", state, pipes=True)
    chat.send("w1 w2 w3\n")
    chat.wait(r"(w\d+ ){20}")
    chat.process.send_signal(signal.SIGINT)
    chat.wait("stopped: what was said so far is kept")
    chat.send("/stats\n")
    said = int(chat.wait(r"1 turn, (\d+) tokens")[1]) - 6
    chat.send("/undo\n/stats\nw4\n")
    chat.wait("0 turns, 0 tokens, 0 sleeps")
    answer = chat.wait(r"(w\d+ ){9}")[0].split()
    chat.process.send_signal(signal.SIGINT)
    chat.wait("stopped")
    chat.process.send_signal(signal.SIGHUP)  # as a terminal that closes
    assert chat.end() == 128 + signal.SIGHUP
    with safe_open(state, framework="numpy") as file:
        assert [turn["user"] for turn in json.loads(file.metadata()["note.chat"])["turns"]] == ["w4"]
    assert "Traceback" not in chat.text
    assert talk("w4", options=("--max-tokens", 9))[0][0].split() == answer
    whole = talk("w1 w2 w3", options=("--max-tokens", said))[0][0]
    assert whole in chat.text.replace("\n", " "), "every token that was read was shown"


def test_on_a_terminal(terminal: Callable[..., Terminal], talk: Talk) -> None:
    chat = terminal("--max-tokens", 12)
    chat.wait(r"sleeps every 8 tokens.*\n.*> $")
    chat.send("w1 w2\\\n")
    chat.wait("… ")
    chat.send("w3\n")
    shown = chat.wait(r"\n([^\n]*w\d+[^\n]*)\r\n[^\n]*cut off")[1]
    assert "\x1b[2m · sleep\x1b[0m w" in shown, "dim, and between words"
    words = re.sub(r"\x1b\[[?\d;]*[a-z]| ?· (\d+ )?sleeps? ?", "", shown)
    assert words.split() == talk("w1 w2 w3", options=("--max-tokens", 12))[0][0].split()
    chat.wait("> ")
    chat.send("\x1b[A\r")  # the history's last line, w3
    chat.wait(r"w3\r\n[^\n]*w\d+[^\n]*\r\n[^\n]*cut off")
    chat.wait("> ")
    chat.interrupt()
    chat.wait("Ctrl-C once more leaves.*\n.*> ")
    chat.send("/stats\n")
    chat.wait("2 turns")
    chat.wait("> ")
    chat.interrupt()
    chat.wait("Ctrl-C once more leaves.*\n.*> ")
    chat.interrupt()
    assert chat.end() == 0
    assert "Traceback" not in chat.text


def test_pasted_lines_are_one_message(terminal: Callable[..., Terminal], talk: Talk) -> None:
    chat = terminal("--max-tokens", 9)
    chat.wait("> $")
    chat.send("\x1b[200~w1 w2\n/undo\nw3\x1b[201~\r")
    shown = chat.wait(r"\n([^\n]*w\d+[^\n]*)\r\n[^\n]*cut off")[1]
    words = re.sub(r"\x1b\[[?\d;]*[a-z]| ?· (\d+ )?sleeps? ?", "", shown)
    assert words.split() == talk("w1 w2\\", "/undo\\", "w3", options=("--max-tokens", 9))[0][0].split()
    chat.wait("> $")
    chat.send("/stats\r")
    chat.wait("1 turn, ")
    chat.wait("> $")  # between two prompts the terminal takes Ctrl-D for itself, and gives readline a zero byte
    chat.send("\x04")
    assert chat.end() == 0


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_of_a_model_are_shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from sleepc.cli import display
    from sleepc.cli import terminal as module
    from sleepc.cli.run import AnswerPrinter

    said = "w1 \x1b]0;title\x07\x1b[2J\r\x7f\x9b31m\ttab\né😀"
    wanted = "w1 ␛]0;title␇␛[2J␍␡\\x9b31m\ttab\né😀" if terminal else said
    for write in ("chat", "run"):
        screen = _Screen()
        monkeypatch.setattr(sys, "stdout", screen)
        console = Console(file=screen, force_terminal=terminal)
        monkeypatch.setattr(display, "out", console)
        monkeypatch.setattr(module, "out", console)
        if write == "chat":
            module.SleepMarks().write(said)
        else:
            answer = object.__new__(AnswerPrinter)
            answer.text, answer.quiet = "", False
            answer._emit(said)
        assert screen.getvalue() == wanted


def test_a_long_message_has_one_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from sleepc.cli import display
    from sleepc.cli import terminal as module

    screen = _Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    console = Console(file=screen, force_terminal=True, color_system=None)
    monkeypatch.setattr(display, "out", console)
    monkeypatch.setattr(module, "out", console)
    marks = module.SleepMarks()
    marks.begin()
    for piece in ("", "", "", "w1", " w2"):
        marks.add()
        marks.write(piece)
    marks.end()
    assert screen.getvalue() == "· 4 sleeps w1 · sleep w2\n"


def test_no_color_means_no_codes() -> None:
    code = "from sleepc.cli.display import err, out; out.print('[red]x[/] [dim]y[/]'); err.print('[bold]z[/]')"
    inside, outside = pty.openpty()
    for value, coloured in (("1", False), ("", True)):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "NO_COLOR": value}
        subprocess.run([sys.executable, "-c", code], env=environment, stdout=outside, stderr=outside, check=True)
        assert (b"\x1b" in os.read(inside, 1 << 16)) == coloured
    os.close(inside)
    os.close(outside)
