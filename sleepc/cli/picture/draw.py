"""Where everything stands in the picture of a converted program: the way of a token, the sleep, the cost, the words."""

from __future__ import annotations

from sleepc.cli.display import number, size
from sleepc.cli.picture.canvas import LINE, Canvas
from sleepc.cli.picture.card import ENTRY, GAP, HEIGHT, LOWER, WIDTH, draw_card
from sleepc.cli.picture.facts import BlockGroup, Facts, Pattern
from sleepc.cli.picture.sentences import blocks_in_words, legend, sleep_steps, tokens_in_words

PAGE = 1124
LEFT = 66  # of cards
PANEL, PANEL_WIDTH = 786, 304
CHART, CHART_HEIGHT = 340, 130
TEXTS = 462  # of the legend
LONGEST_NAME = 60


def draw(facts: Facts) -> str:
    """The SVG of a converted program."""
    c = Canvas(PAGE)
    window = tokens_in_words(facts.recipe.window)
    name = facts.name if len(facts.name) <= LONGEST_NAME else f"{facts.name[:LONGEST_NAME]}…"
    c.heading(LEFT, 44, name, size=22)
    c.text(LEFT, 68, f"as sleepc converts it: bounded memory, and a sleep after every {window}", "soft", 14)
    c.heading(LEFT, 112, "AWAKE: the way of every token", "soft")
    y = first = _embed(c, 98, facts)
    places: list[tuple[float, BlockGroup]] = []
    for pattern in facts.patterns:
        y = _pattern(c, y, pattern, facts, places)
    _bracket(c, places, facts)
    y = _head(c, y, facts)
    y = max(y, _sleep(c, first, places, facts)) + 30
    y = max(_cost(c, y, facts), _legend(c, y, facts))
    told = "; ".join(f"{_title(part)}, memory: {part.memory.place}" for _, part in places)
    description = f"{len(facts.seen.blocks)} blocks. {told}. {' '.join(sleep_steps(facts))}"
    return c.render(y + 24, f"{facts.name}, converted by sleepc", description)


def _embed(c: Canvas, y: float, facts: Facts) -> float:
    """The first box of the way; the y of the first card."""
    middle = LEFT + ENTRY
    c.text(middle, y, "text, as tokens", "soft", anchor="middle")
    c.arrow([(middle, y + 6), (middle, y + 30)])
    c.box(middle - 190, y + 30, 380, 36, "step")
    c.text(middle, y + 53, f"embed: each token becomes {number(facts.seen.hidden)} numbers", anchor="middle")
    c.line([(middle, y + 66), (middle, y + 66 + GAP / 2)], "way")
    return y + 66 + GAP


def _head(c: Canvas, y: float, facts: Facts) -> float:
    """The last box of the way; its end."""
    middle = LEFT + ENTRY
    c.arrow([(middle, y - GAP / 2), (middle, y)])
    c.box(middle - 190, y, 380, 36, "step")
    c.text(middle, y + 23, f"output head: a score for each of {number(facts.seen.vocab)} tokens", anchor="middle")
    c.arrow([(middle, y + 36), (middle, y + 60)])
    c.text(middle, y + 76, "the next token", "soft", anchor="middle")
    return y + 80


def _pattern(c: Canvas, y: float, pattern: Pattern, facts: Facts, places: list[tuple[float, BlockGroup]]) -> float:
    """Draw one pattern and note where its parts are; the y of what comes next."""
    top = y
    for part in pattern.parts:
        draw_card(c, LEFT, y, part, _title(part), facts.recipe.sinks)
        places.append((y, part))
        y += HEIGHT + GAP
    if pattern.times > 1:
        a, b = pattern.blocks
        c.heading(LEFT, top - 8, f"blocks {a}–{b}: these {len(pattern.parts)} in turn, {pattern.times} times")
        c.line([(LEFT - 4, top), (LEFT - 16, top), (LEFT - 16, y - GAP), (LEFT - 4, y - GAP)], "frame")
    return y


def _bracket(c: Canvas, places: list[tuple[float, BlockGroup]], facts: Facts) -> None:
    """The loop of a recurrent sleep: from the end of its last block back to its first, and how often."""
    loop = facts.loop
    inside = [y for y, part in places if loop and loop.start <= part.blocks[0] < loop.end]
    if loop is None or not inside:
        return
    top, bottom, x = inside[0] + 40, inside[-1] + HEIGHT - 40, LEFT - 28
    c.arrow([(LEFT - 2, bottom), (x, bottom), (x, top), (LEFT - 1, top)], night=True)
    c.heading(x - 3, (top + bottom) / 2, f"{'≤ ' if loop.settle else ''}{loop.passes - 1}×", "asleep", 12, "end")


def _title(part: BlockGroup) -> str:
    count = len(part.blocks)
    return blocks_in_words(part.blocks) + (f": {count} alike" if count > 1 else "")


def _sleep(c: Canvas, top: float, places: list[tuple[float, BlockGroup]], facts: Facts) -> float:
    """The panel that says what a sleep does, and arrows to the memories that it writes; its end."""
    written = [y + LOWER + 20 for y, part in places if part.memory.asleep]
    if written:
        bus = PANEL - 20
        c.line([(PANEL, top + 24), (bus, top + 24), (bus, written[-1])], "night")
        for y in written:
            c.arrow([(bus, y), (LEFT + WIDTH + 1, y)], night=True)
    at, y = len(c.shapes), top + 30
    c.heading(PANEL + 18, y, f"ASLEEP: after every {tokens_in_words(facts.recipe.window)}", "asleep", 14)
    y += 30
    for i, text in enumerate(sleep_steps(facts), 1):
        c.heading(PANEL + 18, y, f"{i}", "asleep", 16)
        y = c.words(PANEL + 42, y, text, 35) + 8
    c.box(PANEL, top, PANEL_WIDTH, y - 8 - top, "panel")
    c.shapes.insert(at, c.shapes.pop())  # under its words
    return y


def _cost(c: Canvas, y: float, facts: Facts) -> float:
    """Bytes over length: the original's cache grows, the state does not. Its end."""
    seen, x = facts.seen, LEFT
    c.heading(x, y + 14, "Memory that a conversation takes", size=14)
    top, base, right = y + 34, y + 34 + CHART_HEIGHT, x + CHART
    cache, meets = seen.cache, seen.break_even
    end = 4 * max(meets or cache.longest_window, 1)
    most = max(cache.bytes(end), seen.state_bytes, 1)
    flat = base - CHART_HEIGHT * seen.state_bytes / most
    c.line([(x, top), (x, base), (right, base)], "axis")
    if meets is not None:
        c.line([(x + CHART / 4, flat), (x + CHART / 4, base + 6)], "axis", 1)
    bends = [0, *(kept for _, kept in cache.layers if 0 < kept < end), end]
    c.line([(x + CHART * n / end, base - CHART_HEIGHT * cache.bytes(n) / most) for n in bends], "cache", 2.5)
    c.line([(x, flat), (right, flat)], "night", 2.5)
    c.text(right, flat + 18, f"converted: {size(seen.state_bytes)}, always", "asleep", 12, "end")
    c.text(right - 100, top + 14, "the original's cache:", "cacheink", 12, "end")
    c.text(
        right - 100,
        top + 30,
        f"{size(seen.kv_bytes_per_token)} more per token{' then' if cache.longest_window else ''}",
        "cacheink",
        12,
        "end",
    )
    marks: list[tuple[float, int, str]] = [(x, 0, "start"), (right, end, "end")]
    if meets is not None:
        marks.insert(1, (x + CHART / 4, meets, "middle"))
    for place, count, anchor in marks:
        c.text(place, base + 20, f"{number(count)} tokens" if anchor == "middle" else number(count), "soft", 12, anchor)
    limit = f"{number(seen.max_positions)} positions" if seen.max_positions else "positions without limit"
    c.text(
        x, base + 46, f"{number(seen.parameters)} parameters, and {number(seen.new_parameters)} new ones", "soft", 12
    )
    c.text(x, base + 46 + LINE, f"{len(seen.blocks)} blocks · {limit} · {seen.dtype} numbers", "soft", 12)
    return base + 46 + LINE


def _legend(c: Canvas, y: float, facts: Facts) -> float:
    """The words of the picture, in plain words; the end."""
    c.heading(TEXTS, y + 14, "In plain words", size=14)
    y += 40
    for kind, word, meaning in legend(facts):
        c.box(TEXTS, y - 13, 22, 16, kind, 3)
        c.heading(TEXTS + 32, y, word)
        y = c.words(TEXTS + 132, y, meaning, 68) + 6
    return y
