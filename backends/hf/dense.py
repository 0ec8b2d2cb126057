"""A dense model, some or all of whose layers are native ones, as a checkpoint of transformers' `Qwen3_5ForCausalLM`.

Attention that is kept gets a gate that is always open by half, and an output projection twice as large; norms are
written as what they add to 1 (conversion.md 6).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sleepc.backends.hf.engines import FULL, LINEAR
from sleepc.backends.hf.obstacles import Host
from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.tensorfile import Planned
from sleepc.memory.parameters import CONV, DECAYS, OUT_GATE, OUT_NORM, PROJECTION, STRENGTHS, TAPS, Parameter, key_of
from sleepc.recipe import LayerPlan

CLASS = "Qwen3_5ForCausalLM"
NORMED = {"qwen3": True, "qwen2": False, "llama": False, "mistral": False}
"""Models whose blocks are those of the class but for attention, by model_type: has that norms of q and k?"""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SAME = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
COMPUTED = ("inv_freq",)  # buffers that the class makes of its configuration


def host_of(config: Any) -> Host | None:
    """What takes a model of this configuration; None if nothing does."""
    kind = config.model_type
    return Host(CLASS, NORMED[kind], tuple(windows_of(config))) if kind in NORMED else None


def of_config(config: Any) -> list[str]:
    """What the configuration has that the class has not."""
    found = []
    if config.hidden_act != "silu":
        found.append(f"its activation is {config.hidden_act}, and the class has one for all, silu")
    if getattr(config, "mlp_bias", False):
        found.append("its MLPs have biases (mlp_bias)")
    if getattr(config, "attention_bias", False):
        found.append("its attention has biases (attention_bias), and native layers have none")
    return found


def windows_of(config: Any) -> list[int]:
    """How many tokens each layer's attention sees at most, by the configuration; 0 for all."""
    count, size = config.num_hidden_layers, getattr(config, "sliding_window", None)
    if not size or size >= config.max_position_embeddings:
        return [0] * count
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * count
    return [size if kind == "sliding_attention" else 0 for kind in kinds]


def kinds_of(plans: Sequence[LayerPlan]) -> list[str]:
    """What the class calls the layers."""
    return [LINEAR if plan.strategy == "replace" else FULL for plan in plans]


@dataclass(frozen=True)
class Dense:
    """A dense model that the class has: the original's configuration, what the class calls its layers, and the target
    that asks.
    """

    config: Any
    kinds: Sequence[str]
    to: str = "hf"

    @property
    def attends(self) -> bool:
        """Does a layer keep its attention?"""
        return FULL in self.kinds

    @property
    def width(self) -> int:
        """Of a head."""
        found = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        return int(found)

    def configured(self, dtype: torch.dtype, *, tied: bool) -> dict[str, Any]:
        """The class's configuration, with the sizes and positions of the original's."""
        from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

        heads = self.config.num_attention_heads
        same = (
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
            *("pad_token_id", "bos_token_id", "eos_token_id"),
        )
        # Of pairs of numbers, every third is turned by one of three positions, which are equal in a text. llama.cpp
        # does not turn those that are left over: there are none.
        sections = [(self.width // 2 + more) // 3 for more in (2, 1, 0)]
        rope = dict(self.config.rope_parameters) if self.attends else {"rope_type": "default", "rope_theta": 10000.0}
        rope |= {"partial_rotary_factor": 1.0, "mrope_section": sections, "mrope_interleaved": True}
        made: Any = Qwen3_5TextConfig(
            **{name: getattr(self.config, name) for name in same},
            head_dim=self.width,
            tie_word_embeddings=tied,
            attention_bias=False,
            linear_conv_kernel_dim=TAPS,
            linear_key_head_dim=self.width,
            linear_value_head_dim=self.width,
            linear_num_key_heads=heads,
            linear_num_value_heads=heads,
            layer_types=list(self.kinds),
            rope_parameters=rope,
            architectures=[CLASS],
            dtype=str(dtype).removeprefix("torch."),
            use_cache=self.attends,
        )
        return dict(made.to_dict())

    def weights(self, program: ProgramGraphs, dtype: torch.dtype) -> DenseWeights:
        """The class's weights, in a dtype."""
        return DenseWeights(program, self, dtype)


@dataclass
class DenseWeights:
    """The class's weights, from a program's parameters; `used` are the keys of those that went into one."""

    program: ProgramGraphs
    model: Dense
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.used: set[str] = set()
        self.planned: dict[str, Planned] = {}

    def plan(self) -> dict[str, Planned]:
        """Every weight by its name in the class. Raises UsageError if a parameter has no place there."""
        self._same(EMBEDDING, HEAD if EMBEDDING not in self.program.params else None)
        for i, kind in enumerate(self.model.kinds):
            self._layer(f"model.layers.{i}.", i, kind)
        self._norm("model.norm.weight")
        if not self.tied:
            self._same(HEAD)
        left = [key for key in self._read() - self.used if not key.endswith(COMPUTED)]
        if left:
            raise UsageError(f"the class has no place for {', '.join(sorted(left)[:3])}", where=f"--to {self.model.to}")
        return self.planned

    @property
    def tied(self) -> bool:
        """Is the head's matrix that of the embeddings? Then it has one of their names."""
        return not {EMBEDDING, HEAD} <= self.program.params.keys()

    def _read(self) -> set[str]:
        """The keys of all parameters that the program reads."""
        keys = {key for block in self.program.layout for key in block.params.values()}
        return keys | {key for graph in (self.program.embed, self.program.head) for key in graph.ports("param")}

    def _put(self, name: str, keys: Sequence[str], shape: Sequence[int], make: Callable[..., Tensor]) -> None:
        """A weight that is made of parameters, when it is written."""
        params = [self.program.params[key] for key in keys]
        self.used |= {*keys}
        self.planned[name] = Planned(self.dtype, tuple(shape), lambda: make(*(p.materialise() for p in params)))

    def _shape(self, key: str) -> tuple[int, ...]:
        if key not in self.program.params:
            raise UsageError(f"the program has no parameter {key}, which the class has", where=f"--to {self.model.to}")
        return self.program.params[key].shape

    def _same(self, name: str, key: str | None = None) -> None:
        key = key or name
        self._put(name, [key], self._shape(key), lambda value: value)

    def _norm(self, name: str) -> None:
        self._put(name, [name], self._shape(name), lambda value: value.to(torch.float32) - 1)

    def _layer(self, prefix: str, i: int, kind: str) -> None:
        for name in NORMS:
            self._norm(prefix + name)
        for name in SAME:
            self._same(prefix + name)
        (self._linear if kind == LINEAR else self._full)(prefix, i)

    def _linear(self, prefix: str, i: int) -> None:
        """A native layer: its memory's own parameters, and the output projection that the block had."""
        into = prefix + "linear_attn."
        own: dict[str, Parameter] = {
            "in_proj_qkv.weight": PROJECTION,
            "in_proj_z.weight": OUT_GATE,
            "in_proj_b.weight": STRENGTHS.weight,
            "in_proj_a.weight": DECAYS.weight,
            "dt_bias": DECAYS.bias,
            "A_log": DECAYS.rate,
            "norm.weight": OUT_NORM,
        }
        for name, parameter in own.items():
            self._same(into + name, key_of(i, parameter))
        taps = key_of(i, CONV)
        channels, count = self._shape(taps)
        self._put(into + "conv1d.weight", [taps], (channels, 1, count), lambda value: value[:, None])
        self._same(into + "out_proj.weight", prefix + "self_attn.o_proj.weight")

    def _full(self, prefix: str, i: int) -> None:
        """Attention as it was: its gate is 1/2 whatever it reads, and its output projection doubled."""
        into, width = prefix + "self_attn.", self.model.width
        rows, hidden = self._shape(into + "q_proj.weight")

        def gated(q: Tensor) -> Tensor:
            heads = q.reshape(-1, width, hidden)
            return torch.cat([heads, torch.zeros_like(heads)], 1).reshape(2 * rows, hidden)

        self._put(into + "q_proj.weight", [into + "q_proj.weight"], (2 * rows, hidden), gated)
        for name in ("k_proj.weight", "v_proj.weight"):
            self._same(into + name)
        out = into + "o_proj.weight"
        self._put(out, [out], self._shape(out), lambda value: value * 2)
        for name in ("q_norm.weight", "k_norm.weight"):
            self._norm(into + name)
