"""A teacher that asks itself about a text and answers with the text before it (self-study, arXiv 2506.06266)."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import Tokenizer
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.tasks.exchanges import Exchange, spelled
from sleepc.tasks.question_prompt import SHORTLY
from sleepc.train.study_requests import StudyRequest, detail, is_question, requests, write_question

QUESTION, ANSWER = 24, 40  # tokens, at most
SENTENCE = re.compile(r".+?[.!?][)\"']*(?=\s|$)")
LOOP = 3  # times the same three words


@dataclass(frozen=True)
class Tutor:
    """`steps` makes the teacher, with full attention, for so many tokens; `vocab` is its vocabulary size."""

    steps: Callable[[int], Steps]
    tokenizer: Tokenizer
    vocab: int

    def turns(self, text: str, count: int, chance: random.Random) -> list[Exchange]:
        """Up to `count` requests about a text, and what the teacher answers to each, greedily: the same ones for the
        same state of `chance`.
        """
        found = self._with_questions(requests(text, count, chance), chance)
        if not found:
            return []
        prompts = [spelled(self.tokenizer, text, [Exchange(each.text, each.answer)]) for each in found]
        answers = self._greedy(prompts, ANSWER)
        turns = [Exchange(each.text, _sentence(each.answer + said)) for each, said in zip(found, answers, strict=True)]
        return [turn for turn in turns if turn.answer]

    def _with_questions(self, found: Sequence[StudyRequest], chance: random.Random) -> list[StudyRequest]:
        """Those that need a question with the one that the teacher writes, or if that is none, about a detail."""
        open_ones = [each for each in found if each.about]
        if not open_ones:
            return list(found)
        prompts = [spelled(self.tokenizer, "", write_question(each)) for each in open_ones]
        written = iter(self._greedy(prompts, QUESTION))
        made = []
        for each in found:
            if each.about:
                question = each.begins + next(written)
                fits = is_question(question, each.about)
                each = StudyRequest(f"{question} {SHORTLY}") if fits else detail(each.about, chance)
            made.append(each)
        return made

    def _greedy(self, prompts: Sequence[Sequence[int]], most: int) -> list[str]:
        """What the teacher says after each prompt, up to the end of a line; what all begin with is read once."""
        longest, same = max(map(len, prompts)), _same(prompts)
        steps = self.steps(longest + most)
        if steps.window < longest + most:
            fix = "Use a smaller --length, or leave --studied out."
            said = f"the teacher has {steps.window} positions, and a text with a request {longest + most} tokens"
            raise UsageError(said, where="--studied", fix=fix)
        session = Session(steps)
        if same:
            session.feed([list(prompts[0][:same])], logits="none")
        session = session.select_rows([0] * len(prompts))
        session.feed([list(prompt[same:]) for prompt in prompts])
        ends = self.tokenizer.ends(self.tokenizer.template(), self.vocab)
        written = session.generate(most, stop_ids=ends, never=self.tokenizer.holes(self.vocab))
        rows = np.stack(list(written), 1).tolist()
        texts = (self.tokenizer.decode([i for i in row if i >= 0 and i not in ends]) for row in rows)
        return [text.lstrip("\n").partition("\n")[0].rstrip() for text in texts]


def _same(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with, of which each has more."""
    fewest = min(map(len, prompts)) - 1
    return next((i for i in range(fewest) if len({prompt[i] for prompt in prompts}) > 1), fewest)


def _sentence(answer: str) -> str:
    """The first sentence of an answer; nothing of one that does not end, or that says the same again and again."""
    found = SENTENCE.match(answer.strip())
    words = found[0].split() if found else []
    runs = Counter(zip(words, words[1:], words[2:], strict=False))
    return found[0] if found and max(runs.values(), default=1) < LOOP else ""
