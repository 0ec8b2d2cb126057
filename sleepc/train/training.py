"""Training of a converted program: what is trained on what, from which teacher if any, and what comes out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sleepc.backends.contract import TrainingBackend, TrainingSteps
from sleepc.backends.table import DEFAULT, find_trainer
from sleepc.errors import SleepcWarning, UsageError
from sleepc.folder_lock import only_one
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.runner import run_stages
from sleepc.progress import OnShare, silent
from sleepc.recipe import Recipe
from sleepc.tasks.programs import full_attention
from sleepc.train.adapter import note_training, rank_of, with_rank, with_values, write_adapter
from sleepc.train.checkpoint import forget_checkpoints
from sleepc.train.judging import Judgement, judge
from sleepc.train.parameters import trained_keys
from sleepc.train.pieces import Piece, batch_of
from sleepc.train.reading import Reading
from sleepc.train.settings import Settings, parse_passes, parse_stages, phases
from sleepc.train.start import new_layers, start_memories
from sleepc.train.student import Student
from sleepc.train.trainer import METRICS, Step, Stream, Trainer, rows_at_once

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sleepc.train.program import Program

ADAPTER = "adapter.safetensors"
DEVICES = ("cpu", "cuda")
TAUGHT = ("align", "distil")  # stages that follow a teacher
START = 4  # pieces that are looked at before the first step


@dataclass
class Hooks:
    """What a training tells, and asks, while it runs. `on_judging` hears which share of that is done."""

    on_start: Callable[[Trainer], None] = lambda trainer: None
    on_step: Callable[[Step], None] = lambda step: None
    on_judging: OnShare = lambda share: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass
class Outcome:
    """How a training went. `finished` is False where it was stopped, and `kept` too where it made things worse on what
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


def train(
    program: Program,
    teacher: ProgramGraphs | None,
    reading: Reading,
    settings: Settings,
    work: Path,
    *,
    backend: str = DEFAULT,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    facts: dict[str, Any] | None = None,
    unchanged: dict[str, str] | None = None,
    adapter: bool = True,
    half: bool = False,
    hooks: Hooks | None = None,
    words: int | None = None,
) -> Outcome:
    """Train `program` in the folder `work` and give it the trained values; `teacher` is at level CANONICAL, None for
    stages that need none. `words` are the first ones that both have in common, where their tables differ.

    Where that made things worse on what `reading` holds out, the program stays as it was, unless `force`; a warning
    says so either way. `facts` say what is read and who teaches, for checkpoints and the adapter, which is float16 with
    `half`, and not written with adapter=False; `unchanged` is what else a resumed training must find as it was. With
    several processes (`torchrun`) each does its part of every batch. Raises UsageError for options that do not fit and
    for a folder that another process has, SleepcError where the loss is no number.
    """
    accelerator, trainer = _accelerator(device), find_trainer(backend)
    hooks = hooks or Hooks()
    _check(program, settings, teacher, words)
    run = {**settings.model_dump(exclude={"save_every"}), **(facts or {}), "processes": accelerator.num_processes}
    with only_one(work, "training") if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process and not resume:
            forget_checkpoints(work)
            for name in (METRICS, ADAPTER):
                (work / name).unlink(missing_ok=True)
        taught = _teacher(teacher, settings, trainer, accelerator.device) if teacher else None
        same = {**run, **(unchanged or {}), "program": program.identity}
        outcome, graphs, keys = _fit(
            program, taught, reading.stream, settings, work, accelerator, trainer, resume, same, hooks, words
        )
        if outcome.finished and (pieces := reading.held_out()):
            outcome.held_out = judge(
                program.graphs,
                graphs,
                taught,
                pieces,
                accelerator,
                backend=trainer,
                apart=reading.apart,
                goal="divergence" if parse_stages(settings.stages)[-1][0] in TAUGHT else "surprise",
                rows=rows_at_once(settings, accelerator.num_processes),
                tell=hooks.on_judging,
                should_stop=hooks.should_stop,
                words=words,
            )
            outcome.finished = outcome.held_out is not None  # or it was stopped meanwhile
        if outcome.finished:
            path = work / ADAPTER if adapter and accelerator.is_main_process else None
            _keep(program, graphs, keys, outcome, run, path, half=half, force=force)
        accelerator.wait_for_everyone()
    return outcome


def _fit(
    program: Program,
    teacher: TrainingSteps | None,
    stream: Stream,
    settings: Settings,
    work: Path,
    accelerator: Accelerator,
    backend: TrainingBackend,
    resume: bool,
    same: dict[str, Any],
    hooks: Hooks,
    words: int | None,
) -> tuple[Outcome, ProgramGraphs, list[str]]:
    """Take the steps: how it went, the graphs with what was learned, and the keys of what was trained."""
    graphs = with_rank(program.graphs, settings.rank) if settings.train == "low-rank" else program.graphs
    if settings.start == "fresh":
        graphs = _started(program, graphs, stream, settings)
    elif settings.start == "new":
        graphs = new_layers(graphs, settings.seed)
    keys = trained_keys(graphs, settings.train)
    student = Student(
        _programs(program, graphs, settings),
        keys,
        teacher,
        backend=backend,
        device=accelerator.device,
        low=settings.precision == "bfloat16",
        checkpointing=settings.checkpointing,
        words=words,
    )
    outcome = Outcome(False, 0, 0, 0, sum(m.numel() for m in student.masters.values()))

    def told(step: Step) -> None:
        _note(outcome, step)
        hooks.on_step(step)

    trainer = Trainer(student, settings, stream, work, accelerator, same, on_step=told, should_stop=hooks.should_stop)
    if resume:
        trainer.resume()
    hooks.on_start(trainer)
    outcome.finished = trainer.train()
    outcome.steps, outcome.of, outcome.tokens = trainer.done, trainer.of, trainer.tokens
    values = {key: value.cpu() for key, value in student.values().items()}
    return outcome, with_values(graphs, values), list(values)


def _keep(
    program: Program,
    graphs: ProgramGraphs,
    keys: list[str],
    outcome: Outcome,
    run: dict[str, Any],
    adapter: Path | None,
    *,
    half: bool,
    force: bool,
) -> None:
    """Write the adapter, and give the program what was learned: where that made things worse only with `force`."""
    made, told = copy(program), outcome.to_json()
    made.graphs, made.report = graphs, dict(program.report)
    facts = {**run, **{name: told[name] for name in ("steps", "tokens", "losses", "held_out")}}
    if adapter is not None:
        outcome.adapter = adapter
        write_adapter(adapter, made, keys, facts, torch.float16 if half else None)
    else:
        note_training(made, keys, facts)
    judged = outcome.held_out
    worse = judged is not None and judged.worse
    outcome.kept = force or not worse
    if outcome.kept:
        program.graphs, program.report = made.graphs, made.report
    if worse and judged is not None:
        rest = "It is kept, as asked." if force else "The program stays as it was."
        warnings.warn(f"the training made things worse on {judged.where}: {judged.told()}. {rest}", SleepcWarning, 3)


def check_training_device(device: str | None, backend: str = DEFAULT) -> None:
    """Raises UsageError for a backend that does not train, for what is no kind of device (which one is accelerate's
    choice), and for one that is not here.
    """
    trainer = find_trainer(backend)
    if device not in (None, *DEVICES):
        raise UsageError(f"there is no device {device!r}", where="--device", fix=f"Use {' or '.join(DEVICES)}.")
    if device is not None:
        trainer.check_device(device)


def _accelerator(device: str | None) -> Any:
    """This process's part of the work: on `device`, or None for a GPU where there is one."""
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


def _check(program: Program, settings: Settings, teacher: ProgramGraphs | None, words: int | None) -> None:
    """Do the stages fit the program and its teacher?"""
    stages = [name for name, _ in parse_stages(settings.stages)]
    if teacher is None and not {"align", "distil"}.isdisjoint(stages):
        raise UsageError("align and distil need a teacher", where="--teacher", fix="Or use --stages lengthen.")
    if parse_passes(settings.passes) is not None and program.graphs.loop is None:
        raise UsageError(
            "sleeps of this program run no block again, so they have no passes to choose",
            where="--passes",
            fix="Convert with --consolidation recurrent and --passes 2 or more, or leave it out.",
        )
    if teacher is not None and words is None and teacher.vocab != program.graphs.vocab:
        raise UsageError(
            f"the teacher has {teacher.vocab} words and the program {program.graphs.vocab}",
            where="--teacher",
            fix="A teacher needs the program's own vocabulary.",
        )
    same = teacher is None or (len(teacher.layout), teacher.hidden) == (
        len(program.graphs.layout),
        program.graphs.hidden,
    )
    if "align" in stages and not same:
        raise UsageError(
            "align compares blocks one by one, and the teacher has others",
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


def _started(program: Program, graphs: ProgramGraphs, stream: Stream, settings: Settings) -> ProgramGraphs:
    pieces = islice(stream(phases(settings)[0], 0), START)
    tokens, lengths, _ = batch_of([Piece(piece.tokens[: settings.length]) for piece in pieces])
    canonical = program.captured(silent)
    return start_memories(graphs, canonical, torch.from_numpy(tokens[:, : lengths.min()]))


def _teacher(
    canonical: ProgramGraphs, settings: Settings, backend: TrainingBackend, device: torch.device
) -> TrainingSteps:
    graphs = full_attention(canonical, settings.length)
    if settings.precision != "bfloat16":
        return backend.steps_on(graphs, materialise(graphs, str(device)), device=device)
    return Student({"full": graphs}, [], None, backend=backend, device=device, low=True).bound("full")


def _programs(program: Program, graphs: ProgramGraphs, settings: Settings) -> dict[str, ProgramGraphs]:
    """The program as it is, and where training begins with hard eviction, the same with that."""
    made = {"own": graphs}
    recipe = program.recipe
    if settings.hard and recipe.eviction != "hard" and all(p.window for p in recipe.plan(len(graphs.layout))):
        made["hard"] = _with_eviction(program, graphs, recipe.model_copy(update={"eviction": "hard"}))
    else:
        made["hard"] = graphs
    return made


def _with_eviction(program: Program, graphs: ProgramGraphs, recipe: Recipe) -> ProgramGraphs:
    canonical = program.captured(silent)
    hard = run_stages(canonical, rewrite_stages(recipe, len(canonical.layout)))
    hard = with_rank(hard, rank_of(graphs))
    return replace(hard, params=dict(graphs.params))


def _note(outcome: Outcome, step: Step) -> None:
    first, _ = outcome.losses.get(step.stage, (step.loss, step.loss))
    outcome.losses[step.stage] = (first, step.loss)
