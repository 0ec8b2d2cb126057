"""Calibration: gates set from what the original attends to, and local steps, layer by layer; kept if they help.

conversion.md, section 2, and docs/decisions/0008.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sleepc.backends.table import find_trainer
from sleepc.errors import UsageError
from sleepc.folder_lock import only_one
from sleepc.ir.graph import Graph
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import FileTensor
from sleepc.memory.features import find as find_features
from sleepc.memory.parameters import MIX_BIAS, STRENGTHS, parameter_in
from sleepc.memory.registry import find as find_rule
from sleepc.memory.rule import STRENGTH
from sleepc.passes.analysis.find_sites import find_site
from sleepc.passes.consolidation.registry import asleep
from sleepc.progress import Progress
from sleepc.recipe import LayerPlan
from sleepc.runtime.steps import IntArray, Steps
from sleepc.tasks.asking import surprises
from sleepc.train.adapter import with_values
from sleepc.train.gates import MIXES, Setting, gate_values, half_lives, inputs, output_gate, strengths, targets
from sleepc.train.layer_files import LayerFiles, LayerReport, range_of
from sleepc.train.local import (
    LocalExample,
    LocalWindow,
    Split,
    block_steps,
    embed_steps,
    layer_error,
    local_steps,
    only_block,
    windows_of,
)
from sleepc.train.pieces import pieces, shuffled
from sleepc.train.statistics import HeadStatistics, MeasuredLayer, Reach, layers
from sleepc.train.texts import Document
from sleepc.verify.memory_values import without_memories
from sleepc.verify.rounding import widened

if TYPE_CHECKING:
    from sleepc.train.program import Trainable

WINDOWS = 4  # of a piece: three sleeps
SHORT, LONG = 64, 2048  # tokens of a piece: no less for small windows, no more for large ones
BUFFER = 64  # pieces that are shuffled: they come from more than the first page


class CalibrationSettings(BaseModel):
    """`tokens` to take statistics of and to step on; `steps` of AdamW for each layer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(default=2048, ge=1, le=1 << 30)
    steps: int = Field(default=100, ge=0, le=1 << 20)


class CalibrationReport(BaseModel):
    """What was done to each layer, and perplexity beyond the window on text held out: without memories, before, after.

    `kept`: was the program changed? Not if that perplexity rose.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: CalibrationSettings
    window: int
    tokens: int
    tokens_apart: int
    tokens_held_out: int
    layers: tuple[LayerReport, ...]
    perplexity: dict[Literal["control", "before", "after"], float]
    kept: bool
    notes: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Parts:
    """Pieces [T] to learn from, to decide on what is kept of a layer, and to measure the whole with."""

    learn: list[Tensor]
    apart: list[Tensor]
    held_out: list[Tensor]


def calibrate(
    program: Trainable,
    documents: Iterable[Document],
    settings: CalibrationSettings,
    progress: Progress,
    work_dir: Path | None = None,
    resume: bool = False,
) -> CalibrationReport:
    """Calibrate the memories of `program` on a text: `graphs` and `report` are changed if that helps.

    Finished layers are kept in `work_dir`, and `resume` continues from them. Raises UsageError for a text that is too
    short, a window that leaves nothing beyond it, and a work_dir of another calibration or another process.
    """
    length = piece_length(program.graphs, program.recipe.sinks)
    least = min(2 * program.graphs.window, length)
    every = (p.tokens for p in shuffled(pieces(documents, program.tokenizer(), length, least), 0, BUFFER))
    return calibrate_on(program, every, settings, progress, work_dir, resume)


def calibrate_on(
    program: Trainable,
    every: Iterable[IntArray],
    settings: CalibrationSettings,
    progress: Progress,
    work_dir: Path | None = None,
    resume: bool = False,
) -> CalibrationReport:
    """The same, on pieces [T] of tokens, each longer than the window; as many are taken as `settings` asks for."""
    with only_one(work_dir, "calibration") if work_dir is not None else nullcontext():
        return _calibrate(program, every, settings, progress, work_dir, resume)


def _calibrate(
    program: Trainable,
    every: Iterable[IntArray],
    settings: CalibrationSettings,
    progress: Progress,
    work_dir: Path | None,
    resume: bool,
) -> CalibrationReport:
    started = time.perf_counter()
    parts = deal(every, settings.tokens)
    canonical = program.captured(progress)
    files = LayerFiles(work_dir, fingerprint(program, settings, parts)) if work_dir is not None else None
    if files is not None:
        files.begin(resume)
    values: dict[str, Tensor] = {}
    reports: list[LayerReport] = []
    for changed, report in _each_layer(program, canonical, parts, settings, files, progress):
        values |= changed
        reports.append(report)
    after = with_values(program.graphs, values)
    figures = _perplexities(program.graphs, after, parts.held_out, progress)
    found = CalibrationReport(
        settings=settings,
        window=program.graphs.window,
        tokens=sum(map(len, parts.learn)),
        tokens_apart=sum(map(len, parts.apart)),
        tokens_held_out=sum(map(len, parts.held_out)),
        layers=tuple(reports),
        perplexity=figures,
        kept=bool(values) and math.isfinite(figures["after"]) and figures["after"] <= figures["before"],
        notes=_notes(program, len(reports), sum(map(len, parts.learn)), settings),
        seconds=time.perf_counter() - started,
    )
    if found.kept:
        program.graphs = after
        program.report["calibration"] = found.to_json()
    return found


def piece_length(graphs: ProgramGraphs, sinks: int) -> int:
    """Tokens of a piece: some windows, as far as the original can read. Raises UsageError if that is not beyond the
    window.
    """
    window, limit = graphs.window, graphs.max_positions
    length = max(min(max(WINDOWS * window, SHORT), LONG), 2 * window)
    if limit is not None and limit <= window + sinks:
        raise UsageError(
            f"the model has {limit} positions, and a window of {window} with {sinks} sinks has room for all of them: "
            "the original shows nothing of what is beyond the window",
            fix="Convert it with a smaller --window.",
        )
    return min(length, limit or length)


def deal(every: Iterable[IntArray], tokens: int) -> Parts:
    """Pieces in turn: every other one to learn from, until there are `tokens`; the others apart and held out.

    Raises UsageError if one of the three gets nothing.
    """
    parts = Parts([], [], [])
    count = 0
    for piece, part in zip(every, cycle((parts.learn, parts.apart, parts.learn, parts.held_out)), strict=False):
        part.append(torch.from_numpy(piece))
        count += len(piece) if part is parts.learn else 0
        if count >= tokens and parts.apart and parts.held_out:
            break
    if not parts.held_out:
        given = len(parts.learn) + len(parts.apart)
        raise UsageError(
            f"the text is too short: it gives {given} piece{'' if given == 1 else 's'}, and 4 are needed",
            where="--text",
            fix="Give more text, in longer documents.",
        )
    return parts


def fingerprint(program: Trainable, settings: CalibrationSettings, parts: Parts) -> str:
    """A hash of all that decides what a calibration finds."""
    found = hashlib.sha256(json.dumps([settings.model_dump(), program.recipe.model_dump(mode="json")]).encode())
    for key, param in sorted(program.graphs.params.items()):
        found.update(key.encode())
        known = isinstance(param, FileTensor) and param.sha256
        value = b"" if known else param.materialise().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        found.update(known.encode() if known else value)
    for part in (parts.learn, parts.apart, parts.held_out):
        for piece in part:
            found.update(piece.numpy().tobytes() + b"|")
    return found.hexdigest()


def _notes(program: Trainable, layers: int, tokens: int, settings: CalibrationSettings) -> tuple[str, ...]:
    notes = []
    if tokens < settings.tokens:
        notes.append(f"the text gave {tokens} tokens to learn from, not {settings.tokens}")
    if any(each.again for each in asleep(program.recipe, len(program.graphs.layout))):
        notes.append("further passes of a sleep run through several blocks, and are not in a layer's local error")
    if not layers:
        notes.append("no layer has a memory that one block alone writes")
    return tuple(notes)


# -- layer by layer --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Subject:
    """What a layer's calibration needs besides the layer: programs, windows of the pieces, how many are to learn."""

    canonical: ProgramGraphs
    graphs: ProgramGraphs  # in float32 at least
    silent: ProgramGraphs
    windows: list[list[LocalWindow]]
    learn: int
    steps: int


def _each_layer(
    program: Trainable,
    canonical: ProgramGraphs,
    parts: Parts,
    settings: CalibrationSettings,
    files: LayerFiles | None,
    progress: Progress,
) -> Iterator[tuple[dict[str, Tensor], LayerReport]]:
    """The values that each layer with a memory gets, and its report; a finished one is read from its files."""
    graphs = widened(program.graphs, "STEP", torch.float32)
    plans = program.recipe.plan(len(graphs.layout))
    wanted = [i for i, plan in enumerate(plans) if _is_written_alone(program, i, plan)]
    done = {i: found for i in wanted if files is not None and (found := files.finished(i)) is not None}
    reaches = {i: _reach(program, plans[i]) for i in wanted if i not in done}
    texts = [*parts.learn, *parts.apart]
    embed = embed_steps(graphs)
    windows = [windows_of(embed, text[None], torch.tensor([len(text)])) for text in texts]
    subject = _Subject(canonical, graphs, without_memories(graphs), windows, len(parts.learn), settings.steps)
    progress("reading the text", None)
    for layer in layers(canonical, texts, reaches, range(len(parts.learn))):
        i = layer.index
        if i in done:
            yield done[i]
        elif i in reaches:
            tell = _teller(progress, i, len(plans), settings.steps)
            setting = _setting(program, canonical, i, plans[i])
            found = _calibrate_layer(subject, layer, setting, tell)
            if files is not None:
                files.keep(*found)
            yield found


def _is_written_alone(program: Trainable, i: int, plan: LayerPlan) -> bool:
    """Has the layer a memory that the block itself writes? Behind a loop, only the loop's last run does."""
    recorded = asleep(program.recipe, len(program.graphs.layout))[i].recorded
    return plan.strategy != "leave" and (plan.write == "online" or recorded)


def _reach(program: Trainable, plan: LayerPlan) -> Reach:
    window = None if plan.strategy == "replace" else plan.window
    return Reach(window, program.recipe.sinks, program.recipe.eviction == "hard")


def _setting(program: Trainable, canonical: ProgramGraphs, i: int, plan: LayerPlan) -> Setting:
    recipe, rule = program.recipe, find_rule(plan.rule)
    if STRENGTH not in rule.gates.values():
        raise UsageError(
            f"calibration sets how strongly memories are written, and rule {rule.name} has no such gate",
            where=f"layer {i}",
            fix="Train it: `sleepc distil`.",
        )
    sleeps = asleep(recipe, len(canonical.layout))[i]
    site = find_site(canonical.classes[canonical.layout[i].cls].wake)
    return Setting(
        strategy=plan.strategy,
        window=recipe.window,
        hard=recipe.eviction == "hard",
        decays=sleeps.decays,
        writes=sleeps.writes,
        width=find_features(recipe.features).width(site.d_k),
        corrects=rule.corrects,
    )


def _teller(progress: Progress, i: int, count: int, steps: int) -> Callable[[int, float], None]:
    def tell(step: int, error: float) -> None:
        progress(f"layer {i} of {count}, step {step}, error {error:.4g}", (i + step / max(steps, 1)) / count)

    return tell


def _calibrate_layer(
    subject: _Subject, layer: MeasuredLayer, setting: Setting, tell: Callable[[int, float], None]
) -> tuple[dict[str, Tensor], LayerReport]:
    """New values by key, and what they are worth."""
    i, s = layer.index, layer.statistics
    assert s is not None
    ports = {port: key for port, key in subject.graphs.layout[i].params.items() if parameter_in(key)}
    steps = block_steps(subject.graphs, i)
    given = _examples(subject, layer)

    def error_of(values: dict[str, Tensor]) -> float:
        steps.bind({**steps.parameters, **values})
        return layer_error(steps, 0, given.apart)

    now = {key: steps.parameters[key] for key in ports.values()}
    control = error_of({key: subject.silent.params[key].materialise() for key in now})
    before = error_of(now)
    choices = [{**now, **values} for values in _gates(subject, layer, ports, now, s, setting)]
    errors = [error_of(values) for values in choices]
    gates = min(errors)
    best, least, kept = now, before, []
    if gates <= before:
        best, least = choices[errors.index(gates)], gates
        kept.append("gates")
    tell(0, least)
    stepped = None
    if subject.steps:
        error_of(best)
        values, stepped = local_steps(steps, 0, list(now), given, subject.steps, tell)
        if stepped < least:
            best = values
            kept.append("steps")
    figures: dict[str, Any] = {"control": control, "before": before, "gates": gates, "steps": stepped, "kept": kept}
    x = _inputs(subject, layer, ports)
    report = _layer_report(layer, setting, {port: best[key] for port, key in ports.items()}, figures, x)
    return ({key: value.clone() for key, value in best.items()} if kept else {}), report


def _layer_report(
    layer: MeasuredLayer, setting: Setting, values: dict[str, Tensor], figures: dict[str, Any], x: Tensor | None
) -> LayerReport:
    """What was measured, and what the memory's parameters, by port, mean now."""
    assert layer.statistics is not None
    half_life = half_lives(values)
    return LayerReport(
        layer=layer.index,
        strategy=setting.strategy,
        distance=range_of(layer.statistics.distance),
        far=range_of(layer.statistics.far),
        half_life=None if half_life is None else range_of(half_life),
        beta=range_of(strengths(values, x)),
        **figures,
    )


def _examples(subject: _Subject, layer: MeasuredLayer) -> Split:
    examples = [
        LocalExample(windows, h, target, torch.ones(h.shape[:2], dtype=torch.bool))
        for windows, h, target in zip(subject.windows, layer.h, layer.target, strict=True)
    ]
    return Split(examples[: subject.learn], examples[subject.learn :])


def _gates(
    subject: _Subject,
    layer: MeasuredLayer,
    ports: dict[str, str],
    now: dict[str, Tensor],
    s: HeadStatistics,
    setting: Setting,
) -> Iterator[dict[str, Tensor]]:
    """What the gates may be set to, by key: with some mixes, and with the mix as it is."""
    by_port = {port: now[key] for port, key in ports.items()}
    goal = targets(s, setting, len(by_port[STRENGTHS.weight.port]))
    extra: dict[str, Tensor] = {}
    if setting.strategy == "replace":
        extra = output_gate(by_port, s, *_original(subject, layer.index), layer.h[0])
    x = _inputs(subject, layer, ports)
    for mix in (*MIXES, None) if MIX_BIAS.port in by_port else (None,):
        yield {ports[port]: value for port, value in {**gate_values(by_port, goal, mix, x), **extra}.items()}


def _original(subject: _Subject, i: int) -> tuple[Graph, dict[str, Tensor]]:
    """The original's block i, with its parameters by port."""
    canonical = widened(subject.canonical, "CANONICAL", torch.float32)
    block = canonical.layout[i]
    own = materialise(only_block(canonical, i), "cpu")
    return canonical.classes[block.cls].wake, {port: own[key] for port, key in block.params.items()}


def _inputs(subject: _Subject, layer: MeasuredLayer, ports: dict[str, str]) -> Tensor | None:
    """What a native layer reads [T,hidden], by which a write gate without a bias is set."""
    if STRENGTHS.bias.port in ports:
        return None
    return inputs(*_original(subject, layer.index), layer.h[0])


# -- the whole -------------------------------------------------------------------------------------


def _perplexities(
    before: ProgramGraphs, after: ProgramGraphs, texts: list[Tensor], progress: Progress
) -> dict[Literal["control", "before", "after"], float]:
    control, load = without_memories(before), find_trainer().steps
    return {
        "control": perplexity(load(control), texts, lambda share: progress("perplexity without memories", share)),
        "before": perplexity(load(before), texts, lambda share: progress("perplexity before", share)),
        "after": perplexity(load(after), texts, lambda share: progress("perplexity after", share)),
    }


def perplexity(steps: Steps, texts: list[Tensor], tell: Callable[[float], None]) -> float:
    """exp of the mean surprise at the tokens beyond the window of texts [T], each read from an empty state."""
    found = []
    for n, text in enumerate(texts):
        all_of_it = surprises(steps, text[None].numpy(), lambda _: None)[0]
        found.append(torch.from_numpy(all_of_it[steps.window - 1 :]))
        tell((n + 1) / len(texts))
    mean = float(torch.cat(found).mean())
    return math.exp(mean) if mean < 700 else math.inf
