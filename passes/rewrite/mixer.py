"""The mixer that `insert` adds and `replace` puts in attention's place: convolution, memory, norm, gate.

The layer of conversion.md 1, after Gated DeltaNet (arXiv 2412.06464, section 3.4); q, k and v lie in it by head, all
query heads first, then keys, then values.
"""

from __future__ import annotations

from torch import fx

from sleepc.ir.states import StateSpec
from sleepc.memory.parameters import CONV, OUT_NORM, TAPS, Parameter
from sleepc.passes.lib.emit import Emit, aten
from sleepc.passes.rewrite.features import featured
from sleepc.passes.rewrite.memory import MemoryBuilder, Written


def mix(
    build: MemoryBuilder, e: Emit, x: fx.Node, y: fx.Node, gate: Parameter, scale: float
) -> tuple[fx.Node, Written]:
    """RMSNorm_head(o)·silu(W_g x) [B,T,H·d_v], o the memory's answer to silu(conv(y)), y = q|k|v [B,T,channels]; x
    [B,T,hidden] is what gates read. The convolution's new tail, and what is written online, go into the results.
    """
    real = build.shared("real")
    q, k, v = _heads(build, e, _convolve(build, e, y))
    features = build.options.features
    k = e.mul(featured(e, features, k), e.unsqueeze(real, 1, -1))
    written = {"k": k, "v": v} | build.gates(e, x, real)
    out = build.answer(e, featured(e, features, q), written, scale)
    return _output(build, e, x, out, gate), written


def rms(e: Emit, x: fx.Node, epsilon: float) -> fx.Node:
    """x / sqrt(mean x² + epsilon) over the last dimension."""
    square = e.call(aten.mean.dim, e.mul(x, x), [-1], True)
    return e.mul(x, e.call(aten.rsqrt.default, e.add(square, epsilon)))


def _convolve(build: MemoryBuilder, e: Emit, y: fx.Node) -> fx.Node:
    """silu(conv(y)), the identity convolution at start."""
    taps = build.param(CONV)
    spec = StateSpec("tail", "tail", ("B", build.sizes.channels, TAPS - 1), build.dtype, "overwrite")
    both = e.ours("short_conv", y, taps, build.state(spec), build.shared("lengths"))
    build.results[spec.name] = e.item(both, 1)
    return e.call(aten.silu.default, e.item(both, 0))


def _heads(build: MemoryBuilder, e: Emit, y: fx.Node) -> list[fx.Node]:
    """q, k, v [B,H,T,D] of y [B,T,channels]."""
    parts, start = [], 0
    for heads, width in build.sizes.widths:
        part = e.call(aten.slice.Tensor, y, -1, start, start + heads * width)
        start += heads * width
        parts.append(e.transpose(e.reshape(part, [e.size(y, 0), e.size(y, 1), heads, width]), 1, 2))
    return parts


def _output(build: MemoryBuilder, e: Emit, x: fx.Node, out: fx.Node, gate: Parameter) -> fx.Node:
    width = build.site.q_heads * build.site.d_v
    normed = e.mul(rms(e, out, build.epsilon), build.param(OUT_NORM))
    merged = e.reshape(e.transpose(normed, 1, 2), [e.size(x, 0), e.size(x, 1), width])
    opened = e.call(aten.silu.default, e.linear(x, build.param(gate)))
    return e.mul(merged, opened)
