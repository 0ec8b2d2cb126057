"""The operators: contract, fake kernel, autograd, naive reference.

Importing this package registers every operator as `torch.ops.sleepc.NAME`; `functional` has the
same as plain functions.
"""

import torch

from sleepc.ops import functional, library

RECURRENCES = (torch.ops.sleepc.short_conv.default, torch.ops.sleepc.delta_rule.default)
"""Those that carry a state from token to token."""

__all__ = ["RECURRENCES", "functional", "library"]
