"""One block alone is the block of the whole; local steps bring it nearer to the teacher's, and the best one is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sleepc.backends.eager.backend import load
from sleepc.memory.parameters import parameter_in
from sleepc.recipe import Keep
from sleepc.train.local import (
    LocalExample,
    Split,
    block_steps,
    embed_steps,
    layer_error,
    layer_loss,
    layer_output,
    local_steps,
    windows_of,
)
from sleepc.train.statistics import Reach, layers
from sleepc.verify.memory_values import shaken
from tests.families import VOCAB, family

WINDOW = 4


def tokens(rows: int, length: int, seed: int = 3) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("gemma2", {"eviction": "hard", "passes": 2}),
        ("gpt2", {"strategy": "insert"}),
        ("llama", {"keep": Keep(budgets=((0, 3), (2, 1), (3, 0)))}),  # sizes of a block, which its class does not know
        ("gpt-oss", {"strategy": "replace"}),
    ],
)
@torch.no_grad()
def test_a_block_alone_is_the_block_of_the_whole(name: str, options: dict[str, Any]) -> None:
    program = shaken(family(name).convert(window=WINDOW, **options)[0])
    steps = load(program, train=True)
    text, state = tokens(2, 14), steps.new_state(2)
    inputs: dict[int, list[Tensor]] = {}
    outputs: dict[int, list[Tensor]] = {}
    for start in range(0, 14, WINDOW):
        piece = text[:, start : start + WINDOW]
        values, new = steps.begin(state, piece, torch.tensor([piece.shape[1]] * 2))
        for i in range(len(program.layout)):
            inputs.setdefault(i, []).append(values["h"])
            values["h"], changed = steps.wake_block(i, values, state)
            new.update(changed)
            outputs.setdefault(i, []).append(values["h"])
        state = steps.sleep_tensors(new)
    windows = windows_of(embed_steps(program), text, torch.tensor([14, 14]))
    assert [(w.start, w.end, w.clock is None) for w in windows] == [
        (0, 4, False),
        (4, 8, False),
        (8, 12, False),
        (12, 14, True),
    ]
    for i in range(len(program.layout)):
        h, wanted = torch.cat(inputs[i], 1), torch.cat(outputs[i], 1)
        for one, at in ((steps, i), (block_steps(program, i), 0)):
            found = layer_output(one, at, windows, h)
            assert torch.allclose(found, wanted, atol=1e-9)
        real = torch.ones(2, 14, dtype=torch.bool)
        assert float(layer_loss(steps, i, windows, h, wanted, real)) < 1e-12
        assert float(layer_loss(steps, i, windows, h, h - (wanted - h), real)) == pytest.approx(4, rel=1e-6)


@torch.no_grad()
def test_padding_is_not_in_the_loss() -> None:
    program = shaken(family("llama").convert(window=WINDOW)[0])
    steps = block_steps(program, 0)
    text = tokens(1, 14)
    generator = torch.Generator().manual_seed(0)
    h, target = (torch.randn(1, 14, 32, generator=generator, dtype=torch.float64) for _ in range(2))
    alone = windows_of(embed_steps(program), text[:, :9], torch.tensor([9]))
    real = torch.arange(14)[None] < 9
    wanted = layer_loss(steps, 0, alone, h[:, :9], target[:, :9], real[:, :9])
    padded = windows_of(embed_steps(program), text, torch.tensor([9]))
    found = layer_loss(steps, 0, padded, h, target, real)
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def examples_of(program: Any, canonical: Any, i: int, count: int) -> list[LocalExample]:
    texts = [row for row in tokens(count, 24)]
    embed = embed_steps(program)
    layer = list(layers(canonical, texts, {i: Reach(WINDOW, 2)}, range(count)))[i]
    return [
        LocalExample(windows_of(embed, text[None], torch.tensor([24])), h, target, torch.ones(1, 24, dtype=torch.bool))
        for text, h, target in zip(texts, layer.h, layer.target, strict=True)
    ]


@pytest.mark.parametrize("options", [{}, {"strategy": "insert"}, {"strategy": "replace"}], ids=str)
def test_steps_lower_the_local_error(options: dict[str, Any]) -> None:
    program, _ = family("llama").convert(window=WINDOW, **options)
    steps = block_steps(program, 1)
    every = examples_of(program, family("llama").canonical, 1, 4)
    keys = [key for key in program.layout[1].params.values() if parameter_in(key) is not None]
    before = layer_error(steps, 0, every[3:])
    start = dict(steps.parameters)
    told: list[tuple[int, float]] = []
    values, error = local_steps(steps, 0, keys, Split(every[:3], every[3:]), 30, lambda n, e: told.append((n, e)))
    assert error < before
    assert error == min(e for _, e in told)
    steps.bind({**start, **values})
    assert layer_error(steps, 0, every[3:]) == pytest.approx(error, rel=1e-6)
    assert set(values) == set(keys)
    assert any(not torch.equal(values[key], start[key]) for key in keys)


def test_the_best_step_is_kept_and_steps_that_do_not_help_end_early() -> None:
    program, _ = family("llama").convert(window=WINDOW)
    steps = block_steps(program, 1)
    every = examples_of(program, family("llama").canonical, 1, 2)
    # What is learned is the opposite of what is looked at apart.
    opposite = replace(every[0], target=every[0].h - 5 * (every[0].target - every[0].h))
    keys = [key for key in program.layout[1].params.values() if parameter_in(key) is not None]
    start = {key: steps.parameters[key] for key in keys}
    before = layer_error(steps, 0, every[1:])
    told: list[tuple[int, float]] = []
    values, error = local_steps(steps, 0, keys, Split([opposite], every[1:]), 60, lambda n, e: told.append((n, e)))
    assert min(e for _, e in told) > error == before
    assert all(torch.equal(values[key], start[key]) for key in keys)
    assert told[-1][0] == 15  # five looks, at every third step
