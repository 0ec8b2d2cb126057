"""Which KV heads keep how many pairs, as a picture of layers and heads, by matplotlib."""

from __future__ import annotations

import io

import numpy as np

from sleepc.recipe import Budgets


def draw_slots(budgets: Budgets, kind: str) -> bytes:
    """An SVG or PNG (`kind`): a column for each layer, a row for each KV head, the slots written into the cells."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heads = max((len(layer) for layer in budgets), default=0)
    cells = np.full((max(heads, 1), len(budgets)), np.nan)
    for i, layer in enumerate(budgets):
        cells[: len(layer), i] = layer
    with mpl.rc_context({"svg.hashsalt": "sleepc", "svg.fonttype": "none"}):  # the same budgets give the same bytes
        figure = Figure(figsize=(max(4.0, 0.42 * len(budgets)), max(2.0, 0.5 * heads + 1)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        most = max((n for layer in budgets for n in layer), default=0)
        axes.imshow(cells, cmap="Blues", aspect="auto", vmin=0)
        for (head, layer), slots in np.ndenumerate(cells):
            if not np.isnan(slots):
                colour = "white" if slots > most / 2 else "black"
                axes.text(layer, head, f"{slots:.0f}", ha="center", va="center", fontsize=6, color=colour)
        axes.set(xlabel="layer", ylabel="KV head", title="kept pairs")
        axes.set_yticks(range(heads))
        out = io.BytesIO()
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None, dpi=120)
    return out.getvalue()
