"""The operators: contract, fake kernel, autograd, naive reference; the registry of memory rules.

Importing this package registers every operator as `torch.ops.sleepc.NAME`; `functional` has the
same as plain functions.
"""

from sleepc.ops import functional, library, rules

__all__ = ["functional", "library", "rules"]
