"""Training of a converted program: what is trained on what, from which teacher if any, and what comes out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sleepc.backends.contract import TrainingBackend
from sleepc.backends.table import DEFAULT, find_trainer
from sleepc.backends.training_steps import TrainingSteps
from sleepc.errors import SleepcWarning, UsageError
from sleepc.folder_lock import only_one
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.progress import silent
from sleepc.tasks.programs import full_attention
from sleepc.train.adapter import note_training, with_rank, with_values, write_adapter
from sleepc.train.anew import converted_anew
from sleepc.train.checkpoint import forget_checkpoints
from sleepc.train.judging import Exam, Judgement, judge
from sleepc.train.learned import Learned
from sleepc.train.parameters import trained_keys
from sleepc.train.pieces import Piece, batch_of
from sleepc.train.run import Run
from sleepc.train.settings import TAUGHT, Settings, parse_passes, parse_stages, phases
from sleepc.train.start import new_layers, start_memories
from sleepc.train.student import Computing, Student
from sleepc.train.trainer import METRICS, Step, Stream, Trainer, Workplace, rows_at_once

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sleepc.train.program import Trainable

ADAPTER = "adapter.safetensors"
DEVICES = ("cpu", "cuda")
START = 4  # pieces that are looked at before the first step


@dataclass
class Outcome:
    """How a training went. `finished` is False if it was stopped, and `kept` too if it made things worse on what
    was held out; the program is as it was, then.
    """

    finished: bool
    steps: int
    of: int
    tokens: int
    trained: int
    losses: dict[str, tuple[float, float]] = field(default_factory=dict)  # by stage: of its first and last steps
    adapter: Path | None = None
    kept: bool = False
    held_out: Judgement | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        losses = {stage: {"first": first, "last": last} for stage, (first, last) in self.losses.items()}
        facts = {"finished": self.finished, "kept": self.kept, "steps": self.steps, "of": self.of}
        held = self.held_out.to_json() if self.held_out else None
        found = {"trained": self.trained, "losses": losses, "held_out": held, "adapter": str(self.adapter or "")}
        return {**facts, "tokens": self.tokens, **found}


def longest(settings: Settings) -> int:
    """Tokens of the longest pieces."""
    return max(phase.length for phase in phases(settings))


@dataclass(frozen=True)
class _Job:
    """A training on its devices: `taught` is the teacher with full attention, and `facts` say what the training is, for
    checkpoints and the adapter.
    """

    program: Trainable
    learned: Learned
    run: Run
    accelerator: Accelerator
    backend: TrainingBackend
    taught: TrainingSteps | None
    facts: dict[str, Any]

    @property
    def settings(self) -> Settings:
        """How parameters are stepped."""
        return self.learned.settings


def train(program: Trainable, learned: Learned, run: Run) -> Outcome:
    """Train `program` and give it the trained values.

    If that made things worse on what is held out of the reading, the program stays as it was, unless `run.force`; a
    warning says so either way. With several processes (`torchrun`) each does its part of every batch. Raises UsageError
    for options that do not fit and for a folder that another process has, SleepcError if the loss is not finite.
    """
    accelerator, backend = _accelerator(run.device), find_trainer(run.backend)
    settings, work = learned.settings, run.folder
    _check(program, learned)
    facts = {**settings.model_dump(exclude={"save_every"}), **learned.facts, "processes": accelerator.num_processes}
    with only_one(work, "training") if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process and not run.resume:
            forget_checkpoints(work)
            for name in (METRICS, ADAPTER):
                (work / name).unlink(missing_ok=True)
        taught = None
        if learned.teacher is not None:
            taught = _taught(learned.teacher.graphs, settings, backend, accelerator.device)
        job = _Job(program, learned, run, accelerator, backend, taught, facts)
        if not _studied(job):
            return Outcome(False, 0, 0, 0, 0)
        outcome, graphs, keys = _fit(job)
        if outcome.finished and (pieces := learned.reading.held_out()):
            outcome.held_out = _judged(job, graphs, pieces)
            outcome.finished = outcome.held_out is not None  # or it was stopped meanwhile
        if outcome.finished:
            _keep(job, graphs, keys, outcome)
        accelerator.wait_for_everyone()
    return outcome


def _studied(job: _Job) -> bool:
    """Let the teacher ask itself about all texts that will be read, before the first step; False if it was stopped."""
    if job.learned.study is None:
        return True
    job.learned.study.writes = job.accelerator.is_main_process
    plan = [(phase, phase.steps * job.settings.batch) for phase in phases(job.settings)]
    done, whole = 0, sum(count for _, count in plan)
    for phase, count in plan:
        for _ in islice(job.learned.reading.stream(phase, 0), count):
            done += 1
            job.run.told.on_studying(done / whole)
            if job.accelerator.num_processes == 1 and job.run.told.should_stop():
                return False
    return True


def _fit(job: _Job) -> tuple[Outcome, ProgramGraphs, list[str]]:
    """Take the steps: how it went, the graphs with what was learned, and the keys of what was trained."""
    program, settings, hooks, stream = job.program, job.settings, job.run.told, job.learned.reading.stream
    graphs = with_rank(program.graphs, settings.rank) if settings.train == "low-rank" else program.graphs
    if settings.start == "fresh":
        graphs = _started(program, graphs, stream, settings)
    elif settings.start == "new":
        graphs = new_layers(graphs, settings.seed)
    low = settings.precision == "bfloat16"
    how = Computing(job.backend, job.accelerator.device, low=low, checkpointing=settings.checkpointing)
    keys, programs = trained_keys(graphs, settings.train), _programs(program, graphs, settings)
    student = Student(programs, keys, job.taught, how, shared=job.learned.shared, weigh=settings.weigh)
    outcome = Outcome(False, 0, 0, 0, sum(m.numel() for m in student.masters.values()))

    def told(step: Step) -> None:
        _note(outcome, step)
        hooks.on_step(step)

    same = {**job.facts, **job.learned.unchanged, "program": program.identity}
    place = Workplace(job.run.folder, job.accelerator, same)
    trainer = Trainer(student, settings, stream, place, replace(hooks, on_step=told))
    if job.run.resume:
        trainer.resume()
    hooks.on_start(trainer)
    outcome.finished = trainer.train()
    outcome.steps, outcome.of, outcome.tokens = trainer.done, trainer.of, trainer.tokens
    values = {key: value.cpu() for key, value in student.values().items()}
    return outcome, with_values(graphs, values), list(values)


def _judged(job: _Job, graphs: ProgramGraphs, pieces: Sequence[Piece]) -> Judgement | None:
    """What was learned, on what was held out; None if it was stopped."""
    last = parse_stages(job.settings.stages)[-1][0]
    exam = Exam(
        pieces,
        job.backend,
        apart=job.learned.reading.apart,
        goal="divergence" if last in TAUGHT else "surprise",
        rows=rows_at_once(job.settings, job.accelerator.num_processes),
        shared=job.learned.shared,
    )
    return judge(job.program.graphs, graphs, job.taught, exam, job.accelerator, job.run.told)


def _keep(job: _Job, graphs: ProgramGraphs, keys: list[str], outcome: Outcome) -> None:
    """Write the adapter, and give the program what was learned: if that made things worse only with `force`."""
    program, told = job.program, outcome.to_json()
    made = copy(program)
    made.graphs, made.report = graphs, dict(program.report)
    facts = {**job.facts, **{name: told[name] for name in ("steps", "tokens", "losses", "held_out")}}
    if job.learned.adapts and job.accelerator.is_main_process:
        outcome.adapter = job.run.folder / ADAPTER
        write_adapter(outcome.adapter, made, keys, facts, torch.float16 if job.run.half else None)
    else:
        note_training(made, keys, facts)
    judged = outcome.held_out
    worse = judged is not None and judged.worse
    outcome.kept = job.run.force or not worse
    if outcome.kept:
        program.graphs, program.report = made.graphs, made.report
    if worse and judged is not None:
        rest = "It is kept, as asked." if job.run.force else "The program stays as it was."
        warnings.warn(f"the training made things worse on {judged.where}: {judged.told()}. {rest}", SleepcWarning, 3)


def check_training_device(device: str | None, backend: str = DEFAULT) -> None:
    """Raises UsageError for a backend that does not train, for anything but a kind of device (which one is accelerate's
    choice), and for one that is not here.
    """
    trainer = find_trainer(backend)
    if device not in (None, *DEVICES):
        raise UsageError(f"unknown device {device!r}", where="--device", fix=f"Use {' or '.join(DEVICES)}.")
    if device is not None:
        trainer.check_device(device)


def _accelerator(device: str | None) -> Any:
    """This process's part of the work: on `device`, or None for a GPU if there is one."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, PartialState
    except ImportError as error:
        raise UsageError(
            "training needs accelerate, which is not installed", fix="pip install 'sleepc[train]'"
        ) from error
    check_training_device(device)
    cpu = device == "cpu" or not torch.cuda.is_available()
    if PartialState._shared_state.get("_cpu", cpu) != cpu:  # accelerate keeps the first device of a process
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=cpu)


def _check(program: Trainable, learned: Learned) -> None:
    """Do the stages fit the program and its teacher?"""
    settings, teacher = learned.settings, learned.teacher.graphs if learned.teacher else None
    _check_keep(program, settings)
    stages = [name for name, _ in parse_stages(settings.stages)]
    if teacher is None and not set(TAUGHT).isdisjoint(stages):
        raise UsageError(f"{' and '.join(TAUGHT)} need a teacher", where="--teacher", fix="Or use --stages lengthen.")
    if parse_passes(settings.passes) is not None and program.graphs.loop is None:
        raise UsageError(
            "sleeps of this program run no block again, so they have no passes to choose",
            where="--passes",
            fix="Convert with --consolidation recurrent and --passes 2 or more, or leave it out.",
        )
    if teacher is not None and learned.shared is None and teacher.vocab != program.graphs.vocab:
        raise UsageError(
            f"the teacher's vocabulary size is {teacher.vocab} and the program's {program.graphs.vocab}",
            where="--teacher",
            fix="A teacher needs the program's own vocabulary.",
        )
    same = teacher is None or (len(teacher.layout), teacher.hidden) == (
        len(program.graphs.layout),
        program.graphs.hidden,
    )
    if "align" in stages and not same:
        raise UsageError(
            "align compares block by block, and the teacher's blocks differ",
            where="--stages align",
            fix="Align on the program's own original.",
        )
    limit = teacher.max_positions if teacher is not None else None
    if limit is not None and limit < settings.length:
        raise UsageError(
            f"the teacher has {limit} positions, and pieces have {settings.length} tokens",
            where="--length",
            fix=f"Use --length {limit} or less.",
        )
    if settings.length <= program.graphs.window:
        raise UsageError(
            f"pieces of {settings.length} tokens never reach beyond the window of {program.graphs.window}: nothing "
            "would be learned of the memories",
            where="--length",
            fix=f"Use more than {program.graphs.window}, best several windows.",
        )


def _check_keep(program: Trainable, settings: Settings) -> None:
    """Can what the program keeps be trained?"""
    keep = program.recipe.keep
    if keep is None:
        return
    if settings.hard:
        fix = "Leave --hard out, or convert without keep."
        raise UsageError("hard eviction restarts positions, but kept pairs keep theirs", where="--hard", fix=fix)
    if keep.dtype != "float":
        fix = "Train a conversion with slots in float; its adapter fits this one: sleepc adapt ARTIFACT FILE."
        raise UsageError(f"no gradient goes through slots in {keep.dtype}", where="keep.dtype", fix=fix)


def _started(program: Trainable, graphs: ProgramGraphs, stream: Stream, settings: Settings) -> ProgramGraphs:
    pieces = islice(stream(phases(settings)[0], 0), START)
    tokens, lengths, _ = batch_of([Piece(piece.tokens[: settings.length]) for piece in pieces])
    canonical = program.captured(silent)
    return start_memories(graphs, canonical, torch.from_numpy(tokens[:, : lengths.min()]))


def _taught(
    canonical: ProgramGraphs, settings: Settings, backend: TrainingBackend, device: torch.device
) -> TrainingSteps:
    graphs = full_attention(canonical, settings.length)
    if settings.precision != "bfloat16":
        return backend.steps_on(graphs, materialise(graphs, str(device)), device=device)
    return Student({"full": graphs}, [], None, Computing(backend, device, low=True)).bound("full")


def _programs(program: Trainable, graphs: ProgramGraphs, settings: Settings) -> dict[str, ProgramGraphs]:
    """The program as it is, and if training begins with hard eviction, the same with that."""
    made = {"own": graphs}
    recipe = program.recipe
    if settings.hard and recipe.eviction != "hard" and all(p.window for p in recipe.plan(len(graphs.layout))):
        hard = recipe.model_copy(update={"eviction": "hard"})
        made["hard"] = converted_anew(graphs, program.captured(silent), hard)
    else:
        made["hard"] = graphs
    return made


def _note(outcome: Outcome, step: Step) -> None:
    first, _ = outcome.losses.get(step.stage, (step.loss, step.loss))
    outcome.losses[step.stage] = (first, step.loss)
