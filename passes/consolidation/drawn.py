"""Numbers that look random and are the same in every backend, row and sleep: x -> x³ + 7 modulo a prime, three times,
of 1, 2, 3, .... They are whole, so nothing rounds them. As nodes of a graph, on tensors, and on numbers.
"""

from __future__ import annotations

from torch import Tensor, fx

from sleepc.passes.lib.emit import Emit, aten

PRIME, SHIFT, ROUNDS = 2147483579, 7, 3  # cubes are a permutation of the numbers below it, as it is 2 modulo 3


def draw_nodes(e: Emit, n: fx.Node) -> fx.Node:
    """Number n, below PRIME, of whole n."""

    def rest(x: fx.Node) -> fx.Node:
        return e.call(aten.remainder.Scalar, x, PRIME)

    x = e.add(n, 1)
    for _ in range(ROUNDS):
        x = rest(e.add(e.mul(rest(e.mul(x, x)), x), SHIFT))
    return x


def draw(n: Tensor) -> Tensor:
    """Number n, below PRIME, of whole n below PRIME."""
    x = n + 1
    for _ in range(ROUNDS):
        x = (x * x % PRIME * x + SHIFT) % PRIME
    return x


def naive_draw(n: int) -> int:
    """The same once more."""
    x = n + 1
    for _ in range(3):
        x = (pow(x, 3, 2147483579) + 7) % 2147483579
    return x
