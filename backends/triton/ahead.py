"""A program's kernels, compiled ahead of time and written for a host: code and assembly, a manifest and a launcher for
every kind of GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import triton

from sleepc.backends.listed_files import facts_of, sealed
from sleepc.backends.triton.choices import Compilation, choose, types
from sleepc.backends.triton.compiled import compile_for, registers_of
from sleepc.backends.triton.devices import Gpu
from sleepc.backends.triton.launch import Started
from sleepc.backends.triton.launcher import launcher
from sleepc.backends.triton.manifest import (
    RULES,
    ArgumentType,
    DeviceManifest,
    KernelFacts,
    LaunchFacts,
    OperationFacts,
    TensorFacts,
)
from sleepc.backends.triton.plan import Operation, Use, Value
from sleepc.errors import SleepcError, UsageError
from sleepc.version import __version__

UNASKED = ("global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl")
"""What a host would have to provide for a launch, and no kernel of ours asks for."""


class DeviceFiles:
    """What is written for one kind of GPU: every kernel once."""

    def __init__(self, folder: Path, device: Gpu) -> None:
        self.folder, self.device = folder, device
        self.names: dict[tuple[Any, ...], str] = {}
        self.kernels: dict[str, KernelFacts] = {}

    def name_of(self, it: Started) -> str:
        """The name of a kernel in the manifest; it is compiled and written when it is first asked for."""
        kernel = it.kernel.fn.__name__
        problem = replace(it.problem, exact=self.device.exact)
        how, kinds = choose(kernel, it.kernel.arg_names, problem), types(it.kernel.arg_names, problem)
        key = (kernel, *how.constants.items(), *kinds.items())
        if key not in self.names:
            self.names[key] = f"{kernel}_{len(self.kernels)}"
            made = compile_for(it.kernel, problem, self.device.name)
            self.kernels[self.names[key]] = self._written(it.kernel, made, how, kinds)
        return self.names[key]

    def _written(self, kernel: Any, made: Any, how: Compilation, kinds: dict[str, str]) -> KernelFacts:
        name, code = kernel.fn.__name__, "cubin" if self.device.nvidia else "hsaco"
        assembly = "ptx" if self.device.nvidia else "amdgcn"
        self._check(name, made.metadata, how)
        registers, spilled = registers_of(made, self.device.name)
        return KernelFacts(
            kernel=name,
            symbol=made.metadata.name,
            code=self._put(name, code, made.asm[code]),
            assembly=self._put(name, assembly, made.asm[assembly].encode()),
            arguments=[ArgumentType(name=n, type=kind) for n, kind in kinds.items() if kind != "constexpr"],
            threads=how.warps * self.device.warp,
            warps=how.warps,
            shared=made.metadata.shared,
            registers=registers,
            spilled=spilled,
            constants={n: str(x) if n == "DOT" else x for n, x in how.constants.items()},
            compiled=made.metadata.hash,
        )

    def _check(self, name: str, made: Any, how: Compilation) -> None:
        asked = [each for each in UNASKED if getattr(made, each, 0)]
        if asked or made.num_ctas != 1:
            raise SleepcError(
                f"{name} asks a host for {', '.join(asked) or 'clusters'}, which the launcher does not give"
            )
        if made.shared > self.device.shared:
            sizes = " by ".join(str(how.constants[n]) for n in ("DK", "DV") if n in how.constants)
            raise UsageError(
                f"the kernel {name} for heads of {sizes} needs {made.shared} bytes of shared memory, and "
                f"{self.device.name} has {self.device.shared}",
                where=f"--target {self.device.name}",
                fix="Nothing was written: leave this target out.",
            )

    def _put(self, name: str, kind: str, data: bytes) -> str:
        """A file that is named by what is in it."""
        file = f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.{kind}"
        (self.folder / file).write_bytes(data)
        return file


def write_device(folder: Path, device: Gpu, found: Sequence[Operation], identity: str) -> DeviceManifest:
    """Everything for one kind of GPU. Raises UsageError if a kernel needs more shared memory than there is."""
    files = DeviceFiles(folder, device)
    operations = [_operation(each, files) for each in found]
    manifest, stub = f"{device.name}.json", f"{device.name}.c"
    (folder / stub).write_text(launcher(device.name, manifest, files.kernels))
    names = {name for each in files.kernels.values() for name in (each.code, each.assembly)} | {stub}
    made = DeviceManifest(
        sleepc=__version__,
        triton=triton.__version__,
        identity=identity,
        target=device.name,
        warp=device.warp,
        kernels=files.kernels,
        operations=operations,
        launcher=stub,
        rules=list(RULES),
        files={name: facts_of(folder / name) for name in sorted(names)},
    )
    done: DeviceManifest = sealed(made)
    (folder / manifest).write_text(done.model_dump_json(indent=1) + "\n")
    return done


def _operation(it: Operation, files: DeviceFiles) -> OperationFacts:
    return OperationFacts(
        operator=it.operator,
        options=dict(it.options),
        blocks=it.blocks,
        tokens=it.tokens,
        chunk=it.chunk,
        inputs=_tensors(it.inputs),
        buffers=_tensors(it.buffers),
        results=list(it.results),
        launches=[_launch(use, files.name_of(use.started)) for use in it.uses],
    )


def _tensors(values: Mapping[str, Value]) -> dict[str, TensorFacts]:
    return {name: TensorFacts.model_validate(vars(value)) for name, value in values.items()}


def _launch(use: Use, kernel: str) -> LaunchFacts:
    return LaunchFacts(kernel=kernel, per_row=use.per_row, per_chunk=use.per_chunk, arguments=dict(use.arguments))
