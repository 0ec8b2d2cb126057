"""Names mean nothing: a model whose submodules and parameters have random names is converted to the same program."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest
import torch
from torch import nn

from sleepc.capturing import capture
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.text import print_graph
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.runner import run_stages
from sleepc.recipe import Recipe
from tests.families import make_module


def rename(module: nn.Module, choose: random.Random) -> None:
    """Give every submodule, parameter and buffer a random name; the model's own code still finds it by the old one.

    Containers keep their numbers, which their own code iterates over; everything else is renamed.
    """
    old: dict[str, str] = {}
    for table in (module._modules, module._parameters, module._buffers):
        entries = list(table.items())
        table.clear()
        for name, value in entries:
            keeps = isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential))
            new = name if keeps else "".join(choose.choices(string.ascii_lowercase, k=9))
            old[name] = new
            table[new] = value  # type: ignore[assignment]
    kind = type(module)

    def find(self: nn.Module, name: str) -> Any:
        return nn.Module.__getattr__(self, old.get(name, name))

    title = "".join(choose.choices(string.ascii_uppercase, k=9))
    module.__class__ = type(title, (kind,), {"__getattr__": find, "forward": kind.forward})
    for child in list(module._modules.values()):
        if child is not None:
            rename(child, choose)


def plan(program: ProgramGraphs) -> dict[str, Any]:
    """What was found: texts of all graphs without their comments and parameter keys, and the sites."""
    texts = {}
    for graph in program.graphs():
        for port in graph.ports().values():
            port.meta.pop("source", None)
        keys = {key: f"key{i}" for i, key in enumerate(sorted(graph.ports(), key=list(graph.ports()).index))}
        text = "\n".join(line.split("  #")[0] for line in print_graph(graph).splitlines())
        for key, plain in keys.items():
            text = text.replace(f'"{key}"', f'"{plain}"')
        texts[graph.name] = text
    sites = {}
    for name, cls in program.classes.items():
        if cls.sleep is None:
            found = find_site(cls.wake)
            sites[name] = (found.q_heads, found.kv_heads, found.mask, found.softcap, found.scale, found.rotated)
    return {"texts": texts, "layout": [b.cls for b in program.layout], "sites": sites}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3", "gemma2", "nanogpt")]


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "nanogpt-spelled", *SLOW])
def test_names_mean_nothing(name: str) -> None:
    plain, renamed = make_module(name, torch.float32), make_module(name, torch.float32)
    rename(renamed, random.Random(4))
    assert set(dict(plain.named_parameters())).isdisjoint(dict(renamed.named_parameters()))
    ours, theirs = capture(plain), capture(renamed)
    assert plan(theirs) == plan(ours)
    recipe = Recipe(window=8)
    steps = [run_stages(p, rewrite_stages(recipe, len(p.layout))) for p in (ours, theirs)]
    assert plan(steps[1]) == plan(steps[0])
