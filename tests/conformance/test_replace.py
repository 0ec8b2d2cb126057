"""Strategy `replace`: what it takes over, what it starts as, and that it can learn from there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sleepc.errors import UsageError
from sleepc.ir.parameters import materialise
from sleepc.memory.parameters import OUT_GATE, PROJECTION, STRENGTHS, key_of
from sleepc.runtime.session import Session
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.original import Original
from sleepc.verify.verify import make_streams
from tests.conformance.backends import TRAINER, load
from tests.families import VOCAB, WINDOW, family


def test_it_starts_as_the_layer_without_its_attention() -> None:
    subject = family("llama")
    step, _ = subject.convert(strategy="replace", layers="1")
    silent = copy.deepcopy(subject.module)
    with torch.no_grad():
        silent.get_parameter("model.layers.1.self_attn.o_proj.weight").zero_()
    tokens = np.random.default_rng(4).integers(0, VOCAB, (1, WINDOW))
    found = Session(load(step)).feed(tokens[0], logits="all")[0]
    wanted = Original(silent)(torch.from_numpy(tokens))[0]
    assert float((torch.from_numpy(found) - wanted).abs().max()) < 2e-5


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "phi3"])
def test_biases_norms_head_sizes_and_fused_projections_are_kept(name: str) -> None:
    """Qwen2 has biases, Qwen3 q/k norms and heads of a size of their own, Phi-3 one projection for q, k and v. The
    oracle reads q, k and v off the original's own graph.
    """
    subject = family(name)
    step, recipe = subject.convert(strategy="replace")
    program = shaken(step)
    tokens = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
    oracle = Oracle(subject.canonical, recipe, parameters_of(subject.canonical, program))
    bench = Bench(load(program), oracle, make_streams(tokens, WINDOW))
    assert invariants.definition(bench) < 1e-9


@pytest.mark.parametrize(
    "name", ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2", "phi3", "gemma2"))]
)
def test_a_native_layer_is_the_oracles(name: str) -> None:
    """Its gates, its norm with the model's own epsilon and its one map of x, token by token in float64."""
    subject = family(name)
    step, recipe = subject.convert(strategy="replace", layout="native")
    program = shaken(step)
    tokens = np.random.default_rng(3).integers(0, VOCAB, 2 * WINDOW + 3)
    oracle = Oracle(subject.canonical, recipe, parameters_of(subject.canonical, program))
    bench = Bench(load(program), oracle, make_streams(tokens, WINDOW))
    assert invariants.definition(bench) < 1e-9


def test_a_native_layer_folds_norms_and_repeats_heads() -> None:
    """Rows of q, k and v of the original, by its own names: those of q and k times the weights of their norms."""
    subject = family("qwen3")
    names = dict(subject.module.named_parameters())
    step, _ = subject.convert(strategy="replace", layout="native")
    q, k, v = (names[f"model.layers.1.self_attn.{part}_proj.weight"].reshape(-1, 16, 32) for part in "qkv")
    q, k = (
        rows * names[f"model.layers.1.self_attn.{part}_norm.weight"][:, None] for part, rows in (("q", q), ("k", k))
    )
    wanted = torch.cat([q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]).flatten(0, 1)
    found = step.params[key_of(1, PROJECTION)].materialise()
    assert torch.allclose(found, wanted, rtol=1e-6, atol=0)
    unread = {key for key in subject.canonical.params if "_proj" in key and "self_attn" in key and "o_proj" not in key}
    assert unread
    assert not unread & step.params.keys(), "what the map was made of is no parameter of the program"
    assert not any(key.endswith(STRENGTHS.bias.name) for key in step.params)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        pytest.param("gpt2", {}, "output projection has a bias", marks=pytest.mark.slow),
        pytest.param("olmo2", {}, "is not the result of an RMS norm", marks=pytest.mark.slow),
        pytest.param("deepseek-v3", {}, "not linear in its input", marks=pytest.mark.slow),
        pytest.param("qwen3-5", {"layers": "1"}, "not read by a linear map alone", marks=pytest.mark.slow),
        ("llama", {"rule": "delta"}, "has the rule gated_delta"),
        ("llama", {"strategy": "parallel"}, "whose attention is replaced, and none is"),
    ],
)
def test_what_is_no_native_layer_is_refused(name: str, options: dict[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        family(name).convert(**{"strategy": "replace", "layout": "native", **options})


def test_the_layout_is_the_native_one() -> None:
    """Heads of Gated DeltaNet layers: one memory, decay, write gate and output gate for each query head; q, k, v side
    by side in the convolution.
    """
    step, _ = family("llama").convert(strategy="replace")
    shapes = {
        key.removeprefix("blocks.0.memory."): p.shape for key, p in step.params.items() if "blocks.0.memory" in key
    }
    heads, width, hidden = 4, 8, 32
    assert shapes == {
        "conv": (3 * heads * width, 4),
        "w_a": (heads, hidden),
        "dt": (heads,),
        "log_a": (heads,),
        "w_b": (heads, hidden),
        "b_b": (heads,),
        "w_g": (heads * width, hidden),
        "out_norm": (width,),
    }
    states = {s.name: s.dims[1:] for s in step.classes[step.layout[0].cls].states}
    assert states == {"S": (heads, width, width), "tail": (3 * heads * width, 3)}


def test_the_gate_learns_first() -> None:
    step, _ = family("llama").convert(strategy="replace")
    parameters = {k: v.detach().clone() for k, v in materialise(step, "cpu").items()}
    gate = parameters[key_of(1, OUT_GATE)].requires_grad_()
    steps = TRAINER.steps_on(step, parameters, train=True)
    logits, _ = steps.wake_tensors(steps.new_state(1), torch.arange(WINDOW)[None], torch.tensor([WINDOW]), "all")
    assert logits is not None
    (found,) = torch.autograd.grad(logits.square().sum(), [gate])
    assert bool(found.any())
