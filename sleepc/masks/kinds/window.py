"""The latest n tokens, the query among them."""

from __future__ import annotations

from sleepc.masks.mask import Kind

KIND = Kind(
    name="window",
    sees=lambda i, j, n: i - j < n,
    naive=lambda i, j, n: j in range(i - n + 1, i + 1),
    guess=lambda seen: int(seen[-1].sum()),
    reach=lambda n: n,
    words=lambda n: f"window {n}",
    tokens=lambda n: f"the latest {n} tokens",
)
