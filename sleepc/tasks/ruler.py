"""RULER's needles and variable tracking (arXiv 2404.06654) as texts with questions, of so many tokens.

`ruler-single`: a magic number among sentences of noise (niah_single_1), or several of as many `needles`, each asked for
(niah_multikey_1 asks for one, and has essays for noise). `ruler-multikey`: nothing but lines with magic
numbers (niah_multikey_2); `questions` of the keys are asked for, one after another. `ruler-tracking`: a chain of `hops`
variables among the noise (vt); the answer is all of their names, and is worth the share of them that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sleepc.tasks.puzzle import check, refusal
from sleepc.tasks.question_file import Document, TextQuestion

Tokens = Callable[[str], int]
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ADJECTIVES = (
    "quiet bright narrow gentle hollow sudden distant clever frozen humble golden restless ancient bitter crooked "
    "dusty early faithful heavy little modest noisy polite silver"
)
NOUNS = (
    "harbour lantern meadow anvil compass orchard thimble falcon glacier saddle pepper violin bucket candle desert "
    "engine feather garden hammer island jacket kettle ladder mirror"
)
KEYS = tuple(f"{adjective}-{noun}" for adjective in ADJECTIVES.split() for noun in NOUNS.split())
DEPTHS = 40  # places that a needle is put to, evenly


@dataclass(frozen=True)
class Needles:
    """The magic number of a key, told once among filler sentences."""

    length: tuple[int, ...] = (1000, 2000, 4000, 7500)
    needles: int = 1

    def __post_init__(self) -> None:
        check(self)
        if self.needles > DEPTHS:
            raise refusal(f"{self.needles} needles need as many places, and there are {DEPTHS}")

    def document(self, length: int, rng: np.random.Generator, tokens: Tokens) -> Document:
        """A text of at most `length` tokens as `tokens` counts them."""
        pairs = list(zip(_keys(rng, self.needles), _numbers(rng, self.needles, 7), strict=True))
        places = sorted((rng.permutation(DEPTHS)[: self.needles] / (DEPTHS - 1)).tolist())
        told = [(place, _needle(*pair)) for place, pair in zip(places, pairs, strict=True)]
        text = _fit(lambda n: _among(n, told), length, tokens)
        return Document(text, tuple(_asked(*pair) for pair in pairs), f"ruler-single {length}", length)


@dataclass(frozen=True)
class Keys:
    """The magic number of a key, if every line tells one."""

    length: tuple[int, ...] = (1000, 2000, 4000, 7500)
    questions: int = 4

    def __post_init__(self) -> None:
        check(self)
        if self.questions > len(KEYS):
            raise refusal(f"{self.questions} questions need as many keys, and there are {len(KEYS)}")

    def document(self, length: int, rng: np.random.Generator, tokens: Tokens) -> Document:
        """See Needles."""
        words, numbers = _keys(rng, len(KEYS)), _numbers(rng, len(KEYS), 7)
        lines = [_needle(word, number) for word, number in zip(words, numbers, strict=True)]
        text = _fit(lambda n: "\n".join(lines[: self.questions + n]), length, tokens)
        told = text.count("\n") + 1
        if told == len(KEYS):
            raise refusal(f"a text of {length} tokens has room for more than the {len(KEYS)} keys that there are")
        chosen = rng.permutation(told)[: self.questions].tolist()
        asked = tuple(_asked(words[i], numbers[i]) for i in chosen)
        return Document(text, asked, f"ruler-multikey {length}", length)


@dataclass(frozen=True)
class Chain:
    """All variables that have a value: the first was given it, each other was given the one before."""

    length: tuple[int, ...] = (1000, 2000, 4000, 7500)
    hops: int = 4

    def __post_init__(self) -> None:
        check(self)

    def document(self, length: int, rng: np.random.Generator, tokens: Tokens) -> Document:
        """See Needles."""
        letters = rng.permutation(26**3)[: self.hops + 1].tolist()
        names = ["".join(chr(65 + code // 26**k % 26) for k in range(3)) for code in letters]
        value = _numbers(rng, 1, 5)[0]
        lines = [f"VAR {a} = {b}." for a, b in zip(names, [value, *(f"VAR {n}" for n in names)], strict=False)]
        places = sorted(rng.random(len(lines)).tolist())
        text = _fit(lambda n: _among(n, list(zip(places, lines, strict=True))), length, tokens)
        question = f"Find all variables that are assigned the value {value} in the text above."
        return Document(text, (TextQuestion(question, tuple(names), every=True),), f"ruler-tracking {length}", length)


Kind = Needles | Keys | Chain
RULER: Mapping[str, type[Kind]] = {
    "ruler-single": Needles,
    "ruler-multikey": Keys,
    "ruler-tracking": Chain,
}


def ruler_documents(kind: Kind, samples: int, seed: int, tokens: Tokens) -> list[Document]:
    """`samples` texts of every length. Raises UsageError for a length without room for what is told."""
    found = []
    for length in kind.length:
        for index in range(samples):
            found.append(kind.document(length, np.random.default_rng([seed, length, index]), tokens))
    return found


def _keys(rng: np.random.Generator, count: int) -> list[str]:
    return [KEYS[i] for i in rng.permutation(len(KEYS))[:count]]


def _numbers(rng: np.random.Generator, count: int, digits: int) -> list[str]:
    """Different numbers of so many digits."""
    low = 10 ** (digits - 1)
    found = (low + rng.choice(9 * low, count, replace=False, shuffle=False)).tolist()
    return [str(number) for number in found]


def _needle(key: str, number: str) -> str:
    return f"One of the special magic numbers for {key} is: {number}."


def _asked(key: str, number: str) -> TextQuestion:
    return TextQuestion(f"What is the special magic number for {key} mentioned in the provided text?", (number,))


def _among(count: int, told: Sequence[tuple[float, str]]) -> str:
    """`count` sentences of noise, and what is told at its place among them (0: before all, 1: after all)."""
    sentences = NOISE.split(". ")
    lines = [f"{sentences[i % len(sentences)].rstrip('.')}." for i in range(count)]
    for place, line in reversed(told):
        lines.insert(round(place * count), line)
    return " ".join(lines)


def _fit(make: Callable[[int], str], length: int, tokens: Tokens) -> str:
    """The longest text of so many tokens, of 0 or more pieces. Raises UsageError if that of 0 is too long."""
    if tokens(make(0)) > length:
        raise refusal(f"a text of {length} tokens has no room for what is told in it")
    fits, beyond = 0, length
    while fits + 1 < beyond:
        middle = (fits + beyond) // 2
        fits, beyond = (middle, beyond) if tokens(make(middle)) <= length else (fits, middle)
    return make(fits)
