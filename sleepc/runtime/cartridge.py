"""A cartridge: keys and values that stand for a document, in the slots of a program that keeps pairs.

It is what a row's state has of a stream of `position` tokens of which only the sinks and some pairs in slots are left:
a row that has one goes on from there. So nothing of a backend knows of it, and several of them are several streams'
pairs in the slots of one row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from sleepc.errors import SleepcError, UsageError
from sleepc.ir.roles import PINNED_SCORE
from sleepc.json_file import parse_json
from sleepc.runtime.array_file import (
    DTYPES,
    MAX_HEADER,
    ArrayFileKind,
    StoredArray,
    may_be_replaced,
    read_arrays,
    write_arrays,
)
from sleepc.runtime.steps import GAP, KEPT, SCORE, TOKEN, Array, Signature, Steps

AGAIN = "make it again (sleepc cartridge), or load another one"
KIND = ArrayFileKind("sleepc.cartridge", "1", "cartridge", AGAIN, "an earlier file is unchanged")
POSITION = f"{KEPT}position"
FILLED = (f"{KEPT}k", f"{KEPT}v")
Shares = Mapping[int, tuple[int, ...]]
"""How many pairs each KV head has, by block."""


@dataclass(frozen=True)
class Cartridge:
    """`arrays` by the names of a state, of one row: of every KV window its sinks, "3.k" [Hkv,sinks,d], and of every
    block that keeps pairs those of all heads, one head's after the other's in order of position: "3.kept.k" [n,d],
    "3.kept.v", "3.kept.position" [n]. `pairs` are how many each head has. `position` is the next token's, as the model
    counts. `identity` is the program's; `document`, the sha256 of the text, its `tokens`, and `name`, the file, are for
    people.
    """

    identity: str
    position: int
    pairs: Shares
    document: str
    tokens: int
    arrays: Mapping[str, Array]
    name: str = ""

    @property
    def nbytes(self) -> int:
        """Of its keys and values, in the state."""
        return sum(array.nbytes for name, array in self.arrays.items() if name.partition(".")[2] in FILLED)

    def filled(self, arrays: Mapping[str, Array]) -> Cartridge:
        """The same with other keys and values, by name."""
        return replace(self, arrays={**self.arrays, **arrays})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, whole or not at all. Raises UsageError if something else is there, SleepcError if it cannot be
        written.
        """
        kinds = {name: next(d for d in DTYPES.values() if d.numpy == a.dtype.name) for name, a in self.arrays.items()}
        facts = {
            "identity": self.identity,
            "position": str(self.position),
            "pairs": json.dumps(sorted(self.pairs.items())),
            "document": self.document,
            "tokens": str(self.tokens),
        }
        write_arrays(path, {name: (kinds[name], array) for name, array in self.arrays.items()}, facts, KIND)


def read_cartridge(path: str | os.PathLike[str], most: int | None = None) -> Cartridge:
    """The cartridge of a file, whose arrays have at most so many bytes. Raises UsageError when it cannot be read,
    SleepcError when it is damaged, none, or larger.
    """
    file = Path(path)
    stored, facts = read_arrays(file, KIND, None if most is None else most + MAX_HEADER)
    try:
        listed = parse_json(facts["pairs"].encode(), what="its pairs", where=str(file), fix=AGAIN)
        pairs = {int(block): tuple(int(n) for n in heads) for block, heads in listed}
        found = Cartridge(
            facts["identity"],
            int(facts["position"]),
            pairs,
            facts["document"],
            int(facts["tokens"]),
            {name: each.array() for name, each in stored.items()},
            str(file),
        )
        _check_whole(found, stored)
    except (KeyError, ValueError, TypeError) as error:
        raise SleepcError(f"the cartridge is damaged: {error}", where=str(file), fix=AGAIN) from error
    return found


def check_place(path: Path) -> None:
    """Raises UsageError if something that is no cartridge is at the path."""
    if not may_be_replaced(path, KIND):
        raise UsageError(f"{path} exists and is not a cartridge", where="--out", fix="Choose another name.")


def _check_whole(cartridge: Cartridge, stored: Mapping[str, StoredArray]) -> None:
    """Raises ValueError, or KeyError, unless arrays have the sizes that `pairs` say, and positions come before."""
    for block, heads in cartridge.pairs.items():
        sizes = {len(cartridge.arrays[f"{block}.{part}"]) for part in (*FILLED, POSITION)}
        positions = cartridge.arrays[f"{block}.{POSITION}"]
        if sizes != {sum(heads)} or min(heads, default=0) < 0:
            raise ValueError(f"block {block} has {sorted(sizes)} pairs, and its heads {list(heads)}")
        if positions.dtype != np.int64 or ((positions < 0) | (positions >= cartridge.position)).any():
            raise ValueError(f"positions of block {block} are not below {cartridge.position}")
    odd = sorted(name for name, each in stored.items() if each.dtype not in ("F32", "F64", "I64"))
    if odd:
        raise ValueError(f"elements of {odd[0]}")


# -- into a state ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """Where cartridges go: the state of a program, whose `identity` is known."""

    steps: Steps
    identity: str

    def check(self, cartridges: Sequence[Cartridge]) -> None:
        """Raises UsageError for a program that keeps no pairs and more pairs than a head has slots, SleepcError for
        cartridges of another model.
        """
        if not self.steps.budgets:
            raise UsageError(NO_SLOTS, fix=CONVERT)
        check_slots(self.steps.signature())
        if not cartridges:
            raise UsageError("no cartridge is given", fix="Give one or more files of `sleepc cartridge`.")
        for each in cartridges:
            self._check_fits(each, self.steps.signature())
        for block, budget in self.steps.budgets.items():
            for head, slots in enumerate(budget):
                wanted = [each.pairs[block][head] for each in cartridges]
                if sum(wanted) > slots:
                    pairs = " + ".join(map(str, wanted))
                    what = f"head {head} of block {block} has {slots} slots, and the cartridges {pairs} pairs"
                    fix = "Make them with a smaller --slots, or convert with a larger --keep and make them again."
                    raise UsageError(what, where=", ".join(each.name for each in cartridges), fix=fix)

    def _check_fits(self, cartridge: Cartridge, signature: Signature) -> None:
        for array, value in sorted(cartridge.arrays.items()):
            wanted = self._shape(array, cartridge, signature)
            if wanted != value.shape:
                here = list(wanted) if wanted is not None else "nothing"
                _refuse(cartridge, f"{array} is {list(value.shape)} in it, and {here} here")
        for block, budget in self.steps.budgets.items():
            heads = len(cartridge.pairs.get(block, ()))
            if heads != len(budget):
                _refuse(cartridge, f"block {block} has {heads} KV heads with pairs in it, and {len(budget)} here")
        missing = sorted({name for name in signature if _is_window(name)} - cartridge.arrays.keys())
        if missing:
            _refuse(cartridge, f"{missing[0]} is not in it")
        if cartridge.identity != self.identity:
            _refuse(cartridge, "shapes are the same, and weights, window or budgets are not")

    def _shape(self, array: str, cartridge: Cartridge, signature: Signature) -> tuple[int, ...] | None:
        """The shape that an array of a cartridge has for this program; None for one that it has no place for."""
        if array not in signature:
            return None
        sizes = tuple(int(dim) for dim in signature[array][1][1:])
        block, _, part = array.partition(".")
        if part in (*FILLED, POSITION) and int(block) in cartridge.pairs:
            return (sum(cartridge.pairs[int(block)]), *sizes[1:])
        return (sizes[0], self._sinks(signature), *sizes[2:]) if _is_window(array) else None

    def place(self, arrays: dict[str, Array], row: int, cartridges: Sequence[Cartridge]) -> None:
        """Write cartridges, checked before, into one row of a state that has read nothing. The sinks are the first
        one's, and the next token stands behind the last of them.
        """
        position, signature = max(each.position for each in cartridges), self.steps.signature()
        sinks = self._sinks(signature)
        arrays["position"][row] = position
        for name in (name for name in arrays if name.startswith(GAP)):
            length = int(name.removeprefix(GAP))
            gone = np.arange(max(sinks, position - length), position)
            arrays[name][row, sinks + (gone - sinks) % length] = gone
        for name, value in cartridges[0].arrays.items():
            if _is_window(name):
                arrays[name][row, :, : value.shape[1]] = _as(value, arrays[name], signature[name][0])
        for block, budget in self.steps.budgets.items():
            start = 0
            for head, slots in enumerate(budget):
                start += slots
                found = _pairs(cartridges, block, head)
                at = slice(start - len(found[POSITION]), start)
                for part, value in found.items():
                    name = f"{block}.{part}"
                    arrays[name][row, at] = _as(value, arrays[name], signature[name][0])
                arrays[f"{block}.{TOKEN}"][row, at] = found[POSITION]
                arrays[f"{block}.{SCORE}"][row, at] = PINNED_SCORE

    def _sinks(self, signature: Signature) -> int:
        gap = next(name for name in signature if name.startswith(GAP))
        return int(signature[gap][1][1]) - int(gap.removeprefix(GAP))


NO_SLOTS = "this program keeps no pairs, so it has no slots for a cartridge"
CONVERT = "Convert the model with --keep N (N: pairs of every KV head, on average)."


def check_slots(signature: Signature) -> None:
    """Raises UsageError for slots that hold vectors in few bits, or are those of an older sleepc."""
    narrow = next((name for name, (dtype, _) in signature.items() if _of(name) in FILLED and dtype in ("i8", "u8")), "")
    if narrow:
        what = f"slots of this program hold {signature[narrow][0]}, and cartridges are for slots in float"
        raise UsageError(what, where=narrow, fix="Convert with --keep-dtype float.")
    if not any(name.startswith(GAP) for name in signature):
        what = "slots of this program are for soft tokens, or an older sleepc converted it"
        raise UsageError(what, fix="Convert the model again, with --keep N.")


def _pairs(cartridges: Sequence[Cartridge], block: int, head: int) -> dict[str, Array]:
    """The pairs of one head of all cartridges, in order of position."""
    parts: dict[str, Array] = {}
    for part in (*FILLED, POSITION):
        each = []
        for cartridge in cartridges:
            before = sum(cartridge.pairs[block][:head])
            each.append(cartridge.arrays[f"{block}.{part}"][before : before + cartridge.pairs[block][head]])
        parts[part] = np.concatenate(each)
    order = np.argsort(parts[POSITION], kind="stable")
    return {part: value[order] for part, value in parts.items()}


def _as(value: Array, like: Array, dtype: str) -> Array:
    """A value in the dtype of a state's array; bf16 as its bits, rounded to the nearest, of equals to the even one."""
    if dtype != "bf16" or value.dtype.kind != "f":
        return value.astype(like.dtype)
    bits = value.astype(np.float32).view(np.uint32)
    rounded: Array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


def _is_window(name: str) -> bool:
    """Is it the keys or values of a block's KV window?"""
    return _of(name) in ("k", "v")


def _of(name: str) -> str:
    return name.partition(".")[2]


def _refuse(cartridge: Cartridge, difference: str) -> NoReturn:
    raise SleepcError(
        f"the cartridge belongs to another model or conversion: {difference}",
        where=cartridge.name,
        fix="load it with the artifact that it was made for, or make it again for this one",
    )
