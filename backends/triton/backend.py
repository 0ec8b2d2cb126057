"""The backend for GPUs: PyTorch as the eager backend runs it, with kernels for the memory's operators."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sleepc.backends.contract import Kernels, TrainingBackend
from sleepc.backends.eager.backend import EagerBackend, retyped
from sleepc.errors import UsageError
from sleepc.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from sleepc.backends.eager.steps import EagerSteps
    from sleepc.ir.program import ProgramGraphs
    from sleepc.runtime.steps import Steps

OWN, FEATURES = ("delta_rule", "delta_rule_read", "replay"), ("l2norm", "short_conv")
"""The operators that it has functions for."""


class TritonBackend(EagerBackend):
    """EagerBackend, but for `delta_rule`, `delta_rule_read`, `replay`, FEATURES, and, unless it trains, what stands
    around a memory (`fused`). In Triton's interpreter (TRITON_INTERPRET=1) it runs on the CPU, very slowly: for tests.
    """

    name = "triton"
    dtype = "float32"  # the kernels keep states in float32
    devices: ClassVar[Mapping[str, float]] = {"cuda": 1e-5}

    def missing(self) -> str | None:
        """See `Backend.missing`."""
        return super().missing() or (
            None if find_spec("triton") else "Triton is not installed: pip install 'sleepc[triton]'"
        )

    def about(self) -> str:
        """See `Backend.about`."""
        from importlib.metadata import version

        return f"Triton {version('triton')}, {super().about()}"

    def check_device(self, device: str) -> None:
        """See `Backend.check_device`."""
        if (reason := self.missing()) is not None:
            raise UsageError(reason, where=f"--backend {self.name}")
        super().check_device(device)
        if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            raise UsageError(
                f"the backend {self.name} runs on a GPU",
                where=f"--device {device}",
                fix="Give --device cuda where there is one, or leave --backend out.",
            )

    def kernels(self, *, train: bool) -> Kernels:
        """See `TrainingBackend.kernels`."""
        return {**super().kernels(train=train), **self._own(None)}

    def _own(self, low: torch.dtype | None) -> dict[Any, Callable[..., Any]]:
        """Its functions of operators, for a program that computes in `low`."""
        import torch

        from sleepc.backends.triton import delta_rule as operators
        from sleepc.backends.triton import features, fused
        from sleepc.ir.levels import FUSED

        made = {name: partial(getattr(operators, name), low=low) for name in OWN}
        made |= {name: getattr(features, name) for name in FEATURES} | {name: getattr(fused, name) for name in FUSED}
        return {getattr(torch.ops.sleepc, name).default: function for name, function in made.items()}

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
        import torch

        from sleepc.backends.eager.steps import EagerSteps
        from sleepc.ir.levels import FUSED

        program = program if train else fused(program)
        if torch.device(device).type == "meta":  # nothing is computed, so Triton need not be here
            themselves = (getattr(torch.ops.sleepc, name).default for name in (*OWN, *FEATURES, *FUSED))
            own = {each: each for each in themselves}
        else:
            own = self._own(program.dtype)
        kernels = {**super().kernels(train=train), **own, **(replaced or {})}
        return EagerSteps(program, parameters, kernels, device=device, train=train, low=low)

    def taken_on(self, program: ProgramGraphs, target: str, shared: int) -> list[str]:
        """See `Backend.taken_on`. Where Triton is missing, or interprets, a line says that nothing was compiled."""
        reason = self.missing() or (
            "TRITON_INTERPRET is set" if os.environ.get("TRITON_INTERPRET", "0") != "0" else None
        )
        if reason is not None:
            return [f"kernels were not compiled for {target}: {reason}"]
        from sleepc.backends.triton.taken_on import taken_on

        return taken_on(program, target, shared)

    def compiled_steps(
        self,
        program: ProgramGraphs,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        progress: Progress = silent,
        own: Path | None = None,
    ) -> Steps:
        """See `Backend.compiled_steps`: one token at a time, captured. Code of an artifact's own is for processors."""
        import torch

        from sleepc.backends.triton.captured import CapturedSteps
        from sleepc.ir.parameters import materialise

        self.check_device(device)
        if torch.device(device).type != "cuda":
            raise UsageError("a step is captured on a GPU only", where="--compile", fix="Leave it out.")
        program = fused(retyped(program, dtype))
        kernels = {**super().kernels(train=False), **self._own(program.dtype)}
        return CapturedSteps(program, materialise(program, device), kernels, progress, device=device)

    tunables = TrainingBackend.tunables  # on the CPU it is interpreted: nobody is to be led there


def fused(program: ProgramGraphs) -> ProgramGraphs:
    """The program with one operator for each part around its memories that there is a kernel for."""
    from sleepc.ir.levels import FUSED
    from sleepc.passes.pipeline import lower_stages
    from sleepc.passes.runner import run_stages

    return program if program.level == "LOWERED" else run_stages(program, lower_stages(FUSED, masks=True))


BACKEND = TritonBackend()
