"""What was measured as one HTML page: a plot with what each point is, and the table. Nothing is fetched by it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sleepc.tune.choose import Selection
from sleepc.tune.record import Entry, Figures

WIDTH, HEIGHT, LEFT, BELOW = 760, 420, 64, 48
COLUMNS = {
    "decode_ms": "ms per token",
    "decode_p99_ms": "p99",
    "read_ms": "ms per token read",
    "pause_ms": "ms per sleep",
    "pause_p99_ms": "p99",
    "memory": "MB",
}
COLOURS = {"chosen": "#c2410c", "front": "#1d4ed8", "other": "#9ca3af"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 62em; color: #1f2937; background: #fff }
h1 { font-size: 1.3em } table { border-collapse: collapse } td, th { padding: .15em .8em; text-align: right }
td:nth-child(2), th:nth-child(2) { text-align: left } tr.chosen { font-weight: 600 }
tr:hover, tr.hover { background: #f3f4f6 } circle { stroke: #fff; cursor: pointer } circle.hover { stroke: #000 }
#said { min-height: 1.5em } text { font-size: 12px; fill: #374151 } .reason { color: #b91c1c; text-align: left }
"""
SCRIPT = """
for (const point of document.querySelectorAll('circle')) {
  const row = document.getElementById(point.dataset.row), said = document.getElementById('said');
  const mark = on => { for (const each of [point, row]) each.classList.toggle('hover', on);
    said.textContent = on ? point.querySelector('title').textContent : ''; };
  for (const each of [point, row]) {
    each.addEventListener('mouseenter', () => mark(true));
    each.addEventListener('mouseleave', () => mark(false));
  }
}
"""


def page(title: str, entries: Sequence[Entry], choice: Selection) -> str:
    """The page, with every text of others escaped."""
    known = [each for each in entries if each.figures is not None]
    costs = "".join(f"<li>{escape(words)}</li>" for words in choice.costs)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    words = (
        "Each point is a way to run the program: to the left and below is faster. Orange is the chosen one, blue are "
        "others that nothing beats in everything."
    )
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{escape(title)}</h1><p>{words}</p>'
        f'{_plot(known, choice)}<p id="said"></p><ul>{costs}</ul>{_table(entries, choice)}'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _plot(entries: Sequence[Entry], choice: Selection) -> str:
    """Milliseconds of a token against those of reading, both from 0."""
    points = [(_of(each).decode_ms, _of(each).read_ms) for each in entries]
    most = [1.08 * max((point[axis] for point in points), default=1.0) or 1.0 for axis in (0, 1)]
    wide, high = WIDTH - LEFT - 16, HEIGHT - BELOW - 16
    shapes = []
    for at in range(6):
        x, y = LEFT + wide * at / 5, 16 + high * (1 - at / 5)
        shapes.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{16 + high}" stroke="#e5e7eb"/>')
        shapes.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        shapes.append(f'<text x="{x:.1f}" y="{HEIGHT - 28}" text-anchor="middle">{most[0] * at / 5:.3g}</text>')
        shapes.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{most[1] * at / 5:.3g}</text>')
    for entry, (decode, read) in zip(entries, points, strict=True):
        x, y = LEFT + wide * decode / most[0], 16 + high * (1 - read / most[1])
        colour = COLOURS[_kind(entry, choice)]
        shapes.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{colour}" data-row="{_row(entry)}">'
            f"<title>{escape(_words(entry))}</title></circle>"
        )
    shapes.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 8}" text-anchor="middle">ms per token, read alone</text>')
    shapes.append(f'<text x="14" y="{16 + high / 2}" text-anchor="middle" transform="rotate(-90 14 {16 + high / 2})">')
    shapes.append("ms per token of a call of many</text>")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(shapes)}</svg>'


def _table(entries: Sequence[Entry], choice: Selection) -> str:
    heads = "".join(f"<th>{words}</th>" for words in ("", "candidate", *COLUMNS.values()))
    rows = []
    for entry in sorted(entries, key=lambda each: each.figures.decode_ms if each.figures else float("inf")):
        kind = _kind(entry, choice)
        cells = f'<td><span style="color:{COLOURS[kind]}">●</span></td><td>{escape(entry.candidate.words())}</td>'
        if entry.figures is None:
            cells += f'<td class="reason" colspan="{len(COLUMNS)}">{escape(entry.reason)}</td>'
        else:
            cells += "".join(f"<td>{_cell(entry.figures, name)}</td>" for name in COLUMNS)
        rows.append(f'<tr id="{_row(entry)}" class="{kind}">{cells}</tr>')
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _kind(entry: Entry, choice: Selection) -> str:
    return "chosen" if entry is choice.entry else "front" if entry in choice.front else "other"


def _row(entry: Entry) -> str:
    """A name for a page's element: words of a candidate have no quotes or spaces but between them."""
    return "c-" + escape(entry.candidate.words().replace(" ", "-").replace("=", "-"))


def _words(entry: Entry) -> str:
    found = ", ".join(f"{_cell(_of(entry), name)} {words}" for name, words in COLUMNS.items())
    return f"{entry.candidate.words()}: {found}"


def _cell(figures: Figures, name: str) -> str:
    value = getattr(figures, name)
    predicted = " (predicted)" if figures.predicted else ""
    return (f"{value / 1e6:.1f}" if name == "memory" else f"{value:.2f}") + predicted


def _of(entry: Entry) -> Figures:
    assert entry.figures is not None
    return entry.figures
