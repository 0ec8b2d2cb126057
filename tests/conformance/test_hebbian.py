"""Consolidation `hebbian`: noise runs through memories (sleep replay, SRC). What every consolidation has to hold; that
noise is the same for all rows and backends; and SRC's own check, of the algorithm as it was published.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.errors import UsageError
from sleepc.inspection import inspect_program
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.memory.parameters import KEY_MAP, key_of
from sleepc.passes.consolidation import drawn, hebbian
from sleepc.passes.consolidation.hebbian import naive_noise, naive_number
from sleepc.recipe import Hebbian, Recipe
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import TRAINER, load, runs
from tests.families import VOCAB, WINDOW, family

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
SEEN: dict[str, Any] = {"steps": 3, "inc": 0.1, "dec": 0.1, "threshold": 0.5}  # so that noise is seen
FAMILIES: dict[str, dict[str, Any]] = {
    "replay": {"passes": 2},
    "online": {"rule": "titans", "write": "online", "decay": "channel"},
    "insert": {"rule": "ba2016", "strategy": "insert", "eviction": "hard"},
    "kept": {"keep": {"slots": 3, "score": "key", "budgets": "equal"}, "features": "elu"},
}


@cache
def converted(name: str, dtype: torch.dtype = torch.float64) -> tuple[ProgramGraphs, Recipe]:
    program, recipe = family("llama", dtype).convert(consolidation="hebbian", hebbian=SEEN, **FAMILIES[name])
    return shaken(program), recipe


def bench(name: str, steps: Steps, dtype: torch.dtype = torch.float64) -> Bench:
    canonical, (program, recipe) = family("llama", dtype).canonical, converted(name, dtype)
    return Bench(steps, Oracle(canonical, recipe, parameters_of(canonical, program)), make_streams(TOKENS, WINDOW))


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_what_its_oracle_says(name: str) -> None:
    made = bench(name, load(converted(name)[0]))
    assert invariants.definition(made) < 1e-9
    assert invariants.chunking(made) < 1e-9
    assert invariants.padding(made) < 1e-9
    assert invariants.saving(made) == 0
    assert invariants.permuting(made) < 1e-9


@pytest.mark.parametrize(
    ("style", "name"),
    [("ort", "replay"), ("portable", "online"), pytest.param("mlir", "replay", marks=pytest.mark.slow)],
)
def test_in_an_export_it_is_what_its_oracle_says(style: str, name: str) -> None:
    subject = runs(style)
    made = bench(name, subject.load(converted(name, subject.dtype)[0]), subject.dtype)
    assert invariants.definition(made) < subject.tolerance
    assert invariants.padding(made) < subject.tolerance


@pytest.mark.parametrize(
    ("where", "name", "value"), [(drawn, "SHIFT", 8), (drawn, "ROUNDS", 2), (hebbian, "WIDTH", 3.4)]
)
def test_other_noise_is_found(where: Any, name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, name, value)
    program = shaken(family("llama").convert(consolidation="hebbian", hebbian=SEEN, passes=2)[0])
    assert invariants.definition(bench("replay", load(program))) > 1e-4


def logits(program: ProgramGraphs) -> Any:
    return Session(load(program)).feed([TOKENS.tolist()], logits="all")[0]


@pytest.mark.parametrize("options", [{"steps": 0}, {"inc": 0.0, "dec": 0.0}, {"threshold": 100.0}])
def test_without_noise_it_is_replay(options: dict[str, Any]) -> None:
    program, _ = family("llama").convert(consolidation="hebbian", passes=2, hebbian={**SEEN, **options})
    plain = shaken(family("llama").convert(passes=2)[0])
    assert np.array_equal(logits(shaken(program)), logits(plain))
    assert not np.allclose(logits(converted("replay")[0]), logits(plain))


def test_noise_is_uniform_and_its_numbers_are_independent() -> None:
    values = np.array([naive_number(n) for n in range(1 << 14)])
    assert abs(values.mean()) < 0.02
    assert np.isclose(values.var(), 1, atol=0.02)
    assert np.abs(values).max() < np.sqrt(3)
    assert all(abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 0.03 for lag in (1, 2, 8, 64))


def test_nothing_written_is_not_replayed_and_silence_is_forgotten() -> None:
    """A window whose keys are zero leaves the memory; the rule alone moves weights against what is active most."""
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(1, 1, 8, 6, generator=generator, dtype=torch.float64)
    k = torch.nn.functional.normalize(torch.randn(1, 1, 5, 8, generator=generator, dtype=torch.float64), dim=-1)

    def after(keys: torch.Tensor, **options: float) -> torch.Tensor:
        how = Hebbian.model_validate({"steps": 1, "inc": 0.0, "dec": 0.0, "threshold": 0.0, **options})
        return naive_noise([s], keys, lambda state, q: q @ state[0], how)[0]

    assert torch.equal(after(torch.zeros_like(k), inc=0.1, dec=0.1), s)
    weaker = after(k, dec=0.1) / s
    assert (weaker <= 1).all()
    assert (weaker < 1).any()
    change = (after(k, inc=1e-3) - s)[0, 0]
    for_it = (change.sign() == s[0, 0].sign()) & (change != 0)
    relative = change.abs() / change.abs().amax(1, keepdim=True)
    assert relative[~for_it].mean() > relative[for_it].mean()


def test_training_goes_through_noise() -> None:
    """The gradient of a memory by its map of keys, against finite differences; also of a window of one token."""
    program = converted("replay")[0]
    values = {name: value.detach().clone() for name, value in materialise(program, "cpu").items()}
    name = key_of(0, KEY_MAP)

    def size(weight: torch.Tensor, count: int) -> torch.Tensor:
        steps = TRAINER.steps_on(program, values | {name: weight}, train=True)
        ids = torch.from_numpy(TOKENS[None, :count])
        _, state = steps.wake_tensors(steps.new_state(1), ids, torch.tensor([count]), "none")
        return steps.sleep_tensors(state)["0.S"].square().sum()

    way = torch.randn(values[name].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for count in (1, WINDOW):
        leaf = values[name].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(size(leaf, count), leaf)
        ends = [size(values[name] + step * way, count).detach() for step in (1e-6, -1e-6)]
        slope = (gradient * way).sum()
        assert abs(slope) > 1e-5
        assert torch.isclose((ends[0] - ends[1]) / 2e-6, slope, rtol=1e-4)


def test_it_is_said_to_be_a_baseline() -> None:
    program, recipe = converted("replay")
    words = inspect_program(family("llama").canonical, program, recipe).sleep
    assert "2 passes of replay, and 3 steps of noise (a baseline)" in words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"consolidation": "replay", "hebbian": {}}, "consolidation replay replays no noise"),
        ({"hebbian": {"steps": 65}}, "hebbian.steps"),
        ({"hebbian": {"dec": 2}}, "hebbian.dec"),
        ({"passes": 2, "rule": "linear"}, "rule linear does not correct"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        family("llama").convert(**{"consolidation": "hebbian", **options})


# -- SRC as it was published, on its toy: four images of 100 pixels, of which some are shared; two are learned after the
# other two, which are forgotten, and noise of their mean brings them back. Seeds are the first dimension of all arrays.


def _patches(seeds: int, shared: int) -> np.ndarray:
    """Images [seeds,4,100] of 16 pixels each, of which `shared` are in all four."""
    images, own = np.zeros((seeds, 4, 100)), 16 - shared
    for seed in range(seeds):
        places = np.random.default_rng(seed).permutation(100)
        for i in range(4):
            images[seed, i, places[:shared]] = 1
            images[seed, i, places[shared:][i * own : (i + 1) * own]] = 1
    return images


def _learn(w: np.ndarray, images: np.ndarray, labels: np.ndarray, epochs: int) -> np.ndarray:
    """Softmax regression, both images at once, with momentum."""
    moved = np.zeros_like(w)
    for _ in range(epochs):
        z = np.exp(images @ w.transpose(0, 2, 1))
        wrong = z / z.sum(-1, keepdims=True) - labels
        moved = 0.5 * moved + 0.05 * wrong.transpose(0, 2, 1) @ images / 2
        w = w - moved
    return w


def _src(w: np.ndarray, images: np.ndarray, steps: int) -> np.ndarray:
    """Sleep: spikes of the mean image; a unit whose potential passes the threshold raises weights of inputs that have
    spiked, by 0.0035 g, and lowers those of others, by 0.0002 g, g(w) = 2 (1 - 1 / (1 + e^(-w / 0.001))).
    """
    z, rng = np.exp(images @ w.transpose(0, 2, 1)), np.random.default_rng(0)
    most = (z / z.sum(-1, keepdims=True)).max((1, 2))
    alpha = 4.25 / np.maximum(np.maximum(w, 0).max((1, 2)), most)[:, None]
    mean, potential, w = images.mean(1), np.zeros(w.shape[:2]), w.copy()
    for _ in range(steps):
        spikes = rng.random(mean.shape) / (2 * 0.001 * 64) <= mean
        potential = 0.999 * potential + alpha * (w @ spikes[..., None])[..., 0]
        at = np.nonzero(potential >= 0.95 * 1.1)
        if len(at[0]):
            g = 2 * (1 - 1 / (1 + np.exp(-np.clip(w[at] / 0.001, -500, 500))))
            w[at] += np.where(spikes[at[0]], 0.0035 * g, -0.0002 * g)
            potential[at] = 0
    return w


def _right(w: np.ndarray, images: np.ndarray) -> float:
    return float((np.argmax(images @ w.transpose(0, 2, 1), -1) == np.arange(4)).mean())


@pytest.mark.parametrize(("shared", "forgotten"), [(12, 1.0), (14, 0.6), (15, 0.6)])
def test_src_brings_back_what_was_forgotten(shared: int, forgotten: float) -> None:
    seeds, labels = 5, np.eye(4)
    images = _patches(seeds, shared)
    w = (np.random.default_rng(9).random((seeds, 4, 100)) - 0.5) * 0.02
    w = _learn(w, images[:, :2], labels[:2], 4)
    w = _learn(w, images[:, 2:], labels[2:], 2)
    assert _right(w, images) <= forgotten
    assert _right(_src(w, images, 30000), images) == 1
