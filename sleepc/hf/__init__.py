"""Hugging Face: loading, tokenizers, GGUF, chat templates; and under their name the model class for their tools."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"SleepForCausalLM": "sleepc.causal_lm.model"}  # it stands above the API, and is imported on first use


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sleepc.hf' has no attribute {name!r}")
