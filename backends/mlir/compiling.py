"""Functions -> one module over shared parameters -> IREE's code for a device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sleepc.backends.mlir.devices import DEVICES
from sleepc.backends.mlir.importing import DialectFunction, NotLowered, with_places

SCOPE = "model"  # of the parameters' names
NOT_PLAIN = re.compile(rb"[^ !#-\[\]-~]")


def join(functions: Sequence[DialectFunction]) -> str:
    """One module: every function reads its parameters from globals, which all functions share, and takes its inputs."""
    from iree.compiler import ir

    with ir.Context(), ir.Location.unknown():
        parsed = [ir.Module.parse(function.text) for function in functions]  # operations live as long as their modules
        bodies = {f.name: _body(ir, f, module) for f, module in zip(functions, parsed, strict=True)}
        types: dict[str, str] = {}
        for function in functions:
            inputs = ir.FunctionType(ir.TypeAttr(bodies[function.name].attributes["function_type"]).value).inputs
            types |= dict(zip(function.parameters, map(str, inputs), strict=False))
        lines = [
            f"util.global private @{_quoted(key)} = #flow.parameter.named<{_quoted(SCOPE)}::{_quoted(key)}> : {kind}"
            for key, kind in types.items()
        ]
        lines += [_wrapper(ir, function, bodies[function.name]) for function in functions]
        whole = ir.Module.parse("module {\n" + "\n".join(lines) + "\n}")
        for operation in list(whole.body.operations):
            if operation.operation.name == "func.func" and not operation.regions[0].blocks:
                operation.operation.erase()
        for body in bodies.values():
            body.detach_from_parent()
            whole.body.append(body)
        return with_places(whole)


def _body(ir: Any, function: DialectFunction, module: Any) -> Any:
    """The function as an operation, private and under another name."""
    (found,) = [each.operation for each in module.body.operations if each.operation.name == "func.func"]
    found.attributes["sym_name"] = ir.StringAttr.get(f"{function.name}.body")
    found.attributes["sym_visibility"] = ir.StringAttr.get("private")
    return found


def _wrapper(ir: Any, function: DialectFunction, body: Any) -> str:
    """The text of the public function that calls the private one, and of that one's declaration."""
    kind = ir.FunctionType(ir.TypeAttr(body.attributes["function_type"]).value)
    inputs, results = [str(t) for t in kind.inputs], ", ".join(str(t) for t in kind.results)
    count, names = len(function.parameters), [f"%v{i}" for i in range(len(inputs))]
    loads = [
        f"{names[i]} = util.global.load @{_quoted(key)} : {inputs[i]}" for i, key in enumerate(function.parameters)
    ]
    taken = ", ".join(f"{name}: {t}" for name, t in zip(names[count:], inputs[count:], strict=True))
    returned = ", ".join(f"%r#{i}" for i in range(len(kind.results)))
    lines = [
        f"func.func private @{function.name}.body({', '.join(inputs)}) -> ({results})",
        f"func.func @{function.name}({taken}) -> ({results}) {{",
        *loads,
        f"%r:{len(kind.results)} = func.call @{function.name}.body({', '.join(names)}) : "
        f"({', '.join(inputs)}) -> ({results})",
        f"return {returned} : {results}",
        "}",
    ]
    return "\n".join(lines)


def _quoted(name: str) -> str:
    """As MLIR's parser reads a text: bytes of UTF-8, by two digits where they are no plain letters."""
    return '"' + NOT_PLAIN.sub(lambda found: rb"\%02X" % found[0][0], name.encode()).decode() + '"'


def compile_module(text: str, to: Path, device: str, arch: str) -> None:
    """Code of a module for a device. Raises NotLowered with what the compiler said."""
    from iree.compiler.tools import CompilerToolError, compile_str

    found = DEVICES[device]
    flags = ["--iree-opt-level=O2", *([f"{found.flag}={arch}"] if found.flag else [])]
    try:
        compile_str(
            text,
            output_file=str(to),
            target_backends=[found.backend],
            extra_args=[*flags, *found.more],
        )
    except CompilerToolError as error:
        raise NotLowered(f"{error}\nerror: the compiler stopped without a word", text) from error
