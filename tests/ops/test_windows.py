from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sleepc.ops import functional, naive
from tests.ops.cases import few, normal, small


def _positions(starts: list[int], lengths: list[int], tokens: int) -> tuple[Tensor, Tensor]:
    """Positions [B, T] of rows packed to the left, -1 behind, and the position before the call."""
    start, length = torch.tensor(starts), torch.tensor(lengths)
    t = torch.arange(tokens)
    return torch.where(t < length[:, None], start[:, None] + t, -1), start


calls = st.integers(0, 6).flatmap(
    lambda tokens: st.tuples(
        st.lists(st.integers(0, 25), min_size=3, max_size=3),
        st.lists(st.integers(0, tokens), min_size=3, max_size=3),
        st.just(tokens),
    )
)


def own_mask(own: int, chunk: int) -> str:
    """The literal of a window and chunks, 0 for none."""
    return "&".join(f"{kind}({n})" for kind, n in (("window", own), ("chunk", chunk)) if n)


@small
@given(
    call=calls, window=st.integers(1, 7), sinks=st.integers(0, 4), own=st.integers(0, 9), chunk=st.sampled_from([0, 5])
)
def test_mask_and_slots_equal_a_played_stream(
    call: tuple[list[int], list[int], int], window: int, sinks: int, own: int, chunk: int
) -> None:
    positions, start = _positions(*call)
    size = {"window": window, "sinks": sinks}
    slots = functional.window_slots(positions, **size)
    assert slots.dtype == torch.int64
    assert torch.equal(slots, naive.window_slots(positions, **size))
    mask = functional.window_mask(positions, start, sees=own_mask(own, chunk), window=window, sinks=sinks)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, naive.window_mask(positions, start, sees=own_mask(own, chunk), window=window, sinks=sinks))


@small
@given(call=calls, window=st.integers(1, 7), sinks=st.integers(0, 4), own=st.integers(0, 9), chunk=st.integers(0, 6))
def test_bias_equals_a_played_stream(
    call: tuple[list[int], list[int], int], window: int, sinks: int, own: int, chunk: int
) -> None:
    positions, start = _positions(*call)
    how = {"window": window, "sinks": sinks, "sees": own_mask(own, chunk), "slopes": [0.5, 0.3]}
    bias = functional.window_bias(positions, start, dtype=torch.float32, **how)  # type: ignore[arg-type]
    assert bias.dtype == torch.float32
    want = naive.window_bias(positions, start, **how)  # type: ignore[arg-type]
    unseen = want.isinf()
    assert torch.equal(bias == torch.finfo(torch.float32).min, unseen)
    assert torch.allclose(bias.double()[~unseen], want[~unseen], rtol=1e-6, atol=0)


@small
@given(call=calls, order=st.permutations(range(6)), window=st.integers(1, 7))
def test_padding_anywhere(call: tuple[list[int], list[int], int], order: list[int], window: int) -> None:
    """Left padding, holes: only the positions count."""
    positions, start = _positions(*call)
    tokens = positions.shape[1]
    moved = positions[:, [i for i in order if i < tokens]]
    got = functional.window_mask(moved, start, window=window, sinks=1)
    assert torch.equal(got, naive.window_mask(moved, start, window=window, sinks=1))


def test_a_mask_worked_out_by_hand() -> None:
    """One sink, a ring of two; tokens 0..4 are past, so the slots hold 0, 3, 4; 5 and 6 are new."""
    positions = torch.tensor([[5, 6, -1]])
    mask = functional.window_mask(positions, torch.tensor([5]), window=2, sinks=1)
    assert mask.int().tolist() == [[[[1, 0, 1, 1, 0, 0], [1, 0, 0, 1, 1, 0], [0] * 6]]]
    own = functional.window_mask(positions, torch.tensor([5]), window=2, sinks=1, sees="window(2)")
    assert own.int().tolist() == [[[[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0] * 6]]]


def test_ragged_stream_through_a_window_sees_the_latest_tokens() -> None:
    """Slots, mask and attention together: one token at a time equals the whole stream masked."""
    window, sinks, tokens = 4, 2, 19
    q, k, v = (normal(1, 1, tokens, 4, seed=s) for s in range(3))
    i, j = torch.arange(tokens)[:, None], torch.arange(tokens)
    seen = (j <= i) & ((i - j < window) | (j < sinks))
    want = functional.attention(q, k, v, seen[None, None], scale=1.0)
    held = [torch.zeros(1, 1, window + sinks, 4).double() for _ in range(2)]
    at = 0
    for step in (1, 2, 1, 4, 3, 1, 4, 3):
        new = slice(at, at + step)
        positions = torch.arange(at, at + step)[None]
        mask = functional.window_mask(positions, torch.tensor([at]), window=window, sinks=sinks)
        part = (q[:, :, new], k[:, :, new], v[:, :, new])
        got = functional.window_attention(*part, held[0], held[1], mask, scale=1.0)
        assert torch.allclose(got, want[:, :, new], rtol=0, atol=1e-12)
        slots = functional.window_slots(positions, window=window, sinks=sinks)
        held = [functional.write_slots(x, y, slots) for x, y in zip(held, part[1:], strict=True)]
        at += step
    assert at == tokens


@st.composite
def writes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A buffer of 5 slots and, per row, distinct slots or -1."""
    rows, tokens = draw(st.integers(1, 3)), draw(st.integers(0, 5))
    slots = torch.full((rows, tokens), -1)
    for b in range(rows):
        order = draw(st.permutations(range(5)))
        for t in range(tokens):
            slots[b, t] = order[t] if draw(st.booleans()) else -1
    return normal(rows, 2, 5, 3), slots


@small
@given(case=writes(), flat=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_writes_equal_the_loop(case: tuple[Tensor, Tensor], flat: bool, dtype: torch.dtype) -> None:
    """With and without dimensions behind the slots; the new values take the buffer's dtype."""
    buffer, slots = case
    buffer, new = buffer.to(dtype), normal(*slots.shape[:1], 2, slots.shape[1], 3, seed=1)
    if flat:
        buffer, new = buffer[..., 0].contiguous(), new[..., 0]
    want = naive.write_slots(buffer, new, slots)
    before = buffer.clone()
    got = functional.write_slots(buffer, new, slots)
    assert got.is_contiguous()
    assert got.dtype == dtype
    assert torch.equal(got, want)
    assert torch.equal(buffer, before)
    assert functional.write_slots_(buffer, new, slots) is buffer
    assert torch.equal(buffer, want)


@few
@given(slot=st.integers(-1, 4))
def test_one_token_of_one_row(slot: int) -> None:
    buffer, new, slots = normal(1, 2, 5, 3), normal(1, 2, 1, 3, seed=1), torch.tensor([[slot]])
    want = naive.write_slots(buffer, new, slots)
    assert torch.equal(functional.write_slots(buffer, new, slots), want)
    functional.write_slots_(buffer, new, slots)
    assert torch.equal(buffer, want)


@few
@given(slots=st.lists(st.integers(-1, 4), min_size=1, max_size=3), flat=st.booleans())
def test_one_token_of_every_row(slots: list[int], flat: bool) -> None:
    rows = len(slots)
    buffer, new, at = normal(rows, 2, 5, 3), normal(rows, 2, 1, 3, seed=1), torch.tensor(slots)[:, None]
    if flat:
        buffer, new = buffer[..., 0].contiguous(), new[..., 0]
    want = naive.write_slots(buffer, new.float(), at)
    assert functional.write_slot_(buffer, new.float(), at) is buffer
    assert torch.equal(buffer, want)


def test_write_in_place_leaves_no_graph() -> None:
    buffer, new = normal(1, 1, 4, 2), normal(1, 1, 2, 2).requires_grad_()
    functional.write_slots_(buffer, new, torch.tensor([[0, 1]]))
    assert not buffer.requires_grad


@pytest.mark.parametrize("write", [functional.write_slots, functional.write_slots_])
def test_more_tokens_than_slots(write: Callable[..., Tensor]) -> None:
    """Those that others of the same call push out have no slot."""
    buffer, new, slots = normal(1, 1, 4, 2), normal(1, 1, 6, 2, seed=1), torch.tensor([[0, -1, 2, 3, 1, -1]])
    want = naive.write_slots(buffer, new, slots)
    assert torch.equal(write(buffer.clone(), new, slots), want)
