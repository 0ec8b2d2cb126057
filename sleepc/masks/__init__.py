"""Who sees whom: the kinds of conditions that masks are made of, one a file; masks as literals, read, in words."""

import pkgutil
from importlib import import_module

from sleepc.masks import kinds
from sleepc.masks.mask import KINDS, Kind, Mask, nearest, read_mask, register

__all__ = ["KINDS", "Kind", "Mask", "nearest", "read_mask", "register"]

for _found in pkgutil.iter_modules(kinds.__path__):
    register(import_module(f"{kinds.__name__}.{_found.name}").KIND)
