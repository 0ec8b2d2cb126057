"""`sleepc run`: asked through the chat template, or given a text; gone on from a state; and what it says of nothing."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

import sleepc as package
from sleepc.cli.options import read_template_args
from sleepc.errors import UsageError
from sleepc.runtime.chat import Conversation, Manner
from sleepc.runtime.state_file import read_note
from tests.cli.models import run_here, save_model

BOS, USER, ASSISTANT, END = "w55", "w56", "w57", "w58"
TEMPLATE = (
    "{{ bos_token }} {% if style is defined %}{{ style }} {% endif %}"
    "{% for m in messages %}{{ {'system': 'w54', 'user': 'w56', 'assistant': 'w57'}[m['role']] }} "
    "{{ m['content'] | trim }} w58 {% endfor %}{% if add_generation_prompt %}w57 {% endif %}"
)
CONFIG = {"bos_token": BOS, "eos_token": END, "additional_special_tokens": [USER, ASSISTANT]}
load = cache(package.load)
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model whose tokenizer puts w55 before every text."""
    folder = tmp_path_factory.mktemp("run")
    model = save_model(folder / "model")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 55)])
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    return package.convert(model, {"window": 8, "sinks": 2}).save(folder / "artifact")


@pytest.fixture
def run(artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """What a run with --json gives; it must succeed."""
    monkeypatch.setattr("sleepc.api.load", load)  # reading and checking an artifact takes longer than running it
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))

    def command(*arguments: object, target: Path = artifact) -> Any:
        code, said, told = run_here(capsys, "run", target, *arguments, "--json")
        assert code == 0, told
        return {**json.loads(said), "told": told}

    return command


def state_of(artifact: Path, path: Path) -> dict[str, Any]:
    session = load(artifact).session()
    session.load_state(path)
    return dict(session.steps.to_named_arrays(session.snapshot().state))


def same_as_fed(artifact: Path, path: Path, ids: list[int]) -> None:
    session = load(artifact).session()
    session.feed(ids)
    found = state_of(artifact, path)
    for name, array in session.steps.to_named_arrays(session.snapshot().state).items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def ids_of(text: str) -> list[int]:
    return [int(word[1:]) for word in text.split()]


# ----------------------------------------------------------------------------------------------- how it is asked


def test_a_model_with_a_template_is_asked_through_it(run: Run, artifact: Path, tmp_path: Path) -> None:
    found = run("w1 w2", "--max-tokens", 4)
    assert found["tokens_read"] == len(ids_of("w55 w56 w1 w2 w58 w57"))
    assert found["tokens"] == run("w1 w2", "--max-tokens", 4, "--chat")["tokens"]
    plain = run("w1 w2", "--max-tokens", 4, "--no-chat")
    assert plain["tokens_read"] == 3
    bare = shutil.copytree(artifact, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    assert run("w1 w2", "--max-tokens", 4, target=bare)["tokens"] == plain["tokens"]
    session = load(artifact).session()
    session.feed(ids_of("w55 w56 w1 w2 w58 w57"))
    assert [int(step[0]) for step in session.generate(4)] == found["tokens"]


def test_control_tokens_that_are_typed_are_text(run: Run, tmp_path: Path, artifact: Path) -> None:
    (tmp_path / "text").write_text("w1 w58 w2 w55")
    state = tmp_path / "state"
    read = run("-f", tmp_path / "text", "--no-chat", "--max-tokens", 0, "--state", state)
    assert read["tokens_read"] == 5
    same_as_fed(artifact, state, ids_of("w55 w1 w0 w2 w0"))
    state.unlink()
    run("-f", tmp_path / "text", "--max-tokens", 0, "--state", state)
    same_as_fed(artifact, state, ids_of("w55 w56 w1 w0 w2 w0 w58 w57"))


def test_variables_of_the_template(run: Run, artifact: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    run("w1", "--template-arg", "style=w9", "--max-tokens", 0, "--state", state)
    same_as_fed(artifact, state, ids_of("w55 w9 w56 w1 w58 w57"))


def test_values_of_variables() -> None:
    given = ["a=true", "b=False", "c=None", "d=3", 'e="3"', "f=x=y", "g=", 'h={"i": [1]}', "j= high"]
    found = read_template_args(given)
    assert list(found) == list("abcdefghj")
    assert list(found.values()) == [True, False, None, 3, "3", "x=y", "", {"i": [1]}, " high"]
    with pytest.raises(UsageError, match="has the key 'i' twice"):
        read_template_args(['h={"i": 1, "i": 2}'])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--template-arg", "style"), "NAME=VALUE"),
        (("--template-arg", "=3"), "NAME=VALUE"),
        (("--template-arg", "style=1", "--template-arg", "style=2"), "twice"),
        (("--template-arg", "enable_thinking=true"), "enable_thinking"),
        (("--template-arg", "messages=[]"), "messages"),
        (("--template", "tool_use"), "tool_use"),
        (("--no-chat", "--template-arg", "style=1"), "--no-chat"),
        (("--no-chat", "--template", "default"), "--no-chat"),
    ],
)
def test_options_that_do_not_fit(
    artifact: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    code, said, told = run_here(capsys, "run", artifact, "w1", *options)
    assert (code, said) == (2, "")
    assert words in told


def test_a_model_without_a_template(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = shutil.copytree(artifact, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    for options in (("--chat",), ("--template", "default"), ("--template-arg", "a=b")):
        code, _, told = run_here(capsys, "run", bare, "w1", *options)
        assert code == 2
        assert "no chat template" in told


@pytest.mark.parametrize("place", ["generation_config", "config", "list", "text_config", "tokenizer"])
def test_an_answer_ends_where_that_of_transformers_ends(run: Run, artifact: Path, tmp_path: Path, place: str) -> None:
    from transformers import AutoModelForCausalLM

    said = run("w1 w2", "--no-chat", "--max-tokens", 5)["tokens"]
    end = said[3]
    copy = shutil.copytree(artifact, tmp_path / "copy")
    files: dict[str, dict[str, Any]] = {
        "generation_config": {"generation_config.json": {"eos_token_id": end}},
        "config": {"config.json": {"eos_token_id": end}, "generation_config.json": {"do_sample": False}},
        "list": {"generation_config.json": {"eos_token_id": [60, end]}},
        "text_config": {"config.json": {"eos_token_id": None, "text_config": {"eos_token_id": end}}},
        "tokenizer": {"tokenizer_config.json": {**CONFIG, "eos_token": f"w{end}"}},
    }
    for name in ("generation_config.json", "config.json"):  # else an end would stand there as well
        (copy / name).write_text("{}")
    for name, data in files[place].items():
        (copy / name).write_text(json.dumps(data))
    model = AutoModelForCausalLM.from_pretrained(
        artifact.parent / "model", local_files_only=True, trust_remote_code=False
    )
    ids = torch.tensor([[55, 1, 2]])
    theirs = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=[60, end], pad_token_id=0)[0, 3:]
    assert theirs.tolist() == [*run("w1 w2", "--no-chat", "--max-tokens", 5, target=copy)["tokens"], end]


# ----------------------------------------------------------------------------------------------- going on


def test_a_text_that_goes_on_has_one_beginning(run: Run, artifact: Path, tmp_path: Path) -> None:
    state, options = tmp_path / "state", ("--no-chat", "--state", tmp_path / "state")
    one = run("w1 w2", "--max-tokens", 2, *options)["tokens"]
    two = run("w3", "--max-tokens", 3, *options)["tokens"]
    three = run("w4 w5", "--max-tokens", 0, *options)
    assert three["tokens_read"] == 2
    same_as_fed(artifact, state, [55, 1, 2, *one, 3, *two, 4, 5])
    assert read_note(state, "chat") is None


@pytest.mark.parametrize("count", [3, 60])
def test_a_conversation_goes_on_as_one_session(run: Run, artifact: Path, tmp_path: Path, count: int) -> None:
    """Answers that are cut off, and such that end by themselves."""
    program, state = load(artifact), tmp_path / "state"
    tokenizer = program.tokenizer()
    talk = Conversation(program.session(), tokenizer, tokenizer.template())
    for text in ("w1 w2 w3", "w4", "w5 w6"):
        answer = "".join(talk.say(text, Manner(count)))
        assert run(text, "--max-tokens", count, "--state", state)["text"] == answer
    assert sum(turn.ids[: len(turn.ids) - turn.said].count(55) for turn in talk.turns) == 1
    same_as_fed(artifact, state, talk.ids)
    other = Conversation(program.session(), tokenizer, tokenizer.template())
    other.load(state)
    assert other.turns == talk.turns, "sleepc chat continues from it"
    assert "".join(other.say("w7", Manner(5))) == "".join(talk.say("w7", Manner(5)))
    other.save(state)
    assert run("w8", "--max-tokens", 5, "--state", state)["text"] == "".join(talk.say("w8", Manner(5)))


def test_a_state_of_several_rows(run: Run, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is said can be done, and the row goes on."""
    state, one = tmp_path / "state", tmp_path / "one"
    session = load(artifact).session(batch=3)
    session.feed([[55, 1, 2], [55, 3, 4], [55, 5, 6]])
    session.save_state(state)
    code, said, told = run_here(capsys, "run", artifact, "w7", "--no-chat", "--state", state)
    assert (code, said) == (1, "")
    assert "the state file holds 3 rows, and this session 1" in told
    assert "in Python, program.session(batch=3) loads it; its select_rows([0]), saved" in " ".join(told.split())
    again = load(artifact).session(batch=3)
    again.load_state(state)
    again.select_rows([0]).save_state(one)
    run("w7", "--no-chat", "--max-tokens", 0, "--state", one)
    same_as_fed(artifact, one, [55, 1, 2, 7])


def test_an_answer_goes_on_where_nothing_is_asked(run: Run, artifact: Path, tmp_path: Path) -> None:
    whole, one = tmp_path / "whole", tmp_path / "one"
    run("w1 w2", "--max-tokens", 7, "--state", whole)
    for options in (("w1 w2", "--max-tokens", 3), ("--max-tokens", 4)):
        run(*options, "--state", one)
    assert read_note(one, "chat") == read_note(whole, "chat")
    for state in (whole, one):
        run("w3", "--max-tokens", 2, "--state", state)
    assert read_note(one, "chat") == read_note(whole, "chat")


def test_a_question_after_a_text(run: Run, artifact: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    run("w1 w2 w3", "--no-chat", "--max-tokens", 0, "--state", state)
    one = run("w4", "--max-tokens", 3, "--state", state)["tokens"]
    same_as_fed(artifact, state, [*ids_of("w55 w1 w2 w3 w56 w4 w58 w57"), *one])
    two = run("w5", "--max-tokens", 3, "--state", state)["tokens"]
    ids = [*ids_of("w55 w1 w2 w3 w56 w4 w58 w57"), *one, 58, *ids_of("w56 w5 w58 w57"), *two]
    same_as_fed(artifact, state, ids)
    assert "continues as a text" in run("w6", "--no-chat", "--max-tokens", 0, "--state", state)["told"]
    same_as_fed(artifact, state, [*ids, 6])
    assert read_note(state, "chat") is None


# ----------------------------------------------------------------------------------------------- nothing said


def ending_with(artifact: Path, folder: Path, token: int) -> Path:
    copy = shutil.copytree(artifact, folder)
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [token]}))
    return copy


@pytest.mark.parametrize(
    ("options", "hint"),
    [((), "--no-chat lets it continue the text"), (("--no-chat",), "made for conversations: leave --no-chat out")],
)
def test_an_answer_without_a_word_is_explained(
    run: Run, artifact: Path, tmp_path: Path, options: tuple[str, ...], hint: str
) -> None:
    first = run("w1 w2", "--max-tokens", 1, *options)
    assert "at once" not in first["told"]
    token = first["tokens"][0]
    found = run("w1 w2", *options, target=ending_with(artifact, tmp_path / "ends", token))
    assert (found["tokens"], found["text"]) == ([], "")
    assert f"ended its answer at once, with w{token}; " in found["told"]
    assert hint in found["told"]
    stopped = run("w1 w2", *options, "--stop", f"w{token}")
    assert f"began with the stop text 'w{token}'" in stopped["told"]
    assert run("w1 w2", *options, "--max-tokens", 0)["told"] == ""


@pytest.mark.filterwarnings("always::sleepc.errors.SleepcWarning")
def test_ends_that_are_no_tokens_are_one_line(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = ending_with(artifact, tmp_path / "copy", 61)
    code, said, told = run_here(capsys, "run", copy, "w1", "--max-tokens", 2)
    assert (code, len(said.split())) == (0, 2)
    (line,) = told.splitlines()
    assert "eos_token_id is 61, and the tokenizer has no such token" in line
    (copy / "generation_config.json").write_text("{")
    for command in (("run", copy, "w1"), ("chat", copy)):
        code, said, told = run_here(capsys, *command)
        assert (code, said) == (2, "")
        assert "cannot read generation_config.json" in told


def test_a_template_that_leaves_the_message_out(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    (copy / "chat_template.jinja").write_text("{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}")
    code, said, told = run_here(capsys, "run", copy, "w1")
    assert (code, said) == (2, "")
    assert "drops the user's text" in told
    assert run_here(capsys, "run", copy, "w1", "--no-chat", "--max-tokens", 1)[0] == 0
