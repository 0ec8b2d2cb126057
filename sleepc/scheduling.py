"""Ways of sleeping that were evaluated, measured on this machine: other numbers of passes, and other conversions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from sleepc.backends.contract import Backend
from sleepc.backends.table import DEFAULT
from sleepc.tasks.programs import with_passes
from sleepc.tune.measure import Runs, figures
from sleepc.tune.quality import OWN, QualityFile
from sleepc.tune.schedules import Schedule, Schedules, Wanted, compare, replayed
from sleepc.tuning import FAILURES, Tunes, Tuning, weight_bytes

Subjects = Mapping[str, tuple[Tunes, QualityFile]]
"""Artifacts by name, with what was measured of them; the first is the one that is tuned."""


def schedules(tuning: Tuning, subjects: Subjects, wanted: Wanted) -> Schedules:
    """All that were evaluated, measured in turns with the default backend's defaults, and the choice, which is replayed
    if there are limits. Raises UsageError if sleeps of a program do not replay, and other passes were evaluated.
    """
    metric = next(iter(subjects.values()))[1].metric
    found = list(_measured(tuning, subjects))

    def replay(each: Schedule) -> Schedule | None:
        tuning.progress(f"{each.name()}: a replay", None)
        program = subjects[each.artifact][0]
        try:
            pauses, state = _runs(tuning, program, each.passes).replay()
        except FAILURES as error:
            tuning.tell(f"{each.name()} is left out, as it cannot be replayed: {error}")
            return None
        pause, memory = 1e3 * float(np.quantile(pauses, 0.99)), weight_bytes(program.graphs) + state
        change = {"sleeps": len(pauses), "pause_p99_ms": pause, "memory": memory}
        return replace(each, figures=each.figures.model_copy(update=change), state_bytes=state)

    return replayed(compare(found, metric, wanted), replay)


def _measured(tuning: Tuning, subjects: Subjects) -> Iterator[Schedule]:
    default = tuning.known.get(tuning.default().words())
    level = default.figures if default is not None else None
    for at, (name, (program, quality)) in enumerate(subjects.items()):
        done = set()
        for evaluated, value in sorted(quality.by_passes.items()):
            passes = program.recipe.passes if evaluated == OWN else evaluated
            if passes in done:
                continue
            done.add(passes)
            words = words_of(program, passes)
            tuning.progress(f"{name} {words}", None)
            took = figures(_runs(tuning, program, passes), tuning.reference(), level)
            own, state = at == 0 and passes == program.recipe.passes, program.graphs.state_bytes()
            places = tuple(quality.places.get(evaluated, ()))
            yield Schedule(name, passes, program.recipe.window, words, own, value, took, state, places)


def _runs(tuning: Tuning, program: Tunes, passes: int) -> Runs:
    """Steps of a program with so many passes, by the default backend."""
    runner, graphs = tuning.runners[DEFAULT], program.graphs
    assert isinstance(runner, Backend)
    if passes != program.recipe.passes:
        graphs = with_passes(graphs, program.recipe, passes)
    tokens = tuning.reference().tokens
    return Runs(runner.steps(graphs), tokens, weight_bytes(graphs) + graphs.state_bytes())


def words_of(program: Tunes, passes: int) -> str:
    """What is said of a schedule: window, passes, the loop's blocks, what is kept."""
    recipe = program.recipe
    said: dict[str, object] = {"window": recipe.window, "passes": passes}
    if program.graphs.loop is not None:
        said["loop"] = recipe.loop
    if recipe.keep is not None:
        said["keep"] = f"{recipe.keep.slots}:{recipe.keep.dtype}"
    return " ".join(f"{name}={value}" for name, value in said.items())
