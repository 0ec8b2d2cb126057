"""Damaged files: random changes of bytes, and of what a JSON text says."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP = "[" * 50_000 + "]" * 50_000
VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 255, 1 << 31, 1 << 40, 1 << 63, 10**30, -(10**30), 0.5, 1e308),
    *("", "x", "B", "position", "since", "0.k", "h", "../x", "/dev/zero", "\ud800", "\0", "w" * 5000, "f32", "ring"),
    *([], {}, [1], ["B"], ["B", 1, 2], {"a": 1}, [[]], [[[[[[[[[[[[]]]]]]]]]]]]),
]


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to three changes: a bit, a byte, a piece removed, doubled, moved or overwritten, the end cut off."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _change(bytearray(data), rng)
    return data


def _change(data: bytearray, rng: random.Random) -> bytes:
    if not data:
        return bytes([rng.randrange(256)])
    at, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 100))
    kind = rng.randrange(8)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.choice(b'\0\xff"[]{}:,0 9-eE\\')
    elif kind == 2:
        del data[at : at + size]
    elif kind == 3:
        data[at:at] = data[at : at + size]
    elif kind == 4:
        to = rng.randrange(len(data))
        data[to : to + size] = data[at : at + size]
    elif kind == 5:
        data[at : at + size] = rng.randbytes(size)
    elif kind == 6:
        del data[at:]
    else:
        data[at:at] = rng.choice((b"[" * 20_000, b'{"a":' * 5000, b"9" * 5000, b"\xff\xfe", b"-", b"1e999", b"NaN"))
    return bytes(data)


def changed_json(data: Any, rng: random.Random) -> Any:
    """One to three changes of values anywhere in it: another value, one from elsewhere, none, one more."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(data))
        if not places:
            break
        parent, key = rng.choice(places)
        other, name = rng.choice(places)
        kind = rng.randrange(6)
        if kind < 3:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 3:
            parent[key] = copy.deepcopy(other[name])
        elif kind == 4:
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[rng.choice(("x", "\ud800", str(key) + "2"))] = copy.deepcopy(parent[key])
    return data


def _places(data: Any) -> Any:
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from _places(value)


def dumped(data: Any) -> bytes:
    """The text of a JSON value; what no UTF-8 can hold is escaped."""
    return json.dumps(data).encode()
