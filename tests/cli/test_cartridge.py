"""`sleepc cartridge`, and what `run` and `chat` begin with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import sleepc as package
from sleepc.hf.tokenizer import load_tokenizer
from sleepc.runtime.cartridge import read_cartridge
from sleepc.runtime.chat import Conversation
from tests.cli.conftest import Here
from tests.cli.test_chat import TEMPLATE

WORDS = " ".join(f"w{i}" for i in np.random.default_rng(0).integers(1, 60, 30))
FEW = ("--lessons", 9, "--batch", 4, "--part", 20, "--steps", 3)


@pytest.fixture(scope="module")
def keeping(model: Path) -> Path:
    """An artifact with slots."""
    recipe = {"window": 8, "sinks": 2, "keep": {"slots": 4}}
    return package.convert(model, recipe).save(model.parent / "keeping")


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    file = model.parent / "document.txt"
    file.write_text(WORDS)
    return file


def test_it_is_made_and_begun_with(keeping: Path, text: Path, tmp_path: Path, here: Here) -> None:
    file, half = tmp_path / "whole.cartridge", tmp_path / "half.cartridge"
    done = here("cartridge", keeping, text, "--out", file, *FEW, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    made = read_cartridge(file)
    assert facts["pairs"] == sum(map(sum, made.pairs.values())) == facts["slots"]
    assert (facts["tokens"], facts["position"]) == (30, made.position)
    assert facts["after"] <= facts["before"]
    assert (facts["lessons"], facts["held_out"]) == (7, 2)
    done = here("cartridge", keeping, text, "-o", half, *FEW, "--slots", 2)
    assert done.returncode == 0, done.stderr
    assert "30 tokens in" in done.stdout
    assert f"--cartridge {half}" in done.stdout

    plain, begun, two = (
        json.loads(here("run", keeping, "w5 w6", "--max-tokens", 4, *more, "--json").stdout)
        for more in ((), ("--cartridge", file), ("--cartridge", half, "--cartridge", half))
    )
    assert plain["tokens"] != begun["tokens"]
    assert plain["state_bytes"] == begun["state_bytes"] == two["state_bytes"]
    assert begun["tokens_read"] == 2
    session = package.load(keeping).session()
    session.load_cartridges([file])
    session.feed([5, 6])
    assert begun["tokens"] == [int(step[0]) for step in session.generate(4)]


def test_a_state_goes_on_with_what_it_has(keeping: Path, text: Path, tmp_path: Path, here: Here) -> None:
    file, state = tmp_path / "a.cartridge", tmp_path / "a.state"
    assert here("cartridge", keeping, text, "--out", file, *FEW[:-1], 0).returncode == 0
    for said in ("", "--cartridge is ignored"):
        done = here("run", keeping, "w5", "--max-tokens", 1, "--cartridge", file, "--state", state)
        assert done.returncode == 0, done.stderr
        assert said in done.stderr


def test_a_conversation_begins_in_the_documents_message(keeping: Path, text: Path, tmp_path: Path, here: Here) -> None:
    file = tmp_path / "a.cartridge"
    assert here("cartridge", keeping, text, "--out", file, *FEW[:-1], 0).returncode == 0
    folder = tmp_path / "with template"
    folder.mkdir()
    for name in ("tokenizer.json",):
        (folder / name).write_bytes((keeping / name).read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = load_tokenizer(folder)
    session = package.load(keeping).session()
    session.load_cartridges([file])
    talk = Conversation(session, tokenizer, tokenizer.template(), in_turn=True)
    for _ in range(2):
        prompt, ids = talk.news("w5 w6")
        assert prompt == "\nw5 w6 w58 w57 "  # and neither w55, which opens a system text, nor w56, a message
        assert ids == [5, 6, 58, 57]
        talk.reset()
    done = here("chat", keeping, "--cartridge", file, "--system", "w1")
    assert done.returncode == 2
    assert "the cartridge has what comes before it already" in done.stderr


def test_bad_input_is_refused_and_nothing_is_left(
    artifact: Path, keeping: Path, text: Path, tmp_path: Path, here: Here
) -> None:
    empty, out = tmp_path / "empty.txt", tmp_path / "out.cartridge"
    empty.write_text("\n \n")
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    for arguments, said in (
        ((keeping, empty, "--out", out), "the document is empty"),
        ((artifact, text, "--out", out), "Convert the model with --keep N"),
        (
            (keeping, text, "--out", out, "--slots", 5),
            "5 pairs for every KV head are more than the program has slots: 4",
        ),
        ((keeping, text, "--out", out, "--lr", 0), "lr = 0.0"),
        ((keeping, text, "--out", other), "exists and is not a cartridge"),
        ((keeping, tmp_path / "nothing.txt", "--out", out), "cannot read"),
        ((keeping, text, "--out", tmp_path / "no folder" / "x"), "is not a folder"),
    ):
        done = here("cartridge", *arguments, *FEW)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty.txt", "notes.txt"]
    assert other.read_text() == "mine"


def test_a_cartridge_of_another_artifact_is_refused(
    model: Path, keeping: Path, text: Path, tmp_path: Path, here: Here
) -> None:
    file = tmp_path / "a.cartridge"
    assert here("cartridge", keeping, text, "--out", file, *FEW[:-1], 0).returncode == 0
    for recipe, said in (
        ({"window": 8, "sinks": 3, "keep": {"slots": 4}}, "0.k is [2, 2, 8] in it, and [2, 3, 8] here"),
        ({"window": 6, "sinks": 2, "keep": {"slots": 4}}, "shapes are the same, and weights, window or"),
    ):
        other = package.convert(model, recipe).save(tmp_path / f"other{recipe['sinks']}")
        done = here("run", other, "w5", "--cartridge", file)
        assert done.returncode == 1
        assert f"the cartridge belongs to another model or conversion: {said}" in " ".join(done.stderr.split())
