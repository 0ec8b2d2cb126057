"""The window's slots: where a token goes, what a slot holds, who sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sleepc.masks import Mask


def window_slots(positions: Tensor, *, window: int, sinks: int) -> Tensor:
    """Slot of the token at every position, [B, T] -> [B, T]; padding (-1) has none (-1).

    p < sinks -> p, any other p -> sinks + (p - sinks) mod window.
    """
    ring = sinks + (positions - sinks) % window
    return torch.where(positions < sinks, positions, ring)


def _held(position: Tensor, window: int, sinks: int) -> Tensor:
    """Position of the token in every slot, -1 where there is none; position [B] -> [B, W]."""
    slot = torch.arange(sinks + window, device=position.device)
    last = position[:, None] - 1
    # slot and position agree modulo the window, so this is the latest token of the slot
    ring = last - (last - slot) % window
    sink = torch.where(slot <= last, slot, -1)
    return torch.where(slot < sinks, sink, torch.where(ring >= sinks, ring, -1))


def window_mask(positions: Tensor, position: Tensor, *, window: int, sinks: int, sees: str = "") -> Tensor:
    """Who sees whom (True = sees): new tokens as queries, slots and then new tokens as keys.

    positions [B, T] of the new tokens (-1 = padding), position [B] of a row's next token before
    this call, `sees` the layer's own mask (sleepc/masks) -> bool [B, 1, T, W + T].

    Query i sees key j where both are real, its own mask lets it, and either i - j < window or j is a sink.
    """
    keys, queries = _keys(positions, position, window, sinks), positions[:, None, :, None]
    near = (queries - keys < window) | (keys < sinks)
    return near & (keys >= 0) & Mask.parse(sees).sees(queries, keys)


def window_bias(
    positions: Tensor,
    position: Tensor,
    *,
    window: int,
    sinks: int,
    slopes: Sequence[float],
    dtype: torch.dtype,
    sees: str = "",
) -> Tensor:
    """`window_mask` as what is added to the scores of layers whose bias grows with distance (ALiBi).

    slopes [Hq] -> `dtype` [B, Hq, T, W + T]: slope times (j - i), the dtype's least number where
    query i does not see key j.
    """
    seen = window_mask(positions, position, window=window, sinks=sinks, sees=sees)
    keys = _keys(positions, position, window, sinks)[:, 0, 0]
    return distance_bias(seen, keys, slopes, dtype, positions)


def _keys(positions: Tensor, position: Tensor, window: int, sinks: int) -> Tensor:
    """Positions of all keys, slots first, [B, 1, 1, W + T]; -1 for none."""
    return torch.cat([_held(position, window, sinks), positions], 1)[:, None, None, :]


def distance_bias(
    seen: Tensor, keys: Tensor, slopes: Sequence[float], dtype: torch.dtype, queries: Tensor | None = None
) -> Tensor:
    """Slope times (j - i) where `seen` [B, 1, T, K], else the least number: [B, Hq, T, K].

    Positions: keys [B, K], queries [B, T] (those of the keys by default).
    """
    distance = keys[:, None, None, :] - (keys if queries is None else queries)[:, None, :, None]
    rate = torch.tensor(list(slopes), dtype=dtype, device=keys.device).view(1, -1, 1, 1)
    return torch.where(seen, rate * distance, torch.finfo(dtype).min)


def numbers_by_distance(numbers: Tensor, distance: Tensor) -> Tensor:
    """What queries add to the scores of keys at `distance` [B or 1, 1, T, K] in tokens: numbers [B, Hq, T, R], of which
    the last is for R - 1 tokens and more -> [B, Hq, T, K].
    """
    at = distance.clamp(0, numbers.shape[3] - 1)
    return numbers.gather(3, at.expand(*numbers.shape[:3], at.shape[3]))


def write_slots(buffer: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """The buffer with new tokens in their slots; differentiable in buffer and new.

    buffer [B, H, W, ...], new [B, H, T, ...] (cast to the buffer's dtype), slots [B, T] (-1 = write
    nothing; those of a row are distinct) -> [B, H, W, ...].
    """
    width, rest = buffer.shape[2], [1] * (buffer.dim() - 3)
    if slots.shape[1] == 1:  # one token: nothing but a choice, which compilers do in one loop
        here = torch.arange(width, device=buffer.device).view(width, *rest) == slots.view(-1, 1, 1, *rest)
        return torch.where(here, new.to(buffer.dtype), buffer)
    # one slot more than there are takes what is not to be written
    room = torch.cat([buffer, torch.zeros_like(buffer[:, :, :1])], 2)
    at = torch.where(slots < 0, width, slots).view(slots.shape[0], 1, slots.shape[1], *rest)
    return room.scatter(2, at.expand(new.shape), new.to(buffer.dtype))[:, :, :width].contiguous()


def write_slots_(buffer: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """`write_slots` into the buffer itself, without gradients; returns the buffer."""
    target, new = buffer.detach(), new.detach()  # the same memory, and cheaper than torch.no_grad
    if slots.numel() == 1:  # a decode step of one row: no index tensors
        slot = int(slots)
        if slot >= 0:
            target.select(2, slot).copy_(new.select(2, 0))
        return buffer
    rows, tokens = (slots >= 0).nonzero(as_tuple=True)
    target[rows, :, slots[rows, tokens]] = new[rows, :, tokens].to(buffer.dtype)
    return buffer


def write_slot_(buffer: Tensor, new: Tensor, slots: Tensor) -> Tensor:
    """`write_slots_` of one token per row, slots [B, 1], that asks for no value of a tensor: it can be compiled, and a
    GPU is not waited for.
    """
    rest = [1] * (buffer.dim() - 3)
    at = slots.view(slots.shape[0], 1, 1, *rest).expand(new.shape)
    there = at.clamp(min=0)
    written = torch.where(at >= 0, new.to(buffer.dtype), buffer.gather(2, there))
    buffer.scatter_(2, there, written)
    return buffer
