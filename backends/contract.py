"""What a backend is, and a target: a `Backend` runs programs in this process, a `Target` writes them as files, and runs
those, a `HostTarget` only writes them. docs/backends.md has how to add one.

Imports no torch: what runs exports, and what says why something cannot run here, works without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from sleepc.backends.tunable import TRIED, Setting, Tunable, check_settings
from sleepc.errors import UsageError
from sleepc.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sleepc.backends.export import Export
    from sleepc.backends.report import Report
    from sleepc.backends.training_steps import TrainingSteps
    from sleepc.ir.graph import Graph
    from sleepc.ir.program import ProgramGraphs
    from sleepc.passes.base import Stage
    from sleepc.recipe import Recipe
    from sleepc.runtime.steps import Steps

FLAG = "flag"  # of an option's metadata
Kernels: TypeAlias = "Mapping[Any, Callable[..., Any]]"
"""Functions by operator (torch.ops.sleepc.delta_rule.default …), with the operator's signature."""


class Backend(ABC):
    """Runs programs at level STEP in this process. All that is asked of it is asked by its name, through the table."""

    name: ClassVar[str]
    """What --backend calls it."""
    dtype: ClassVar[str] = "float64"
    """The dtype of the programs of the conformance suite, the widest that it has."""
    devices: ClassVar[Mapping[str, float]] = {"cpu": 1e-9}
    """What it runs on (cpu, cuda), with the largest error of logits and states there in the conformance suite, as a
    share of their scale."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here, with what to install; None if it can. Imports nothing large, and never raises."""

    @abstractmethod
    def about(self) -> str:
        """The versions of what it runs on, for people."""

    @abstractmethod
    def check_device(self, device: str) -> None:
        """Raises UsageError for what names no device, and for one that is not here."""

    @abstractmethod
    def steps(
        self, program: ProgramGraphs, *, device: str = "cpu", dtype: torch.dtype | None = None, train: bool = False
    ) -> Steps:
        """Steps of a program, computed in `dtype` (the program's own by default). With `train`, which is asked of a
        TrainingBackend only, they are TrainingSteps. Raises UsageError if the device is not there.
        """

    def compiled_steps(
        self,
        program: ProgramGraphs,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        progress: Progress = silent,
        own: Path | None = None,
    ) -> Steps:
        """The same by code that is compiled for this machine, which `progress` hears of, with its seconds. Raises
        UsageError if the backend has none, or what compiles is not there.

        `own` is the artifact, if a person says that native code in it may run: a backend that finds code of its own
        there (see `HostTarget`) takes that and compiles nothing.
        """
        raise not_compiled(self.name)

    def tunables(self, device: str = "cpu") -> tuple[Tunable, ...]:
        """What may be set of how it runs on a device that is here: what `sleepc tune` tries."""
        del device
        return ()

    def tuned_steps(
        self,
        program: ProgramGraphs,
        settings: Mapping[str, Setting],
        *,
        device: str = "cpu",
        compiles: bool = True,
        progress: Progress = silent,
    ) -> Steps:
        """`steps` with settings of `tunables`; what is not named has its default. Raises UsageError for others.

        Settings of a tuning record, for which nobody asked, come without `compiles`: they wait for no compiler, and
        code that is not there yet is left out, which `progress` hears of.
        """
        del compiles, progress
        check_settings(self.name, self.tunables(device), settings)
        return self.steps(program, device=device)

    def taken_on(self, program: ProgramGraphs, target: str, shared: int) -> list[str]:
        """What its own kernels take for a program, compiled for a GPU that need not be here: a line for each; [] if it
        has none. Raises SleepcError if one wants more than `shared` bytes of shared memory.
        """
        del program, target, shared
        return []


class TrainingBackend(Backend):
    """A backend whose steps gradients go through, on parameters that are given and change."""

    trains: ClassVar[bool] = True
    """Is it to be trained on? One that inherits this class and is not says False."""

    @abstractmethod
    def kernels(self, *, train: bool) -> Kernels:
        """The operators that it has functions for; all others are PyTorch's own. With `train` they are differentiable
        and write nothing in place.
        """

    @abstractmethod
    def steps_on(
        self,
        program: ProgramGraphs,
        parameters: Mapping[str, Tensor],
        *,
        device: str | torch.device = "cpu",
        train: bool = False,
        low: torch.dtype | None = None,
        replaced: Kernels | None = None,
    ) -> TrainingSteps:
        """Steps on `parameters` by key, which are on `device` in the dtypes of their ports. With `low`, linear maps
        whose weights are bound in that dtype, and those of the head, are computed in it (docs/decisions/0007). On
        PyTorch's device `meta` nothing is computed, and what it would take is counted: there an operator with a kernel
        of the backend's own is called as itself. `replaced` are other functions for some operators.
        """

    @abstractmethod
    def runner(
        self, graph: Graph, *, replaced: Kernels | None = None, device: str | torch.device = "cpu"
    ) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """One graph of any level as a differentiable function of its ports, with other functions for some operators."""


@dataclass(frozen=True)
class Draft:
    """A folder to write into, which has nothing but the tokenizer's files; the program at level STEP, which the checks
    compare with, reading `tokens`; and the identity of the artifact. For targets that write a model of another form:
    the recipe, a folder with the original's configuration (`described`), and that of its weights (`source`).
    """

    folder: Path
    step: ProgramGraphs
    tokens: Sequence[int]
    identity: str = ""
    progress: Progress = silent
    recipe: Recipe | None = None
    described: Path | None = None
    source: Path | None = None


@dataclass(frozen=True)
class Written:
    """What was checked (Report.to_json), and the names of the files that run."""

    report: dict[str, Any]
    files: Sequence[str]


def not_compiled(name: str) -> UsageError:
    """What is said of a backend or a target without code that is compiled when it is loaded."""
    return UsageError(f"the backend {name} compiles nothing", where="--compile", fix="Leave it out.")


def option(default: Any, words: str, *, tried: tuple[Setting, ...] = (), flag: str = "") -> Any:
    """A field of a target's `options`: a flag of `sleepc export` that is called --like-it, or `flag`; `words` are its
    help. `tried` are the values that `sleepc tune` tries: they change how fast files run, and nothing that they
    compute.
    """
    return field(default=default, metadata={"help": words, TRIED: tried, FLAG: flag})


class Exporter(ABC):
    """Writes programs as files."""

    name: ClassVar[str]
    """What --to calls it, and the folder of an artifact that its export is written to."""
    runtime: ClassVar[str]
    """What runs the files, for people."""
    mark: ClassVar[str]
    """The file that marks the folder of an export, which is written last."""
    packages: ClassVar[tuple[str, ...]] = ()
    """What writing needs, brought by the extra of sleepc of the same name as the target."""
    library: ClassVar[str | None] = None
    """What a model card calls that, if the hub knows it."""
    options: ClassVar[type]
    """A frozen dataclass of `option`s: strings, numbers and bools."""

    @abstractmethod
    def missing(self) -> str | None:
        """Why programs cannot be written and checked here, with what to install; None if they can."""

    @abstractmethod
    def check(self, options: Any) -> None:
        """Before any work: raises UsageError for `options` that do not fit, or if something is not installed."""

    @abstractmethod
    def lowering(self, program: ProgramGraphs, options: Any) -> tuple[Stage, ...]:
        """The stages between a program at level STEP and the one that is written: those that leave it at STEP, then
        those of passes/lower that this target has operators for (`pipeline.lower_stages`). Raises UsageError for a
        program that is not exported.
        """

    @abstractmethod
    def write(self, program: ProgramGraphs, options: Any, draft: Draft) -> Written:
        """Write a lowered program, and check what the files compute. Raises SleepcError if that is not what the program
        before it was lowered does: the folder is then not to be used.
        """


class HostTarget(Exporter):
    """Writes files for a host: a program of one's own, or a backend that finds them in the artifact. No command runs
    them by themselves.
    """

    reads: ClassVar[bool] = False
    """Does writing read tokens, to compare, and do the tokenizer's files belong to what is written?"""

    @abstractmethod
    def verify(self, folder: Path) -> Report:
        """Check an export's files in place. Raises UsageError if there is none, SleepcError if it is damaged."""


class Target(Exporter):
    """Writes programs as files, and runs these without PyTorch. --backend takes its name too: an artifact's export."""

    dtype: ClassVar[str] = "float32"
    """The dtype of the programs of the conformance suite."""
    tolerance: ClassVar[float] = 1e-4
    """The largest error of logits and states there, as a share of their scale."""
    compiles: ClassVar[bool] = False
    """Does writing compile code, for many seconds? The conformance suite then does that in slow tests only."""
    native: ClassVar[bool] = False
    """Do its files hold code for a processor? Then they run only where a person names the target: tuning records, which
    come with artifacts, choose none of them."""

    @abstractmethod
    def missing_runtime(self) -> str | None:
        """Why exports cannot run here, with what to install; None if they can."""

    @abstractmethod
    def about(self) -> str:
        """The versions of what runs them, for people."""

    @abstractmethod
    def open(self, path: Path) -> Export:
        """An artifact with an export in its folder `name`, or an export's own folder. Raises UsageError if there is
        none, SleepcError if it is damaged.
        """

    @abstractmethod
    def verify(self, export: Export, tokens: Sequence[int], progress: Progress, like: Steps | None) -> Report:
        """Check an export in place, reading `tokens`; against the steps of its artifact, if these are given."""

    def tunables(self, device: str = "cpu") -> tuple[Tunable, ...]:
        """What may be set of how its exports run on a device that is here (see `Export.tuned_steps`)."""
        del device
        return ()

    def predicted(self, kind: str) -> Sequence[tuple[Mapping[str, Setting], float]]:
        """All options whose files run on a kind of device (cpu, cuda, rocm) that need not be here, each with the bits
        that a weight of a linear map has in them, by which predictions differ. () if a target has none.
        """
        del kind
        return ()

    def options_of(self, export: Export) -> Mapping[str, Setting]:
        """The options that an export was written with, as far as the export says."""
        del export
        return {}

    def fixed(self, options: Mapping[str, Setting]) -> dict[str, Setting]:
        """Those of the options that may change what is computed: all that are not `tried`."""
        names = {each.name for each in fields(self.options) if not each.metadata.get(TRIED)}
        return {name: value for name, value in options.items() if name in names}

    def rounds(self, options: Mapping[str, Setting]) -> bool:
        """May files that are written with these options compute something else than those of the defaults?"""
        return self.fixed(options) != self.fixed(vars(self.options()))

    def forms(self) -> Mapping[str, Callable[[ProgramGraphs, Path], Steps]]:
        """Every way to write files, by name: a program at level STEP and an empty folder -> its steps, unchecked, on
        one thread. The conformance suite runs each.
        """
        return {}
