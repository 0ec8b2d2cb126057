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
from sleepc.tasks.programs import full_attention, with_passes
from sleepc.tasks.retrieval import retrieval
from sleepc.tasks.source import Source
from sleepc.tasks.task import Planted, Row, Task, TaskName, make_task
from sleepc.verify.distance import surprise
from sleepc.verify.shake import shaken, without_memories
from tests.families import VOCAB, family

NAMES: tuple[TaskName, ...] = ("perplexity", "retrieval", "copy")
INSIDE = Setup((8, 16), samples=2, sinks=2)
BEYOND = Setup((4, 8, 16, 24), samples=3, sinks=2)


def source() -> Source:
    return Source(np.random.default_rng(0).integers(0, VOCAB, 400), np.arange(VOCAB))


def rows(task: Task, steps: Steps, limit: int = 10**6) -> list[Row]:
    return task.rows(steps, limit, lambda share: None)


def close(a: list[Row], b: list[Row], tolerance: float = 1e-6) -> bool:
    same = [x.keys() == y.keys() and all(abs(x[k] - y[k]) < tolerance for k in x) for x, y in zip(a, b, strict=True)]
    return bool(same) and all(same)


@pytest.mark.parametrize("name", NAMES)
def test_inside_the_window_figures_are_the_originals(name: TaskName) -> None:
    step, _ = family("llama").convert(window=40)
    task = make_task(name, source(), INSIDE, 40)
    assert task.length <= 40
    full = load(full_attention(family("llama").canonical, task.length))
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
            wanted = -float(surprise(logits, ids)[-len(candidate) :].sum())
            assert answer.likelihood == pytest.approx(wanted, abs=1e-6)
            assert answer.hits == int(logits[-2].argmax() == candidate[0])
    assert next(found, None) is None


@pytest.mark.parametrize("name", NAMES)
def test_full_attention_is_the_original_and_says_what_it_cannot_read(name: TaskName) -> None:
    canonical = family("gpt2").canonical  # 24 positions
    task = make_task(name, source(), BEYOND, 8)
    full = full_attention(canonical, task.length)
    assert full.window == 24 <= task.length
    found = rows(task, load(full), full.window)
    assert [(r["from"], r["to"]) for r in found] == ([(1, 8), (8, 16), (16, 24)] if name == "perplexity" else [])


def test_surprises_of_rows_are_those_of_single_texts() -> None:
    texts = np.stack(source().pieces(3, 70, np.random.default_rng(2)))
    logits = family("qwen2").logits(torch.from_numpy(texts[:, :60]))
    steps = load(full_attention(family("qwen2").canonical, 70))
    found = surprises(steps, texts, lambda share: None)
    for row, text in enumerate(texts):
        assert np.allclose(found[row, :60], surprise(logits[row], text[:61]).numpy(), atol=1e-6)


@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_rows_are_independent_of_how_many_are_read_at_once(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    step, _ = family("llama").convert()
    steps, task = load(shaken(step)), make_task("retrieval", source(), BEYOND, 8)
    wanted = rows(task, steps)
    monkeypatch.setattr("sleepc.tasks.asking.MEMORY", memory)
    assert most_rows(steps) == 1 or memory > 1
    assert close(rows(task, steps), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_without_memories_there_is_a_window_and_nothing_else(name: TaskName) -> None:
    step, _ = family("llama").convert()
    task = make_task(name, source(), BEYOND, 8)
    sliding = rows(task, load(without_memories(step)))
    kept, _ = family("llama").convert(overrides=[{"layers": "all", "strategy": "keep"}])
    assert close(sliding, rows(task, load(kept)))
    assert not close(sliding, rows(task, load(shaken(step))))


def test_a_memory_that_holds_a_pair_is_seen() -> None:
    """Ranks tell who knows the answer: the right one is at rank 1 only where it is likelier than all others."""

    def reply(*likelihoods: float) -> Reply:
        return Reply(tuple(Answer(x, 2, 1) for x in likelihoods))

    task = make_task("retrieval", source(), BEYOND, 8)
    assert isinstance(task, Planted)
    assert task.score([reply(-1, -2, -3), reply(-2, -2, -3), reply(float("nan"), -2)]) == {
        "accuracy": pytest.approx(1 / 3),
        "rank": pytest.approx(5 / 3),
    }


def passes_of(program: ProgramGraphs) -> set[object]:
    sleeps = [cls.sleep for cls in program.classes.values() if cls.sleep]
    replay = torch.ops.sleepc.replay.default
    return {node.kwargs["passes"] for graph in sleeps for node in graph.calls() if is_call(node, replay)}


@pytest.mark.parametrize("options", [{}, {"write": "online", "passes": 3}])
def test_a_sweep_makes_the_programs_that_a_conversion_makes(options: dict[str, object]) -> None:
    step, recipe = family("llama").convert(**options)
    task = make_task("retrieval", source(), BEYOND, 8)
    before = passes_of(step)
    for passes in (1, 2, 4):
        swept = with_passes(step, recipe, passes)
        wanted, _ = family("llama").convert(**{**options, "passes": passes})
        assert passes_of(swept) == {passes}
        assert close(rows(task, load(shaken(swept))), rows(task, load(shaken(wanted))))
    assert passes_of(step) == before, "the program itself stays as it is"
    once, thrice = (rows(task, load(shaken(with_passes(step, recipe, n)))) for n in (1, 3))
    assert not close(once, thrice)


@pytest.mark.parametrize(
    ("options", "passes", "said"),
    [
        ({"rule": "gated"}, 2, "rule gated does not correct"),
        ({"strategy": "insert"}, 2, "replays nothing"),
        ({"consolidation": "recurrent", "passes": 2}, 2, "run blocks again"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(options: dict[str, object], passes: int, said: str) -> None:
    step, recipe = family("llama").convert(**options)
    with pytest.raises(UsageError, match=said):
        with_passes(step, recipe, passes)
    if options.get("rule"):
        assert passes_of(with_passes(step, recipe, 1)) == {1}
