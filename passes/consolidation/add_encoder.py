"""Consolidation `tokens`: the program gets an encoder, and the parameters that it learns."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from sleepc.errors import UsageError
from sleepc.ir.graph import Graph
from sleepc.ir.parameters import block_key
from sleepc.ir.program import SOFT, Encode, ProgramGraphs
from sleepc.ir.types import TensorType, wide_dtype
from sleepc.ir.weights import HeldTensor
from sleepc.passes.analysis.find_sites import attention_of, find_attention
from sleepc.passes.analysis.linear_maps import LinearMap, all_maps, maps_before
from sleepc.passes.base import Effect, Pass
from sleepc.passes.consolidation.autoencoder import Autoencoder
from sleepc.passes.consolidation.encoder_graph import own_mask, without_kept
from sleepc.passes.consolidation.soft_tokens import EMBEDDINGS, GAIN, LOW_A, LOW_B
from sleepc.passes.consolidation.transport import Transport, transport_parameters
from sleepc.passes.consolidation.window_again import record_tokens
from sleepc.passes.facts import AWAKE, BLOCKS, BOUNDED, CLOCKED, SLOTTED, Fact
from sleepc.passes.lib.classes import first_block
from sleepc.passes.lib.emit import Emit
from sleepc.recipe import SoftEncoder

FIX = "Use --consolidation replay, or --keep N, which keeps pairs of the window."


@dataclass(frozen=True)
class AddEncoder(Pass):
    """The program makes `tokens` soft tokens of each window (consolidation/tokens.py), by its blocks as they are now:
    with bounded attention, and without memories. `encoder` icae has LoRA matrices of `rank` rows beside the maps that
    make queries and values, comprexit vectors of `width` numbers.

    Raises UsageError for blocks that carry anything but a KV window from token to token, and for masks that are
    neither causal nor a window.
    """

    tokens: int
    rank: int
    window: int
    sinks: int
    seed: int
    encoder: SoftEncoder = "icae"
    width: int = 0
    name: ClassVar[str] = "add-encoder"
    effect: ClassVar[Effect] = "APPROXIMATE"
    requires: ClassVar[tuple[Fact, ...]] = (BLOCKS, BOUNDED, CLOCKED, SLOTTED, AWAKE)

    def run(self, program: ProgramGraphs) -> int:
        """1, for the graph."""
        for name, cls in program.classes.items():
            _check(program, name, [spec.role for spec in cls.states])
        record_tokens(program, self.window)
        plain = {name: without_kept(cls.wake) for name, cls in program.classes.items()}
        made = Transport if self.encoder == "comprexit" else Autoencoder
        writer = made(program, self.tokens, self.window, self.sinks, plain)
        if isinstance(writer, Autoencoder):
            adapted = {name: graph.clone() for name, graph in plain.items()}
            maps = {name: self._adapt(graph) for name, graph in adapted.items()}
            self._add_parameters(program, maps)
            writer.adapted = adapted
        else:
            generator, wide = torch.Generator().manual_seed(self.seed), wide_dtype(program.dtype)
            values = transport_parameters(program, self.width, generator)
            program.params |= {key: HeldTensor(value.to(wide), new=True) for key, value in values.items()}
        program.encode = Encode(writer.written())
        return 1

    def _adapt(self, graph: Graph) -> dict[str, TensorType]:
        """LoRA matrices beside what makes queries and values, by the names of their ports."""
        found: dict[str, TensorType] = {}
        for part, one in encoder_maps(graph).items() if self.rank else ():
            into, out = (int(x.meta["type"].dims[-1]) for x in (one.x, one.call))
            dtype = one.call.meta["type"].dtype
            found[part + LOW_A] = TensorType(dtype, (self.rank, into))
            found[part + LOW_B] = TensorType(dtype, (out, self.rank))
            a, b = (graph.add_port("param", part + end, found[part + end]) for end in (LOW_A, LOW_B))
            e = Emit(graph, "encoder", one.call.next)
            total = e.add(one.call, e.linear(e.linear(one.x, a), b))
            one.call.replace_all_uses_with(total, delete_user_cb=partial(operator.is_not, total))
        return found

    def _add_parameters(self, program: ProgramGraphs, maps: Mapping[str, Mapping[str, TensorType]]) -> None:
        """What training changes: nothing of it shows at first but the window's own tokens, read alone."""
        wide, hidden = wide_dtype(program.dtype), program.hidden
        program.params[EMBEDDINGS] = HeldTensor(torch.zeros(self.tokens, hidden, dtype=wide), new=True)
        program.params[GAIN] = HeldTensor(torch.zeros(hidden, dtype=wide), new=True)
        for i, block in enumerate(program.layout):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + i)
            for port, type_ in maps[block.cls].items():
                shape = [int(n) for n in type_.dims]
                noise = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
                value = noise if port.endswith(LOW_A) else torch.zeros(shape)
                program.params[block_key(i, SOFT + port)] = HeldTensor(value.to(wide), new=True)


def encoder_maps(graph: Graph) -> dict[str, LinearMap]:
    """The last linear maps on the way to attention's q and v, which may be one, as `query` and `value`."""
    attention, maps = attention_of(graph), all_maps(graph)
    found: dict[str, LinearMap] = {}
    for part, at in (("query", 0), ("value", 2)):
        node = attention.args[at]
        assert isinstance(node, fx.Node)
        before = [maps[call] for call in maps if call in maps_before([node], maps)]
        if len(before) == 1 and before[0] not in found.values():
            found[part] = before[0]
    return found


def _check(program: ProgramGraphs, name: str, roles: Iterable[str]) -> None:
    where, wake = f"block {first_block(program, name)}", program.classes[name].wake
    if find_attention(wake) is None or not set(roles) <= {"kv", "kept"}:
        raise UsageError(
            "soft tokens are read by attention alone, and this block carries other states", where=where, fix=FIX
        )
    mask = attention_of(wake).args[5]
    if not isinstance(mask, fx.Node) or mask.op != "placeholder" or mask.meta["type"].dtype != torch.bool:
        raise UsageError(
            "soft tokens stand in for a window, and this layer's scores change with distance", where=where, fix=FIX
        )
    own = own_mask(program, mask.meta["port"].name)
    if own.without_window().parts:
        raise UsageError(
            f"this layer's own mask is {own.words()}, which soft tokens have no place in", where=where, fix=FIX
        )
