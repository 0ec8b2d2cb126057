"""The sentences of a picture: what a sleep does, and what its words mean to somebody who reads them first here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sleepc.cli.display import number
from sleepc.cli.picture.facts import Facts
from sleepc.diffing import numbers
from sleepc.passes.consolidation.registry import asleep as sleeps_of
from sleepc.passes.consolidation.registry import find as find_consolidation

HELD = "what the window held (keys and values)"
DROPPED = "what heads do not keep (keys and values) of the window and of what they had kept"
MANY = 5  # runs of blocks that are named one by one


def tokens_in_words(count: int) -> str:
    """`token`, or `256 tokens`, as it stands after "every"."""
    return f"{number(count)} tokens" if count > 1 else "token"


def blocks_in_words(blocks: Sequence[int]) -> str:
    """Sorted blocks by number, many of them in short."""
    return numbers(blocks, "block", MANY)


def sleep_steps(facts: Facts) -> list[str]:
    """What a sleep does, one sentence or two a step."""
    recipe, parts = facts.recipe, facts.parts()
    window = tokens_in_words(recipe.window)
    steps = [
        f"{window.capitalize()} have been read since the last sleep." if recipe.window > 1 else "A token was read."
    ]
    count = len(facts.seen.blocks)
    again = find_consolidation(recipe.consolidation).again_in_words(recipe, count, blocks_in_words)
    replays = max(each.replays for each in sleeps_of(recipe, count))
    asleep = [p for p in parts if p.memory.replayed and not p.memory.awake]
    both = sorted(i for p in parts if p.memory.replayed and p.memory.awake for i in p.blocks)
    awake = sorted(i for p in parts if p.memory.awake and not p.memory.replayed for i in p.blocks)
    for what, drops in ((HELD, False), (DROPPED, True)):
        if blocks := sorted(i for p in asleep if p.memory.drops is drops for i in p.blocks):
            how = "" if again else " Nothing is computed again."
            steps.append(f"In {blocks_in_words(blocks)} {what} is written into the memory: {_passes(replays)}.{how}")
    if both and replays > 1:
        steps.append(
            f"In {blocks_in_words(both)} every token was written into the memory when it was read; what was written "
            f"is now written again: {_passes(replays - 1)}."
        )
    if awake:
        steps.append(f"In {blocks_in_words(awake)} every token was written into the memory when it was read.")
    if again:
        steps.append(again)
    steps.append(_eviction(facts, window))
    steps.append("Awake again: the next tokens read what the memory holds.")
    return steps


def _passes(count: int) -> str:
    return "one pass" if count == 1 else f"{count} passes"


def _eviction(facts: Facts, window: str) -> str:
    recipe = facts.recipe
    if not any(part.kept for part in facts.parts()):
        return "There is no window to empty."
    if recipe.eviction == "sliding":
        return f"The window slides on: the latest {window} stay, older ones make room as new ones come."
    stays = "nothing stays in it" if not recipe.sinks else f"the first {tokens_in_words(recipe.sinks)} stay"
    return f"The window is emptied; {stays}."


def legend(facts: Facts) -> Iterator[tuple[str, str, str]]:
    """(class of the canvas, word, meaning) for what is in this picture."""
    parts = facts.parts()
    yield "now", "token", "a piece of text, often a word; this one is being read"
    if any(part.kept for part in parts):
        yield "window", "window", "what attention looks at, token by token: the latest ones only"
        if facts.recipe.sinks:
            yield "sink", "first tokens", "the first ones stay: attention leans on them"
    if any(part.memory.place != "none" for part in parts):
        yield "memory", "memory", "a table of fixed size for what has left the window; it never grows"
        yield "panel", "sleep", "a short pause after a window of tokens; the panel has its steps"
    yield "step", "heads", "attention asks several questions at once; each is one head"
