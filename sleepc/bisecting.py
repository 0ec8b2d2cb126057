"""A conversion run again, pass by pass: the first pass after which a program's numbers leave those of the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sleepc import api, artifact
from sleepc.capturing import capture_flat, in_dtype
from sleepc.diffing import ProgramDiff, diff_programs
from sleepc.errors import SleepcError, UsageError
from sleepc.hf.load import load_module
from sleepc.ir.compare import absolute_error
from sleepc.ir.interp import run_program
from sleepc.ir.program import ProgramGraphs
from sleepc.models import find_model
from sleepc.passes.analysis.own_windows import exact_tokens
from sleepc.passes.base import Pass, Stage
from sleepc.passes.front.make_functional import SharedMemory
from sleepc.passes.pipeline import front_stages, functional, lower_stages, rewrite_stages
from sleepc.passes.runner import walk
from sleepc.progress import Progress
from sleepc.recipe import Recipe
from sleepc.train.adapter import merge_maps, trained_weights
from sleepc.verify.original import Original
from sleepc.verify.report import TOLERANCES

CAPTURE, STORED = "capture", "the artifact's program"
MOST = 32  # tokens: enough for every operator to show itself


@dataclass(frozen=True)
class ProgramRow:
    """One program on the way: what made it, its largest error of a logit (None: it cannot be run), in words why."""

    step: str
    rewrites: str
    error: float | None
    ok: bool
    detail: str = ""


@dataclass
class Bisection:
    """All programs on the way. `stored` says how the artifact's program differs from the one that its recipe makes
    today, `trained` which parameters of memories, or weights that the artifact says were trained, have other values,
    `damaged` which tensors have other bytes than the artifact says.
    """

    tokens: int
    tolerance: float
    rows: list[ProgramRow] = field(default_factory=list)
    stored: ProgramDiff = field(default_factory=ProgramDiff)
    trained: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    @property
    def culprit(self) -> str | None:
        """The first step whose numbers are wrong, or None."""
        return next((row.step for row in self.rows if not row.ok), None)

    @property
    def ok(self) -> bool:
        """Are all numbers right, and is the artifact what its recipe makes, but for what training changes?"""
        return self.culprit is None and self.stored.equal and not self.damaged

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [asdict(row) for row in self.rows]
        rest = {"tokens": self.tokens, "tolerance": self.tolerance, "trained": self.trained, "damaged": self.damaged}
        return {"ok": self.ok, "culprit": self.culprit, "rows": rows, **rest, "stored": self.stored.to_json()}


@dataclass
class Probe:
    """What programs are compared by: tokens [T], at most a window of them, and the original's logits [T,V]. Up to its
    first sleep a converted program computes what the original does, except where attention was replaced. From the
    choice of factors for long texts on, it computes what the original does in long calls: `chosen`.
    """

    tokens: Sequence[int]
    wanted: Tensor
    tolerance: float
    chosen: Tensor | None = None
    found: Tensor | None = None  # the logits of the last program

    def __call__(self, step: str, rewrites: str, program: ProgramGraphs) -> ProgramRow:
        """Run a program and compare."""
        self.found = None
        try:
            self.found = run_program(program, self.tokens)
            error = absolute_error(self.found, self.wanted)
        except (SleepcError, RuntimeError, ValueError, IndexError, KeyError, TypeError) as failure:
            first = str(failure).splitlines()[0] if str(failure) else ""
            return ProgramRow(
                step, rewrites, None, False, f"the program cannot be run: {type(failure).__name__}: {first}"
            )
        return ProgramRow(step, rewrites, error, error <= self.tolerance)


def bisect_artifact(
    folder: Path, *, against: str | None = None, tolerance: float | None = None, progress: Progress
) -> Bisection:
    """Convert an artifact's original again, pass by pass, and compare what comes out with the artifact.

    `against` names the original if it is not where it was. Raises UsageError if there is none.
    """
    program = api.load(folder)
    if against is None and program.source.kind == "module":
        raise UsageError("the original was a module in memory", where=str(folder), fix="Name a model: --against MODEL.")
    checkpoint = find_model(against or program.source.folder, progress)
    progress("loading the original", None)
    module = load_module(checkpoint)
    typed = in_dtype(module, checkpoint, program.recipe)
    tokens = _tokens(program)
    wanted, chosen = (Original(typed, b)(torch.tensor([tokens]))[0] for b in (None, program.graphs.beyond))
    allowed = TOLERANCES[program.graphs.dtype].absolute if tolerance is None else tolerance
    probe = Probe(tokens, wanted, allowed, chosen)
    progress(CAPTURE, None)
    found, fresh = functional(
        lambda decomposed: bisect(
            capture_flat(typed, values=module, decomposed=decomposed), program.recipe, probe, progress
        )
    )
    if fresh is not None:
        strategies = {plan.strategy for plan in program.recipe.plan(len(fresh.layout))}
        stored, weights = _trained_weights(program)
        unseen = not strategies & {"insert", "replace"} and not weights
        _compare_stored(found, stored, fresh, probe, weights, unseen=unseen)
    progress("hashing the artifact", None)
    found.damaged = [key for key, intact in artifact.verify_hashes(program.graphs) if not intact]
    return found


def _trained_weights(program: api.Program) -> tuple[ProgramGraphs, set[str]]:
    """An artifact's program, its LoRA matrices merged into the weights, and which weights a training has changed."""
    merged = replace(program, report=dict(program.report))
    merge_maps(merged)
    return merged.graphs, trained_weights(merged)


def _tokens(program: api.Program) -> list[int]:
    """A few tokens to run a program on, all inside what every layer keeps."""
    exact = exact_tokens(program.recipe, (0,) * len(program.graphs.layout))
    return program.some_tokens(None)[: min(exact, MOST, program.graphs.upto or MOST)]


def bisect(
    captured: ProgramGraphs, recipe: Recipe, probe: Probe, progress: Progress
) -> tuple[Bisection, ProgramGraphs | None]:
    """Convert `captured` (level ATEN) as the recipe says and compare after every pass; also the converted program.

    A pass that breaks the program is wrong too, and ends the conversion: then there is no program. Raises UsageError
    if the recipe does not fit the model.
    """
    found = Bisection(len(probe.tokens), probe.tolerance, [probe(CAPTURE, "", captured)])
    program = _walk(found, captured, front_stages(recipe.rope_factors), probe, progress)
    if program is not None:
        program = _walk(found, program, rewrite_stages(recipe, len(program.layout)), probe, progress)
    if program is not None:
        _walk(found, program, lower_stages(), probe, progress)  # what is exported, and not what is stored
    return found, program


def _walk(
    found: Bisection, program: ProgramGraphs, stages: Sequence[Stage], probe: Probe, progress: Progress
) -> ProgramGraphs | None:
    program = program.clone()
    walked = walk(program, stages, progress=progress, full=True)
    for each in [each for stage in stages for each in stage.passes]:
        try:
            next(walked)
        except (UsageError, SharedMemory):
            raise
        except SleepcError as error:
            found.rows.append(ProgramRow(each.name, "", None, False, f"the pass broke the program: {error.what}"))
            return None
        if program.beyond is not None and probe.chosen is not None:
            probe.wanted, probe.chosen = probe.chosen, None
        row = probe(each.name, rewrites := _rewrites(each, program), program)
        if each.effect == "REPLACES" and rewrites != "0" and probe.found is not None:
            row = replace(row, ok=True, detail="attention is replaced: later programs are compared with this one")
            probe.wanted = probe.found
        found.rows.append(row)
    return program


def _rewrites(each: Pass, program: ProgramGraphs) -> str:
    """How many rewrites the last pass made, from the program's history: `pass rewrites seconds`."""
    return program.history[-1].removeprefix(f"{each} ").split(" ")[0]


def _compare_stored(
    found: Bisection, stored: ProgramGraphs, fresh: ProgramGraphs, probe: Probe, weights: set[str], *, unseen: bool
) -> None:
    """Note how an artifact's program differs from a fresh one, and whether its numbers are right.

    `weights` of the model itself have been trained. `unseen`: up to the first sleep its memories show in no number,
    whatever was trained.
    """
    differs = diff_programs(fresh, stored)
    found.trained = [key for key in differs.changed if fresh.params[key].new or key in weights]
    found.stored = replace(differs, changed=[key for key in differs.changed if key not in found.trained])
    row = probe(STORED, "", stored)
    if not row.ok and row.error is not None and found.stored.equal and found.trained and not unseen:
        what = "weights" if weights else "mixers"
        row = replace(row, ok=True, detail=f"its {what} have been trained: other numbers are meant")
    found.rows.append(row)
