"""Gates come to their targets, measured from what the running program writes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sleepc.backends.eager.backend import BACKEND as EAGER
from sleepc.backends.eager.kernels import PLAIN
from sleepc.ir.parameters import materialise
from sleepc.memory.parameters import DECAYS, MIX, MIX_BIAS, OUT_GATE, STRENGTHS, parameter_in
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.analysis.projections import as_maps, projections
from sleepc.train.adapter import with_values
from sleepc.train.gates import Setting, gate_values, half_lives, output_gate, strengths, targets
from sleepc.train.statistics import HeadStatistics, Reach, layers
from tests.families import VOCAB, WINDOW, family


def statistics(**changes: list[float]) -> HeadStatistics:
    values = {
        "distance": [1.0, 3.0, 40.0, 60.0],
        "far": [20.0, 40.0, 30.0, 50.0],
        "share": [0.1, 0.3, 0.2, 0.2],
        "entropy": [0.2, 0.4, 0.9, 0.7],
        "context": [1.0, 2.0, 3.0, 4.0],
        "value": [0.5, 0.5, 1.0, 1.0],
        **changes,
    }
    return HeadStatistics(**{key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()})


def setting(strategy: str = "parallel", **changes: Any) -> Setting:
    options = {"window": 16, "hard": False, "decays": 1, "writes": 1, "width": 64, "corrects": True, **changes}
    return Setting(strategy, **options)


def test_a_memory_in_attentions_place_forgets_half_within_the_mean_distance() -> None:
    goal = targets(statistics(), setting("replace"), 4)
    assert goal.half_life.tolist() == pytest.approx([1, 3, 40, 60])
    assert targets(statistics(), setting("replace"), 2).half_life.tolist() == pytest.approx([2, 50])
    far = targets(statistics(distance=[0.5, 1e5, 1, 1]), setting("replace"), 4).half_life
    assert far[1] == pytest.approx(math.log(2) / 0.001)


def test_a_memory_beside_attention_keeps_what_attention_lost() -> None:
    goal = targets(statistics(), setting(), 2)
    assert goal.half_life.tolist() == pytest.approx([(2 + 12) / 0.4, (6 + 10) / 0.4])  # by how much is looked at
    near = statistics(far=[17.0, 17.0, 5000.0, 5000.0])
    assert targets(near, setting(), 2).half_life.tolist() == pytest.approx([17, 256])
    assert targets(near, setting(decays=3), 2).half_life.tolist() == pytest.approx([51, 768])
    nothing = targets(statistics(share=[0, 0, 0.2, 0.2]), setting(), 2)
    assert nothing.half_life.isnan().tolist() == [True, False]
    early = statistics(far=[4.0, 4.0, 4.0, 4.0])
    assert targets(early, setting(), 2).half_life.tolist() == [16, 16]
    assert targets(early, setting(hard=True), 2).half_life.tolist() == pytest.approx([4, 4])


def test_sharp_heads_write_hard_and_corrections_forget_no_sooner_than_decay() -> None:
    plain = targets(statistics(), setting(corrects=False), 4).beta
    assert plain.tolist() == pytest.approx([0.7, 0.3 + 0.4 * 5 / 7, 0.3, 0.3 + 0.4 * 2 / 7])
    width = 8
    goal = targets(statistics(), setting(width=width), 4)
    assert (goal.beta < plain).all()
    # The correction alone: a pass over random unit keys, for as many tokens as the half-life.
    generator = torch.Generator().manual_seed(0)
    beta, half_life = 2 * math.log(2) * width / 200 * 0.5, 200
    left = torch.randn(width, 64, generator=generator, dtype=torch.float64)
    start = left.norm()
    for _ in range(half_life):
        key = torch.nn.functional.normalize(torch.randn(width, generator=generator, dtype=torch.float64), dim=0)
        left = left - beta * key[:, None] * (key @ left)
    assert float(left.norm() / start) == pytest.approx(0.5, abs=0.05)
    twice = targets(statistics(), setting(width=width, writes=2), 4).beta
    assert twice.tolist() == pytest.approx((goal.beta / 2).tolist())
    assert targets(statistics(entropy=[0.3] * 4), setting(corrects=False), 4).beta.tolist() == pytest.approx([0.5] * 4)


@pytest.mark.parametrize(
    "options",
    [{}, {"decay": "channel"}, {"strategy": "insert"}, {"strategy": "replace"}, {"rule": "delta"}],
    ids=str,
)
def test_the_running_gates_come_to_their_targets(options: dict[str, Any]) -> None:
    program, recipe = family("llama").convert(**options)
    block = program.layout[0]
    ports = {port: key for port, key in block.params.items() if parameter_in(key) is not None}
    generator = torch.Generator().manual_seed(0)
    now = {
        port: torch.randn(program.params[key].shape, generator=generator, dtype=torch.float64)
        for port, key in ports.items()
    }
    goal = targets(statistics(), setting(recipe.strategy), len(now[STRENGTHS.bias.port]))
    values = {**now, **gate_values(now, goal, 0.25)}
    program = with_values(program, {ports[port]: value for port, value in values.items()})
    g, beta = gates_at_work(program)
    assert torch.allclose(beta, goal.beta.expand_as(beta))
    assert torch.allclose(strengths(values), goal.beta)
    if DECAYS.bias.port in now:
        assert g is not None
        wanted = -math.log(2) / goal.half_life
        assert torch.allclose(g, (wanted[:, None] if g.dim() == 3 else wanted).expand_as(g))
        found = half_lives(values)
        assert found is not None
        assert torch.allclose(found, goal.half_life.repeat_interleave(len(found) // len(goal.half_life)))
    else:
        assert half_lives(values) is None
    if MIX_BIAS.port in now:
        assert torch.allclose(torch.sigmoid(values[MIX_BIAS.port]), goal.share / 4)
        assert not values[MIX.port].any()
        assert MIX_BIAS.port not in gate_values(now, goal), "left as it is"


def test_a_write_gate_without_a_bias_comes_to_its_target_on_the_mean() -> None:
    """Inputs with a direction in common, as those behind a norm have: W_b x is the logit along it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 48, generator=generator, dtype=torch.float64)
    x[:, 0] += 8
    now = {STRENGTHS.weight.port: torch.zeros(4, 48, dtype=torch.float64)}
    goal = targets(statistics(), setting("replace"), 4)
    values = gate_values(now, goal, x=x)
    assert values.keys() == now.keys()
    found = torch.sigmoid(x @ values[STRENGTHS.weight.port].T)
    assert (found.mean(0) - goal.beta).abs().max() < 0.01
    assert found.std(0).max() < 0.05
    assert torch.allclose(strengths(values, x), found.mean(0), atol=0.01)


def gates_at_work(program: Any) -> tuple[Tensor | None, Tensor]:
    """g [T,H] or [T,H,d_k] and beta [T,H] that block 0 writes with, for random tokens."""
    noted: list[tuple[Tensor, Tensor]] = []
    ours = torch.ops.sleepc

    def online(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Any, **more: Any) -> Any:
        noted.append((g, beta))
        return PLAIN[ours.delta_rule.default](q, k, v, g, beta, state, **more)

    steps = EAGER.steps_on(program, materialise(program, "cpu"), train=True)
    graph = program.classes[program.layout[0].cls].wake
    run = EAGER.runner(graph, replaced={ours.delta_rule.default: online})
    state = steps.new_state(1)
    values, _ = steps.begin(state, torch.arange(WINDOW)[None], torch.tensor([WINDOW]))
    names = {s.name: state[f"0.{s.name}"] for s in program.classes[program.layout[0].cls].states}
    bound = {port: steps.parameters[key] for port, key in program.layout[0].params.items()}
    results = run({**values, **bound, **names})
    g, beta = noted[0] if noted else (results.get("record.g"), results["record.beta"])
    assert beta is not None
    return (None if g is None else g[0].transpose(0, 1)), beta[0].T


def test_a_head_that_looks_at_nothing_far_keeps_its_half_life() -> None:
    now = {
        DECAYS.bias.port: torch.tensor([-3.0, -4.0]),
        DECAYS.rate.port: torch.tensor([0.5, 0.5]),
        DECAYS.weight.port: torch.ones(2, 3),
        STRENGTHS.bias.port: torch.zeros(2),
        STRENGTHS.weight.port: torch.ones(2, 3),
    }
    goal = targets(statistics(share=[0, 0, 0.2, 0.2]), setting(), 2)
    values = gate_values(now, goal)
    assert (float(values[DECAYS.bias.port][0]), float(values[DECAYS.rate.port][0])) == (-3.0, 0.5)
    assert float(values[DECAYS.rate.port][1]) == 0
    assert not values[STRENGTHS.weight.port].any()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma2", "falcon", "deepseek-v3"])
def test_the_value_map_is_found_by_evaluation(name: str) -> None:
    canonical = family(name).canonical
    text = torch.randint(0, VOCAB, (12,), generator=torch.Generator().manual_seed(0))
    layer = next(layers(canonical, [text], {0: Reach(WINDOW, 2)}, [0]))
    graph = canonical.classes[canonical.layout[0].cls].wake
    bound = {port: canonical.params[key].materialise() for port, key in canonical.layout[0].params.items()}
    maps = as_maps(projections(graph, ("v",)), bound, layer.h[0])
    found = None if maps is None else maps["v"]
    site = find_site(graph)
    if found is None:  # a norm stands between x and v
        assert name == "deepseek-v3"
    else:
        assert name != "deepseek-v3"
        assert found.shape == (site.kv_heads, site.d_v, canonical.hidden)
        assert float(found.abs().max()) > 0.1
    statistics_ = layer.statistics
    assert statistics_ is not None
    now = {OUT_GATE.port: torch.zeros(site.q_heads * site.d_v, canonical.hidden, dtype=torch.float64)}
    gate = output_gate(now, statistics_, graph, bound, layer.h[0])[OUT_GATE.port]
    assert gate.shape == now[OUT_GATE.port].shape
    assert gate.any()
    if found is not None:
        by_head = gate.reshape(site.q_heads, site.d_v, -1)
        alpha = 0.01 * statistics_.context / statistics_.value
        copies = site.q_heads // site.kv_heads
        for head in range(site.q_heads):
            assert torch.allclose(by_head[head], alpha[head] * found[head // copies])
