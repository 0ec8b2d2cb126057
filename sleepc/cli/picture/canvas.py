"""A canvas that becomes one SVG without scripts or fonts of its own; colours are classes, for light and dark."""

from __future__ import annotations

import textwrap
from xml.sax.saxutils import escape

# class -> (fill, stroke) in light, in dark; "" leaves one out
LIGHT: dict[str, tuple[str, str]] = {
    "page": ("#ffffff", ""),
    "ink": ("#1f2937", ""),
    "soft": ("#5b6675", ""),
    "card": ("#f8fafc", "#cbd5e1"),
    "frame": ("none", "#94a3b8"),
    "step": ("#ffffff", "#94a3b8"),
    "sink": ("#d1fae5", "#059669"),
    "window": ("#dbeafe", "#3b82f6"),
    "now": ("#2563eb", "#2563eb"),
    "memory": ("#fef3c7", "#f59e0b"),
    "inmemory": ("#92400e", ""),
    "asleep": ("#b45309", ""),
    "way": ("none", "#64748b"),
    "tip": ("#64748b", ""),
    "night": ("none", "#d97706"),
    "nighttip": ("#d97706", ""),
    "cache": ("none", "#3b82f6"),
    "cacheink": ("#1d4ed8", ""),
    "axis": ("none", "#cbd5e1"),
    "panel": ("#fffbeb", "#f59e0b"),
}
DARK: dict[str, tuple[str, str]] = {
    "page": ("#0f172a", ""),
    "ink": ("#e5e9f0", ""),
    "soft": ("#a3b0c2", ""),
    "card": ("#1a2436", "#475569"),
    "frame": ("none", "#64748b"),
    "step": ("#0f172a", "#64748b"),
    "sink": ("#064e3b", "#34d399"),
    "window": ("#1e3a6e", "#60a5fa"),
    "now": ("#60a5fa", "#60a5fa"),
    "memory": ("#4a2c0a", "#fbbf24"),
    "inmemory": ("#fde68a", ""),
    "asleep": ("#fbbf24", ""),
    "way": ("none", "#94a3b8"),
    "tip": ("#94a3b8", ""),
    "night": ("none", "#fbbf24"),
    "nighttip": ("#fbbf24", ""),
    "cache": ("none", "#60a5fa"),
    "cacheink": ("#93c5fd", ""),
    "axis": ("none", "#475569"),
    "panel": ("#231a0a", "#b45309"),
}
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
LINE = 18  # pixels from one line of text to the next
NOT_IN_XML = str.maketrans(dict.fromkeys((*range(32), *range(127, 160), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF), " "))


class Canvas:
    """Shapes in the order in which they are drawn. Coordinates are pixels from the top left."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.shapes: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, kind: str, radius: float = 8) -> None:
        """A rectangle."""
        self.shapes.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}"/>')

    def text(self, x: float, y: float, text: str, kind: str = "ink", size: int = 13, anchor: str = "start") -> None:
        """One line of text on the base line y."""
        options = f' text-anchor="{anchor}"' if anchor != "start" else ""
        words = _escaped(text)
        self.shapes.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" font-size="{size}"{options}>{words}</text>')

    def heading(self, x: float, y: float, text: str, kind: str = "ink", size: int = 13, anchor: str = "start") -> None:
        """The same in bold."""
        self.text(x, y, text, kind, size, anchor)
        self.shapes[-1] = self.shapes[-1].replace(">", ' font-weight="600">', 1)

    def words(self, x: float, y: float, text: str, columns: int, kind: str = "ink", size: int = 13) -> float:
        """Text in lines of at most `columns` characters; the base line after the last one."""
        for line in textwrap.wrap(text, columns):
            self.text(x, y, line, kind, size)
            y += LINE
        return y

    def arrow(self, points: list[tuple[float, float]], *, night: bool = False) -> None:
        """A line through points, with a tip at its end; those of the night are dashed."""
        (x0, y0), (x1, y1) = points[-2:]
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        self.line([*points[:-1], (x1 - 7 * dx, y1 - 7 * dy)], "night" if night else "way")
        tip = [(x1, y1), (x1 - 9 * dx - 5 * dy, y1 - 9 * dy + 5 * dx), (x1 - 9 * dx + 5 * dy, y1 - 9 * dy - 5 * dx)]
        corners = " ".join(f"{x:.4g},{y:.4g}" for x, y in tip)
        self.shapes.append(f'<polygon class="{"nighttip" if night else "tip"}" points="{corners}"/>')

    def line(self, points: list[tuple[float, float]], kind: str, width: float = 2) -> None:
        """A line through points."""
        dash = ' stroke-dasharray="6 4"' if kind == "night" else ""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.shapes.append(f'<polyline class="{kind}" points="{path}" stroke-width="{width:g}"{dash}/>')

    def render(self, height: float, title: str, description: str) -> str:
        """The picture. `title` and `description` are for those who hear it read."""
        page = f'<rect class="page" width="{self.width}" height="{height:g}"/>'
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {height:g}" '
            f'width="{self.width}" height="{height:g}" role="img" font-family="{FONT}">'
        )
        told = [f"<{tag}>{_escaped(text)}</{tag}>" for tag, text in (("title", title), ("desc", description))]
        style = f"<style>\n{_rules(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{_rules(DARK)}\n}}\n</style>"
        return "\n".join([head, *told, style, page, *self.shapes, "</svg>", ""])


def _escaped(text: str) -> str:
    """Text as XML can hold it: no control characters, no halves of characters (names of files have both)."""
    return escape(text.translate(NOT_IN_XML))


def _rules(colours: dict[str, tuple[str, str]]) -> str:
    lines = []
    for kind, (fill, stroke) in colours.items():
        line = f"; stroke: {stroke}" if stroke else ""
        lines.append(f".{kind} {{ fill: {fill}{line} }}")
    return "\n".join(lines)
