"""What is said of the original's KV cache is what transformers' own takes, windows of layers' own included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from sleepc.cli.display import cache_in_words
from sleepc.cli.picture.draw import draw
from sleepc.cli.picture.facts import facts_of
from sleepc.inspection import inspect_program
from sleepc.passes.analysis.kv_cache import KVCache, from_report, kv_cache, noted
from tests.families import family

NAMES = ("llama", "mistral-5", "mistral-13", "gemma2", "gemma3", "llama4", "gemma4")


@pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning")  # its name in all versions that are supported
@pytest.mark.parametrize("tokens", [3, 5, 20])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_large_as_that_of_transformers(name: str, tokens: int) -> None:
    subject = family(name)
    module: Any = subject.module
    cache: Any = DynamicCache(config=module.config)
    with torch.no_grad():
        for token in torch.zeros(tokens, dtype=torch.int64):
            module(token[None, None], past_key_values=cache, use_cache=True)
    tensors = [x for layer in cache.layers for x in (layer.keys, layer.values)]
    held = sum(x.numel() * x.itemsize for x in tensors if x is not None)  # None: an earlier layer has them
    said = kv_cache(subject.canonical)
    # Between calls, a layer with a window holds one token less than it sees.
    spare = said.itemsize * sum(numbers for numbers, kept in said.layers if 0 < kept <= tokens)
    assert held <= said.bytes(tokens) <= held + spare


@pytest.mark.parametrize(
    ("layers", "state", "tokens"),
    [
        (((10, 0),), 1000, 50),
        (((10, 0),), 1001, 51),
        (((10, 0), (30, 8)), 640, 8),
        (((10, 0), (30, 8)), 639, 8),
        (((10, 0), (30, 8)), 560, 7),
        (((10, 0), (30, 8)), 660, 9),
        (((10, 0), (30, 8)), 1280, 40),
        (((30, 8),), 480, 8),
        (((30, 8),), 481, None),
    ],
)
def test_where_it_breaks_even(layers: tuple[tuple[int, int], ...], state: int, tokens: int | None) -> None:
    cache = KVCache(layers, 2)
    assert cache.break_even(state) == tokens
    if tokens is not None:
        assert cache.bytes(tokens - 1) < state <= cache.bytes(tokens)


def test_what_is_made_from_fewer_numbers_is_kept_as_those() -> None:
    """MLA: twelve numbers, and four of keys with positions, instead of 4 heads of 10 and 8."""
    assert kv_cache(family("deepseek-v3").canonical).layers == ((2 * (12 + 4), 0),)


def test_gemma_3_270m_takes_what_its_windows_let_it_take() -> None:
    """18 blocks with one KV head of 256, of which 15 see 512 tokens, in float32."""
    cache = KVCache(((3 * 512, 0), (15 * 512, 512)), 4)
    assert 0.20e9 < cache.bytes(32768) < 0.22e9


@pytest.mark.parametrize(("name", "ends"), [("gemma2", True), ("mistral-5", False), ("llama", True)])
def test_it_is_told_and_drawn(name: str, ends: bool) -> None:
    subject = family(name)
    step, recipe = subject.convert()
    seen = inspect_program(subject.canonical, step, recipe)
    assert (seen.break_even is not None) == ends
    if seen.break_even is not None:
        assert seen.cache.bytes(seen.break_even - 1) < seen.state_bytes <= seen.cache.bytes(seen.break_even)
    assert ("breaks even" in cache_in_words(seen)) == ends
    picture = draw(facts_of(name, seen, step, recipe))
    assert ("polyline" in picture, "nan" in picture) == (True, False)
    assert from_report({"kv_cache": noted(seen.cache)}, seen.cache.itemsize) == seen.cache


@pytest.mark.parametrize("found", [None, [], 3, [[1]], [[1, -2]], [[1, True]], [["1", 0]], {"a": 1}])
def test_a_report_that_does_not_say(found: Any) -> None:
    assert from_report({"kv_cache": found}, 4) is None
