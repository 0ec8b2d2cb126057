"""Sizes as polynomials over names, "B*T+260": one canonical text for each, own small parser."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from sleepc.errors import SleepcError

Dim = int | str
Monomial = tuple[str, ...]
Polynomial = dict[Monomial, int]  # {("T",): 1, (): 260} is T + 260; no zero coefficients

MAX_TERMS, MAX_DEGREE, MAX_INT, MAX_TEXT = 32, 8, 2**63, 300

_TERM = re.compile(r"([+-]?)((?:[0-9]+|[A-Za-z_][A-Za-z0-9_]*)(?:\*(?:[0-9]+|[A-Za-z_][A-Za-z0-9_]*))*)")


def parse_dim(text: str) -> Polynomial:
    """The polynomial of a text of integers, names, +, - and *. Raises SleepcError for others.

    >>> format_dim(parse_dim("260+T"))
    'T+260'
    """
    if len(text) > MAX_TEXT:
        raise SleepcError("the text of a size is too long")
    result: Polynomial = {}
    at = 0
    while at < len(text) or not text:
        term = _TERM.match(text, at)
        if term is None or (at > 0 and not term[1]) or (at == 0 and term[1] == "+"):
            raise SleepcError(f"not a size: {text[:80]!r}")
        result = add(result, _parse_term(term[2], -1 if term[1] == "-" else 1))
        at = term.end()
    return result


def _parse_term(text: str, sign: int) -> Polynomial:
    names, coefficient = [], sign
    for factor in text.split("*"):
        if not factor[0].isdigit():
            names.append(factor)
        elif len(factor) > 19:
            raise SleepcError("an integer of a size is too long")
        else:
            coefficient = coefficient * int(factor)
    return _checked({tuple(sorted(names)): coefficient})


def constant(value: int) -> Polynomial:
    """The polynomial of a number."""
    return _checked({(): value})


def add(a: Polynomial, b: Polynomial) -> Polynomial:
    """a + b."""
    return _checked({m: a.get(m, 0) + b.get(m, 0) for m in {**a, **b}})


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """a * b."""
    result: Polynomial = {}
    for m, x in a.items():
        for n, y in b.items():
            key = tuple(sorted(m + n))
            result[key] = result.get(key, 0) + x * y
    return _checked(result)


def scaled(dim: Dim, factor: int) -> Dim:
    """A size times a number.

    >>> scaled("T+1", 3), scaled(4, 3)
    ('3*T+3', 12)
    """
    return format_dim(multiply(parse_dim(str(dim)), constant(factor)))


def substituted(dim: Dim, name: str, value: int) -> Dim:
    """A size with a number in the place of a name.

    >>> substituted("B*T+T+10", "T", 8)
    '8*B+18'
    """
    found: Polynomial = {}
    for names, factor in parse_dim(str(dim)).items():
        others = tuple(n for n in names if n != name)
        found = add(found, {others: factor * value ** (len(names) - len(others))})
    return format_dim(found)


def _checked(value: Polynomial) -> Polynomial:
    """Without zeros; limits keep a hostile text from costing time or memory."""
    value = {m: c for m, c in value.items() if c}
    if len(value) > MAX_TERMS or any(len(m) > MAX_DEGREE or abs(c) >= MAX_INT for m, c in value.items()):
        raise SleepcError("a size is too large")
    return value


def format_dim(value: Polynomial) -> Dim:
    """The canonical text: high degree first, then by name, the constant last; or an int.

    >>> format_dim({(): -3, ("T",): 1, ("B", "T"): 2})
    '2*B*T+T-3'
    """
    if not any(value):
        return value.get((), 0)
    terms = []
    for names in sorted(value, key=lambda m: (-len(m), m)):
        size = abs(value[names])
        factors = [*([str(size)] if size != 1 or not names else []), *names]
        terms.append(("-" if value[names] < 0 else "+") + "*".join(factors))
    return "".join(terms).removeprefix("+")


def evaluate(value: Polynomial, sizes: Mapping[str, Any]) -> Any:
    """The value of a polynomial where `sizes` gives the names' values (ints or symbolic ints)."""
    return sum(prod((sizes[n] for n in names), start=c) for names, c in value.items())


def names_of(dim: Dim) -> set[str]:
    """The names that a dimension mentions."""
    return {name for names in parse_dim(dim) for name in names} if isinstance(dim, str) else set()
