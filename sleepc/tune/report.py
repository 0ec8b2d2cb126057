"""What was measured as one HTML page: a plot with what each point is, and the table. Nothing is fetched by it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from sleepc.tune.choose import Selection
from sleepc.tune.quality import LESS_IS_BETTER
from sleepc.tune.record import Entry, Figures
from sleepc.tune.schedules import Schedule, Schedules

WIDTH, HEIGHT, LEFT, BELOW = 760, 420, 64, 48
COLUMNS = {
    "decode_ms": "ms per token",
    "decode_p99_ms": "p99",
    "read_ms": "ms per token read",
    "spread": "±",
    "pause_ms": "ms per sleep",
    "pause_p99_ms": "p99",
    "memory": "MB",
}
COLOURS = {"chosen": "#c2410c", "front": "#1d4ed8", "other": "#9ca3af"}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; color: #1f2937; background: #fff }
h1 { font-size: 1.3em } table { border-collapse: collapse } td, th { padding: .15em .8em; text-align: right }
td:nth-child(2), th:nth-child(2) { text-align: left } td { white-space: nowrap } tr.chosen { font-weight: 600 }
tr:hover, tr.hover { background: #f3f4f6 } circle { stroke: #fff; cursor: pointer } circle.hover { stroke: #000 }
.said { min-height: 1.5em; margin: .2em 0 }
tr.by td { color: #6b7280; text-align: left; font-size: .85em; white-space: normal }
text { font-size: 12px; fill: #374151 } .reason { color: #b91c1c; text-align: left }
"""
SCRIPT = """
for (const point of document.querySelectorAll('circle')) {
  const row = document.getElementById(point.dataset.row), said = point.closest('svg').nextElementSibling;
  const mark = on => { for (const each of [point, row]) each.classList.toggle('hover', on);
    said.textContent = on ? point.querySelector('title').textContent : ''; };
  for (const each of [point, row]) {
    each.addEventListener('mouseenter', () => mark(true));
    each.addEventListener('mouseleave', () => mark(false));
  }
}
"""


@dataclass(frozen=True)
class Dot:
    """A point of a plot: `kind` is a key of COLOURS, `row` the table's row of it; name and words are shown under a
    pointer.
    """

    x: float
    y: float
    kind: str
    row: str
    name: str
    words: str


@dataclass(frozen=True)
class Scatter:
    """Points, and what their axes are of. They begin at 0, unless quality is on one (`from_zero`)."""

    dots: Sequence[Dot]
    x: str
    y: str
    from_zero: bool = True

    def ticks(self, axis: str) -> list[float]:
        """Round numbers along x or y, from where the axis begins to where it ends."""
        values = [getattr(dot, axis) for dot in self.dots] or [1.0]
        low, high = 0.0 if self.from_zero else min(values), max(values)
        wide = 1.1 * (high - low) or high or 1.0
        step = 10.0 ** floor(log10(wide / 4))
        step *= next(many for many in (1, 2, 5, 10) if wide / (step * many) <= 6)
        first = floor(low / step - 0.3) if low else 0
        last = ceil(high / step + 0.3)
        return [step * at for at in range(max(first, 0), last + 1)]


def page(title: str, entries: Sequence[Entry], choice: Selection, schedules: Schedules | None = None) -> str:
    """The page, with every text of others escaped."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    words = (
        "Each point is a way to run the program: to the left and below is faster. Orange is the chosen one, blue are "
        "others that nothing beats in everything."
    )
    sleeping = "" if schedules is None else _of_schedules(schedules)
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{escape(title)}</h1><p>{words}</p>'
        f"{_plot(candidates_of(entries, choice))}{_listed(choice.costs)}{_table(entries, choice)}{sleeping}"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def candidates_of(entries: Sequence[Entry], choice: Selection) -> Scatter:
    """Milliseconds of a token against those of reading."""
    known = [each for each in entries if each.figures is not None]
    dots = [
        Dot(_of(e).decode_ms, _of(e).read_ms, _kind(e, choice), _row(e), e.candidate.words(), _words(e)) for e in known
    ]
    return Scatter(dots, "ms per token, read alone", "ms per token of a call of many")


def schedules_of(found: Schedules) -> Scatter:
    """Milliseconds of a token, with its share of the sleep, against the quality."""
    dots = []
    for at, each in enumerate(found.found):
        kind = "chosen" if each is found.chosen else "front" if each in found.front else "other"
        words = ", ".join(f"{value} {name}" for name, value in _facts(each, found.metric).items())
        dots.append(Dot(each.token_ms, each.quality, kind, f"s-{at}", each.name(), words))
    return Scatter(dots, "ms per token, with its share of the sleep", found.metric, from_zero=False)


def _facts(each: Schedule, metric: str) -> dict[str, str]:
    its = each.figures
    times = {"ms per token": each.token_ms, "ms per token read": each.read_ms, "ms per sleep": its.pause_ms}
    times |= {"p99": its.pause_p99_ms, "MB of state": each.state_bytes / 1e6, "MB": its.memory / 1e6}
    return {metric: f"{each.quality:.3g}", **{name: f"{value:.2f}" for name, value in times.items()}}


def _of_schedules(found: Schedules) -> str:
    """The plot and the table of ways to sleep, with quality by distance."""
    scatter, rows = schedules_of(found), []
    for dot, each in zip(scatter.dots, found.found, strict=True):
        cells = f'<td><span style="color:{COLOURS[dot.kind]}">●</span></td><td>{escape(each.name())}</td>'
        cells += "".join(f"<td>{value}</td>" for value in _facts(each, found.metric).values())
        rows.append(f'<tr id="{dot.row}" class="{dot.kind}">{cells}</tr>')
        if each.places:
            span = len(_facts(each, found.metric))
            rows.append(f'<tr class="by"><td></td><td colspan="{span + 1}">{escape("; ".join(each.places))}</td></tr>')
    names = ("", "schedule", *(_facts(found.found[0], found.metric) if found.found else ()))
    words = f"Each point is a way to sleep, measured by PyTorch: to the left is faster, above is better {found.metric}."
    if found.metric in LESS_IS_BETTER:
        words = (
            f"Each point is a way to sleep, measured by PyTorch: to the left is faster, less {found.metric} is better."
        )
    return f"<h1>Sleeping</h1><p>{escape(words)}</p>{_plot(scatter)}{_listed(found.costs)}{_tabled(names, rows)}"


def _listed(costs: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(words)}</li>' for words in costs)}</ul>"


def _plot(scatter: Scatter) -> str:
    """As SVG; what is under the pointer is said below."""
    xs, ys = scatter.ticks("x"), scatter.ticks("y")
    wide, high = WIDTH - LEFT - 24, HEIGHT - BELOW - 16

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * (x - xs[0]) / (xs[-1] - xs[0]), 16 + high * (1 - (y - ys[0]) / (ys[-1] - ys[0]))

    shapes = []
    for tick in xs:
        x, _ = place(tick, ys[0])
        shapes.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{16 + high}" stroke="#e5e7eb"/>')
        shapes.append(f'<text x="{x:.1f}" y="{HEIGHT - 28}" text-anchor="middle">{tick:.4g}</text>')
    for tick in ys:
        _, y = place(xs[0], tick)
        shapes.append(f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e7eb"/>')
        shapes.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for dot in sorted(scatter.dots, key=lambda dot: list(COLOURS).index(dot.kind), reverse=True):
        x, y = place(dot.x, dot.y)
        shapes.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" fill="{COLOURS[dot.kind]}" data-row="{dot.row}">'
            f"<title>{escape(f'{dot.name}: {dot.words}')}</title></circle>"
        )
    middle = 16 + high / 2
    shapes.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(scatter.x)}</text>')
    shapes.append(f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">')
    shapes.append(f"{escape(scatter.y)}</text>")
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return f'<svg {size} role="img">{"".join(shapes)}</svg><p class="said"></p>'


def _table(entries: Sequence[Entry], choice: Selection) -> str:
    rows = []
    for entry in sorted(entries, key=lambda each: each.figures.decode_ms if each.figures else float("inf")):
        kind = _kind(entry, choice)
        cells = f'<td><span style="color:{COLOURS[kind]}">●</span></td><td>{escape(entry.candidate.words())}</td>'
        if entry.figures is None:
            cells += f'<td class="reason" colspan="{len(COLUMNS)}">{escape(entry.reason)}</td>'
        else:
            cells += "".join(f"<td>{_cell(entry.figures, name)}</td>" for name in COLUMNS)
        rows.append(f'<tr id="{_row(entry)}" class="{kind}">{cells}</tr>')
    return _tabled(("", "candidate", *COLUMNS.values()), rows)


def _tabled(names: Iterable[str], rows: Sequence[str]) -> str:
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _kind(entry: Entry, choice: Selection) -> str:
    return "chosen" if entry is choice.entry else "front" if entry in choice.front else "other"


def _row(entry: Entry) -> str:
    """A name for a page's element: words of a candidate have no quotes or spaces but between them."""
    return "c-" + escape(entry.candidate.words().replace(" ", "-").replace("=", "-"))


def _words(entry: Entry) -> str:
    return ", ".join(f"{_cell(_of(entry), name)} {words}" for name, words in COLUMNS.items())


def _cell(figures: Figures, name: str) -> str:
    value = getattr(figures, name)
    predicted = " (predicted)" if figures.predicted else ""
    if name == "spread":
        return f"{value:.0%}"
    return (f"{value / 1e6:.1f}" if name == "memory" else f"{value:.2f}") + predicted


def _of(entry: Entry) -> Figures:
    assert entry.figures is not None
    return entry.figures
