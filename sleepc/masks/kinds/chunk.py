"""The tokens of one's own chunk of n positions, counted from the start of the stream."""

from __future__ import annotations

from sleepc.masks.mask import Kind

KIND = Kind(
    name="chunk",
    sees=lambda i, j, n: i // n == j // n,
    naive=lambda i, j, n: j >= i - i % n,
    guess=lambda seen: int(seen[:, 0].sum()),
    reach=lambda n: n,
    words=lambda n: f"chunks of {n}",
    tokens=lambda n: f"chunks of {n} tokens",
)
