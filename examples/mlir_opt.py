"""The text of an exported function in another MLIR compiler: passes of upstream MLIR, and what they leave of its
operations. It needs a build of MLIR that knows tm_tensor, in which scatters are written: here IREE's
(pip install iree-base-compiler).

    sleepc export ARTIFACT --to mlir --emit linalg
    python examples/mlir_opt.py ARTIFACT/mlir/token.linalg.mlir fused.mlir
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

PASSES = "builtin.module(canonicalize,cse,func.func(linalg-generalize-named-ops,linalg-fuse-elementwise-ops),cse)"


def operations(module: Any) -> Counter[str]:
    """How many operations of each name stand in a function."""
    found: Counter[str] = Counter()
    for function in module.body.operations:
        for block in function.regions[0].blocks:
            found.update(operation.operation.name for operation in block.operations)
    return found


def optimised(text: str) -> tuple[str, Counter[str], Counter[str]]:
    """(the text after the passes, the operations before, those after them)."""
    from iree.compiler import ir
    from iree.compiler.passmanager import PassManager

    with ir.Context():
        module = ir.Module.parse(text)
        before = operations(module)
        PassManager.parse(PASSES).run(module.operation)
        return str(module), before, operations(module)


def main(source: str, target: str) -> None:
    """Read `source`, write `target`, and print what has changed."""
    text, before, after = optimised(Path(source).read_text(encoding="utf-8"))
    Path(target).write_text(text, encoding="utf-8")
    for name in sorted(before | after, key=lambda name: -before[name]):
        print(f"{name:32} {before[name]:6} -> {after[name]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
