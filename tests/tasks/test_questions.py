"""Questions about texts: what is read from files, what counts, and figures against ones computed by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.backends.eager.backend import load
from sleepc.errors import UsageError
from sleepc.runtime.session import Session
from sleepc.runtime.steps import FloatArray
from sleepc.tasks.answering import Answering
from sleepc.tasks.equal_window import equal_window, widest
from sleepc.tasks.keywords import last_end, stands_in
from sleepc.tasks.programs import full_attention_for
from sleepc.tasks.question_file import Document, TextQuestion, own_questions, parse_questions
from sleepc.tasks.question_prompt import Prompts
from sleepc.tasks.readers import FULL, SLIDING, compared
from sleepc.tasks.recalling import Recalling, Said
from sleepc.verify.memory_values import without_memories
from tests import evaluations
from tests.families import VOCAB, family

GOOD: dict[str, Any] = {"text": "The door is red.", "questions": [{"question": "Which?", "answers": ["red"]}]}


def prompts(tokens: int, asked: list[tuple[int, ...]], distances: list[int | None] | None = None) -> Prompts:
    """A text of random tokens, and questions that are right with "w1"."""
    read = tuple(np.random.default_rng(tokens).integers(0, VOCAB, tokens).tolist())
    document = Document("", tuple(TextQuestion("?", ("w1",)) for _ in asked), f"text of {tokens}")
    return Prompts(document, read, tuple(asked), tuple(distances or [None] * len(asked)))


def mean_surprise(logits: FloatArray, ids: tuple[int, ...]) -> float:
    """Of ids [n], by hand, under logits [n,V] of the tokens before them."""
    chosen = torch.from_numpy(logits).double().log_softmax(-1)[torch.arange(len(ids)), list(ids)]
    return -float(chosen.mean())


# -- keywords ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "answer", "right"),
    [
        ("red", "It is RED!", True),
        ("red", "It was hundred.", False),
        ("red", "redder", False),
        ("the  Drowned Bell", "At the Drowned\nBell.", True),
        ("Needle's Eye", "needle's eye", True),
        ("12", "12 pies, or (12)", True),
        ("12", "112", False),
        ("12", "12,450 or 0.12", False),
        ("12", "It was 12.", True),
        ("C++", "in C++ and Rust", True),
        ("ä", "A\N{COMBINING DIAERESIS}", True),
        ("STRASSE", "die Straße", True),
        ("灯塔", "黄色的灯塔门", True),
        (".*", "anything", False),
    ],
)
def test_a_keyword_stands_as_whole_words_in_any_case(keyword: str, answer: str, right: bool) -> None:
    assert stands_in(keyword, answer) is right


def test_the_last_place_of_a_keyword_is_that_of_whichever_comes_last() -> None:
    text = "A red door. A hundred blue doors, blue walls."
    assert last_end(("red", "blue"), text) == text.rindex("blue") + 4
    assert last_end(("red",), text) == 5
    assert last_end(("green",), text) is None


# -- files -------------------------------------------------------------------------------------------


def test_a_file_is_read_line_by_line() -> None:
    other = {**GOOD, "name": "doors", "source": "x"}
    documents, notes = parse_questions(f"\ufeff{json.dumps(GOOD)}\n\n{json.dumps(other, ensure_ascii=False)}\n", "f")
    assert [d.name for d in documents] == ["text 1", "doors"]
    assert documents[0].questions == (TextQuestion("Which?", ("red",)),)
    assert notes == ["f: unknown key 'source'"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "it: input should be an object"),
        ("{}", "text: field required"),
        (json.dumps({**GOOD, "text": " "}), "text: it is empty"),
        (json.dumps({**GOOD, "questions": ["Who?"]}), "questions.0: input should be an object"),
        (json.dumps({**GOOD, "text": 5}), "text: input should be a valid string"),
        (json.dumps({**GOOD, "text": "\ud800"}), "not JSON"),
        (json.dumps({**GOOD, "questions": []}), "questions: list should have at least 1 item"),
        (json.dumps({**GOOD, "questions": "Who?"}), "questions: input should be a valid list"),
        (json.dumps({**GOOD, "questions": [{"question": "Who?"}]}), "questions.0.answers: field required"),
        (json.dumps({**GOOD, "questions": [{"question": "", "answers": ["a"]}]}), "questions.0.question: "),
        (
            json.dumps({**GOOD, "questions": [{"question": "?", "answers": "red"}]}),
            "answers: input should be a valid list",
        ),
        (
            json.dumps({**GOOD, "questions": [{"question": "?", "answers": [7]}]}),
            "answers.0: input should be a valid string",
        ),
        (json.dumps({**GOOD, "questions": [{"question": "?", "answers": ["a", "?!"]}]}), "has no letter or digit"),
        (json.dumps({**GOOD, "questions": [{"question": "?" * 3000, "answers": ["a"]}]}), "at most 2000 characters"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_questions(f"{json.dumps(GOOD)}\n\n{line}\n", "some.jsonl")
    assert error.value.where == "some.jsonl, line 3"
    assert said in error.value.what


@pytest.mark.parametrize("content", ["", "\n \n", f"{json.dumps(GOOD)}\n" * 1001])
def test_a_file_without_texts_or_with_too_many_is_refused(content: str) -> None:
    with pytest.raises(UsageError, match="1 to 1000 can be read"):
        parse_questions(content, "f")


def test_our_own_texts_hold_their_answers() -> None:
    assert len(own_questions()) >= 8
    documents = evaluations.documents()
    assert all(len(document.questions) >= 15 for document in documents)
    for document in documents:
        for question in document.questions:
            assert last_end(question.answers, document.text) is not None, question
            assert question.score(question.question) == 0, "the question itself gives the answer away"


# -- answers -----------------------------------------------------------------------------------------

ASKED = [(5, 7), (9,), (3, 3, 3, 3, 3, 3, 3, 3, 3, 3)]


def test_answers_and_their_surprise_are_those_of_the_original() -> None:
    """Greedy by the module itself, with questions of different lengths that are read at once."""
    found = prompts(20, ASKED)
    steps = full_attention_for(family("llama").canonical, load)(40)
    answers = Answering(6).answer(steps, found, None)
    for asked, (ids, nll) in zip(ASKED, answers, strict=True):
        read = [*found.read, *asked]
        for token in ids:
            assert token == int(family("llama").logits(torch.tensor([read]))[0, -1].argmax())
            read.append(token)
        logits = family("llama").logits(torch.tensor([read]))[0, -7:-1].numpy()
        assert nll == pytest.approx(mean_surprise(logits, ids), abs=1e-6)


@pytest.mark.parametrize("at_once", [1, 1 << 30])
def test_a_given_answer_is_judged_in_the_state_that_the_text_left(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over sleeps between, one token, none, and however many rows are read at once."""
    monkeypatch.setattr("sleepc.tasks.answering.AT_ONCE", at_once)
    step, _ = family("llama").convert()
    found, given = prompts(21, ASKED), [(4, 1, 8, 2, 6), (1,), ()]
    answers = Answering(4).answer(load(step), found, given)
    for asked, wanted, (_, nll) in zip(ASKED, given, answers, strict=True):
        session_logits = logits_of_stream(step, [*found.read, *asked, *wanted])
        end = len(session_logits) - 1
        by_hand = mean_surprise(session_logits[end - len(wanted) : end], wanted) if wanted else np.nan
        assert nll == pytest.approx(by_hand, abs=1e-6, nan_ok=True)


def logits_of_stream(step: Any, ids: list[int]) -> FloatArray:
    logits: FloatArray = Session(load(step)).feed([ids], logits="all")[0]
    return logits


def test_an_answer_ends_with_an_end_and_has_no_hole() -> None:
    steps, found = full_attention_for(family("llama").canonical, load)(40), prompts(20, [(5, 7)])
    whole = Answering(6).answer(steps, found, None)[0][0]
    end = next(i for i, token in enumerate(whole) if token not in whole[:i])
    assert Answering(6, ends=(whole[2],)).answer(steps, found, None)[0][0] == whole[: whole.index(whole[2])]
    assert whole[end] not in Answering(6, never=(whole[end],)).answer(steps, found, None)[0][0]
    assert Answering(6, cut=lambda ids: ids[:1]).answer(steps, found, None)[0][0] == whole[:1]


# -- figures -----------------------------------------------------------------------------------------


def recalling(said: dict[str, list[tuple[float, float]]], places: list[list[int | None]]) -> Recalling:
    """Scores and nll of each model, on texts whose answers stand at these distances."""
    asked = [prompts(20 + i, [(1,)] * len(distances), distances) for i, distances in enumerate(places)]
    answers = {name: [Said("", score, nll) for score, nll in each] for name, each in said.items()}
    return Recalling(asked, Answering(4), 16, said=answers)


def test_only_questions_that_full_attention_answers_count() -> None:
    found = recalling(
        {
            "full": [(1, 0.5), (1, 0.25), (0, 9.0), (1, 1.0), (1, 0.5)],
            "sliding": [(0, 2.0), (1, 0.5), (1, 9.0), (0, 3.0), (0, 2.0)],
            "converted": [(1, 1.0), (0, 0.75), (1, 9.0), (1, 2.0), (0, 1.0)],
        },
        [[40, 10, 5], [16, None]],
    )
    figures = found.totals()["converted"]
    assert (figures["asked"], figures["answered"], figures["counted"]) == (5, 2, 4)
    assert figures["share"] == 0.5
    assert figures["share_se"] == pytest.approx(np.std([1, 0, 1, 0], ddof=1) / 2)
    assert (figures["beyond"]["answered"], figures["beyond"]["counted"]) == (2, 3)
    assert (figures["within"]["answered"], figures["within"]["counted"]) == (0, 1)
    assert figures["score"] == pytest.approx(3 / 5)
    assert figures["nll"] == pytest.approx((1 + 0.75 + 2 + 1) / 4)
    gaps = [0.5, 0.5, 1.0, 0.5]
    assert figures["gap"] == pytest.approx(np.mean(gaps))
    assert figures["gap_se"] == pytest.approx(np.std(gaps, ddof=1) / 2)
    rows = [(r["from"], r["to"], r["answered"], r["counted"]) for r in found.rows() if r["model"] == "converted"]
    assert rows == [(None, None, 0, 1), (0, 16, 1, 2), (32, 64, 1, 1)]


def test_nothing_that_counts_gives_no_figure_and_no_warning() -> None:
    found = recalling({"full": [(0, 1.0)], "sliding": [(1, 1.0)], "converted": [(1, 1.0)]}, [[3]])
    figures = found.totals()["converted"]
    assert (figures["counted"], figures["share"], figures["nll"], figures["gap_se"]) == (0, None, None, None)


@pytest.mark.parametrize("name", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_the_sliding_window_has_at_most_as_many_bytes_and_one_token_more_has_more(name: str) -> None:
    step, recipe = family(name).convert()
    most = step.state_bytes() + 77
    sliding = equal_window(family(name).canonical, recipe, most)
    assert sliding.state_bytes() <= most
    leave = [{"layers": "all", "strategy": "leave"}]
    wider, _ = family(name).convert(window=sliding.window + 1, sinks=recipe.sinks, overrides=leave)
    assert wider.state_bytes() > most
    assert sliding.window > step.window, "the memory's bytes make it wider"


@dataclass
class Sized:
    """A program of so many bytes, as far as a search sees it."""

    window: int
    bent: int = 40

    def state_bytes(self) -> int:
        return 100 + 3 * self.window + 5 * min(self.window, self.bent)


@pytest.mark.parametrize("most", [108, 115, 116, 300, 419, 420, 421, 500, 1000, 50_000])
def test_the_widest_window_is_found_with_few_tries(most: int) -> None:
    """Bytes grow with it at two rates: some layers have windows of their own."""
    tried: list[int] = []

    def sliding(window: int) -> Any:
        tried.append(window)
        return Sized(window)

    found = widest(sliding, most, 5000)
    wanted = max(width for width in range(1, 5001) if Sized(width).state_bytes() <= most)
    assert found.window == wanted
    assert len(tried) == len(set(tried)) < 20


def test_the_sliding_window_is_no_wider_than_the_model_has_positions_and_refused_below_a_token() -> None:
    _, recipe = family("llama").convert()
    canonical = family("llama").canonical
    assert canonical.max_positions == 64
    assert equal_window(canonical, recipe, 1 << 40).window == 64 - recipe.sinks
    with pytest.raises(UsageError, match="no sliding window has as few as 10 bytes"):
        equal_window(family("llama").canonical, recipe, 10)


def test_a_window_of_the_same_width_answers_as_the_program_with_its_memories_off() -> None:
    step, recipe = family("llama").convert()
    plain, _ = family("llama").convert(overrides=[{"layers": "all", "strategy": "leave"}])
    programs = {"plain": plain, "off": without_memories(step)}
    readers = compared(family("llama").canonical, recipe, programs, 50, load)
    assert list(readers) == [FULL, SLIDING, *programs]
    sliding = readers[SLIDING]
    assert (sliding.window, sliding.state_bytes) == (step.window, plain.state_bytes())
    off, found = readers["off"], prompts(30, ASKED)
    given = [(4, 1), (2,), (5,)]
    wanted = Answering(4).answer(off.steps(50), found, given)
    for (ids, nll), (expected, other) in zip(Answering(4).answer(sliding.steps(50), found, given), wanted, strict=True):
        assert ids == expected
        assert nll == pytest.approx(other, abs=1e-9)


def test_full_attention_counts_the_bytes_of_the_longest_text() -> None:
    step, recipe = family("llama").convert()
    canonical = family("llama").canonical
    small, large = (compared(canonical, recipe, {"": step}, most, load)[FULL].state_bytes for most in (20, 40))
    assert 1.8 < large / small < 2.2
