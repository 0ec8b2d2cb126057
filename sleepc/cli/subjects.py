"""What `sleepc eval` measures: the facts that streams are made by, and the models that read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.backends.contract import Backend, Target, not_compiled
from sleepc.backends.table import DEFAULT
from sleepc.cli.display import tell
from sleepc.cli.opening import checked_runner, steps_by
from sleepc.cli.tuned import tuned_or_default, way_of
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.cli.display import Display
    from sleepc.cli.options import RunsOn
    from sleepc.hf.tokenizer import Tokenizer
    from sleepc.runtime.steps import Steps

Model = tuple[str, "Callable[[], Steps]", int]  # its name, what makes its steps, and how many tokens it can read


@dataclass(frozen=True)
class EvalSubject:
    """`models` gives what is measured with streams of so many tokens. Steps are made one after another, so that only
    one model is held at a time.
    """

    window: int
    sinks: int
    vocab: int
    tokenizer: Callable[[], Tokenizer]
    models: Callable[[int], list[Model]]
    identity: str  # of the artifact
    notes: Sequence[str] = ()
    backend: str = DEFAULT
    precision: str | None = None  # of an export
    rounded: bool = False  # are its weights rounded?

    def facts(self) -> dict[str, Any]:
        """Of what it is, as plain data."""
        return {name: getattr(self, name) for name in ("identity", "backend", "precision", "rounded")}

    def tokenizer_or_none(self) -> Tokenizer | None:
        """None if the model has no tokenizer."""
        from sleepc.hf.tokenizer import NoTokenizer

        try:
            return self.tokenizer()
        except NoTokenizer:
            return None


def subject_of(path: Path, on: RunsOn, passes: list[int], against: str | None, display: Display) -> EvalSubject:
    """What is measured by a backend. Raises UsageError for what the backend cannot measure."""
    runs = checked_runner(on.backend or DEFAULT)
    if not isinstance(runs, Target):
        return _of_artifact(path, runs, on, passes, against, display)
    if on.compile:
        raise not_compiled(runs.name)
    return _of_export(path, runs, passes, against, on)


def _of_artifact(
    path: Path, runs: Backend, on: RunsOn, passes: list[int], against: str | None, display: Display
) -> EvalSubject:
    """The program, with other numbers of passes if they are asked for; with memories off; full attention."""
    from sleepc.cli.opening import open_artifact
    from sleepc.tasks.programs import full_attention, with_passes
    from sleepc.verify.memory_values import without_memories

    device = on.device
    runs.check_device(device)
    settings = way_of(path, replace(on, backend=runs.name), tell).settings
    own = path if on.native_code else None
    program, make = open_artifact(path), steps_by(runs, device, compile=on.compile, settings=settings, own=own)

    def models(length: int) -> list[Model]:
        converted = {"converted": program.graphs}
        if passes:
            converted = {f"passes={n}": with_passes(program.graphs, program.recipe, n) for n in passes}
        program.steps(
            backend=runs.name, device=device
        )  # is the device there, and are the bytes those of the conversion?
        every = {**converted, "sliding": without_memories(program.graphs)}
        graphs = [(name, each, length) for name, each in every.items()]
        if against is not None:
            canonical = program.captured(display, program.load_original(against, display))
            full = full_attention(canonical, length)
            graphs.append(("full", full, full.window))
        return [(name, partial(make, each), limit) for name, each, limit in graphs]

    notes = []
    if "replace" in {plan.strategy for plan in program.recipe.plan(len(program.graphs.layout))}:
        notes.append("sliding: a layer whose attention was replaced has nothing left without its memory")
    window, sinks, vocab = program.recipe.window, program.recipe.sinks, program.graphs.vocab
    return EvalSubject(window, sinks, vocab, program.tokenizer, models, program.identity, notes, runs.name)


def _of_export(path: Path, target: Target, passes: list[int], against: str | None, on: RunsOn) -> EvalSubject:
    """The export, with other numbers of passes if they are asked for."""
    if against is not None:
        raise UsageError(
            "full attention is measured by PyTorch",
            where="--against",
            fix=f"Leave --backend {target.name} or --against out.",
        )
    program, device = target.open(path), on.device
    program.native_code = on.native_code
    manifest = program.manifest
    if passes and not manifest.replays:
        raise UsageError(
            "this export's number of passes is fixed: no layer replays its window with a rule that "
            "corrects what it wrote",
            where="--sweep",
            fix="Convert once per number of --passes, and evaluate each export.",
        )

    def models(length: int) -> list[Model]:
        program.check(device)
        if not passes and (settings := way_of(path, on, tell).settings):
            tuned = partial(program.tuned_steps, settings, device=device)
            default = partial(program.steps, device=device)
            return [("converted", partial(tuned_or_default, tuned, default, tell), length)]
        numbers: dict[str, int | None] = {f"passes={n}": n for n in passes} or {"converted": None}
        return [(name, partial(program.steps, device=device, passes=n), length) for name, n in numbers.items()]

    notes = [
        f"measured in {target.runtime} ({manifest.precision}); memories off and full attention are measured with --backend {DEFAULT}"
    ]
    window, sinks, vocab = manifest.window, manifest.sinks, manifest.vocab
    how = target.name, manifest.precision, target.rounds(target.options_of(program))
    return EvalSubject(window, sinks, vocab, program.tokenizer, models, program.identity, notes, *how)
