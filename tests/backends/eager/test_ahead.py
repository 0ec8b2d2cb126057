"""A token's step that was compiled ahead of time: what is written, when it runs, and when it is left out.

What a compiler makes is stood in for by what it is given, but in the slow test.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sleepc
from examples.nanogpt import GPT
from sleepc.backends import processor
from sleepc.backends.eager import ahead
from sleepc.backends.eager.code_files import CodeManifest
from sleepc.backends.eager.native import Function, Native
from sleepc.backends.listed_files import facts_of, sealed
from sleepc.errors import SleepcError, UsageError
from sleepc.runtime.session import Session
from tests.cli.models import run_here

VOCAB, WINDOW = 61, 8
PARTS = ("embed", "block.0", "head")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With windows, memories, records and kept pairs, in float64."""
    torch.manual_seed(0)
    recipe = {"window": WINDOW, "sinks": 2, "keep": 3, "passes": 2}
    made = sleepc.convert(GPT(vocab=VOCAB, width=16, heads=2, blocks=1, context=64).double(), recipe)
    return made.save(tmp_path_factory.mktemp("ahead") / "artifact")


@pytest.fixture(scope="module")
def graphs() -> Iterator[dict[bytes, Callable[..., Any]]]:
    """What runs in place of code, by what is in its file."""
    made: dict[bytes, Callable[..., Any]] = {}

    def compiled(traced: Any, name: str, settings: Any) -> bytes:
        assert settings["cpp.dynamic_threads"]
        key = f"{name} {len(made)}".encode()
        made[key] = traced.module()
        return key

    def opened(place: Path, function: Function, new: bool) -> Native:
        return Native(lambda args: [*made[place.read_bytes()](*args)], function, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "compiled", compiled)
        patch.setattr(ahead, "opened", opened)
        yield made


@pytest.fixture(scope="module")
def exported(artifact: Path, graphs: Any) -> Path:
    report = sleepc.load(artifact).export(to="inductor").report
    assert report["ok"]
    assert {each["check"][-1] for each in report["checks"]} == {"1", "3"}
    assert len(graphs) == 2 * len(PARTS)
    return artifact


def manifest_of(artifact: Path) -> CodeManifest:
    return CodeManifest.model_validate_json((artifact / "inductor" / "inductor.json").read_text())


@pytest.fixture
def changed(exported: Path) -> Iterator[Callable[..., None]]:
    """Changes the manifest, for a while."""
    place = exported / "inductor" / "inductor.json"
    before = place.read_text()

    def change(**update: Any) -> None:
        place.write_text(sealed(manifest_of(exported).model_copy(update=update)).model_dump_json())

    yield change
    place.write_text(before)


def read(artifact: Path, rows: int, *, trusted: bool = True, **options: Any) -> tuple[list[Any], list[str]]:
    """Logits of rows that sleep on their own clocks, and what was said."""
    said: list[str] = []
    if options:
        options["progress"] = lambda what, share: said.append(re.sub(r"[\d.]+ s$", "S s", what))
    session = Session(sleepc.load(artifact, native_code=trusted).steps(**options), rows)
    session.feed([list(range(1, 6 + 3 * row)) for row in range(rows)])
    tokens = ([[(7 * at + row) % VOCAB] for row in range(rows)] for at in range(2 * WINDOW))
    return [session.feed(each) for each in tokens], said


@pytest.mark.parametrize("rows", [1, 3])
def test_the_code_of_an_artifact_is_run_and_nothing_is_compiled(
    exported: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, call = list[str](), Native.__call__

    def counted(native: Native, inputs: Any) -> dict[str, Any]:
        ran.append("")
        return call(native, inputs)

    monkeypatch.setattr(Native, "__call__", counted)
    found, said = read(exported, rows, compile=True)
    wanted, _ = read(exported, rows)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())
    assert len(ran) >= len(PARTS) * 2 * WINDOW
    forms = ["one row"] if rows == 1 else ["one row", "many rows"]
    assert said == [f"compiled code: 3 functions for {form}, 0 compiled, 3 from the artifact, S s" for form in forms]


def test_it_is_not_touched_unless_a_person_says_so(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session then compiles for the user's own cache, or finds that it cannot."""
    monkeypatch.setattr(ahead, "code_in", lambda artifact: pytest.fail("it was opened"))
    monkeypatch.setattr("sleepc.backends.eager.compiled.CompiledSteps.prepare", lambda *_, **options: None)
    sleepc.load(exported).steps(compile=True)


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"torch": "2.0.0"}, "the code is for PyTorch 2.0.0, and this is "),
        ({"machine": "vax"}, "the code is for processors of vax, and this one is "),
        ({"features": ["antigravity"]}, "needs a processor with antigravity, which this one does not have"),
    ],
)
def test_code_for_another_machine_is_left_out(
    exported: Path, changed: Callable[..., None], update: dict[str, Any], said: str
) -> None:
    changed(**update)
    found, told = read(exported, 1, compile=True)
    assert len(told) == 1
    assert told[0].startswith("compiled code for one row is left out: ")
    assert said in told[0]
    assert "`sleepc export ARTIFACT --to inductor --force` makes it again" in told[0]
    np.testing.assert_array_equal(found, read(exported, 1)[0])


def test_a_system_that_does_not_describe_its_processor(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", exported / "no such file")
    _, told = read(exported, 1, compile=True)
    assert ["this system does not say" in each for each in told] == [bool(manifest_of(exported).features)] * len(told)


def test_code_for_other_graphs_is_left_out(exported: Path, tmp_path: Path) -> None:
    """Other weights do not matter: they are arguments. A folder that a link leads to is not the artifact's own."""
    torch.manual_seed(1)
    recipe = {"window": WINDOW, "sinks": 2, "keep": 3, "passes": 2}
    model = GPT(vocab=VOCAB, width=16, heads=2, blocks=1, context=64).double()
    for name, options, count in (("alike", {}, 0), ("other", {"sinks": 1}, 1)):
        place = sleepc.convert(model, {**recipe, **options}).save(tmp_path / name)
        (place / "inductor").symlink_to(exported / "inductor")
        with pytest.raises(SleepcError, match="leads out"):
            sleepc.load(place)
        (place / "inductor").unlink()
        shutil.copytree(exported / "inductor", place / "inductor")
        _, told = read(place, 1, compile=True)
        assert sum("made for another embed" in each for each in told) == count, told


def test_damaged_files_end_the_command(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = exported / "inductor"
    assert run_here(capsys, "verify", place)[0] == 0
    file = next(place.glob("*.pt2"))
    before = file.read_bytes()
    file.write_bytes(before[::-1])
    try:
        code, _, said = run_here(capsys, "verify", place)
        assert (code, "was changed after the export" in said) == (1, True)
        with pytest.raises(SleepcError, match="was changed after the export"):
            sleepc.load(exported, native_code=True).steps(compile=True)
    finally:
        file.write_bytes(before)


def test_files_of_which_nothing_is_said_are_refused(exported: Path, changed: Callable[..., None]) -> None:
    manifest = manifest_of(exported)
    name = next(iter(manifest.files))
    changed(files={**manifest.files, "other.pt2": facts_of(exported / "inductor" / name)})
    with pytest.raises(SleepcError, match="other files than those of its functions"):
        sleepc.load(exported, native_code=True).steps(compile=True)


def test_code_that_computes_something_else_is_not_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Callable[[Path, Function, bool], Native] = vars(ahead)["opened"]

    def off(place: Path, function: Function, new: bool) -> Native:
        native = opened(place, function, new)
        run = native.run
        native.run = lambda args: [x + 1 if x.is_floating_point() else x for x in run(args)]
        return native

    def write(program: Any, folder: Path, progress: Any) -> CodeManifest:
        shutil.copytree(exported / "inductor", folder, dirs_exist_ok=True)
        return manifest_of(exported)

    monkeypatch.setattr(ahead, "write_step", write)
    monkeypatch.setattr(ahead, "opened", off)
    with pytest.raises(SleepcError, match="do not compute what the program does"):
        sleepc.load(exported).export(tmp_path / "code", to="inductor")
    assert not list(tmp_path.iterdir())


def test_the_folder_is_no_program(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = run_here(capsys, "run", exported / "inductor", "w1")
    assert (code, "name the artifact" in " ".join(said.split())) == (2, True)
    with pytest.raises(UsageError, match="reads no tokens"):
        sleepc.load(exported).export(to="inductor", text="x", force=True)


@pytest.mark.slow
def test_what_the_compiler_makes(artifact: Path, tmp_path: Path) -> None:
    """The files themselves, in another place than that of the module's other tests."""
    program = sleepc.load(artifact)
    place = program.save(tmp_path / "artifact")
    report = sleepc.load(place).export(to="inductor").report
    assert report["ok"]
    found, said = read(place, 3, compile=True)
    assert all("0 compiled" in each for each in said)
    np.testing.assert_allclose(found, read(place, 3)[0], rtol=0, atol=1e-9)
