"""What programs get for the tasks: the original's numbers inside the window, the baseline's without memories."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from sleepc.backends.eager.backend import load
from sleepc.errors import UsageError
from sleepc.ir.graph import is_call
from sleepc.ir.program import ProgramGraphs
from sleepc.runtime.steps import Steps
from sleepc.tasks.asking import Answer, Reply, ask, most_rows, surprises
from sleepc.tasks.planting import Setup
from sleepc.tasks.programs import full_attention, full_attention_for, with_passes
from sleepc.tasks.retrieval import retrieval
from sleepc.tasks.source import StreamSource
from sleepc.tasks.task import Planted, Row, Task, TaskName, make_task
from sleepc.verify.memory_values import shaken, without_memories
from sleepc.verify.surprise import surprise
from tests.families import VOCAB, family
from tests.tasks.recall import SURE, Recall

NAMES: tuple[TaskName, ...] = ("perplexity", "retrieval", "copy")
INSIDE = Setup((8, 16), samples=2, sinks=2)
BEYOND = Setup((4, 8, 16, 24), samples=3, sinks=2)


def source() -> StreamSource:
    return StreamSource(np.random.default_rng(0).integers(0, VOCAB, 400), np.arange(VOCAB))


def rows(task: Task, steps: Steps, limit: int = 10**6) -> list[Row]:
    return task.rows(steps, limit, lambda share: None)


def close(a: list[Row], b: list[Row], tolerance: float = 1e-6) -> bool:
    same = [x.keys() == y.keys() and all(abs(x[k] - y[k]) < tolerance for k in x) for x, y in zip(a, b, strict=True)]
    return bool(same) and all(same)


@pytest.mark.parametrize("name", NAMES)
def test_inside_the_window_figures_are_the_originals(name: TaskName) -> None:
    step, _ = family("gemma2").convert(window=40)
    task = make_task(name, source(), INSIDE, 40)
    assert task.length <= 40
    full = load(full_attention(family("gemma2").canonical, task.length))
    assert close(rows(task, load(step)), rows(task, full))


def test_likelihoods_are_those_of_the_original_module() -> None:
    samples = retrieval(source(), INSIDE)
    steps = load(full_attention(family("gemma2").canonical, samples[0].length))
    found = iter(ask(steps, samples, lambda share: None))
    for sample, distance in product(samples, INSIDE.distances):
        at, reply = next(found)
        assert at == distance
        item = sample.items[distance]
        for candidate, answer in zip(item.candidates, reply.answers, strict=True):
            ids = np.array([*sample.tokens, *item.question, *candidate])
            logits = family("gemma2").logits(torch.from_numpy(ids)[None])[0]
            wanted = -float(surprise(logits.numpy(), ids)[-len(candidate) :].sum())
            assert answer.likelihood == pytest.approx(wanted, abs=1e-6)
            assert answer.hits == int(logits[-2].argmax() == candidate[0])
    assert next(found, None) is None


@pytest.mark.parametrize("name", NAMES)
def test_full_attention_reads_as_far_as_the_model_has_positions(name: TaskName) -> None:
    task = make_task(name, source(), Setup((8, 70), samples=2), 16)
    full = full_attention(family("gemma2").canonical, task.length)
    assert full.window == 64 < task.length, "the model has 64 positions"
    found = rows(task, load(full), full.window)
    assert [(r["from"], r["to"]) for r in found] == ([(1, 16), (16, 32), (32, 64)] if name == "perplexity" else [])


def test_full_attention_of_a_model_that_picks_keys_ends_where_it_picks_all() -> None:
    canonical = family("deepseek-v32").canonical
    picked = canonical.picked
    assert picked == 17
    with pytest.raises(UsageError, match=r"picks up to 17 keys .* 18 tokens are more") as caught:
        full_attention(canonical, picked + 1)
    assert "--window" not in caught.value.where + caught.value.fix
    steps = full_attention_for(canonical, load)
    assert steps(picked - 1) is steps(picked)
    with pytest.raises(UsageError, match="18 tokens are more"):
        steps(picked + 1)


def test_surprises_in_pieces_are_those_of_the_original_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sleepc.tasks.asking.FEW", 16)
    texts = np.stack(source().pieces(3, 60, np.random.default_rng(2)))
    logits = family("gemma2").logits(torch.from_numpy(texts))
    steps = load(full_attention(family("gemma2").canonical, 60))
    found = surprises(steps, texts, lambda share: None)
    for row, text in enumerate(texts):
        assert np.allclose(found[row], surprise(logits[row].numpy(), text), atol=1e-6)


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_rows_are_independent_of_how_many_are_read_at_once(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step, _ = family("gemma2").convert()
    steps, task = load(shaken(step)), make_task("retrieval", source(), BEYOND, 8)
    wanted = rows(task, steps)
    monkeypatch.setattr("sleepc.tasks.asking.MEMORY", memory)
    assert most_rows(steps) == 1 or memory > 1
    assert close(rows(task, steps), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_without_memories_there_is_a_window_and_nothing_else(name: TaskName) -> None:
    step, _ = family("gemma2").convert()
    task = make_task(name, source(), BEYOND, 8)
    sliding = rows(task, load(without_memories(step)))
    kept, _ = family("gemma2").convert(overrides=[{"layers": "all", "strategy": "leave"}])
    assert close(sliding, rows(task, load(kept)))
    assert not close(sliding, rows(task, load(shaken(step))))


@pytest.mark.parametrize("name", ["retrieval", "copy"])
@pytest.mark.parametrize("reach", [1000, 40, 8])
def test_what_a_model_remembers_is_what_is_measured(name: TaskName, reach: int) -> None:
    """A model that recalls exactly what is in its reach gets everything there, and nothing from further back."""
    setup = Setup((16, 48, 80), samples=8, sinks=2, seed=3)
    words = np.arange(2000)
    text = StreamSource(np.full(4000, 1999), words)
    task = make_task(name, text, setup, 8)
    for row in rows(task, Recall(reach, vocab=2000)):
        knows = row["distance"] + 20 <= reach
        assert row["accuracy"] == (1 if knows else 0), row
        sure = float(np.log(1 / (1 + 1999 * np.exp(-SURE))))
        assert row["log_prob"] == pytest.approx(sure if knows else -np.log(2000), abs=1e-3)
        assert row.get("margin", 0) == pytest.approx(SURE if knows and name == "retrieval" else 0)


def test_the_right_candidate_is_first_only_where_it_is_likelier_than_all_others() -> None:

    def reply(*likelihoods: float) -> Reply:
        return Reply(tuple(Answer(x, 2, 1) for x in likelihoods))

    task = make_task("retrieval", source(), BEYOND, 8)
    assert isinstance(task, Planted)
    assert task.score([reply(-1, -2, -3), reply(-2, -2, -3), reply(-9, -2, -4)]) == {
        "accuracy": pytest.approx(1 / 3),
        "rank": pytest.approx(2),
        "margin": pytest.approx((1.5 + 0.5 - 6) / 3),
    }
    assert reply(float("nan"), -2, -3).rank == 3, "who says nothing knows nothing"


def passes_of(program: ProgramGraphs) -> set[object]:
    sleeps = [cls.sleep for cls in program.classes.values() if cls.sleep]
    replay = torch.ops.sleepc.replay.default
    return {node.kwargs["passes"] for graph in sleeps for node in graph.calls() if is_call(node, replay)}


@pytest.mark.parametrize("options", [{}, {"write": "online", "passes": 3}])
def test_a_sweep_makes_the_programs_that_a_conversion_makes(options: dict[str, object]) -> None:
    step, recipe = family("gemma2").convert(**options)
    task = make_task("retrieval", source(), BEYOND, 8)
    before, figures = passes_of(step), []
    for passes in (1, 4):
        swept = with_passes(step, recipe, passes)
        wanted, _ = family("gemma2").convert(**{**options, "passes": passes})
        assert passes_of(swept) == {passes}
        figures.append(rows(task, load(shaken(swept))))
        assert close(figures[-1], rows(task, load(shaken(wanted))))
    assert passes_of(step) == before, "the program itself stays as it is"
    assert not close(figures[0], figures[1])


@pytest.mark.parametrize(
    ("options", "passes", "said"),
    [
        ({"rule": "gated"}, 2, "rule gated does not correct"),
        ({"strategy": "insert"}, 2, "replays nothing"),
        ({"consolidation": "recurrent"}, 2, "run blocks again"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(options: dict[str, object], passes: int, said: str) -> None:
    step, recipe = family("gemma2").convert(**options)
    with pytest.raises(UsageError, match=said):
        with_passes(step, recipe, passes)
    if options.get("rule"):
        assert passes_of(with_passes(step, recipe, 1)) == {1}
