"""Which KV heads keep how many pairs, as a picture of layers and heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from sleepc.recipe import Budgets
from sleepc.tasks.plot import drawn


def draw_slots(budgets: Budgets, kind: str) -> bytes:
    """An SVG or PNG (`kind`): a column for each layer, a row for each KV head, the slots written into the cells."""
    heads = max((len(layer) for layer in budgets), default=0)
    most = max((n for layer in budgets for n in layer), default=0)
    cells = np.full((max(heads, 1), len(budgets)), np.nan)
    for i, layer in enumerate(budgets):
        cells[: len(layer), i] = layer

    def draw(axes: Any) -> None:
        axes.imshow(cells, cmap="Blues", aspect="auto", vmin=0)
        for (head, layer), slots in np.ndenumerate(cells):
            if not np.isnan(slots):
                colour = "white" if slots > most / 2 else "black"
                axes.text(layer, head, f"{slots:.0f}", ha="center", va="center", fontsize=6, color=colour)
        axes.set(xlabel="layer", ylabel="KV head", title="kept pairs")
        axes.set_yticks(range(heads))

    return drawn(draw, (max(4.0, 0.42 * len(budgets)), max(2.0, 0.5 * heads + 1)), kind)
