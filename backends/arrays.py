"""What exports hold in NumPy's types."""

from __future__ import annotations

import numpy as np

NUMPY = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "i64": np.int64,
    "i16": np.int16,
    "i8": np.int8,
    "u8": np.uint8,
    "bool": np.bool_,
}
"""By the names of manifests."""
