"""Changes of numbers, files or states that an issue made on purpose, for `python -m tests.golden.same`.

A difference between two commits is meant if a change between them is named here with the case, the part of it that
differs, and a bound: that numbers differ by more, or that anything else differs, is a fault.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import NamedTuple

from tests.golden.same_compare import Told


class Meant(NamedTuple):
    """One such change: a commit of main; its cases, as a pattern; which of PARTS differ, and by how much at most."""

    commit: str
    cases: str
    parts: tuple[str, ...]
    why: str
    most: float = math.inf


MEANT = (
    Meant(
        "d98a3ff3174a95178f5dab7c7046d5efa7b2399e",
        "* keep",
        ("converted", "loaded", "state"),
        "PyTorch's fused kernel adds up attention over kept pairs in another order",
        1e-13,
    ),
    Meant(
        "76e4a404b0d72d7dfc80fd7a4c8d105186b75622",
        "* onnx*",
        ("export",),
        "sleeps copy whole rows by one index each; what is computed is the same to the bit",
    ),
    Meant(
        "9c88b9d69359019c8a3c4f876b9d807e049cc1a9",
        "* keep onnx",
        ("export",),
        "attention over kept pairs adds masks to scores",
    ),
    Meant(
        "9c88b9d69359019c8a3c4f876b9d807e049cc1a9",
        "* keep onnx",
        ("converted", "loaded", "state"),
        "attention over kept pairs adds masks to scores, in float32",
        2e-5,
    ),
    Meant(
        "3616c74142616708b31edd9e0940659e601d1134",
        "* keep onnx",
        ("export",),
        "attention over kept pairs is spelled once",
    ),
    Meant(
        "6b39899b8da92e26ab6794d6d2bf400696c71258",
        "* keep*",
        ("state",),
        "states name how heads share slots, and those of before do not",
    ),
    Meant(
        "1e520a0afdc6f1a9bd068e9646682bfbb3f3830a",
        "* keep*",
        ("converted", "export"),
        "the default score is probe, whose probes the comparison draws at random; artifacts of before keep score key",
    ),
    Meant(
        "f8f2027f47be0043a72a5dd425abc5f03babdc19",
        "* onnx*",
        ("export",),
        "small values of softplus come from a series; ONNX Runtime's are the same within 3e-7",
    ),
    Meant(
        "5e3b1462b20f127ce47ab69ad6bbb8d13c2eaa5f",
        "*",
        ("converted", "loaded", "state"),
        "a chunk of the delta rule has no masks before exp, and one exponential less",
        1e-12,
    ),
    Meant(
        "5ef9bc64f3654c4ea9c6dbf7f5a456dc450d63c5",
        "* onnx*",
        ("export",),
        "sleeps choose pairs by two sorts, and leave windows alone that none of them empties",
    ),
    Meant(
        "5ef9bc64f3654c4ea9c6dbf7f5a456dc450d63c5",
        "* keep onnx",
        ("converted", "loaded", "state"),
        "scores are sums in another order, in float32",
        2e-5,
    ),
    Meant(
        "9ca1a84eddc551fb5ff61558d1305139f82bab9d",
        "* onnx*",
        ("export",),
        "products of one token are plain operators, which ONNX Runtime fuses; portable sleeps have no Scan and no Loop",
    ),
    Meant(
        "9ca1a84eddc551fb5ff61558d1305139f82bab9d",
        "* onnx ops=portable",
        ("converted", "loaded", "state"),
        "portable sleeps are affine maps, in float32",
        2e-5,
    ),
    Meant(
        "767c4c47c1ab8d7369d1708dd1b3210e5712e882",
        "* onnx*",
        ("export",),
        "short ranges of a known size are constants",
    ),
    Meant(
        "65d03e5ca15899d2301afb215a7bec37b9160dce",
        "* keep onnx",
        ("export",),
        "kept pairs are chosen by keys of 32 bits; which ones is the same",
    ),
    *(
        Meant(
            "33fa829e95548c939691c57026fc23dbfae97f62",
            cases,
            ("converted", "loaded", "state"),
            "layers that use keys again have no KV windows of their own; logits are the same to the bit",
        )
        for cases in ("gemma4 *", "gemma3n *")
    ),
)


def reason(case: str, part: str, told: Told, commits: Collection[str]) -> Meant | None:
    """The change among `commits` that this difference is meant by, if one is."""
    named = (m for m in MEANT if m.commit in commits and fnmatchcase(case, m.cases) and part in m.parts)
    return next((m for m in named if told.size <= m.most), None)
