"""One card of a picture: what neighbouring, equal blocks do with a token, and what a sleep does in them."""

from __future__ import annotations

from sleepc.cli.display import number, size
from sleepc.cli.picture.canvas import Canvas
from sleepc.cli.picture.facts import BlockGroup
from sleepc.inspection import BlockInfo
from sleepc.masks import Mask

WIDTH, HEIGHT = 680, 214
GAP = 34  # between cards
ENTRY = 359  # where a token comes in, from a card's left edge
CELL, CELL_HEIGHT, STEP = 14, 28, 16
CELLS = 16  # of sinks and window, however many tokens they hold
ROW = 66  # from a card's top to the top of its windows
MIDDLE = ROW + CELL_HEIGHT / 2
LOWER = 138  # to the top of its memory
BOX = 266  # width of a memory


def draw_card(c: Canvas, x: float, y: float, part: BlockGroup, title: str, sinks: int) -> None:
    """Draw a part of the program with its top left corner at (x, y), and the token's way on to what comes below."""
    c.box(x, y, WIDTH, HEIGHT, "card")
    c.heading(x + 18, y + 26, title, size=14)
    before = f"attention over {_before(part.info)}" if part.info.q_heads else "recurrent as well"
    c.text(x + 20, y + HEIGHT - 13, f"the original: {before}", "soft", 12)
    state = f"state of each block: {size(part.state_bytes)} per sequence"
    c.text(x + WIDTH - 28, y + HEIGHT - 13, state, "soft", 12, "end")
    c.arrow([(x + ENTRY, y - GAP / 2), (x + ENTRY, y + MIDDLE - 20)])
    if not part.info.q_heads:
        end = _recurrent(c, x, y)
    elif part.memory.place == "instead":
        _instead(c, x, y, part)
        end = x + 642
    else:
        _window(c, x + 20, y + ROW, part, sinks)
        c.arrow([(x + 276, y + MIDDLE), (x + 304, y + MIDDLE)])
        _attention(c, x + 304, y, part)
        end = {"none": _without, "beside": _beside, "after": _after}[part.memory.place](c, x, y, part)
    right, below = x + WIDTH - 14, y + HEIGHT + GAP / 2
    c.line([(end, y + MIDDLE), (right, y + MIDDLE), (right, below), (x + ENTRY, below)], "way")


def _before(info: BlockInfo) -> str:
    """What the layer's own mask lets a token see."""
    return Mask.parse(info.sees).tokens(number)


def _step(c: Canvas, x: float, y: float, text: str, width: float = 110) -> None:
    c.box(x, y + MIDDLE - 20, width, 40, "step")
    c.text(x + width / 2, y + MIDDLE + 5, text, anchor="middle")


def _attention(c: Canvas, x: float, y: float, part: BlockGroup) -> None:
    """The box, and its heads below it."""
    info = part.info
    _step(c, x, y, "attention")
    lines = [f"{info.q_heads} head{'s' if info.q_heads > 1 else ''} of size {info.head_size}"]
    if info.kv_heads != info.q_heads:
        lines.append(f"{info.kv_heads} for keys, values")
    if info.softcap:
        lines.append(f"scores capped at {info.softcap:g}")
    if info.sink_logits:
        lines.append("learned sink logits")
    for i, line in enumerate(lines[:3]):
        c.text(x + 55, y + MIDDLE + 36 + 14 * i, line, "soft", 12, "middle")


def _window(c: Canvas, x: float, y: float, part: BlockGroup, sinks: int) -> None:
    """Cells of the sinks and of the window, the newest token last."""
    shown = min(sinks, 4)
    for i in range(shown):
        c.box(x + i * STEP, y, CELL, CELL_HEIGHT, "sink", 3)
    gap = 1 if sinks else 0
    if sinks:
        c.text(x, y - 8, f"first {number(sinks)}", "soft", 12)
        c.text(x + shown * STEP + 1, y + 18, "" if part.everything else "…", "soft")
    for i in range(shown + gap, CELLS):
        c.box(x + i * STEP, y, CELL, CELL_HEIGHT, "now" if i == CELLS - 1 else "window", 3)
    c.text(x + max(shown + gap, 3 if sinks else 0) * STEP, y - 8, _window_words(part), "soft", 12)


def _window_words(part: BlockGroup) -> str:
    own = part.info.reach
    if 0 < own <= part.kept:
        return f"window: the nearest {number(own)} tokens" if part.info.window == own else _before(part.info)
    if part.everything:
        return f"all of {number(part.kept)} tokens"
    return f"window: the latest {number(part.kept)} tokens" if part.kept > 1 else "window: one token"


def _without(c: Canvas, x: float, y: float, part: BlockGroup) -> float:
    """attention -> feed-forward; where the way ends."""
    _step(c, x + 532, y, "feed-forward")
    c.arrow([(x + 414, y + MIDDLE), (x + 532, y + MIDDLE)])
    unchanged = part.everything or 0 < part.info.reach <= part.kept
    after = "attention is as in the original" if unchanged else "what leaves the window is gone"
    c.text(x + 20, y + LOWER + 30, f"no memory here: {after}")
    return x + 642


def _recurrent(c: Canvas, x: float, y: float) -> float:
    """recurrence -> feed-forward; where the way ends."""
    _step(c, x + 304, y, "recurrence")
    _step(c, x + 532, y, "feed-forward")
    c.arrow([(x + 414, y + MIDDLE), (x + 532, y + MIDDLE)])
    c.text(x + 20, y + LOWER + 30, "the model's own: every token writes what it carries")
    return x + 642


def _beside(c: Canvas, x: float, y: float, part: BlockGroup) -> float:
    """attention -> mix with the memory's answer -> feed-forward; where the way ends."""
    for left, text, width in ((444, "mix", 58), (532, "feed-forward", 110)):
        _step(c, x + left, y, text, width)
        c.arrow([(x + left - 30, y + MIDDLE), (x + left, y + MIDDLE)])
    _memory_box(c, x + 20, y + LOWER, part)
    c.arrow([(x + 20 + BOX, y + LOWER + 20), (x + 473, y + LOWER + 20), (x + 473, y + MIDDLE + 20)])
    c.text(x + 300, y + LOWER + 36, "read by every token", "soft", 12)
    night, at = part.memory.asleep, x + 150
    c.arrow([(at, y + ROW + CELL_HEIGHT + 4), (at, y + LOWER - 1)], night=night)
    c.text(at + 12, y + LOWER - 16, _when(part), "asleep" if night else "soft", 12)
    return x + 642


def _after(c: Canvas, x: float, y: float, part: BlockGroup) -> float:
    """attention -> feed-forward -> the memory's answer is added; where the way ends."""
    for left, text, width in ((444, "feed-forward", 110), (596, "add", 46)):
        _step(c, x + left, y, text, width)
    c.arrow([(x + 414, y + MIDDLE), (x + 444, y + MIDDLE)])
    c.arrow([(x + 554, y + MIDDLE), (x + 596, y + MIDDLE)])
    _memory_box(c, x + 20, y + LOWER, part)
    right = x + 20 + BOX
    c.arrow([(x + 574, y + MIDDLE), (x + 574, y + LOWER + 16), (right, y + LOWER + 16)])
    c.arrow([(right, y + LOWER + 31), (x + 619, y + LOWER + 31), (x + 619, y + MIDDLE + 20)])
    how = "written by every token" if part.memory.awake else "recorded"
    c.text(x + 428, y + LOWER + 10, how, "soft", 12)
    c.text(x + 428, y + LOWER + 45, "read by every token", "soft", 12)
    if part.memory.asleep:
        c.arrow([(x + 36, y + LOWER - 26), (x + 36, y + LOWER - 1)], night=True)
        c.text(x + 48, y + LOWER - 14, f"written when asleep, {_source(part)}", "asleep", 12)
    return x + 642


def _instead(c: Canvas, x: float, y: float, part: BlockGroup) -> None:
    """the memory's answer -> feed-forward"""
    left = x + ENTRY - BOX / 2
    _memory_box(c, left, y + MIDDLE - 20, part)
    c.text(
        x + ENTRY, y + MIDDLE + 38, "in the place of attention: read and written by every token", "soft", 12, "middle"
    )
    if part.memory.asleep:
        c.text(
            x + ENTRY, y + MIDDLE + 56, "and written when asleep, from a record of the window", "asleep", 12, "middle"
        )
    _step(c, x + 532, y, "feed-forward")
    c.arrow([(left + BOX, y + MIDDLE), (x + 532, y + MIDDLE)])


def _source(part: BlockGroup) -> str:
    return "by running again" if part.memory.again else "from a record"


def _when(part: BlockGroup) -> str:
    if part.memory.awake and part.memory.asleep:
        return "written by every token and asleep"
    return "written when asleep" if part.memory.asleep else "written by every token"


def _memory_box(c: Canvas, x: float, y: float, part: BlockGroup) -> None:
    c.box(x, y, BOX, 40, "memory")
    shape = " + ".join(" × ".join(map(str, s)) for s in part.memory.shapes)
    c.heading(x + 12, y + 17, "memory (fast weights)", "inmemory")
    c.text(x + 12, y + 33, f"{shape} numbers · {part.memory.rule}", "inmemory", 12)
