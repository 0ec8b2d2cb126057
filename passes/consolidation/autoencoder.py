"""Soft encoder `icae`: the model with LoRA, on places behind the window (ICAE, arXiv 2307.06945)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from sleepc.ir.graph import Graph
from sleepc.passes.consolidation.encoder_graph import EncoderGraph
from sleepc.passes.consolidation.soft_tokens import EMBEDDINGS, GAIN
from sleepc.passes.rewrite.bound_attention import POSITION


@dataclass
class Autoencoder(EncoderGraph):
    """`adapted`: the blocks by class, with LoRA matrices."""

    adapted: Mapping[str, Graph] = field(default_factory=dict)

    def added(self) -> fx.Node:
        """The last hidden states of places behind the window, which begin as its tokens plus embeddings of the
        encoder's own, over their root mean squares, times a gain for each channel.
        """
        e = self.e
        given = self.embedded(self.begun, self.counted(e.add(self.column(POSITION), self.steps)))
        h = e.add(given["h"], e.cast(self.param(EMBEDDINGS), self.program.dtype))
        for i, block in enumerate(self.program.layout):
            h = self.block(i, self.adapted[block.cls], {**given, "h": h}, "behind")["h"]
        return e.mul(self.unit(h), self.param(GAIN))
