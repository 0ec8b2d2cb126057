"""Layers that use the keys and values of an earlier layer again read its KV window: what is computed is, to the bit,
what it is with windows of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from sleepc.artifact import About, load_artifact, save_artifact
from sleepc.errors import SleepcError
from sleepc.inspection import inspect_program
from sleepc.ir.check import InvalidProgram
from sleepc.ir.fit import check_fit
from sleepc.ir.graph import Graph
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import HeldTensor
from sleepc.manifest import Source, read_manifest
from sleepc.passes.adapt.retype import Retype
from sleepc.passes.base import Stage
from sleepc.passes.pipeline import rewritten
from sleepc.passes.runner import run_stages
from sleepc.passes.stateful.share_rings import ShareRings, with_own_ring
from sleepc.recipe import Keep, Recipe, make_recipe
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from sleepc.tasks.programs import full_attention
from sleepc.train.abreast import read_abreast
from sleepc.train.local import block_steps, layer_output, windows_of
from sleepc.train.pieces import Piece, batch_of
from sleepc.train.student import Computing, Student, parts_of
from sleepc.verify import invariants
from sleepc.verify.invariants import Bench
from sleepc.verify.memory_values import shaken
from sleepc.verify.oracle import Oracle, parameters_of
from sleepc.verify.streams import state_of
from sleepc.verify.verify import make_streams
from tests.conformance.backends import SUBJECTS, WRITTEN, in_tensors, load, runs
from tests.families import family
from tests.passes.cases import FOLDER, read

WINDOW, VOCAB = 4, 11
CALLS = (3, 1, 9, 1, 0, 1, 1, 6, 1, 1, 1)
RECIPES: dict[str, tuple[dict[str, Any], list[int | None]]] = {
    "sliding": ({}, [None, 0, 0]),
    "hard": ({"eviction": "hard", "sinks": 0, "passes": 2}, [None, 0, 0]),
    "online": ({"write": "online", "passes": 3}, [None, 0, 0]),
    "no memory in readers": ({"layers": "0"}, [None, 0, 0]),
    "loop": ({"consolidation": "recurrent", "passes": 3, "loop": "1:2"}, [None, 0, 0]),
    "loop over the first": ({"consolidation": "recurrent", "passes": 2, "loop": "0:2"}, [None, 0, 0]),
    "gradient": ({"consolidation": "gradient", "mlps": "1-2", "gradient": {"weights": "query"}}, [None, 0, 0]),
    "one reader has a longer window": ({"overrides": [{"layers": "1", "window": 6}]}, [None, None, 0]),
    "the first has a longer window": ({"overrides": [{"layers": "0", "window": 6}]}, [None, None, 1]),
    "one reader is replaced": ({"overrides": [{"layers": "1", "strategy": "replace"}]}, [None, None, 0]),
    "the first is replaced": ({"overrides": [{"layers": "0", "strategy": "replace"}]}, [None, None, 1]),
    "a mixer in between": ({"overrides": [{"layers": "0", "strategy": "insert"}]}, [None, None, 1]),
    "kept pairs": ({"keep": Keep(slots=3, score="newest")}, [None, 0, 0]),
}
"""Of each recipe: whose window each layer reads."""


def canonical(dtype: torch.dtype = torch.float64) -> ProgramGraphs:
    """Three layers, of which the last two use the keys of the first again; random numbers."""
    program = read(FOLDER / "keys_again.txt").program()
    generator = torch.Generator().manual_seed(5)
    program.params = {
        key: HeldTensor(torch.randn(param.shape, generator=generator) / 2) for key, param in program.params.items()
    }
    return program if dtype == torch.float32 else run_stages(program, (Stage("to", "CANONICAL", (Retype(dtype),)),))


@contextmanager
def own_rings() -> Iterator[None]:
    """Within it every layer gets a window of its own."""
    with mock.patch.object(ShareRings, "run", return_value=0):
        yield


def pair(options: dict[str, Any], dtype: torch.dtype = torch.float64) -> tuple[ProgramGraphs, ProgramGraphs, Recipe]:
    """The program as it is converted, and with windows of their own; memories shaken alike."""
    recipe = make_recipe({"window": WINDOW, "sinks": 1, **options})
    shared = shaken(rewritten(canonical(dtype), recipe))
    with own_rings():
        own = shaken(rewritten(canonical(dtype), recipe))
    return shared, own, recipe


def read_all(steps: Steps, folder: Path) -> tuple[np.ndarray[Any, Any], dict[str, Tensor]]:
    """Logits of two rows of different lengths over several sleeps, one of them by hand, saved and loaded in between and
    rows exchanged; and the state at the end.
    """
    rng, found = np.random.default_rng(2), []
    session = Session(steps, 2)
    for at, count in enumerate(CALLS):
        real = np.ones((2, count), np.bool_)
        real[1, : count // 2] = False
        found.append(session.feed(rng.integers(0, VOCAB, (2, count)), real, logits="all").ravel())
        if at == 4:
            session.sleep([1])
            session.save_state(folder / "state")
            session = Session(steps, 2)
            session.load_state(folder / "state")
    return np.concatenate(found), state_of(session)


def assert_same(shared: ProgramGraphs, own: ProgramGraphs, run: Callable[[ProgramGraphs], Steps], folder: Path) -> None:
    """Logits, and every state where the program has it."""
    (logits, state), (wanted, states) = read_all(run(shared), folder), read_all(run(own), folder)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_array_equal(logits, wanted)
    for i in range(len(shared.layout)):
        for local, full in shared.state_names(i).items():
            assert torch.equal(state[full], states[f"{i}.{local}"]), (i, local)
    assert state.keys() == {spec.name for spec in shared.all_states()}


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_computed_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    options, readers = RECIPES[name]
    shared, own, _ = pair(options)
    assert [block.ring for block in shared.layout] == readers
    windows = {s.name: s.bytes_per_row() for s in own.all_states() if s.role == "kv"}
    saved = sum(windows[f"{i}.{part}"] for i, ring in enumerate(readers) if ring is not None for part in "kv")
    assert saved
    assert own.state_bytes() - shared.state_bytes() == saved, "what one block has counts once"
    assert_same(shared, own, load, tmp_path)
    assert_same(shared, own, in_tensors, tmp_path)


def test_inspect_says_whose_window_is_read() -> None:
    shared, _, recipe = pair({})
    seen = inspect_program(canonical(), shared, recipe)
    assert [f"keys in block {i}'s window" in info.becomes for i, info in zip((1, 0, 0), seen.blocks, strict=True)] == [
        False,
        True,
        True,
    ]
    assert seen.state_bytes == shared.state_bytes()


@pytest.mark.parametrize("form", WRITTEN)
def test_exports(form: str, tmp_path: Path) -> None:
    shared, own, _ = pair(RECIPES["loop"][0], torch.float32)
    assert_same(shared, own, runs(form).load, tmp_path)


@pytest.mark.parametrize("name", ["sliding", "hard"])
def test_invariants(name: str) -> None:
    """What an earlier layer's window holds is what the oracle says of every layer that reads it."""
    shared, _, recipe = pair(RECIPES[name][0])
    tokens = np.random.default_rng(3).integers(0, VOCAB, 3 * WINDOW + 3)
    oracle = Oracle(canonical(), recipe, parameters_of(canonical(), shared))
    bench = Bench(load(shared), oracle, make_streams(tokens, WINDOW))
    for each in (invariants.chunking, invariants.definition, invariants.padding, invariants.permuting):
        assert each(bench) <= 1e-9, each
    assert invariants.saving(bench) == 0
    bench.alone[0].state["0.k"] += 1
    assert invariants.definition(bench) > 0.1


@pytest.mark.parametrize("name", ["sliding", "hard", "one reader has a longer window"])
def test_a_block_alone_has_a_window_of_its_own(name: str) -> None:
    """As calibration reads blocks: on their inputs alone."""
    shared, own, _ = pair(RECIPES[name][0])
    text = torch.from_numpy(np.random.default_rng(4).integers(0, VOCAB, (2, 14)))
    for i in range(3):
        assert with_own_ring(shared, i).states == own.classes[own.layout[i].cls].states
        h = torch.randn(2, 14, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        found = []
        for program in (shared, own):
            steps = block_steps(program, i)
            found.append(
                layer_output(steps, 0, windows_of(in_tensors(program, train=True), text, torch.tensor([14, 14])), h)
            )
        assert torch.equal(*found)


@pytest.mark.parametrize("name", ["sliding", "hard", "kept pairs"])
def test_windows_side_by_side(name: str) -> None:
    """As training reads them: through each block at once."""
    shared, own, _ = pair(RECIPES[name][0])
    texts = torch.from_numpy(np.random.default_rng(4).integers(0, VOCAB, (3, 2, WINDOW)))
    windows = [(text, torch.tensor([WINDOW, WINDOW - at])) for at, text in enumerate(texts)]
    found = []
    for program in (shared, own):
        steps = in_tensors(program, train=True)
        found.append(read_abreast(steps, steps.new_state(2), windows, last=False))
    (values, state), (wanted, states) = found
    assert torch.equal(values["h"], wanted["h"])
    for name_, value in state.items():
        assert torch.equal(value, states[name_]), name_


def test_alignment() -> None:
    """Blocks with a memory are run alone; the first has none, and its window is read by the others."""
    shared, own, _ = pair({"layers": "1-2"})
    assert [block.ring for block in shared.layout] == [None, 0, 0]
    pieces = [Piece(np.random.default_rng(6).integers(0, VOCAB, 14))]
    tokens, lengths, labels = map(torch.from_numpy, batch_of(pieces))
    found = []
    for program in (shared, own):
        keys = [key for key, param in program.params.items() if param.new]
        student = Student({"own": program}, keys, in_tensors(full_attention(canonical(), 14)), Computing())
        carry, losses = student.begin(1), []
        for part in parts_of(tokens, lengths, labels, WINDOW, 0):
            loss, carry = student.read("align", "own", part, carry)
            losses.append(float(torch.as_tensor(loss).detach()))
        found.append(losses)
    assert found[0] == found[1]
    assert max(found[0]) > 0.01


def test_files(tmp_path: Path) -> None:
    """Programs with windows of their own are written as before, and those of then go on as they were."""
    shared, own, recipe = pair({"layers": "0", "eviction": "hard"})
    about = About(recipe, Source(name="tiny", kind="module"))
    for program, name, version in ((shared, "shared", 3), (own, "own", 2)):
        save_artifact(tmp_path / name, program, about)
        assert read_manifest(tmp_path / name).format == version
        again = load_artifact(tmp_path / name)[0]
        assert [block.ring for block in again.layout] == [block.ring for block in program.layout]
        assert again.all_states() == program.all_states()
        assert_same(again, own, load, tmp_path)
    text = (tmp_path / "shared" / "sleepc.json").read_text()
    (tmp_path / "shared" / "sleepc.json").write_text(text.replace('"format": 3', '"format": 2', 1))
    with pytest.raises(SleepcError, match="in format 3, and in no other"):
        load_artifact(tmp_path / "shared")


def in_place(program: ProgramGraphs) -> None:
    graph = program.classes[program.layout[0].cls].wake
    write = graph.results()["k"]
    write.replace_input_with(write.args[0], graph.ports()["k"])  # type: ignore[arg-type]
    graph.drop_dead()


def put_ring(ring: int | None) -> Callable[[ProgramGraphs], None]:
    def put(program: ProgramGraphs) -> None:
        block = program.layout[1]
        program.layout[1] = type(block)(block.cls, block.params, ring)

    return put


def evicts(program: ProgramGraphs) -> None:
    sleep = Graph("block.1.sleep")
    sleep.set_returns({"k": sleep.add_port("state", "k", program.classes["block.1"].states[0].type())})
    program.classes["block.1"].sleep = sleep


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (in_place, "k is written in place, and read by block 1 later"),
        (put_ring(None), "block 1 reads states of block None"),
        (put_ring(1), "block 1 reads states of block 1"),
        (put_ring(2), "block 1 reads states of block 2"),
        (evicts, "state k is given, and another block's"),
    ],
)
def test_programs_that_do_not_fit(fault: Callable[[ProgramGraphs], None], words: str) -> None:
    program = pair({})[0]
    fault(program)
    with pytest.raises(InvalidProgram, match=words) as caught:
        check_fit(program)
    assert caught.value.code == "V33"


@pytest.mark.slow
def test_captured_steps(tmp_path: Path) -> None:
    """Graphs that read and write a session's tensors where they are."""
    pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")
    from tests.backends.triton.test_captured import captured

    shared, own, _ = pair({}, torch.float32)
    assert_same(shared, own, lambda program: captured(program)[0], tmp_path)


READERS = {"gemma4": [None, None, 1, 1], "gemma3n": [None, None, 0, 0, 1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "forms"),
    [
        ({}, ("ort", "portable", "portable-columns")),
        ({"eviction": "hard", "passes": 2}, ()),
        ({"consolidation": "recurrent", "passes": 2, "loop": "1:3", "write": "online"}, ("ort",)),
    ],
    ids=["replay", "hard", "recurrent"],
)
@pytest.mark.parametrize("name", READERS)
def test_models(name: str, options: dict[str, Any], forms: Sequence[str], tmp_path: Path) -> None:
    """Full layers read the last full one that makes keys, sliding ones the last sliding one."""
    subject = family(name, torch.float32)
    shared = shaken(subject.convert(**options)[0])
    with own_rings():
        own = shaken(subject.convert(**options)[0])
    assert [block.ring for block in shared.layout] == READERS[name]
    for run in (load, *(SUBJECTS[form].load for form in forms)):
        assert_same(shared, own, run, tmp_path)


@pytest.mark.slow
def test_kept_pairs_of_rotated_keys() -> None:
    """A layer that keeps pairs holds its keys without positions, for scores; those that use them again have them with
    positions, in one window.
    """
    shared = family("gemma4", torch.float32).convert(keep=Keep(slots=2))[0]
    assert [block.ring for block in shared.layout] == [None, None, None, 2]
