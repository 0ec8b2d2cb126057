"""Small converted models whose memories say something."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sleepc.api import Program
from sleepc.causal_lm.model import SleepForCausalLM
from sleepc.manifest import Source
from sleepc.verify.memory_values import shaken
from tests.cli.models import save_model
from tests.families import family

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "keep": {"keep": {"slots": 3, "budgets": [[5, 1], [0, 2], [4, 6]]}},
}


@cache
def converted(recipe: str, dtype: torch.dtype = torch.float64, name: str = "llama") -> Program:
    """A program of a tiny model, window 8, two sinks."""
    graphs, made = family(name, dtype).convert(**RECIPES[recipe])
    return Program(shaken(graphs), made, Source(name=name, kind="module"))


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with a tokenizer of words, in float32."""
    folder = tmp_path_factory.mktemp("causal_lm")
    program = replace(converted("plain", torch.float32), report={})
    program.source = Source(name="llama", kind="module", folder=str(save_model(folder / "model")))
    return program.save(folder / "artifact")


def load_model(path: Path, **options: Any) -> SleepForCausalLM:
    """The model of an artifact."""
    return SleepForCausalLM.from_pretrained(path, trust_remote_code=False, **options)


def load_words(path: Path) -> Any:
    """Its tokenizer, as transformers has it."""
    from transformers import PreTrainedTokenizerFast

    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_file=str(path / "tokenizer.json"), pad_token="w0", padding_side="left")
