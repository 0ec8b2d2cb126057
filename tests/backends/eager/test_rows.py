"""Whole rows are looked up as `torch.gather` does, and what follows from constants alone is computed once."""

from __future__ import annotations

import pytest
import torch

from sleepc.backends.eager.executor import Executor, known_at_first
from sleepc.backends.eager.rows import gather
from sleepc.ir.graph import Graph
from sleepc.ir.types import TensorType
from sleepc.passes.lib.emit import Emit

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("shape", "dim", "places"),
    [((1, 7, 5), 1, (1, 4, 1)), ((3, 7, 5), 1, (3, 9, 1)), ((2, 3, 7, 5), 2, (2, 1, 4, 1)), ((2, 7), 1, (2, 4))],
)
@pytest.mark.parametrize("grad", [False, True])
def test_rows_are_those_of_gather(shape: tuple[int, ...], dim: int, places: tuple[int, ...], grad: bool) -> None:
    make = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=make, dtype=torch.float64).requires_grad_(grad)
    index = torch.randint(shape[dim], places, generator=make)
    index = index.expand(*shape[:dim], places[dim], *shape[dim + 1 :])
    found, wanted = gather(x, dim, index), torch.gather(x, dim, index)
    assert torch.equal(found, wanted)
    if grad:
        weight = torch.randn(wanted.shape, generator=make, dtype=torch.float64)
        (mine,), (other,) = (torch.autograd.grad((y * weight).sum(), x) for y in (found, wanted))
        torch.testing.assert_close(mine, other)


def test_an_index_that_differs_within_a_row_is_no_row() -> None:
    x, index = torch.arange(12.0).view(1, 3, 4), torch.tensor([[[0, 1, 2, 0]]])
    assert torch.equal(gather(x, 1, index), torch.gather(x, 1, index))


def constants_graph() -> Graph:
    """x + 2 owners, and a result that is made of owners alone."""
    graph = Graph("sums")
    x = graph.add_port("input", "x", TensorType(torch.int64, ("B", "S")))
    owners = graph.add_port("const", "owners", TensorType(torch.int64, ("S",)))
    graph.set_returns({"y": x})
    e = Emit(graph, "here")
    twice, fresh = e.mul(owners, 2), e.mul(owners, 3)
    graph.set_returns({"y": e.add(x, twice), "z": fresh})
    return graph


def test_what_follows_from_constants_is_computed_once() -> None:
    graph = constants_graph()
    assert [node.args[1] for node in known_at_first(graph)] == [2]
    constants, x = {"owners": torch.tensor([0, 1, 1])}, torch.tensor([[5, 6, 7]])
    plain, folding = Executor(graph, {}, CPU), Executor(graph, {}, CPU, folds=True)
    known = folding.folded(constants)
    assert [value.tolist() for value in known.values()] == [[0, 2, 2]]
    wanted, found = plain({**constants, "x": x}), folding({**constants, **known, "x": x})
    assert {name: value.tolist() for name, value in found.items()} == {"y": [[5, 8, 9]], "z": [0, 3, 3]}
    assert wanted["y"].tolist() == found["y"].tolist()
