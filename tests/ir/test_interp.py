import operator

import pytest
import torch

from sleepc.errors import SleepcError
from sleepc.ir.compare import max_error
from sleepc.ir.graph import Graph
from sleepc.ir.interp import Runner, run
from tests.ir.graphs import WIDTH, aten, attention_block, attention_eager, call, tensor, window_step


def values(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    shapes = {"h": (rows, tokens, WIDTH), "qkv": (3 * WIDTH, WIDTH), "out": (WIDTH, WIDTH)}
    make = torch.Generator().manual_seed(rows * 100 + tokens)
    return {k: torch.randn(s, generator=make, dtype=torch.float64) for k, s in shapes.items()}


@pytest.mark.parametrize("sizes", [(1, 1), (2, 5), (3, 8), (1, 3)])
def test_a_block_is_what_torch_computes(sizes: tuple[int, int]) -> None:
    given = values(*sizes)
    result = run(attention_block(), given)
    assert set(result) == {"h"}
    assert max_error(result["h"], attention_eager(**given)) < 1e-12


def test_a_runner_runs_again_and_takes_gradients() -> None:
    runner = Runner(attention_block())
    given = {k: v.requires_grad_() for k, v in values(2, 4).items()}
    first, second = runner(given)["h"], runner(given)["h"]
    assert torch.equal(first, second)
    first.sum().backward()
    assert all(v.grad is not None for v in given.values())


def test_a_hook_replaces_an_operator() -> None:
    seen = []

    def hook(node: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        if getattr(node, "target", None) is not torch.ops.sleepc.write_slots.default:
            return NotImplemented
        seen.append(args)
        return "written"

    given = {
        "new": torch.ones(1, 2, 3, 4),
        "slots": torch.arange(3)[None],
        "k": torch.ones(1, 2, 8, 4),
    }
    result = run(window_step(), given, hook)
    assert result["k"] == "written"
    assert len(seen) == 1
    assert seen[0][0] is given["k"]
    assert float(result["total"]) == 64.0


def test_values_are_freed_after_their_last_use() -> None:
    import weakref

    g = Graph("g")
    x = g.add_port("input", "x", tensor("T"))
    a = call(g, aten.add.Tensor, x, 1)
    b = call(g, aten.mul.Tensor, a, 2)
    c = call(g, aten.neg.default, b)
    g.set_returns({"c": c})
    alive: list[bool] = []
    first: list[weakref.ref[torch.Tensor]] = []

    def hook(node: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, object]) -> object:
        if node is b:
            first.append(weakref.ref(args[0]))
        if node is c:
            alive.append(first[0]() is not None)
        return NotImplemented

    assert torch.equal(run(g, {"x": torch.ones(2)}, hook)["c"], torch.full((2,), -4.0))
    assert alive == [False]


def test_a_port_may_be_a_result_and_a_value_may_have_two_names() -> None:
    g = Graph("g")
    x = g.add_port("input", "x", tensor("T"))
    y = call(g, aten.neg.default, x)
    g.set_returns({"x": x, "y": y, "z": y})
    given = torch.ones(2)
    result = run(g, {"x": given, "unknown": None})
    assert result["x"] is given
    assert result["y"] is result["z"]


def test_factories_follow_the_ports_device() -> None:
    g = Graph("g")
    x = g.add_port("input", "x", tensor("T"))
    t = call(g, aten.sym_size.int, x, 0)
    g.set_returns({"y": call(g, aten.arange.default, t)})
    assert run(g, {"x": torch.ones(2, device="meta")})["y"].device.type == "meta"
    assert run(g, {"x": torch.ones(2)})["y"].tolist() == [0, 1]


def test_a_failure_shows_the_program() -> None:
    given = values(2, 4)
    given["out"] = torch.zeros(5, 5, dtype=torch.float64)
    with pytest.raises(RuntimeError) as caught:
        run(attention_block(), given)
    notes = "\n".join(caught.value.__notes__)
    assert "block.0" in notes
    assert "  > %" in notes
    assert "layers.0" in notes


def test_a_port_without_value() -> None:
    with pytest.raises(SleepcError, match="port 'qkv' has no value"):
        run(attention_block(), {"h": torch.zeros(1, 1, WIDTH), "out": torch.zeros(WIDTH, WIDTH)})


def test_sizes_are_plain_integers() -> None:
    g = Graph("g")
    x = g.add_port("input", "x", tensor("B", "T"))
    t = call(g, aten.sym_size.int, x, 1)
    half = call(g, operator.floordiv, call(g, operator.add, t, 1), 2)
    g.set_returns({"y": call(g, aten.zeros.default, [half, call(g, operator.neg, -2)])})
    assert run(g, {"x": torch.zeros(1, 5)})["y"].shape == (3, 2)
