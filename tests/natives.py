"""Tiny programs with native layers, saved as artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import sleepc
from sleepc.api import Program
from sleepc.verify.memory_values import shaken
from tests.cli.models import save_model
from tests.families import SHAPE, VOCAB

TOKENS = [int(i) for i in np.random.default_rng(0).integers(0, VOCAB, 64)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
NATIVE: dict[str, Any] = {"window": 8, "sinks": 2, "strategy": "replace", "layout": "native"}
KEPT = {**NATIVE, "overrides": [{"layers": "1", "strategy": "leave", "window": "none"}]}


def qwen3(**options: Any) -> Any:
    """Random weights, norms among them."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(5)
    module = Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "head_dim": 16, **options}))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(std=0.2)
    module.train(False)
    return module


def converted(folder: Path, module: Any, recipe: dict[str, Any]) -> Program:
    """A program whose memories answer, saved as an artifact."""
    model = save_model(folder / "model", module=module)
    (model / "LICENSE").write_text("Do as you like.")
    (model / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# The original\n")
    program = sleepc.convert(model, recipe)
    program.graphs = shaken(program.graphs)
    program.save(folder / "artifact")
    return sleepc.load(folder / "artifact")
