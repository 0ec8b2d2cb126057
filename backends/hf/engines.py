"""What reads a checkpoint of Qwen3.5's class besides transformers, what its config.json has to say for that, and what
it does not run. Imports no torch.

Each was tried, or its sources read (docs/native.md): transformers 5.24, vLLM 0.33, SGLang 0.5.23, llama.cpp 0c1e57098,
mlx-lm 0.32.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sleepc.errors import UsageError

LINEAR, FULL = "linear_attention", "full_attention"
INTERVAL = "full_attention_interval"
OWN = "qwen3_5_text"  # the class's name in config.json, but for engines that want another


@dataclass(frozen=True)
class Engine:
    """`model_type`: what its config.json calls the class. `regular`: does it take every n-th layer for attention,
    whatever layer_types says? `attends`: does it need one? `scales`: of rotary positions, those that it scales, if not
    all that transformers does. `more`: what else its config.json has. `how`: a command, or a call, that loads a FOLDER.
    """

    how: str
    model_type: str = OWN
    regular: bool = False
    attends: bool = False
    scales: tuple[str, ...] | None = None
    more: tuple[tuple[str, Any], ...] = ()


ENGINES = {
    "transformers": Engine("AutoModelForCausalLM.from_pretrained('FOLDER')"),
    "vllm": Engine("vllm serve FOLDER", attends=True, more=(("mamba_ssm_dtype", "float32"),)),
    "sglang": Engine("python -m sglang.launch_server --model-path FOLDER", regular=True, attends=True),
    "llama.cpp": Engine(
        "python convert_hf_to_gguf.py --no-mtp --outfile model.gguf FOLDER",
        attends=True,
        scales=("default", "linear", "yarn"),
    ),
    "mlx": Engine("mlx_lm.generate --model FOLDER --prompt …", "qwen3_5", regular=True, attends=True),
}
ENGINE = next(iter(ENGINES))


def find_engine(name: str) -> Engine:
    """The one of that name. Raises UsageError if there is none."""
    if name not in ENGINES:
        raise UsageError(f"no runtime is called {name!r}", where="--for", fix=f"One of: {', '.join(ENGINES)}.")
    return ENGINES[name]


def interval_of(kinds: Sequence[str]) -> int | None:
    """n, if attention is in every n-th layer, the last of each n, and in no other; None if it is not."""
    places = [i for i, kind in enumerate(kinds) if kind == FULL]
    step = places[0] + 1 if places else len(kinds) + 1
    return step if places == [*range(step - 1, len(kinds), step)] else None


def refusals(name: str, kinds: Sequence[str], rope: Mapping[str, Any]) -> list[str]:
    """Why an engine cannot run layers of these kinds, with these rotary positions, in sentences."""
    engine, found = ENGINES[name], []
    if LINEAR not in kinds:
        found.append(f"{name} runs the class only with linear layers, and none is")
    if engine.attends and FULL not in kinds:
        found.append(f"{name} needs a layer with attention, and none is left: transformers runs it")
    if engine.regular and interval_of(kinds) is None:
        places = ", ".join(str(i) for i, kind in enumerate(kinds) if kind == FULL)
        found.append(f"{name} takes every n-th layer for attention, counted from 1, and here these have it: {places}")
    scaling = rope.get("rope_type", "default")
    if engine.scales is not None and scaling not in engine.scales:
        known = ", ".join(engine.scales)
        found.append(f"{name} scales the class's positions by {known}, and here it is rope_type {scaling}")
    return found


def said(name: str, kinds: Sequence[str]) -> dict[str, Any]:
    """What config.json says for an engine."""
    engine = ENGINES[name]
    regular = {INTERVAL: interval_of(kinds)} if engine.regular else {}
    return {"model_type": engine.model_type, **regular, **dict(engine.more)}
