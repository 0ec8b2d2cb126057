"""What the installed ONNX Runtime registers for a provider, as a table of kernels. The provider must start: CUDA's asks
for a device. cuda_kernels.json is such a table; benchmarks/gpu.py compares it, and writes it (--write-table FILE).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from sleepc.backends.onnx.kernels import MICROSOFT, Kernel, Schema, Table

OPEN = 2**31 - 1  # ONNX Runtime's last version of a kernel that has none
OLDEST = 18  # the oldest opset that is written
MEMORY = "ONNX Runtime keeps what is computed from sizes on the CPU, even if CUDA has a kernel for it"
ON_CPU = {"Shape": MEMORY, "Size": MEMORY}


def registered(provider: str, operators: dict[str, Iterable[str]], source: str = "") -> Table:
    """Kernels of `provider`, of the operators named (by domain)."""
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    wanted = {(domain, op) for domain, ops in operators.items() for op in ops}
    kernels: dict[str, dict[str, list[Kernel]]] = {d: {op: [] for op in sorted(ops)} for d, ops in operators.items()}
    for each in state.get_all_opkernel_def():
        first, last = each.version_range
        if each.provider != provider or (each.domain, each.op_name) not in wanted:
            continue
        if each.domain == MICROSOFT or last >= OLDEST:
            types = {name: tuple(sorted(map(_plain, allowed))) for name, allowed in each.type_constraints.items()}
            kernel = Kernel(versions=(first, None if last == OPEN else last), types=types)
            kernels[each.domain][each.op_name].append(kernel)
    return Table(
        runtime=f"ONNX Runtime {ort.__version__}",
        provider=provider,
        source=source,
        on_cpu=ON_CPU,
        schemas={MICROSOFT: {s.name: _schema(s) for s in _schemas(state) if (MICROSOFT, s.name) in wanted}},
        kernels={d: {op: merged(found) for op, found in ops.items()} for d, ops in kernels.items()},
    )


def merged(kernels: list[Kernel]) -> list[Kernel]:
    """The same, with kernels that differ in one parameter's types as one."""
    kernels = sorted(kernels, key=lambda k: (k.versions[0], str(k.types)))
    for i, a in enumerate(kernels):
        for j, b in enumerate(kernels[i + 1 :], i + 1):
            differing = [name for name in a.types if a.types[name] != b.types.get(name)]
            if a.versions == b.versions and a.types.keys() == b.types.keys() and len(differing) <= 1:
                both = {n: tuple(sorted({*a.types[n], *b.types[n]})) for n in a.types}
                one = Kernel(versions=a.versions, types=both)
                return merged([*kernels[:i], one, *kernels[i + 1 : j], *kernels[j + 1 :]])
    return kernels


def as_text(table: Table) -> str:
    """The table as JSON with a line for each operator and kernel."""
    found = table.model_dump(mode="json")
    parts = [f" {json.dumps(key)}: {json.dumps(found[key])}" for key in ("runtime", "provider", "source", "on_cpu")]
    for key, line in (("schemas", json.dumps), ("kernels", _kernel_lines)):
        domains = [f"  {json.dumps(domain)}: {_block(ops, line)}" for domain, ops in found[key].items()]
        parts.append(f" {json.dumps(key)}: {{\n" + ",\n".join(domains) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _block(operators: dict[str, Any], line: Callable[[Any], str]) -> str:
    return "{\n" + ",\n".join(f"   {json.dumps(op)}: {line(value)}" for op, value in operators.items()) + "\n  }"


def _kernel_lines(kernels: list[Any]) -> str:
    return "[" + ",\n    ".join(json.dumps(kernel) for kernel in kernels) + "]"


def _schemas(state: Any) -> list[Any]:
    return sorted((s for s in state.get_all_operator_schema() if s.domain == MICROSOFT), key=lambda s: s.name)


def _schema(found: Any) -> Schema:
    inputs, outputs = ([(p.name, p.typeStr) for p in part] for part in (found.inputs, found.outputs))
    return Schema(inputs=inputs, outputs=outputs)


def _plain(type_: str) -> str:
    return type_.removeprefix("tensor(").removesuffix(")")
