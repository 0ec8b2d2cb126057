"""A converted program, in memory or from an artifact: it verifies, trains, saves, exports, and opens sessions."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from sleepc import artifact
from sleepc.backends.contract import Target, not_compiled
from sleepc.backends.export import Export
from sleepc.backends.table import DEFAULT, DEFAULT_TARGET, find_runner, find_trainer
from sleepc.backends.tunable import SettingsByName
from sleepc.capturing import DTYPES, capture, in_dtype
from sleepc.digests import weights_digest
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.hf.load import load_module, to_answer
from sleepc.hf.resolve import Checkpoint
from sleepc.hf.tokenizer import NoTokenizer, Tokenizer, load_tokenizer
from sleepc.inspection import Inspection, inspect_program
from sleepc.ir.program import ProgramGraphs
from sleepc.manifest import RESTORE, Source, identity_of, read_manifest
from sleepc.models import find_model
from sleepc.passes.consolidation.registry import find as find_consolidation
from sleepc.progress import Progress, silent
from sleepc.recipe import Recipe
from sleepc.room import require_room
from sleepc.runtime.arguments import typed
from sleepc.runtime.batch import checked_tokens
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.tasks.puzzle import Puzzle
from sleepc.verify.older import warn_of_far_sinks
from sleepc.verify.original import Original

if TYPE_CHECKING:
    from sleepc.exporting import Exported
    from sleepc.train.adapter import Adapter
    from sleepc.train.calibrate import CalibrationReport
    from sleepc.train.cartridge import Made
    from sleepc.train.learned import Teacher
    from sleepc.train.share_slots import BudgetsReport
    from sleepc.train.training import Outcome
    from sleepc.verify.verify import VerifyReport


@dataclass(repr=False)
class Program:
    """A converted model. `graphs` is what backends run, `canonical` the original as the compiler saw it (not in an
    artifact).
    """

    graphs: ProgramGraphs
    recipe: Recipe
    source: Source
    report: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    canonical: ProgramGraphs | None = None
    original: nn.Module | None = None
    timings: dict[str, float] = field(default_factory=dict)
    identity: str = ""
    opened: str = ""  # the identity of the artifact at `path` when it was loaded or saved
    checked: bool = True
    native_code: bool = False  # may native code in the artifact's exports run?

    def __repr__(self) -> str:
        recipe, place = self.recipe, f" in {self.path}" if self.path else ""
        return (
            f"<sleepc.Program of {self.source.name}{place}: {len(self.graphs.layout)} blocks, vocabulary "
            f"{self.graphs.vocab}; window {recipe.window}, {recipe.sinks} sinks, {recipe.strategy} {recipe.rule}>"
        )

    def __getstate__(self) -> NoReturn:
        fix = "Save it (program.save), and load it where it is needed (sleepc.load)."
        raise UsageError("a program cannot be pickled", fix=fix)

    def __copy__(self) -> Program:
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return replace(self, **{part.name: copy.deepcopy(getattr(self, part.name), memo) for part in fields(self)})

    @typed
    def session(
        self,
        batch: int = 1,
        *,
        backend: str = DEFAULT,
        device: str = "cpu",
        dtype: str | None = None,
        compile: bool = False,
        progress: Progress = silent,
    ) -> Session:
        """A session of `batch` rows. Raises UsageError for a backend, device or dtype that is not there, and
        for more rows than memory has room for. `compile` as in `steps`.
        """
        if device == "cpu":
            require_room(self.graphs, batch if isinstance(batch, int) else 1)
        steps = self.steps(backend=backend, device=device, dtype=dtype, compile=compile, progress=progress)
        return Session(steps, batch, identity=self.identity, upto=self.graphs.upto)

    @typed
    def steps(
        self,
        *,
        backend: str = DEFAULT,
        device: str = "cpu",
        dtype: str | None = None,
        train: bool = False,
        compile: bool = False,
        progress: Progress = silent,
    ) -> Steps:
        """The program as steps of a backend; with `train`, differentiable (TrainingSteps of backends.contract). The
        name of a target is the artifact's export (see `export`). With `compile`, code for this machine is compiled, or
        taken from the cache, or from an export if native code may run (see `load`); `progress` hears how long that took
        (docs/performance.md).
        """
        if compile and train:
            raise UsageError("what is compiled is not trained", where="compile", fix="Give compile or train.")
        runs = find_trainer(backend) if train else find_runner(backend)
        if isinstance(runs, Target):
            if compile:
                raise not_compiled(runs.name)
            return self._exported(runs).steps(device=device, dtype=dtype)
        kind = _dtype(dtype)
        runs.check_device(device)  # before all bytes are read
        self.check_bytes()
        if compile:
            own = self.path if self.native_code else None
            return runs.compiled_steps(self.graphs, device=device, dtype=kind, progress=progress, own=own)
        return runs.steps(self.graphs, device=device, dtype=kind, train=train)

    @typed
    def tuned_steps(
        self,
        settings: SettingsByName,
        *,
        backend: str = DEFAULT,
        device: str = "cpu",
        progress: Progress = silent,
    ) -> Steps:
        """`steps`, in the program's own dtype, with settings of a backend (docs/tuning.md), which change speed alone.
        Raises UsageError for others.
        """
        runs = find_runner(backend)
        if isinstance(runs, Target):
            return self._exported(runs).tuned_steps(settings, device=device)
        runs.check_device(device)
        self.check_bytes()
        return runs.tuned_steps(self.graphs, settings, device=device, progress=progress)

    def _exported(self, target: Target) -> Export:
        """The export in the artifact's folder. Raises UsageError if it is missing, or not of this program."""
        if self.path is None:
            raise UsageError("the program is in no artifact, so it has no export", fix="Save it, and export it.")
        found = target.open(self.path)
        if found.identity != self.identity:
            raise UsageError(
                "the program was changed since its export", where=str(self.path), fix="Save it, and export it again."
            )
        found.native_code = self.native_code
        return found

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises UsageError if it has none."""
        return load_tokenizer(self.folder())

    def folder(self) -> Path | None:
        """Where the tokenizer's files are: the artifact, or the original's folder; None if it was in memory.

        Raises SleepcError if another artifact is there now, whose tokens may differ.
        """
        if self.path is None:
            return Path(self.source.folder) if self.source.folder else None
        self.require_in_place()
        return self.path

    def require_in_place(self) -> None:
        """Raises SleepcError if its path no longer holds the artifact that was loaded."""
        if self.path is not None and identity_of(read_manifest(self.path)) != self.opened:
            what, fix = "the artifact was replaced by another one while it was open", "Run the same command again."
            raise SleepcError(what, where=str(self.path), fix=fix)

    def inspect(self) -> Inspection:
        """What the conversion found and did. If this comes from an artifact, the original is captured again."""
        return self.inspected(silent)

    def inspected(self, progress: Progress) -> Inspection:
        """The same, with a callback for what takes time."""
        canonical = self.captured(progress)
        warn_of_far_sinks(self.graphs, canonical, self.recipe)
        return inspect_program(canonical, self.graphs, self.recipe)

    @typed
    def verify(
        self,
        *,
        against: str | Path | nn.Module | None = None,
        text: str | None = None,
        tokens: Sequence[int] | None = None,
        hash: bool = False,
        accept_quality: bool = False,
        progress: Progress = silent,
    ) -> VerifyReport:
        """Measure the invariants on real tokens, against the original model.

        `text` or `tokens` are what is read (text of the standard library by default). `hash` checks every tensor's
        bytes first. The report judges what is beyond the window too (report.beyond): more than 4 times the original's
        perplexity is a failure, unless `accept_quality`.
        Raises SleepcError if the original is not found.
        """
        from sleepc.verify.verify import Measuring, verify_program

        ids = self.some_tokens(text, tokens)
        self.check_bytes(again=hash)
        original, checkpoint = self._original(against, progress)
        canonical = self.captured(progress, original)
        trained = bool(self.report.get("training"))
        how = Measuring(trained=trained, accept_quality=accept_quality, progress=progress)
        logits = Original(original, self.graphs.beyond)
        with to_answer(checkpoint):
            report = verify_program(self.graphs, canonical, self.recipe, ids, original=logits, measuring=how)
        self.report["verify"] = report.to_json()
        return report

    def check_bytes(self, *, again: bool = False) -> None:
        """Once for an artifact: are all tensors' bytes those that were converted? Raises SleepcError if they are
        not. With `again` in any case, and also what a quantised source has them as, which exports alone read.
        """
        if self.checked and not again:
            return
        broken = [key for key, intact in artifact.verify_hashes(self.graphs, packed=again) if not intact]
        if broken:
            raise SleepcError(
                f"the bytes of {len(broken)} tensors have changed since the conversion: {', '.join(broken[:5])}",
                where=str(self.path),
                fix=RESTORE,
            )
        self.checked = True

    def some_tokens(self, text: str | None, tokens: Sequence[int] | None = None) -> list[int]:
        """`tokens`, those of `text`, or of a text that is on every machine; random ones if the model can read none.

        Raises UsageError for tokens that are not of this model.
        """
        from sleepc.verify.texts import default_text, says_something

        if tokens is not None:
            return checked_tokens(tokens, self.graphs.vocab)
        if text is not None:
            return self.tokenizer().encode(text)
        known: Sequence[int] = range(self.graphs.vocab)
        try:
            tokenizer = self.tokenizer()
        except NoTokenizer as error:
            tokenizer = None
            if error.where:
                warnings.warn(f"{error.what}: reading random tokens instead", SleepcWarning, stacklevel=2)
        if tokenizer is not None:
            ids = tokenizer.encode(default_text())
            if says_something(ids):
                return ids
            known = sorted(set(known).difference(tokenizer.holes(self.graphs.vocab)))
        generator = torch.Generator().manual_seed(0)
        return [known[i] for i in torch.randint(0, len(known), (4096,), generator=generator).tolist()]

    def load_original(self, against: str | Path | nn.Module | None, progress: Progress) -> nn.Module:
        """The original, with transformers' own attention, in the dtype that the recipe asks for.

        Raises UsageError if it was a module in memory, SleepcError if its files are gone or damaged.
        """
        return self._original(against, progress)[0]

    def _original(
        self, against: str | Path | nn.Module | None, progress: Progress
    ) -> tuple[nn.Module, Checkpoint | None]:
        """The same, and where it comes from."""
        if isinstance(against, nn.Module):
            return in_dtype(against, None, self.recipe), None
        if against is None and self.original is not None:
            checkpoint = find_model(self.source.folder, progress) if self.source.folder else None
            return in_dtype(self.original, checkpoint, self.recipe), checkpoint
        if against is None and self.source.kind == "module":
            raise UsageError("the original was a module in memory", where="--against", fix="Give it: --against MODEL.")
        progress("loading the original", None)
        checkpoint = find_model(against or self.source.folder, progress)
        return load_module(checkpoint, dtype=self.recipe.dtype), checkpoint

    def captured(self, progress: Progress, original: nn.Module | None = None) -> ProgramGraphs:
        """The original as a program at level CANONICAL; captured again if this comes from an artifact."""
        if self.canonical is None:
            progress("capturing the original", None)
            module = original or self.load_original(None, progress)
            self.canonical = capture(module, progress, factors=self.recipe.rope_factors)
        return self.canonical

    @typed
    def adapt(self, path: str | Path, *, merge: bool = False) -> Adapter:
        """Apply what a training has changed, an adapter file; with `merge` LoRA matrices become part of the weights.

        Raises UsageError if it is not of this model or does not fit, SleepcError if it is damaged.
        """
        from sleepc.train.adapter import apply_adapter, merge_maps, read_adapter

        adapter = read_adapter(Path(path))
        apply_adapter(self, adapter)
        if merge:
            merge_maps(self)
        return adapter

    def merge(self) -> int:
        """Make LoRA matrices part of the weights; how many weights changed."""
        from sleepc.train.adapter import merge_maps

        return merge_maps(self)

    @typed
    def calibrate(
        self,
        text: Sequence[str | Path],
        *,
        tokens: int = 2048,
        steps: int = 100,
        work: str | Path | None = None,
        resume: bool = False,
        progress: Progress = silent,
    ) -> CalibrationReport:
        """Set memories from what the original attends to, then train each layer alone towards it; kept if that helps
        on held-out text. `work` keeps finished layers for `resume`; remove it once the program is saved.

        Raises UsageError for texts that are too short or not there.
        """
        from sleepc.train.calibrate import CalibrationSettings, calibrate
        from sleepc.train.settings import checked
        from sleepc.train.texts import documents

        fix = "`sleepc calibrate --help` lists the options."
        settings = checked(CalibrationSettings, {"tokens": tokens, "steps": steps}, fix)
        read = documents([Path(path) for path in text])
        self.check_bytes()
        return calibrate(self, read, settings, progress, Path(work) if work else None, resume)

    @typed
    def share_slots(self, text: Sequence[str | Path] = (), *, progress: Progress = silent) -> BudgetsReport:
        """Measure on texts (made-up ones if none are given) how many pairs each KV head is to keep, and what is then
        remembered; the program gets these budgets. Nothing is trained.

        Raises UsageError for a program that keeps no pairs, and texts that are too short or not there.
        """
        from sleepc.train.share_slots import share_slots
        from sleepc.train.texts import documents

        read = documents([Path(path) for path in text]) if text else None
        self.check_bytes()
        return share_slots(self, read, progress)

    @typed
    def cartridge(self, text: str, *, progress: Progress = silent, **options: Any) -> Made:
        """A cartridge of a document: keys and values for the program's slots, trained until it expects what the
        original expects with the document in view. Options are those of sleepc.train.cartridge.CartridgeSettings.

        Raises UsageError for a program that keeps no pairs, and an empty document.
        """
        from sleepc.train.cartridge import CartridgeSettings, make_cartridge
        from sleepc.train.settings import checked

        settings = checked(CartridgeSettings, options, "`sleepc cartridge --help` lists the options.")
        self.check_bytes()
        return make_cartridge(self, text, settings, progress)

    @typed
    def distil(
        self,
        text: Sequence[str | Path] = (),
        *,
        teacher: str | Path | nn.Module | None = None,
        progress: Progress = silent,
        **options: Any,
    ) -> Outcome:
        """Train the memories, or more, towards `teacher` (the original by default) on texts, a data set, or, with
        neither, on what the teacher writes. Options are those of sleepc.train.run.Run, `work` and `resume` among them,
        and of sleepc.train.settings. If it is stopped the program stays as it is; `resume` continues. It stays as it
        is, too, if the training made things worse on what was held out of the texts (a warning says so), unless
        `force`.

        Raises UsageError for options that do not fit and for a folder that another process has, SleepcError if the
        loss is not finite.
        """
        from sleepc.train.learned import learn_teacher
        from sleepc.train.run import split_options
        from sleepc.train.settings import make_settings
        from sleepc.train.training import check_training_device, train

        run, settings = split_options({"text": text, **options})
        check_training_device(run.device, run.backend)  # before any work
        chosen, given = make_settings(settings), run.texts()
        self.check_bytes()
        learned = learn_teacher(self, self._teacher(teacher, progress), given, chosen, run)
        progress("training", None)
        return train(self, learned, run)

    @typed
    def train(
        self,
        task: str | Puzzle | None = None,
        *,
        set: Sequence[str] = (),
        scratch: bool = False,
        progress: Progress = silent,
        **options: Any,
    ) -> Outcome:
        """Train the model on a task (a name with `set=["width=8"]`, or a puzzle of one's own), texts or a data set: the
        loss is on what is asked, or on the last `predict` tokens of pieces; gradients go through sleeps and passes.

        `scratch` is for a model that knows nothing yet: all is trained, with Muon, from the values that it has. Other
        options are those of `distil`. If everything is trained there is no adapter: save the program.

        Raises UsageError for options that do not fit, SleepcError if the loss is not finite.
        """
        from sleepc.train.learned import learn_task, learn_text, settings_for
        from sleepc.train.run import split_options
        from sleepc.train.training import check_training_device, train

        run, settings = split_options(options)
        check_training_device(run.device, run.backend)  # before any work
        if sum((task is not None, bool(run.text), run.dataset is not None)) != 1:
            raise UsageError("no training data is given", where="train", fix="Give one of a task, text or a data set.")
        if task is None and set:
            raise UsageError("--set only applies to tasks", where="--set", fix="Leave it out.")
        chosen = settings_for(settings, task=task is not None, scratch=scratch)
        given = run.texts()
        self.check_bytes()
        if given is not None:
            learned = learn_text(self, given, chosen)
        elif task is not None:
            learned = learn_task(self, task, set, chosen)
        progress("training", None)
        return train(self, learned, run)

    def _teacher(self, teacher: str | Path | nn.Module | None, progress: Progress) -> Teacher:
        """The original, or another model. Raises UsageError if its vocabulary differs."""
        from sleepc.train.adapter import name_of
        from sleepc.train.learned import Teacher
        from sleepc.train.shared_tokens import shared_tokens

        if teacher is None:
            return Teacher(self.captured(progress), name_of(self.source.name))
        progress("capturing the teacher", None)
        graphs = capture(self.load_original(teacher, progress), progress, factors=self.recipe.rope_factors)
        shared = shared_tokens(self, graphs, _folder_of(teacher, progress))
        name = "module" if isinstance(teacher, nn.Module) else name_of(str(teacher))
        return Teacher(graphs, name, weights_digest(graphs), shared)

    @typed
    def save(
        self, path: str | Path, *, standalone: bool = False, force: bool = False, progress: Progress = silent
    ) -> Path:
        """Write an artifact, atomically. Weights stay where they are, unless `standalone` copies them into it.

        Raises UsageError if `path` exists (`force` replaces an artifact).
        """
        progress("saving", None)
        target = Path(path)
        with self._timed("save"):
            manifest = artifact.save_artifact(
                target,
                self.graphs,
                artifact.About(self.recipe, self.source, self.report),
                standalone=standalone,
                force=force,
                tokenizer=self.folder(),
            )
        self.path, self.identity = target, identity_of(manifest)
        self.opened = self.identity
        return target

    @typed
    def export(
        self,
        path: str | Path | None = None,
        *,
        to: str = DEFAULT_TARGET,
        text: str | None = None,
        tokens: Sequence[int] | None = None,
        force: bool = False,
        progress: Progress = silent,
        **options: Any,
    ) -> Exported:
        """Write files that run without PyTorch into `path` (the artifact's folder `to` by default), all or nothing, and
        check them: every weight by value, and what the runtime computes against the program.

        `options` are those of the target `to` (docs/export.md): precision="int4". `text`, or `tokens`, are read in the
        checks and for perplexity.
        Raises UsageError for options that do not fit or a `path` that exists (`force` replaces an export), SleepcError
        if a check fails.
        """
        from sleepc.exporting import Request, export_program

        return export_program(self, Request(path, to, options, text, tokens, force), progress)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[what] = time.perf_counter() - started


@typed
def load(path: str | Path, *, native_code: bool = False) -> Program:
    """The program of an artifact. Nothing in it is executed; with `native_code` its exports may be that have some
    (docs/export.md), as backends. Raises UsageError if there is none or it is newer, SleepcError if it is damaged.
    """
    folder = Path(path)
    graphs, manifest = artifact.load_artifact(folder)
    program = Program(graphs, manifest.recipe, manifest.source, report=manifest.report, path=folder, checked=False)
    program.identity = program.opened = identity_of(manifest)
    program.native_code = native_code
    warn_untrained(program)
    return program


def warn_untrained(program: Program) -> None:
    """Say if only training makes the consolidation useful."""
    untrained = find_consolidation(program.recipe.consolidation).untrained(program.recipe)
    if untrained is not None and not program.report.get("training"):
        warnings.warn(untrained.warning, SleepcWarning, stacklevel=4)  # who called what is @typed


def _dtype(name: str | None) -> torch.dtype | None:
    """The dtype of that name. Raises UsageError if there is none."""
    if name is not None and name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}", where="--dtype", fix=f"One of: {', '.join(DTYPES)}.")
    return DTYPES[name] if name else None


def _folder_of(model: str | Path | nn.Module, progress: Progress) -> Path | None:
    """Where a model's files are; None for a module."""
    return None if isinstance(model, nn.Module) else find_model(model, progress).folder
