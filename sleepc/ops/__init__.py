"""The operators: contract, fake kernel, autograd, naive reference.

Importing this package registers every operator as `torch.ops.sleepc.NAME`; `functional` has the
same as plain functions.
"""

from sleepc.ops import functional, library

__all__ = ["functional", "library"]
