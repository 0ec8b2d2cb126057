"""What has to be known before tests are collected: which modules can be imported here, and where kernels run."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

if not torch.cuda.is_available():
    # Triton looks when it is imported: without a GPU, kernels run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The kernels import it, and are imported to look for examples in their docstrings.
collect_ignore = [] if find_spec("triton") else ["sleepc/backends/triton"]
