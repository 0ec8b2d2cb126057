"""Conversations: each turn reads only what is new, and every way back leads to the same state."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from sleepc.errors import SleepcError, UsageError
from sleepc.runtime import chat
from sleepc.runtime.chat import REWRITES, Conversation, Manner, Message
from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray, IntArray, Logits
from tests.runtime.fake import FakeState, FakeSteps

USER, ASSISTANT, END, BOS, PAIR, VOCAB = 1, 2, 3, 4, 5, 128
MANNER = Manner(max_tokens=6)


class Letters:
    """One token for a character, but "ab" is one token, as merges make it; BOS stands before whole texts."""

    def ends(self, template: object, vocab: int) -> tuple[int]:
        return (END,)

    def holes(self, vocab: int) -> list[int]:
        return []

    def encode(self, text: str) -> list[int]:
        return [BOS, *self.encode_part(text)]

    def encode_part(self, text: str) -> list[int]:
        return [ord(c) % VOCAB for c in text.replace("ab", chr(PAIR))]

    encode_next = encode_part

    def encode_turns(self, text: str, *, goes_on: bool = False) -> list[int]:
        return self.encode_part(text)

    def decode(self, ids: list[int], /) -> str:
        return "".join("ab" if i == PAIR else chr(i) for i in ids if i >= PAIR)


class Bigrams(FakeSteps):
    """The same state, but after each token comes the one that `after` says."""

    def __init__(self, after: dict[int, int], window: int = 4) -> None:
        super().__init__(window, VOCAB)
        self.after = after

    def wake(
        self, state: FakeState, tokens: IntArray, lengths: IntArray, logits: Logits
    ) -> tuple[FloatArray | None, FakeState]:
        out, state = super().wake(state, tokens, lengths, logits)
        if out is not None:
            out = np.zeros_like(out)
            out[0, self.after.get(int(tokens[0, lengths[0] - 1]), END)] = 1
        return out, state


def saying(text: str) -> Bigrams:
    """A model that answers this (no letter twice), and ends."""
    letters = [ASSISTANT, *map(ord, text), END]
    return Bigrams(dict(pairwise(letters)))


class Told:
    """A template from a function; what it says ends with END."""

    def __init__(self, told: Callable[[list[Message]], str]) -> None:
        self._told = told

    def __call__(self, messages: list[Message], /) -> str:
        return self._told(messages)

    def closing(self) -> str:
        return chr(END)


@Told
def plain(messages: list[Message]) -> str:
    """As ChatML: each message between marks; what was said is trimmed."""
    roles = {"user": USER, "assistant": ASSISTANT, "system": BOS}
    told = "".join(f"{chr(roles[m['role']])}{m['content'].strip()}{chr(END)}" for m in messages)
    return told + chr(ASSISTANT)


@Told
def system_last(messages: list[Message]) -> str:
    """The system text moves to the last message, as in Mistral's template."""
    system = "".join(m["content"] for m in messages if m["role"] == "system")
    rest = [dict(m) for m in messages if m["role"] != "system"]
    rest[-1]["content"] = f"{system} {rest[-1]['content']}"
    return plain(rest)


@Told
def thinking(messages: list[Message]) -> str:
    """An answer begins with a mark that earlier answers lose, as in DeepSeek-R1's template."""
    return plain(messages) + "t"


@Told
def last_only(messages: list[Message]) -> str:
    """Nothing but the last message."""
    return plain(messages[-1:])


def tell(talk: Conversation, text: str, manner: Manner = MANNER) -> str:
    """Say something and hear the whole answer."""
    return "".join(talk.say(text, manner))


def state_of(session: Session) -> dict[str, Any]:
    """All that the next answers depend on."""
    snapshot = session.snapshot()
    return {**snapshot.state.arrays, "last": snapshot.last, "known": snapshot.known}


def same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], name)


def fed_at_once(talk: Conversation) -> dict[str, Any]:
    session = Session(talk.session.steps)
    session.feed(talk.ids)
    return state_of(session)


def text_of(ids: list[int]) -> str:
    """Ids with their marks, for people."""
    return "".join({USER: "<u>", ASSISTANT: "<a>", END: "</>", BOS: "<s>", PAIR: "ab"}.get(i, chr(i)) for i in ids)


# ---------------------------------------------------------------------------------------------- what is new


def test_a_turn_reads_only_what_is_new() -> None:
    talk = Conversation(Session(saying("ok")), Letters(), plain, "brief")
    assert tell(talk, "hi") == "ok"
    assert tell(talk, "and") == "ok"
    assert [text_of(turn.ids) for turn in talk.turns] == ["<s>brief</><u>hi</><a>ok</>", "<u>and</><a>ok</>"]
    assert talk.note == ""
    same_state(state_of(talk.session), fed_at_once(talk))


def test_an_answer_that_was_cut_off_is_ended_by_the_template() -> None:
    talk = Conversation(Session(saying("word")), Letters(), plain)
    assert tell(talk, "hi", Manner(max_tokens=2)) == "wo"
    tell(talk, "and")
    assert text_of(talk.ids) == "<u>hi</><a>wo</><u>and</><a>word</>"
    assert talk.note == ""


def test_an_answer_that_is_spelled_otherwise_is_not_read_again() -> None:
    """The model wrote "a", "b"; the tokenizer would write one token. And the template trims " x"."""
    for answer in ("ab", " x"):
        talk = Conversation(Session(saying(answer)), Letters(), plain)
        assert tell(talk, "hi") == answer
        tell(talk, "so")
        spoken = [ASSISTANT, *answer.encode(), END]
        assert talk.ids == [USER, *b"hi", END, *spoken, USER, *b"so", END, *spoken]
        assert talk.note == ""


@pytest.mark.parametrize(
    ("template", "second"),
    [(system_last, "<u>sys so</><a>ok</>"), (thinking, "<u>so</><a>tok</>"), (last_only, "<u>so</><a>ok</>")],
)
def test_a_template_that_rewrites_what_was_read(template: Told, second: str) -> None:
    steps = saying("ok")
    steps.after[ord("t")] = ord("o")
    talk = Conversation(Session(steps), Letters(), template, "sys")
    tell(talk, "hi")
    assert talk.note == ""
    tell(talk, "so")
    assert talk.note == REWRITES
    assert text_of(talk.turns[1].ids) == second
    tell(talk, "so")
    assert talk.note == "", "it is said once"
    same_state(state_of(talk.session), fed_at_once(talk))


def test_a_space_before_answers_that_are_there_is_no_rewriting() -> None:
    """As in Llama 2's template."""

    def spaced(messages: list[Message]) -> str:
        return plain(messages).replace(f"{chr(ASSISTANT)}[", f"{chr(ASSISTANT)} [").replace(f"{chr(ASSISTANT)}o", " o")

    talk = Conversation(Session(saying("ok")), Letters(), Told(spaced))
    tell(talk, "hi")
    tell(talk, "so")
    assert talk.note == ""
    assert text_of(talk.ids) == "<u>hi</><a>ok</><u>so</><a>ok</>"


def test_words_that_look_like_the_marks_for_answers() -> None:
    talk = Conversation(Session(saying("ok")), Letters(), plain)
    for text in ("[answer:0]", "[answer_:1]", "x"):
        tell(talk, text)
    assert talk.note == ""
    assert text_of(talk.turns[1].ids) == "<u>[answer_:1]</><a>ok</>"


def test_without_a_template_the_text_is_read_as_it_stands() -> None:
    steps = Bigrams({ord("?"): ord("!"), ord("!"): END})
    talk = Conversation(Session(steps), Letters(), None, "sys")
    assert tell(talk, "why?") == "!"
    tell(talk, "how?")
    assert text_of(talk.ids) == "<s>sys\nwhy?!</>\nhow?!</>"


def test_what_the_template_refuses_changes_nothing() -> None:
    def refuse(messages: list[Message]) -> str:
        if len(messages) > 1:
            raise UsageError("no more")
        return plain(messages)

    talk = Conversation(Session(saying("ok")), Letters(), Told(refuse))
    tell(talk, "hi")
    before = state_of(talk.session)
    with pytest.raises(UsageError, match="no more"):
        talk.say("so", MANNER)
    same_state(state_of(talk.session), before)
    assert len(talk.turns) == 1


def test_seeds_and_stops() -> None:
    def answers(seed: int) -> list[str]:
        talk = Conversation(Session(FakeSteps(vocab=VOCAB)), Letters(), plain)
        return [tell(talk, "hi", Manner(6, temperature=1e4, seed=seed)) for _ in range(3)]

    assert answers(1) == answers(1) != answers(2)
    talk = Conversation(Session(saying("word.")), Letters(), plain)
    assert tell(talk, "hi", Manner(6, stops=("rd",))) == talk.turns[0].answer == "wo"
    assert text_of(talk.ids).endswith("<a>word"), "the stop text was read"


# ---------------------------------------------------------------------------------------------- ways back

WORDS = st.text("abcxyz ", min_size=1, max_size=12)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(WORDS, st.integers(0, 9), st.booleans()), max_size=6), st.sampled_from([plain, thinking]))
def test_any_course_of_a_conversation(course: list[tuple[str, int, bool]], template: Told) -> None:
    """Turns, some of them stopped early, some taken back: the state is that of the ids, read at once."""
    talk = Conversation(Session(FakeSteps(vocab=VOCAB)), Letters(), template)
    states = [state_of(talk.session)]
    for text, stop, back in course:
        count, words = len(talk.turns), talk.say(text, MANNER)
        for number, _ in enumerate(words):
            if number == stop:
                break
        words.close()
        if len(talk.turns) == count:
            same_state(state_of(talk.session), states[-1])
            continue
        states.append(state_of(talk.session))
        same_state(states[-1], fed_at_once(talk))
        assert talk.sleeps == len(talk.ids) // 4
        if back:
            assert talk.undo().user == text
            states.pop()
            same_state(state_of(talk.session), states[-1])
    talk.reset()
    same_state(state_of(talk.session), states[0])
    assert not talk.turns


def test_undo_goes_back_as_far_as_states_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "KEEP_TURNS", 2)
    talk = Conversation(Session(saying("ok")), Letters(), plain)
    with pytest.raises(UsageError, match="no turn"):
        talk.undo()
    for text in "xyz":
        tell(talk, text)
    assert [talk.undo().user, talk.undo().user] == ["z", "y"]
    with pytest.raises(UsageError, match="not kept"):
        talk.undo()
    assert len(talk.turns) == 1
    same_state(state_of(talk.session), fed_at_once(talk))


def test_large_states_are_kept_by_the_gigabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(saying("ok"))
    monkeypatch.setattr(chat, "KEEP_BYTES", 3 * session.stats.state_bytes)
    assert Conversation(session, Letters(), plain)._before.maxlen == 3
    monkeypatch.setattr(chat, "KEEP_BYTES", 0)
    assert Conversation(session, Letters(), plain)._before.maxlen == 1


def test_a_long_message_can_be_stopped_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "PIECE", 5)
    talk = Conversation(Session(saying("ok")), Letters(), plain)
    tell(talk, "hi")
    before = state_of(talk.session)
    words = talk.say("x" * 50, MANNER)
    assert [next(words), next(words)] == ["", ""]
    words.close()
    same_state(state_of(talk.session), before)
    assert tell(talk, "x" * 50) == "ok"
    same_state(state_of(talk.session), fed_at_once(talk))


@pytest.mark.parametrize("where", ["wake", "sleep"])
def test_a_step_that_is_broken_off_takes_the_turn_back(where: str) -> None:
    steps = saying("long word")
    talk = Conversation(Session(steps), Letters(), plain)
    tell(talk, "hi")
    before = state_of(talk.session)
    words = talk.say("so", Manner(max_tokens=9))
    next(words)
    steps.fail_in = where
    with pytest.raises(KeyboardInterrupt):
        list(words)
    steps.fail_in = ""
    same_state(state_of(talk.session), before)
    assert len(talk.turns) == 1


# ---------------------------------------------------------------------------------------------- files


def test_a_file_goes_on_where_the_conversation_was(tmp_path: Path) -> None:
    talk = Conversation(Session(FakeSteps(vocab=VOCAB)), Letters(), plain, "sys")
    for text in ("one", "two", "[answer:0]"):
        tell(talk, text)
    talk.save(tmp_path / "talk")
    with safe_open(tmp_path / "talk", framework="numpy") as file:
        kept = json.loads(file.metadata()["note.chat"])
    assert [turn["user"] for turn in kept["turns"]] == ["one", "two", "[answer:0]"]
    other = Conversation(Session(FakeSteps(vocab=VOCAB)), Letters(), plain)
    tell(other, "something else")
    other.load(tmp_path / "talk")
    assert (other.turns, other.system) == (talk.turns, "sys")
    assert other.sleeps == talk.sleeps > 0
    with pytest.raises(UsageError, match="not kept"):
        other.undo()
    assert tell(other, "so") == tell(talk, "so")
    same_state(state_of(other.session), state_of(talk.session))
    other.undo()
    assert other.turns == talk.turns[:-1]


def refused(tmp_path: Path, message: str, **options: Any) -> None:
    """Loading fails, and changes nothing."""
    talk = Conversation(Session(options.pop("steps", FakeSteps(vocab=VOCAB)), **options), Letters(), plain)
    tell(talk, "hi")
    before, turns = state_of(talk.session), list(talk.turns)
    with pytest.raises(SleepcError, match=f"(?s){message}") as caught:
        talk.load(tmp_path / "talk")
    assert caught.value.fix
    same_state(state_of(talk.session), before)
    assert talk.turns == turns


def test_files_of_others(tmp_path: Path) -> None:
    refused(tmp_path, "cannot read")
    (tmp_path / "talk").write_bytes(b"hello")
    refused(tmp_path, "damaged")
    (tmp_path / "talk").unlink()
    Session(FakeSteps(vocab=VOCAB)).save_state(tmp_path / "talk")
    refused(tmp_path, "no conversation")
    talk = Conversation(Session(FakeSteps(vocab=VOCAB)), Letters(), plain)
    tell(talk, "hi")
    talk.save(tmp_path / "talk")
    refused(tmp_path, "identity", identity="another")
    refused(tmp_path, "window", steps=FakeSteps(window=5, vocab=VOCAB))
    cut = (tmp_path / "talk").read_bytes()[:-8]
    (tmp_path / "talk").write_bytes(cut)
    refused(tmp_path, "damaged")


TURN = {"user": "u", "prompt": "p", "answer": "a", "ids": [1, 2], "said": 1}


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ("{", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ("[]", "TypeError"),
        ('{"version": 2}', "version 2"),
        (json.dumps({"version": 1, "system": 3, "turns": []}), "int"),
        (json.dumps({"version": 1, "system": "", "turns": [{**TURN, "ids": [1, VOCAB]}]}), "not tokens"),
        (json.dumps({"version": 1, "system": "", "turns": [{**TURN, "ids": [True]}]}), "not tokens"),
        (json.dumps({"version": 1, "system": "", "turns": [{**TURN, "said": 3}]}), "answer of 3"),
        (json.dumps({"version": 1, "system": "", "turns": [{**TURN, "user": None}]}), "NoneType"),
        (json.dumps({"version": 1, "system": "", "turns": [{"user": "u"}]}), "KeyError"),
    ],
)
def test_conversations_that_are_none(tmp_path: Path, note: str, message: str) -> None:
    Session(FakeSteps(vocab=VOCAB)).save_state(tmp_path / "talk", {"chat": note})
    refused(tmp_path, message)


# ---------------------------------------------------------------------------------------------- after a text


@Told
def opened(messages: list[Message]) -> str:
    """With a mark before the whole conversation."""
    return chr(BOS) + plain(messages)


@pytest.mark.parametrize(("template", "opening"), [(plain, ""), (opened, "<s>")])
def test_turns_after_a_text_have_no_opening(template: Told, opening: str, tmp_path: Path) -> None:
    steps, letters = saying("ok"), Letters()
    read = Session(steps)
    read.feed(letters.encode("a text"))
    read.save_state(tmp_path / "text")
    talk = Conversation(Session(steps), letters, template)
    with pytest.raises(SleepcError, match="no conversation"):
        talk.load(tmp_path / "text")
    talk.load(tmp_path / "text", after_text=True)
    assert tell(talk, "hi") == "ok"
    talk.save(tmp_path / "talk")
    later = Conversation(Session(steps), letters, template)
    later.load(tmp_path / "talk")
    assert tell(later, "so") == "ok"
    assert [text_of(turn.ids) for turn in later.turns] == ["<u>hi</><a>ok</>", "<u>so</><a>ok</>"]
    assert later.note == ""
    read.feed(later.ids)
    same_state(state_of(later.session), state_of(read))
    first = Conversation(Session(steps), letters, template)
    tell(first, "hi")
    assert text_of(first.ids) == f"{opening}<u>hi</><a>ok</>"


def test_a_message_that_was_read_in_part_is_read_to_its_end() -> None:
    talk = Conversation(Session(saying("ok")), Letters(), opened)
    prompt, ids = talk.news("hello")
    talk.session.feed(ids[:4])
    talk.turns.append(chat.Turn("hello", prompt, "", ids[:4], 0))
    tell(talk, "so")
    assert text_of(talk.ids) == "<s><u>hello</><a></><u>so</><a>ok</>"


def test_ids_that_stand_for_nothing_are_never_said() -> None:
    class Holed(Letters):
        def holes(self, vocab: int) -> list[int]:
            return [ord("o"), VOCAB - 1]

    talk = Conversation(Session(saying("ok")), Holed(), plain)
    assert "o" not in tell(talk, "hi")
    assert "o" not in tell(talk, "hi", Manner(max_tokens=6, temperature=5.0, seed=1))
