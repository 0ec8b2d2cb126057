"""How many bits each matrix gets, by what a text's logits lose if it alone has four: within a size, or up to a loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sleepc.backends.onnx.rounding.gptq import GROUP, gptq, rounded, triangle
from sleepc.backends.onnx.rounding.products import Products
from sleepc.errors import UsageError
from sleepc.ir.packed import PackedWeight
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import packed_of
from sleepc.progress import Progress
from sleepc.quantities import bytes_of, share_of
from sleepc.runtime.steps import IntArray

LEAST, MOST = 512, 4096  # tokens whose products are looked at
JUDGED = 128  # tokens by which matrices are compared with each other
READ = 1024  # tokens of which perplexity is
LOSS = 0.04  # of perplexity, if nothing is asked for
HELD = 1 << 30  # bytes of moments at once
MB = 10**6


@dataclass(frozen=True)
class Wish:
    """The most bytes of all weights that the model had, and the most that perplexity may grow, as a share."""

    size: int | None = None
    loss: float | None = None

    @classmethod
    def of(cls, size: str, loss: str) -> Wish:
        """Of options; empty ones ask for nothing."""
        return cls(bytes_of(size, "--size") if size else None, share_of(loss, "--max-loss") if loss else None)


@dataclass(frozen=True)
class FittedBits:
    """Weights in few bits by parameter, and what is to be said about them."""

    weights: Mapping[str, PackedWeight]
    facts: dict[str, Any]


def fit(program: ProgramGraphs, tokens: IntArray, wish: Wish, progress: Progress) -> FittedBits:
    """Every matrix of the model that a product or a table reads in 4 bits by GPTQ, or in 8; those that a quantised
    source has in 4 bits stay as they are. `program`: at level STEP, in float32.

    Raises UsageError for too few tokens, and for a wish that no mix of bits meets, with what comes nearest.
    """
    if len(tokens) < LEAST:
        fix = "Give a longer --text, or --fast, which rounds without one."
        raise UsageError(f"there are {len(tokens)} tokens to calibrate with, of {LEAST}", where="--text", fix=fix)
    products = Products(program)
    judged = _Judged(products, tokens)
    four = _in_four_bits(program, products, tokens[:MOST], progress)
    lost = {}
    for done, (key, weight) in enumerate(four.items()):
        lost[key] = judged.divergence({key: weight})
        progress("comparing matrices in 4 bits", (done + 1) / len(four))
    mix = _Mix(program, products, four, lost, judged)
    count = _chosen(mix, wish)
    facts = {"four_bits": len(four) - count, "eight_bits": mix.order[:count], "calibrated_on": len(tokens[:MOST])}
    return FittedBits(mix.weights(count), {"fitted": {**facts, "bytes": mix.size(count), "loss": mix.loss(count)}})


def _in_four_bits(
    program: ProgramGraphs, products: Products, tokens: IntArray, progress: Progress
) -> dict[str, PackedWeight]:
    keys = [key for key in products.turned if _is_fitted(program, key, turned=products.turned[key])]
    found: dict[str, PackedWeight] = {}
    while len(found) < len(keys):
        some = _fitting(keys[len(found) :], products)
        last: tuple[Tensor, Tensor] | None = None  # neighbours are multiplied with one value
        moments = products.moments(tokens, some)
        for key in some:
            h = moments.get(key, torch.eye(_matrix(products, key).shape[1]))  # where rows are only looked up
            last = last if last is not None and last[0] is h else (h, triangle(h))
            found[key] = gptq(_matrix(products, key), last[1], turned=products.turned[key])
            progress("fitting matrices", len(found) / len(keys))
    return found


def _is_fitted(program: ProgramGraphs, key: str, *, turned: bool) -> bool:
    source = packed_of(program.params[key])
    width = program.params[key].shape[0 if turned else 1]
    return width % GROUP == 0 and (source is None or source.how.bits != 4 or source.how.turned is not turned)


def _fitting(keys: Sequence[str], products: Products) -> list[str]:
    """The first of `keys`, as many as have room for their moments."""
    sizes = np.cumsum([4 * _matrix(products, key).shape[1] ** 2 for key in keys])
    return list(keys[: max(int(np.searchsorted(sizes, HELD)), 1)])


def _matrix(products: Products, key: str) -> Tensor:
    """[out, in]."""
    value = products.values[key]
    return value.T if products.turned[key] else value


class _Judged:
    """What weights cost on a text."""

    def __init__(self, products: Products, tokens: IntArray) -> None:
        self.products, self.compared, self.read = products, tokens[-JUDGED:], tokens[-READ:]
        self.own = list(self._logs(self.compared))
        self.surprise = self._surprise()

    def _logs(self, tokens: IntArray) -> Iterator[npt.NDArray[Any]]:
        """Log probabilities [n, V], piece by piece."""
        return (torch.log_softmax(torch.from_numpy(x), -1).numpy() for x in self.products.read(tokens))

    def divergence(self, weights: Mapping[str, PackedWeight]) -> float:
        """KL of the logits with these weights from the program's own, in nats for all tokens."""
        with self.products.instead(weights):
            pairs = zip(self.own, self._logs(self.compared), strict=True)
            return sum(float((np.exp(p) * (p - q)).sum(dtype=np.float64)) for p, q in pairs)

    def loss(self, weights: Mapping[str, PackedWeight]) -> float:
        """How much perplexity grows, as a share."""
        with self.products.instead(weights):
            return math.exp(self._surprise() - self.surprise) - 1

    def _surprise(self) -> float:
        """Nats a token."""
        total, at = 0.0, 1
        for rows in self._logs(self.read):
            following = self.read[at : at + len(rows), None]
            total -= float(np.take_along_axis(rows[: len(following)], following, 1).sum(dtype=np.float64))
            at += len(rows)
        return total / (len(self.read) - 1)


class _Mix:
    """Matrices in the order in which 8 bits are worth most for their bytes."""

    def __init__(
        self,
        program: ProgramGraphs,
        products: Products,
        four: Mapping[str, PackedWeight],
        lost: Mapping[str, float],
        judged: _Judged,
    ) -> None:
        self.program, self.products, self.four, self.judged = program, products, four, judged
        self.order = sorted(four, key=lambda key: lost[key] / weight_bytes(four[key]), reverse=True)
        self._eight: dict[str, PackedWeight] = {}
        self._losses: dict[int, float] = {}
        rest = [key for key, param in program.params.items() if not param.new and key not in four]
        self.rest = sum(_bytes(program, products, key) for key in rest)

    def weights(self, count: int) -> dict[str, PackedWeight]:
        """With the first `count` in 8 bits."""
        for key in self.order[:count]:
            if key not in self._eight:
                self._eight[key] = self._in_eight_bits(key)
        return {**self.four, **{key: self._eight[key] for key in self.order[:count]}}

    def _in_eight_bits(self, key: str) -> PackedWeight:
        """As the source has it, if that has 8 bits."""
        source, turned = packed_of(self.program.params[key]), self.products.turned[key]
        if source is not None and source.how.bits == 8 and source.how.turned is turned:
            return source.read()
        return rounded(_matrix(self.products, key), turned=turned)

    def loss(self, count: int) -> float:
        """How much perplexity grows, as a share; each is read once."""
        if count not in self._losses:
            self._losses[count] = self.judged.loss(self.weights(count))
        return self._losses[count]

    def size(self, count: int) -> int:
        """Bytes of all that the model had."""
        wide = sum(prod(self.four[key].shape) // 2 for key in self.order[:count])
        return self.rest + sum(map(weight_bytes, self.four.values())) + wide


def weight_bytes(weight: PackedWeight) -> int:
    """Of all parts, as they stand in the file."""
    return sum(part.nbytes for part in weight.parts().values())


def _bytes(program: ProgramGraphs, products: Products, key: str) -> int:
    """Of what is not fitted: as the source has it, if that has four bits, or in float32."""
    source = packed_of(program.params[key])
    if key in products.turned and source is not None and source.how.bits == 4:
        return weight_bytes(source.read())
    return 4 * prod(program.params[key].shape)


def _chosen(mix: _Mix, wish: Wish) -> int:
    """How many matrices get 8 bits."""
    if wish.size is not None:
        return _within(mix, wish.size, wish.loss)
    most = LOSS if wish.loss is None else wish.loss
    low, high = 0, len(mix.order)
    while low < high:  # 8 bits of more matrices do not lose more
        middle = (low + high) // 2
        low, high = (low, middle) if mix.loss(middle) <= most else (middle + 1, high)
    if wish.loss is not None and mix.loss(low) > most:
        least = mix.loss(len(mix.order))
        raise UsageError(
            f"perplexity grows by {least:.2%} with all matrices in 8 bits, {mix.size(len(mix.order)) / MB:.0f} MB",
            where="--max-loss",
            fix="Ask for no less, or use --precision int8, fp16 or fp32.",
        )
    return low


def _within(mix: _Mix, size: int, loss: float | None) -> int:
    """As many as a size has room for."""
    if mix.size(0) > size:
        raise UsageError(
            f"no mix of 4 and 8 bits has {size / MB:.0f} MB: with 4 bits everywhere it is {mix.size(0) / MB:.1f} MB",
            where="--size",
            fix=f"Give --size {math.ceil(mix.size(0) / MB)}MB or more.",
        )
    count = max(n for n in range(len(mix.order) + 1) if mix.size(n) <= size)
    found = 0.0 if loss is None else mix.loss(count)
    if loss is not None and found > loss:
        what = f"perplexity grows by {found:.2%} within {size / MB:.0f} MB"
        raise UsageError(what, where="--size, --max-loss", fix="Give more of either.")
    return count
