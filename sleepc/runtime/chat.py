"""A conversation without a terminal: turns, what of each is new to the model, and the ways back."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Collection, Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from sleepc.errors import SleepcError, UsageError
from sleepc.runtime.in_turn import rest_of_turn
from sleepc.runtime.session import Session, Snapshot
from sleepc.runtime.state_file import read_note
from sleepc.runtime.text import Decoder, TextStream

Message = dict[str, str]
PIECE = 512  # tokens read between two moments at which a turn can be stopped
KEEP_TURNS, KEEP_BYTES = 32, 1 << 30  # of states to go back to
NOTE, VERSION = "chat", 1
REWRITES = "the chat template rewrites earlier turns: the model keeps what it has read, and reads the new turn alone"


class ChatTemplate(Protocol):
    """A chat template."""

    def __call__(self, messages: list[Message], /) -> str:
        """The text of the messages, up to where the answer to them begins."""

    def closing(self) -> str:
        """What stands after an answer."""


class ChatTokenizer(Decoder, Protocol):
    """The part of a tokenizer that a conversation needs."""

    def ends(self, template: Any, vocab: int, /) -> Collection[int]:
        """The tokens that end an answer of a model with `vocab` tokens."""

    def holes(self, vocab: int, /) -> Collection[int]:
        """The ids of the model that stand for nothing."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with what stands before every text."""

    def encode_next(self, text: str) -> list[int]:
        """The ids of a text that goes straight on from another."""

    def encode_turns(self, text: str, *, goes_on: bool = False) -> list[int]:
        """The ids of a template's text; if it `goes_on`, of one that comes after another."""


@dataclass(frozen=True)
class Manner:
    """How answers are chosen; `seed` is that of the first turn, and the next turn's is one more."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stops: Sequence[str] = ()


@dataclass(frozen=True)
class Turn:
    """A message and its answer. `prompt` is the text that was put before the answer, after the answer before.

    `ids` is all that the model read in this turn, the last `said` of it being the answer. `rested` says that the model
    slept after it, before its window was full.
    """

    user: str
    prompt: str
    answer: str
    ids: list[int]
    said: int
    rested: bool = False


@dataclass
class _Answer:
    """An answer while it is written."""

    stream: TextStream
    ids: list[int] = field(default_factory=list)
    text: str = ""

    def show(self, piece: str) -> str:
        self.text += piece
        return piece


class Conversation:
    """Turns of a session of one row that has read nothing yet, or `in_turn`, by a cartridge, a document that the first
    message begins with.

    A state cannot be rewound, so each turn reads only what is new: of the template's text, what comes after the ids
    that were read. Without a template messages are read as they are. `ends` are the tokens that end an answer, `never`
    those that none has. `note` is something that a person should know of the last turn, or "".
    """

    def __init__(
        self,
        session: Session,
        tokenizer: ChatTokenizer,
        template: ChatTemplate | None,
        system: str = "",
        *,
        in_turn: bool = False,
    ) -> None:
        self.session, self.tokenizer, self.template, self.system = session, tokenizer, template, system
        vocab = session.steps.vocab
        self.ends, self.never = tokenizer.ends(template, vocab), tokenizer.holes(vocab)
        self.turns: list[Turn] = []
        self.note = ""
        self.pin_next = False  # is the next message to be pinned as it is read (Session.feed)?
        self._in_turn = in_turn
        self._after_text = in_turn  # has the session read something before the first turn?
        self._told = False
        self._start = session.snapshot()
        room = KEEP_BYTES // max(session.stats.state_bytes, 1)
        self._before: deque[Snapshot] = deque(maxlen=max(1, min(KEEP_TURNS, room)))

    @property
    def ids(self) -> list[int]:
        """Every id that the state has read."""
        return [token for turn in self.turns for token in turn.ids]

    @property
    def sleeps(self) -> int:
        """How often the model slept over these ids, also in the process that a loaded file comes from."""
        return self._clock()[0]

    def _clock(self) -> tuple[int, int]:
        """Sleeps over these ids, and how many ids came after the last one."""
        count, since = 0, 0
        for turn in self.turns:
            more, since = divmod(since + len(turn.ids), self.session.steps.window)
            count += more
            if turn.rested:
                count, since = count + 1, 0
        return count, since

    # -- speaking --------------------------------------------------------------------------------

    def say(self, text: str, manner: Manner) -> Generator[str]:
        """Read a message and write the answer: pieces of its text, "" if there is none to show yet.

        Whenever the consumer closes it, the answer so far becomes the turn's; before the answer has begun, the turn
        is taken back. It is also taken back if an exception ends it. Raises UsageError, at once and with nothing
        changed, if the template refuses the conversation.
        """
        prompt, ids = self.news(text)
        return self._turn(text, prompt, ids, manner)

    def _turn(self, text: str, prompt: str, ids: list[int], manner: Manner) -> Generator[str]:
        before = self.session.snapshot()
        answer = _Answer(TextStream(self.tokenizer, manner.stops))
        try:
            yield from self._read(ids, pin=self.pin_next)
            yield from self._write(answer, manner)
        except BaseException as stop:
            if not isinstance(stop, GeneratorExit) or not answer.ids:
                self.session.restore(before)
                raise
            answer.show(answer.stream.finish())
            self._keep(before, Turn(text, prompt, answer.text, ids + answer.ids, len(answer.ids)))
            raise
        self._keep(before, Turn(text, prompt, answer.text, ids + answer.ids, len(answer.ids)))

    def _read(self, ids: list[int], *, pin: bool) -> Generator[str]:
        for start in range(0, len(ids), PIECE):
            last = start + PIECE >= len(ids)
            self.session.feed(ids[start : start + PIECE], logits="last" if last else "none", pin=pin)
            yield ""

    def _write(self, answer: _Answer, manner: Manner) -> Generator[str]:
        seed = None if manner.seed is None else manner.seed + len(self.turns)
        steps = self.session.generate(
            manner.max_tokens,
            temperature=manner.temperature,
            top_k=manner.top_k,
            top_p=manner.top_p,
            seed=seed,
            stop_ids=self.ends,
            never=self.never,
        )
        for step in steps:
            token = int(step[0])
            answer.ids.append(token)
            if token in self.ends:
                break
            yield answer.show(answer.stream.push(token))
            if answer.stream.stopped is not None:
                break
        yield answer.show(answer.stream.finish())

    def _keep(self, before: Snapshot, turn: Turn) -> None:
        self._before.append(before)
        self.turns.append(turn)
        self.pin_next = False

    def rest(self, at_least: int) -> None:
        """Sleep in the background, if `at_least` so many tokens were read since the last sleep: while the next message
        is being written, which waits for its end. With the window's length this changes no answer.
        """
        slept = self.session.sleep(background=True, at_least=at_least)
        if len(slept) and self._clock()[1]:
            self.turns[-1] = replace(self.turns[-1], rested=True)

    # -- what is new -----------------------------------------------------------------------------

    def news(self, text: str) -> tuple[str, list[int]]:
        """A message -> the text to put before its answer, and the ids of it to read. Sets `note`.

        Raises UsageError if the template refuses the conversation.
        """
        self.note = ""
        if self.template is None:
            return self._plain(text)
        if self._after_text and not self.turns:
            part = (rest_of_turn if self._in_turn else self._turn_alone)(self.template, text)
            return part, self.tokenizer.encode_turns(part, goes_on=True)
        read = self.ids
        parts = self._parts(text, self.template, self.turns)
        said = [turn.answer for turn in self.turns]
        whole = self.tokenizer.encode_turns(self.template(self._messages(self.turns, said, text)))
        if parts is not None and not self._after_text and whole[: len(read)] == read:
            return parts[-1], whole[len(read) :]
        if parts is not None and self._after_text:
            parts[0] = self.turns[0].prompt  # what stands before it there, the template's opening, was not read
        # Spaces around an answer are not looked at: some templates have one there only once the answer is there.
        if parts is None or [part.strip() for part in parts[:-1]] != [turn.prompt.strip() for turn in self.turns]:
            self.note, self._told = "" if self._told else REWRITES, True
        part = parts[-1] if parts is not None else self.template([{"role": "user", "content": text}])
        ids = self.tokenizer.encode_turns(part, goes_on=parts is not None)
        # The model may have said the end of its answer itself; the template says it again.
        ended = ids[:1] == read[-1:] and ids[0] in self.ends
        return part, ids[1:] if ended else ids

    def _plain(self, text: str) -> tuple[str, list[int]]:
        if self.turns or self._after_text:
            return "\n" + text, self.tokenizer.encode_next("\n" + text)
        first = f"{self.system}\n{text}" if self.system else text
        return first, self.tokenizer.encode(first)

    def _turn_alone(self, template: ChatTemplate, text: str) -> str:
        """A turn without what the template puts before the first one: as it comes after an answer that has ended."""
        parts = self._parts(text, template, [Turn("question", "", "", [], 0)])
        return parts[-1].removeprefix(template.closing()) if parts else template([{"role": "user", "content": text}])

    def _parts(self, text: str, template: ChatTemplate, turns: Sequence[Turn]) -> list[str] | None:
        """The template's text, cut at the answers: n + 1 parts. None if it leaves an answer out or doubles it.

        Marks stand for the answers, so that nothing depends on how the template would spell what the model said.
        """
        spoken = self.system + text + "".join(turn.user for turn in turns)
        name = "answer"
        while name in spoken:
            name += "_"
        marks = [f"[{name}:{i}]" for i in range(len(turns))]
        rest, parts = template(self._messages(turns, marks, text)), []
        for mark in marks:
            if rest.count(mark) != 1:
                return None
            part, rest = rest.split(mark)
            parts.append(part)
        return [*parts, rest]

    def _messages(self, turns: Sequence[Turn], answers: Sequence[str], text: str) -> list[Message]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        spoken = [
            {"role": role, "content": content}
            for turn, answer in zip(turns, answers, strict=True)
            for role, content in (("user", turn.user), ("assistant", answer))
        ]
        return [*system, *spoken, {"role": "user", "content": text}]

    # -- spans -----------------------------------------------------------------------------------

    def span_of(self, number: int) -> tuple[int, int]:
        """Where turn `number` (1 is the first) lies in the session's stream. Raises UsageError for one that is not
        there, or had left when a sleep emptied the window.
        """
        if not 1 <= number <= len(self.turns):
            what = f"there is no turn {number}: {len(self.turns)} so far"
            raise UsageError(what, fix="Say the number of a turn, or something first.")
        stop = int(self.session.position[0]) - sum(len(turn.ids) for turn in self.turns[number:])
        if stop <= 0:
            raise UsageError(f"turn {number} left when a sleep emptied the window", fix="Say it again.")
        return max(stop - len(self.turns[number - 1].ids), 0), stop

    def span_of_system(self) -> tuple[int, int]:
        """Where the template's opening and the system text lie. Raises UsageError if none was read."""
        if not self.system or not self.turns or self._after_text:
            raise UsageError("no system text was read", fix="Start with --system, and say something first.")
        mark = "[user]"
        while mark in self.system:
            mark += "_"
        if self.template is None:
            before = self.tokenizer.encode(self.system)
        else:
            opening = self.template(self._messages([], [], mark)).partition(mark)[0]
            before = self.tokenizer.encode_turns(opening)
        start, stop = self.span_of(1)
        alike = [a == b for a, b in zip(before, self.turns[0].ids, strict=False)]
        return start, min(start + (alike.index(False) if False in alike else len(alike)), stop)

    # -- going back, keeping ---------------------------------------------------------------------

    def undo(self) -> Turn:
        """Take the last turn back, state and history; returns it. Raises UsageError if its state is not kept."""
        if not self._before:
            why = "there is no turn to undo" if not self.turns else "the state before that turn is not kept"
            most = self._before.maxlen
            raise UsageError(why, fix=f"Turns since the beginning, a reset or a load can be undone, {most} at most.")
        self.session.restore(self._before.pop())
        return self.turns.pop()

    def reset(self) -> None:
        """Begin again, with the same system text."""
        self.session.restore(self._start)
        self._begin([])
        self._after_text = self._in_turn

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write state and conversation as one state file. Raises SleepcError if it cannot be written."""
        data = {"version": VERSION, "system": self.system, "turns": [asdict(turn) for turn in self.turns]}
        self.session.save_state(path, {NOTE: json.dumps({**data, "after_text": self._after_text})})

    def load(self, path: str | os.PathLike[str], *, after_text: bool = False) -> None:
        """Continue a conversation from a file of `save`; with `after_text` also from a state without one: then what it
        has read comes before the first turn. Raises as Session.load_state, and then nothing has changed.
        """
        note = read_note(path, NOTE)
        if note is None and not after_text:
            raise SleepcError(
                "the state file holds no conversation",
                where=str(path),
                fix="It was not written by `sleepc chat`: `sleepc run --state` continues from it.",
            )
        system, turns, begun = _parse(note, self.session.steps.vocab, str(path)) if note is not None else ("", [], True)
        self.session.load_state(path)
        self.system = system
        self._begin(turns)
        self._after_text = begun

    def _begin(self, turns: list[Turn]) -> None:
        self.turns, self.note, self._told, self._after_text, self.pin_next = turns, "", False, False, False
        self._before.clear()


def _parse(note: str, vocab: int, where: str) -> tuple[str, list[Turn], bool]:
    """The note of a state file -> system text, turns, and whether a text comes before them. Raises SleepcError."""
    try:
        data = json.loads(note)
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}")
        turns = [_turn(entry, vocab) for entry in data["turns"]]
        return _text(data["system"]), turns, data.get("after_text") is True
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SleepcError(
            f"the conversation in the state file cannot be read: {type(error).__name__}: {error}",
            where=where,
            fix="the file is damaged or newer: load another one",
        ) from error


def _turn(entry: dict[str, Any], vocab: int) -> Turn:
    ids, said = entry["ids"], entry["said"]
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < vocab for i in ids):
        raise ValueError("ids that are not tokens of this model")
    if type(said) is not int or not 0 <= said <= len(ids):
        raise ValueError(f"an answer of {said!r} in {len(ids)} tokens")
    rested = entry.get("rested") is True
    return Turn(_text(entry["user"]), _text(entry["prompt"]), _text(entry["answer"]), ids, said, rested)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text should be")
    return value
