"""Feature maps: what a memory's queries and keys are before they get unit length (Schlag, Irie, Schmidhuber, arXiv
2102.11174; Katharopoulos et al., arXiv 2006.16236).

There features are divided by their sum, which bounds a write of the delta rule, since such keys are no longer than 1,
but makes them short: a write of strength 1 would correct a small part of what its key returns. Of unit length they are
bounded as well, and all rules mean with them what they mean with keys as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import mul

import torch
from torch import Tensor

from sleepc.errors import UsageError


@dataclass(frozen=True)
class Features:
    """A map of queries and keys. `width`: how many features d_k numbers have; `naive`: the formula, [.., d_k] -> [..,
    width], which programs are verified against.
    """

    width: Callable[[int], int]
    naive: Callable[[Tensor], Tensor]


def _elu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def _dpfp(x: Tensor, turns: int) -> Tensor:
    """Feature i of turn j is r_i r_(i+j), r the positive parts of x and of -x."""
    r = torch.cat([x.clamp(min=0), (-x).clamp(min=0)], -1)
    size = r.shape[-1]
    each = [r[..., i] * r[..., (i + j) % size] for j in range(1, turns + 1) for i in range(size)]
    return torch.stack(each, -1)


FEATURES: dict[str, Features] = {
    "unit": Features(partial(mul, 1), lambda x: x),
    "elu": Features(partial(mul, 1), _elu),
    **{f"dpfp{n}": Features(partial(mul, 2 * n), partial(_dpfp, turns=n)) for n in (1, 2, 3)},
}


def find(name: str) -> Features:
    """The map of that name; UsageError with the known names otherwise."""
    if name not in FEATURES:
        raise UsageError(f"no features are named {name!r}", where="--features", fix=f"One of: {', '.join(FEATURES)}.")
    return FEATURES[name]
