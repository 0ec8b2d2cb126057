"""Sleeps that end early: a row takes no further pass once one has hardly changed its memories."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sleepc import api
from sleepc.backends.training_steps import Tensors, TrainingSteps
from sleepc.converting import convert
from sleepc.errors import UsageError
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.roles import TAKEN
from sleepc.ir.states import with_role
from sleepc.memory.rule import STRENGTH
from sleepc.runtime.session import Session
from sleepc.verify.memory_values import shaken
from tests.conformance.backends import TRAINER, in_tensors
from tests.families import VOCAB, WINDOW, family

SETTLE = 0.3
TOKENS = torch.randint(0, VOCAB, (5, 2 * WINDOW), generator=torch.Generator().manual_seed(3))
RECURRENT: dict[str, Any] = {"consolidation": "recurrent", "passes": 5}
LOOPS: list[dict[str, Any]] = [{"loop": "0:2", "write": "online"}, {"loop": "1:2", "strategy": "replace"}]


@cache
def base(**options: str) -> ProgramGraphs:
    """A program with shaken memories."""
    return shaken(family("llama").convert(**RECURRENT, settle=SETTLE, **options)[0])


def converted(settle: float, passes: int = 5, **options: str) -> ProgramGraphs:
    """The same with other passes; half-lives are those of 5."""
    program = base(**options).clone()
    assert program.loop is not None
    program.loop.passes, program.loop.settle = passes, settle
    return program


def slept(steps: TrainingSteps, rows: Tensor = TOKENS, passes: int | None = None) -> Tensors:
    """The state after two windows, asleep after each."""
    state = steps.new_state(len(rows))
    for start in range(0, rows.shape[1], WINDOW):
        piece = rows[:, start : start + WINDOW]
        _, state = steps.wake_tensors(state, piece, torch.full((len(rows),), WINDOW), "none")
        state = steps.sleep_tensors(state, passes)
    return state


def memories(program: ProgramGraphs) -> list[str]:
    """The names of the memories' tensors."""
    return [spec.name for spec in with_role(program.all_states(), "memory")]


def equal(found: Tensors, wanted: Tensors) -> bool:
    return all(torch.equal(found[name], wanted[name]) for name in wanted if name != TAKEN)


@pytest.mark.parametrize("options", LOOPS)
def test_where_nothing_settles_all_passes_are_taken(options: dict[str, Any]) -> None:
    found = slept(in_tensors(converted(1e-9, **options), train=True))
    assert equal(found, slept(in_tensors(converted(0, **options), train=True)))
    assert found[TAKEN].tolist() == [5] * 5


@pytest.mark.parametrize("options", LOOPS)
def test_where_everything_settles_two_are_taken(options: dict[str, Any]) -> None:
    found = slept(in_tensors(converted(0.999, **options), train=True))
    assert equal(found, slept(in_tensors(converted(0, passes=2, **options), train=True)))
    assert found[TAKEN].tolist() == [2] * 5


@pytest.mark.parametrize("options", LOOPS)
def test_rows_settle_alone(options: dict[str, Any]) -> None:
    """Rows of one batch that stop at different passes are what each is by itself."""
    steps = in_tensors(converted(SETTLE, **options), train=True)
    together = slept(steps)
    assert len(set(together[TAKEN].tolist())) > 1, "the rows of this test shall differ"
    for b in range(len(TOKENS)):
        alone = slept(steps, TOKENS[b : b + 1])
        assert alone[TAKEN].tolist() == [together[TAKEN][b]]
        for name, value in alone.items():
            assert torch.allclose(value, together[name][b : b + 1], rtol=1e-12, atol=1e-14), name


def test_a_settled_row_keeps_its_state_bit_for_bit() -> None:
    """In the first sleep: the row's own number of passes, for the whole batch, leaves the same there."""
    steps = in_tensors(converted(SETTLE, loop="0:2", write="online"), train=True)
    plain = in_tensors(converted(0, loop="0:2", write="online"), train=True)
    first = TOKENS[:, :WINDOW]
    state = slept(steps, first)
    for b, taken in enumerate(state[TAKEN].tolist()):
        wanted = slept(plain, first, taken)
        assert all(torch.equal(state[n][b], wanted[n][b]) for n in wanted if n != TAKEN), (b, taken)


def test_the_loop_ends_with_its_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from sleepc.backends.eager.recurrence import Recurrence

    runs: list[int] = []
    run = Recurrence._run

    def counted(self: Recurrence, blocks: Any, *rest: Any) -> Any:
        runs.append(len(blocks))
        return run(self, blocks, *rest)

    monkeypatch.setattr(Recurrence, "_run", counted)
    taken = slept(in_tensors(converted(0.4, loop="0:2")), TOKENS[:, :WINDOW])[TAKEN]
    assert taken.max() < 5
    assert runs == [2] * (int(taken.max()) - 1) + [1]


def test_gradients_go_through_the_passes_that_were_taken() -> None:
    step = converted(SETTLE)
    taken = slept(in_tensors(step), TOKENS[:, :WINDOW])[TAKEN].tolist()
    row = taken.index(min(taken))
    assert min(taken) < 5

    def gradients(program: ProgramGraphs, passes: int | None) -> list[Tensor]:
        values = materialise(program, "cpu")
        known = {k: v.clone().requires_grad_() if program.params[k].new else v for k, v in values.items()}
        state = slept(TRAINER.steps_on(program, known, train=True), TOKENS[:, :WINDOW], passes)
        memory = torch.stack([state[name][row].square().sum() for name in memories(program)]).sum()
        found = torch.autograd.grad(memory, [v for v in known.values() if v.requires_grad], allow_unused=True)
        return [g for g in found if g is not None]

    found, wanted = gradients(step, None), gradients(converted(0), min(taken))
    assert any(bool(g.any()) for g in wanted)
    assert len(found) == len(wanted)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found, wanted, strict=True))


def test_another_number_of_passes_is_an_upper_bound() -> None:
    steps = in_tensors(converted(SETTLE), train=True)
    taken = slept(steps, TOKENS[:, :WINDOW])[TAKEN]
    assert slept(steps, TOKENS[:, :WINDOW], 3)[TAKEN].tolist() == taken.clamp(max=3).tolist()
    assert slept(steps, TOKENS[:, :WINDOW], 1)[TAKEN].tolist() == [1] * 5


def test_memories_of_nothing_have_settled() -> None:
    program = converted(SETTLE)
    zero = {
        k: torch.full_like(v, -1e9) if k.endswith(f".{STRENGTH.bias}") else v
        for k, v in materialise(program, "cpu").items()
    }
    state = slept(TRAINER.steps_on(program, zero))
    assert not any(bool(state[name].any()) for name in memories(program))
    assert state[TAKEN].tolist() == [2] * 5


def test_a_session_counts_passes() -> None:
    program = converted(SETTLE)
    session = Session(in_tensors(program), 2)
    session.feed(TOKENS[:2].tolist())
    both = [slept(in_tensors(program), TOKENS[:2, :n])[TAKEN].sum() for n in (WINDOW, 2 * WINDOW)]
    assert session.stats.passes == sum(both)
    assert session.stats.passes_per_sleep == pytest.approx(sum(both) / 4)
    for passes, count in ((3, 6), (1, 0)):
        plain = Session(in_tensors(family("llama").convert(consolidation="recurrent", passes=passes)[0]), 2)
        plain.feed(TOKENS[:2, :WINDOW].numpy())
        assert (plain.stats.sleeps, plain.stats.passes) == (2, count)


@pytest.mark.filterwarnings("ignore::sleepc.errors.SleepcWarning")  # recurrent passes that nobody trained
def test_it_is_saved(tmp_path: Path) -> None:
    program = convert(family("nanogpt").module, {"window": WINDOW, "sinks": 2, **RECURRENT, "settle": SETTLE})
    again = api.load(program.save(tmp_path / "artifact"))
    assert again.graphs.loop is not None
    assert again.graphs.loop.settle == SETTLE
    sessions = [p.session(2) for p in (program, again)]
    for session in sessions:
        session.feed(TOKENS[:2].tolist())
    assert sessions[0].stats.passes == sessions[1].stats.passes > 0
    assert "fewer once one changes memories by no more than 0.3" in program.inspect().sleep


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"settle": 0.1}, "this recipe has none"),
        ({"settle": 0.1, "passes": 3}, "this recipe has none"),
        ({"settle": 0.1, "consolidation": "recurrent"}, "this recipe has none"),
        ({"settle": 1.0}, "less than 1"),
        ({"settle": -0.1}, "greater than or equal to 0"),
        ({"settle": float("nan")}, "settle"),
        (
            {"settle": 0.1, "consolidation": "recurrent", "passes": 3, "loop": "0:1", "layers": "1-2"},
            "gets a memory, and without one no sleep ends early",
        ),
    ],
)
def test_where_it_means_nothing_it_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        family("llama").convert(**options)
