"""The eager backend: graphs run by PyTorch, differentiably. Nothing to install, nothing to lower.

Imports torch only when it is used: what it misses is said without it. A backend with kernels of its own in PyTorch
inherits EagerBackend, and gives other `kernels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from sleepc.backends.contract import Kernels, TrainingBackend
from sleepc.backends.tunable import Setting, Tunable, check_settings, threads_of
from sleepc.errors import UsageError
from sleepc.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from sleepc.backends.eager.compiled import Code
    from sleepc.backends.eager.executor import Executor
    from sleepc.backends.eager.steps import EagerSteps
    from sleepc.ir.graph import Graph
    from sleepc.ir.program import ProgramGraphs
    from sleepc.runtime.steps import Steps


class EagerBackend(TrainingBackend):
    """PyTorch, operator by operator."""

    name = "eager"
    # Rotations are computed in float32, also in a float64 model, and a GPU's sines are others.
    devices: ClassVar[Mapping[str, float]] = {"cpu": 1e-9, "cuda": 1e-5}

    def missing(self) -> str | None:
        """See `Backend.missing`."""
        return None if find_spec("torch") else "PyTorch is not installed: pip install torch"

    def about(self) -> str:
        """See `Backend.about`."""
        import torch

        return f"PyTorch {torch.__version__}"

    def check_device(self, device: str) -> None:
        """See `Backend.check_device`."""
        import torch

        kind, colon, number = device.partition(":")
        if kind not in ("cpu", "cuda") or (colon and not (number.isascii() and number.isdigit())):
            raise UsageError(f"unknown device {device!r}", where="--device", fix="One of: cpu, cuda, cuda:1 and so on.")
        if kind == "cuda" and not torch.cuda.is_available():
            raise UsageError("there is no CUDA device here", where=f"--device {device}", fix="Use --device cpu.")
        there = torch.cuda.device_count() if kind == "cuda" else 1
        if int(number or 0) >= there:
            last = f"the last one is {kind}:{there - 1}"
            raise UsageError(f"unknown device {device}: {last}", where="--device", fix=f"Use --device {kind}.")

    def kernels(self, *, train: bool) -> Kernels:
        """See `TrainingBackend.kernels`."""
        from sleepc.backends.eager.kernels import IN_PLACE, PLAIN

        return PLAIN if train else IN_PLACE

    def steps(
        self, program: ProgramGraphs, *, device: str = "cpu", dtype: torch.dtype | None = None, train: bool = False
    ) -> EagerSteps:
        """See `Backend.steps`. Parameters stay mapped if neither device nor dtype asks for a copy."""
        from sleepc.ir.parameters import materialise

        self.check_device(device)
        program = retyped(program, dtype)
        return self.steps_on(program, materialise(program, device), device=device, train=train)

    def compiled_steps(
        self,
        program: ProgramGraphs,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        progress: Progress = silent,
        own: Path | None = None,
    ) -> Steps:
        """See `Backend.compiled_steps`: one token at a time, on the CPU."""
        from sleepc.backends.eager.ahead import code_in

        code = None if own is None else code_in(own)
        return self._by_code(program, device, dtype, progress, code=code)

    def _by_code(
        self,
        program: ProgramGraphs,
        device: str,
        dtype: torch.dtype | None,
        progress: Progress,
        *,
        code: Code | None = None,
    ) -> Steps:
        """Steps by code that is compiled; what is there of it is in `code`."""
        from sleepc.backends.eager.compiled import CompiledSteps
        from sleepc.ir.parameters import materialise

        self.check_device(device)
        if device != "cpu":
            raise UsageError("code is compiled for the CPU only", where="--compile", fix="Leave it, or --device, out.")
        program, kernels = retyped(program, dtype), self.kernels(train=False)
        return CompiledSteps(program, materialise(program, device), kernels, progress, code=code)

    def tunables(self, device: str = "cpu") -> tuple[Tunable, ...]:
        """See `Backend.tunables`."""
        import torch

        if device != "cpu" or "cpu" not in self.devices:
            return ()
        compiles = type(self).compiled_steps is not TrainingBackend.compiled_steps
        compiled = (Tunable("compile", (False, True), "compile what reads a token"),) if compiles else ()
        return (threads_of(torch.get_num_threads()), *compiled)

    def tuned_steps(
        self,
        program: ProgramGraphs,
        settings: Mapping[str, Setting],
        *,
        device: str = "cpu",
        compiles: bool = True,
        progress: Progress = silent,
    ) -> EagerSteps:
        """See `Backend.tuned_steps`."""
        from sleepc.backends.eager.compiled import cached
        from sleepc.backends.eager.steps import EagerSteps, on_threads

        check_settings(self.name, self.tunables(device), settings)
        threads = int(settings.get("threads", 0))
        with on_threads(threads):  # compiled code is for a number of them
            if settings.get("compile"):
                made = self._by_code(program, device, None, progress, code=None if compiles else cached())
            else:
                made = self.steps(program, device=device)
        assert isinstance(made, EagerSteps)
        made.threads = threads
        return made

    def steps_on(
        self,
        program: ProgramGraphs,
        parameters: Mapping[str, torch.Tensor],
        *,
        device: str | torch.device = "cpu",
        train: bool = False,
        low: torch.dtype | None = None,
        replaced: Kernels | None = None,
    ) -> EagerSteps:
        """See `TrainingBackend.steps_on`."""
        from sleepc.backends.eager.steps import EagerSteps

        kernels = {**self.kernels(train=train), **(replaced or {})}
        return EagerSteps(program, parameters, kernels, device=device, train=train, low=low)

    def runner(self, graph: Graph, *, replaced: Kernels | None = None, device: str | torch.device = "cpu") -> Executor:
        """See `TrainingBackend.runner`."""
        import torch

        from sleepc.backends.eager.executor import Executor

        return Executor(graph, {**self.kernels(train=True), **(replaced or {})}, torch.device(device))


def retyped(program: ProgramGraphs, dtype: torch.dtype | None) -> ProgramGraphs:
    """The program in another dtype, if it is one."""
    from sleepc.passes.adapt.retype import Retype
    from sleepc.passes.base import Stage
    from sleepc.passes.runner import run_stages

    if dtype is None or dtype == program.dtype:
        return program
    return run_stages(program, (Stage("retype", "STEP", (Retype(dtype),)),))


BACKEND = EagerBackend()
load = BACKEND.steps
