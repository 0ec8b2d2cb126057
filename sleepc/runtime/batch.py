"""Tokens as people hold them (lists, ragged lists, padded arrays) -> rows packed to the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sleepc.errors import UsageError
from sleepc.runtime.steps import Array, BoolArray, IntArray
from sleepc.runtime.values import whole

Ids: TypeAlias = Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[np.integer[Any]]
Mask: TypeAlias = npt.ArrayLike
Rows: TypeAlias = Sequence[int] | Sequence[bool] | npt.NDArray[Any]


@dataclass(frozen=True)
class Packed:
    """Tokens [B, T] packed to the left, 0 after `lengths` [B]; `columns` [B, T]: their places."""

    tokens: IntArray
    lengths: IntArray
    columns: IntArray

    def cut(self, start: IntArray, count: IntArray) -> tuple[IntArray, IntArray]:
        """Tokens start[b] … start[b]+count[b]-1 of each row [B, max count], and their columns."""
        if not start.any() and int(count.min()) == self.tokens.shape[1]:
            return self.tokens, self.columns
        step = np.arange(int(count.max()), dtype=np.int64)
        valid = step < count[:, None]
        at = np.where(valid, start[:, None] + step, 0)
        tokens = np.where(valid, np.take_along_axis(self.tokens, at, axis=1), 0)
        return tokens, np.take_along_axis(self.columns, at, axis=1)


def pack(ids: Ids, mask: Mask | None, *, batch: int, vocab: int) -> Packed:
    """Check `ids` (and `mask`, true where there is a token) and pack every row to the left.

    Raises UsageError for rows that are not `batch`, a mask of another shape, ids that are not
    integers, and a token outside [0, vocab). What stands at padding is not looked at.
    """
    rows = [_as_integers(row, index) for index, row in enumerate(_as_rows(ids))]
    if len(rows) != batch:
        raise UsageError(
            f"the ids hold {len(rows)} rows, and this session has {batch}",
            fix="give one list of ids per row (an empty one for a row that reads nothing)",
        )
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    real = np.arange(int(lengths.max())) < lengths[:, None]
    if mask is not None:
        real = _as_mask(mask, lengths)
    wide = any(row.dtype == object for row in rows)
    padded: Array = np.zeros(real.shape, dtype=object if wide else np.int64)
    for row, length, target in zip(rows, lengths, padded, strict=True):
        target[:length] = row
    _check_vocabulary(padded, real, vocab)
    if mask is None and int(lengths.min()) == real.shape[1]:  # nothing to pack, as for every token that is generated
        every = np.broadcast_to(np.arange(real.shape[1], dtype=np.int64), real.shape)
        return Packed(padded.astype(np.int64, copy=False), lengths, every)
    columns = np.argsort(~real, axis=1, kind="stable").astype(np.int64)
    counts = real.sum(axis=1, dtype=np.int64)
    held = np.arange(real.shape[1]) < counts[:, None]
    tokens = np.where(held, np.take_along_axis(padded, columns, axis=1), 0).astype(np.int64)
    return Packed(tokens, counts, columns)


def checked_tokens(ids: Sequence[int], vocab: int) -> list[int]:
    """The ids of one text. Raises UsageError for anything but token ids below the size of the vocabulary."""
    if not len(ids):
        return []
    found: list[int] = pack([list(ids)], None, batch=1, vocab=vocab).tokens[0].tolist()
    return found


def row_mask(rows: Rows, batch: int) -> BoolArray:
    """Row indices, or a bool mask [B], as a bool mask [B]. Raises UsageError outside the batch."""
    given = np.asarray(rows)
    if given.dtype == np.bool_ and given.shape == (batch,):
        return given.copy()
    chosen = np.zeros(batch, dtype=np.bool_)
    chosen[row_indices(rows, batch)] = True
    return chosen


def one_row(row: int | None, batch: int) -> int:
    """The index of a row; it may be left out if there is only one. Raises UsageError for one that is not there."""
    if row is None and batch == 1:
        return 0
    if row is None or not 0 <= whole(row, "row") < batch:
        what = f"there is no row {row}" if row is not None else f"which of the {batch} rows is not said"
        raise UsageError(what, fix=f"Give row=0 … {batch - 1}.")
    return whole(row, "row")


def row_indices(rows: Rows, batch: int) -> IntArray:
    """Row indices (repeats allowed), or a bool mask [B], as indices. Raises UsageError outside."""
    given = np.asarray(rows)
    if given.dtype == np.bool_ and given.shape == (batch,):
        return np.flatnonzero(given).astype(np.int64)
    if given.size == 0 and given.ndim == 1:
        return np.zeros(0, dtype=np.int64)
    integers = given.ndim == 1 and given.dtype.kind in "iu"
    if not integers or int(given.min()) < 0 or int(given.max()) >= batch:
        raise UsageError(
            f"rows {rows!r} do not name rows of this session",
            fix=f"give indices 0 … {batch - 1}, or one true or false per row",
        )
    return given.astype(np.int64)


def _as_rows(ids: Any) -> list[Any]:
    if isinstance(ids, (list, tuple)):
        nested = any(isinstance(item, (list, tuple, np.ndarray)) for item in ids)
        return list(ids) if nested else [ids]
    array = np.asarray(ids)
    if array.ndim not in (1, 2):
        raise UsageError(
            f"ids of type {type(ids).__name__} with {array.ndim} dimensions are not tokens",
            fix="give a list of ids, a list of lists, or an integer array [B, T]",
        )
    return [array] if array.ndim == 1 else list(array)


def _as_integers(row: Any, index: int) -> Array:
    try:
        array = np.asarray(row)
    except ValueError as error:  # lists within lists, of different lengths
        raise UsageError(
            f"row {index} of the ids mixes lists and numbers", fix="give integers, one list per row"
        ) from error
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, dtype=np.int64)
    if array.dtype == object and all(type(item) is int for item in array.flat):
        return array  # integers beyond 64 bits: the vocabulary check names them
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UsageError(
            f"row {index} of the ids holds {array.dtype} in {array.ndim} dimensions, not token ids",
            fix="give integers, one list per row",
        )
    return array.astype(object) if array.dtype == np.uint64 else array.astype(np.int64)


def _as_mask(mask: Mask, lengths: IntArray) -> BoolArray:
    shape = (len(lengths), int(lengths.max()))
    if (lengths != shape[1]).any():
        raise UsageError(
            "rows of different lengths do not go with a mask",
            fix="leave the mask out, or give ids as an array [B, T]",
        )
    given = np.asarray(mask)
    binary = given.dtype == np.bool_ or (given.dtype.kind in "iu" and bool(np.isin(given, (0, 1)).all()))
    if given.shape != shape or not (binary or given.size == 0):
        raise UsageError(
            f"the mask is {given.dtype} {list(given.shape)}, and the ids are {list(shape)}",
            fix="give one true (token) or false (padding) per id",
        )
    return given.astype(np.bool_)


def _check_vocabulary(padded: Array, real: BoolArray, vocab: int) -> None:
    wrong = real & ((padded < 0) | (padded >= vocab)).astype(np.bool_)
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise UsageError(
            f"token id {padded[row, column]} is not in the vocabulary of {vocab} tokens",
            where=f"row {row}, column {column}",
            fix=f"ids are 0 … {vocab - 1}; is this the tokenizer of this model?",
        )
