"""Which nodes of an ONNX file CUDA has no kernel for: from a table, since an export is often made without a GPU.

cuda_kernels.json is what onnxruntime-gpu registers, for the operators named in it. A kernel may still refuse a node
when it runs (a head size, a GPU that is too old): no registry says that. An operator without a kernel that the
standard defines by others counts as missing, though ONNX Runtime would take it apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sleepc.sealed_json import Strict

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators

TABLE = Path(__file__).with_name("cuda_kernels.json")
STANDARD = ("", "ai.onnx")


class Kernel(Strict):
    """First and last version of the operator (none: the newest), and the types it takes, by type parameter or name."""

    versions: tuple[int, int | None]
    types: dict[str, tuple[str, ...]]


class Schema(Strict):
    """Of an operator that the onnx package does not know: name and type parameter of what goes in and out, in order."""

    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]


class Table(Strict):
    """Kernels by domain and operator. An operator with an empty list is known, and has no kernel."""

    runtime: str
    provider: str
    source: str
    on_cpu: dict[str, str]  # operator whose result lies in host memory -> why what is computed from it is allowed there
    schemas: dict[str, dict[str, Schema]]
    kernels: dict[str, dict[str, list[Kernel]]]


def cuda_table() -> Table:
    """The committed table."""
    return Table.model_validate_json(TABLE.read_text())


def check_kernels(path: Path, table: Table | None = None) -> list[str]:
    """The nodes of this file that have no kernel: one line for each kind, with the first one's name and how many there
    are. Graphs inside nodes, and functions without a kernel of their own, are looked into.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    found = _Check(table or cuda_table(), {o.domain or "": o.version for o in model.opset_import}, model.functions)
    found.graph(model.graph, {})
    return [f"{path.name}: {what}: {names[0]}{_more(names)}" for what, names in found.missing.items()]


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@dataclass
class _Value:
    """What is known of a value: its element type, and whether it is in host memory, being a constant or a size."""

    type: str
    constant: bool = False
    size: bool = False


Values = dict[str, _Value]


@dataclass
class _Check:
    """A walk over the nodes in order; types are inferred on the way, as no shape inference knows all the operators."""

    table: Table
    opsets: Mapping[str, int]
    functions: Iterable[Any]
    missing: dict[str, list[str]] = field(default_factory=dict)

    def graph(self, graph: Any, outer: Values, given: Sequence[_Value] = ()) -> Values:
        """All nodes of a graph. `given` stands for the types that the inputs of an inner graph do not declare."""
        values = dict(outer)
        for i, info in enumerate(graph.input):
            declared = info.type.tensor_type.elem_type
            values[info.name] = _Value(_name(declared)) if declared else given[i]
        values |= {t.name: _Value(_name(t.data_type), constant=True) for t in graph.initializer}
        self.nodes(graph.node, values)
        return values

    def nodes(self, nodes: Iterable[Any], values: Values) -> None:
        """Check nodes; what they give is entered into `values`."""
        for node in nodes:
            values.update(zip(node.output, self.node(node, values), strict=False))

    def node(self, node: Any, values: Values) -> list[_Value]:
        """Check a node; what its outputs are."""
        import onnx

        domain = "" if node.domain in STANDARD else node.domain
        found = [values[name] if name else None for name in node.input]
        if domain == "" and node.op_type == "Constant":
            kind = _name(onnx.helper.get_attribute_value(node.attribute[0]).data_type)
            return [_Value(kind, constant=True)]
        known = self.table.kernels.get(domain, {}).get(node.op_type)
        function = next((f for f in self.functions if (f.domain, f.name) == (node.domain, node.op_type)), None)
        if not known and function is not None:
            inside = dict(zip(function.input, [f for f in found if f], strict=False))
            self.nodes(function.node, inside)
            return [inside[name] for name in function.output]
        inner = self._inner(node, values, found)
        schema = self._schema(domain, node.op_type)
        if schema is None:
            self._miss(node, f"{node.domain or 'ai.onnx'}::{node.op_type} is not in the table of {self.table.runtime}")
            return [_Value("?") for _ in node.output]
        version, inputs, outputs, only = schema
        types = _bound(inputs, found)
        results = inner or [
            _result(node, str(parameter), types, only) for _, parameter in _repeat(outputs, node.output)
        ]
        for (name, parameter), kind in zip(_repeat(outputs, node.output), results, strict=False):
            types.setdefault(parameter, set()).add(kind)
            types.setdefault(name, set()).add(kind)
        present = [f for f in found if f is not None]
        size = node.op_type in self.table.on_cpu or (
            any(f.size for f in present) and all(f.size or f.constant for f in present)
        )
        if not size and not any(_takes(kernel, version, types) for kernel in known or ()):
            shown = ", ".join(
                sorted({f"{p} = {'/'.join(sorted(types[p]))}" for _, p in inputs + outputs if p in types})
            )
            self._miss(node, f"{node.domain or 'ai.onnx'}::{node.op_type}-{version} on {shown}")
        return [_Value(kind, size=size) for kind in results]

    def _inner(self, node: Any, values: Values, found: Sequence[_Value | None]) -> list[str]:
        """Check the graphs inside a node; the types of its outputs, if they are those of a graph inside."""
        results: list[str] = []
        counted = [_Value("int64"), _Value("bool")] if node.op_type == "Loop" else []
        given = [*counted, *(_Value(f.type) for f in found[len(counted) :] if f is not None)]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                inside = self.graph(attribute.g, values, given)
                results = [inside[o.name].type for o in attribute.g.output][node.op_type == "Loop" :]
        return results

    def _schema(self, domain: str, op: str) -> tuple[int, list[Any], list[Any], dict[str, str]] | None:
        """Version, inputs and outputs as (name, type parameter), parameters that have one type only."""
        import onnx

        own = self.table.schemas.get(domain, {}).get(op)
        if own is not None:
            return 1, list(own.inputs), list(own.outputs), {}
        if op not in self.table.kernels.get(domain, {}) or not onnx.defs.has(op, domain):
            return None
        schema = onnx.defs.get_schema(op, self.opsets[domain], domain)
        inputs, outputs = ([(p.name, p.type_str) for p in part] for part in (schema.inputs, schema.outputs))
        only = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        return schema.since_version, inputs, outputs, {p: _plain(t[0]) for p, t in only.items() if len(t) == 1}

    def _miss(self, node: Any, what: str) -> None:
        self.missing.setdefault(what, []).append(node.name or node.output[0])


def _bound(inputs: Sequence[Any], found: Sequence[_Value | None]) -> dict[str, set[str]]:
    """Types by type parameter and by name of the input (kernels use both)."""
    types: dict[str, set[str]] = {}
    for (name, parameter), value in zip(_repeat(inputs, found), found, strict=False):
        if value is not None:
            types.setdefault(parameter, set()).add(value.type)
            types.setdefault(name, set()).add(value.type)
    return types


def _repeat(formal: Sequence[Any], actual: Sequence[Any]) -> list[Any]:
    """A formal one for each actual: the last stands for all that follow, and those that are left out are not there."""
    return [*formal, *([formal[-1]] * (len(actual) - len(formal)))][: len(actual)] if formal else []


def _result(node: Any, parameter: str, types: Mapping[str, set[str]], only: Mapping[str, str]) -> str:
    for attribute in node.attribute:
        if attribute.name == "to":
            return _name(attribute.i)
        if attribute.name == "value" and node.op_type == "ConstantOfShape":
            return _name(attribute.t.data_type)
    if parameter in types:
        return next(iter(types[parameter]))
    return only.get(parameter) or (_plain(parameter) if parameter.startswith("tensor(") else "?")


def _takes(kernel: Kernel, version: int, types: Mapping[str, set[str]]) -> bool:
    """ONNX Runtime's rule: a kernel without a last version is for that version of the operator which it names."""
    first, last = kernel.versions
    fits = version == first if last is None else first <= version <= last
    return fits and all(types.get(name, set()) <= set(allowed) for name, allowed in kernel.types.items())


def _name(elem_type: int) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(elem_type)).lower()


def _plain(type_: str) -> str:
    return type_.removeprefix("tensor(").removesuffix(")")
