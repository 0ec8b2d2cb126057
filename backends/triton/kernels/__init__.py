"""Kernels of Triton. They import neither torch nor the rest of the package; `backends/triton/launch.py` starts them.

tiles      loading and storing, decay
inverse    (I + A)^-1 of one chunk, by blocks of 16 that are merged
features   the L2 norm, one token of the short convolution
chunked    the delta rule over chunks: prepare (all chunks at once), carry (one after the other), read (all at once)
channels   what these, and gradients, need with decay per key channel
single     one token; queries that read a memory as it is
replayed   passes over a window
gradients  those of chunked

Everywhere: rows of a [B, heads, T, D] tensor are contiguous; D is any number, and a tile has the next power of two (BK
for keys, BV for values) with zeros in the rest, as in rows past the end. DK, DV, C (tokens of a chunk), DECAY ("", one
a "head" or one a "channel"), CORRECTS are compile-time constants, as are DOT, the type of what is multiplied, and
EXACT, how float32 is multiplied: "tf32x3" on NVIDIA, "ieee" elsewhere. Sums, decays, the inverse and the state are
float32.
"""
