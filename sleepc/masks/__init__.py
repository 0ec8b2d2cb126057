"""Who sees whom: the kinds of conditions that masks are made of, one a file; masks as literals, read, in words."""

from sleepc.masks import chunk, window
from sleepc.masks.mask import KINDS, Kind, Mask, nearest, read_mask, register

__all__ = ["KINDS", "Kind", "Mask", "nearest", "read_mask", "register"]

register(window.KIND)
register(chunk.KIND)
