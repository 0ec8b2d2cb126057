"""A backend and a target of one's own, registered here, do what the others do: nothing else knows them by name."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sleepc
from examples.nanogpt import GPT
from sleepc import doctor
from sleepc.backends import table
from sleepc.backends.contract import Draft, HostTarget, Kernels, Target, Written, option
from sleepc.backends.eager.backend import EagerBackend
from sleepc.backends.export import Export, ExportFacts
from sleepc.backends.report import Figure, Report
from sleepc.errors import UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.base import Stage
from sleepc.progress import Progress
from sleepc.runtime.steps import Steps
from tests.cli.models import run_here, save_model
from tests.conformance import backends
from tests.conformance.test_invariants import bench, hold_invariants


class Toy(EagerBackend):
    """Kernels of the eager backend, whose calls are counted."""

    name = "toy"

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def about(self) -> str:
        return "a toy, version 1"

    def kernels(self, *, train: bool) -> Kernels:
        return {operator: self._counted(kernel) for operator, kernel in super().kernels(train=train).items()}

    def _counted(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(kernel)
        def counting(*args: Any, **options: Any) -> Any:
            self.calls[kernel.__name__] += 1
            return kernel(*args, **options)

        return counting


class Still(Toy):
    """One that does not train."""

    name = "still"
    trains = False


@dataclass(frozen=True)
class ToyOptions:
    """How toys are written."""

    colour: str = option("red", "The colour of the toy.")
    wheels: int = option(4, "How many wheels it has.")


@dataclass
class Facts:
    """What toy.json says."""

    identity: str
    precision: str
    vocab: int
    window: int
    sinks: int
    upto: int | None
    replays: bool
    report: dict[str, Any]


class ToyExport(Export):
    """Runs what the artifact around it runs. One whose colour is native has native code."""

    def __init__(self, folder: Path, manifest: ExportFacts) -> None:
        self.folder, self.manifest = folder, manifest

    def check(self, device: str = "cpu", dtype: str | None = None) -> None:
        if dtype is not None:
            raise UsageError("a toy has no dtype", where="--dtype")
        if self.manifest.precision == "native" and not self.native_code:
            raise UsageError("this toy is native", fix="Say so with --native-code.")

    def steps(self, *, device: str = "cpu", dtype: str | None = None, passes: int | None = None) -> Steps:
        self.check(device, dtype)
        return sleepc.load(self.folder.parent).steps(device=device)


class ToyTarget(Target):
    """Writes a file that says what was asked for."""

    name = "toyfile"
    runtime = "the toy's own runtime"
    mark = "toy.json"
    options = ToyOptions

    def missing(self) -> str | None:
        return None

    def missing_runtime(self) -> str | None:
        return None

    def about(self) -> str:
        return "runs anywhere"

    def check(self, options: ToyOptions) -> None:
        if options.wheels < 3:
            raise UsageError(f"{options.wheels} wheels are too few", where="--wheels")

    def lowering(self, program: ProgramGraphs, options: ToyOptions) -> tuple[Stage, ...]:
        return ()

    def write(self, program: ProgramGraphs, options: ToyOptions, draft: Draft) -> Written:
        report = Report([Figure("wheels", "number", options.wheels, 9)]).to_json()
        facts = {"vocab": program.vocab, "window": program.window, "sinks": 0, "upto": None, "replays": False}
        said = {"identity": draft.identity, "precision": options.colour, **facts, "report": report}
        (draft.folder / "toy.bin").write_bytes(bytes(options.wheels))
        (draft.folder / self.mark).write_text(json.dumps(said))
        return Written(report, ["toy.bin"])

    def open(self, path: Path) -> ToyExport:
        folder = path if (path / self.mark).is_file() else path / self.name
        return ToyExport(folder, Facts(**json.loads((folder / self.mark).read_text())))

    def verify(self, export: Export, tokens: Sequence[int], progress: Progress, like: Steps | None) -> Report:
        export.check()
        return Report([Figure("the artifact", "there", float(like is not None), 1, least=True)])


class ToyHostTarget(HostTarget):
    """Writes a file that a host runs."""

    name = "toyhost"
    runtime = "a host of toys"
    mark = "toyhost.json"
    options = ToyOptions
    missing, check, lowering = ToyTarget.missing, ToyTarget.check, ToyTarget.lowering

    def write(self, program: ProgramGraphs, options: ToyOptions, draft: Draft) -> Written:
        assert not draft.tokens
        (draft.folder / self.mark).write_text("")
        return Written(Report().to_json(), [self.mark])

    def verify(self, folder: Path) -> Report:
        return Report([Figure("toyhost.json", "bytes", (folder / self.mark).stat().st_size, 0)])


@pytest.fixture
def toy() -> Iterator[Toy]:
    made = Toy()
    for each in (made, Still(), ToyTarget(), ToyHostTarget()):
        table.register(each)
    yield made
    for known, name in ((table.BACKENDS, "toy"), (table.BACKENDS, "still"), (table.TARGETS, "toyfile")):
        known.pop(name)
    table.HOST_TARGETS.pop("toyhost")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = save_model(tmp_path_factory.mktemp("model") / "model")
    return sleepc.convert(model, {"window": 8, "sinks": 2, "passes": 2}).save(model.parent / "artifact")


PROMPT = " ".join(f"w{i}" for i in range(1, 20))


def test_the_toy_runs_what_eager_runs(toy: Toy, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 12)
    assert not toy.calls
    assert run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 12, "--backend", "toy") == wanted
    assert wanted[0] == 0
    assert {"replay", "delta_rule_read", "write_slots_", "window_attention"} <= set(toy.calls)
    before = toy.calls.total()
    options = ("--task", "copy", "--samples", 1, "--distances", "1", "--json")
    rows = [
        json.loads(run_here(capsys, "eval", artifact, *options, *more)[1])["rows"]
        for more in ((), ("--backend", "toy"))
    ]
    assert rows[0] == rows[1]
    assert toy.calls.total() > before


@pytest.mark.parametrize(("family", "recipe"), [("llama", "parallel"), ("gpt2", "recurrent"), ("gemma2", "insert")])
def test_the_toy_holds_the_invariants(toy: Toy, monkeypatch: pytest.MonkeyPatch, family: str, recipe: str) -> None:
    found = backends.subject_of(table.find_backend("toy"), "cpu")
    monkeypatch.setitem(backends.SUBJECTS, "toy", found)
    assert found.missing() is None
    hold_invariants(bench.__wrapped__("toy", family, recipe), found.tolerance)
    assert toy.calls


TASK = ("--task", "rule110", "--set", "width=4", "--set", "states=2", "--set", "steps=1")
FAST = (*TASK, "--scratch", "--steps", 2, "--batch", 4, "--device", "cpu")


@pytest.mark.filterwarnings("ignore::sleepc.errors.SleepcWarning")
def test_the_toy_trains_to_the_same_values(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    module = GPT(vocab=5, width=16, heads=2, blocks=2, context=16)
    recipe = {"window": 4, "sinks": 0, "consolidation": "recurrent", "passes": 2}
    place = sleepc.convert(module, recipe).save(tmp_path / "artifact")
    code, _, said = run_here(capsys, "train", place, *FAST, "-o", tmp_path / "eager")
    assert (code, toy.calls.total()) == (0, 0), said
    code, _, said = run_here(capsys, "train", place, *FAST, "--backend", "toy", "-o", tmp_path / "toys")
    assert code == 0, said
    assert toy.calls
    a, b = (sleepc.load(tmp_path / name).graphs.params for name in ("eager", "toys"))
    assert all(torch.equal(a[key].materialise(), b[key].materialise()) for key in a)
    original = sleepc.load(place).graphs.params
    assert not all(torch.equal(a[key].materialise(), original[key].materialise()) for key in a)


def test_a_backend_that_does_not_train_says_so(
    toy: Toy, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sleepc.load(artifact).session(backend="still").feed([1, 2]).shape[0] == 1
    for name in ("still", "toyfile"):
        with pytest.raises(UsageError, match=f"{name} does not train"):
            sleepc.load(artifact).steps(backend=name, train=True)
        code, _, said = run_here(capsys, "train", artifact, *FAST, "--backend", name, "-o", tmp_path / "out")
        assert (code, f"{name} does not train" in said) == (2, True), said
    assert not list(tmp_path.iterdir())


def test_the_doctor_lists_toys(toy: Toy) -> None:
    found = {(f.group, f.what): f.detail for f in doctor.examine()}
    assert found["backends", "toy"] == "a toy, version 1"
    assert found["backends", "toyfile"] == found["exports", "the toy's own runtime"] == "runs anywhere"


def test_a_name_is_taken_once(toy: Toy) -> None:
    for taken in (Toy(), ToyTarget()):
        with pytest.raises(UsageError, match="already"):
            table.register(taken)
    onnx = ToyTarget()
    onnx.name = table.DEFAULT  # type: ignore[misc]
    with pytest.raises(UsageError, match="already"):
        table.register(onnx)


def test_an_export_with_flags_of_its_own(toy: Toy, artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    helped = " ".join(run_here(capsys, "export", "--help")[1].split())
    for words in (
        "--wheels",
        "How many wheels it has. [default: (4)]",
        "--precision",
        f"{', '.join(table.exporters())}.",
    ):
        assert words in helped
    code, said, told = run_here(capsys, "export", artifact, "--to", "toyfile", "--wheels", 6, "--json")
    assert code == 0, told
    assert json.loads(said)["report"]["checks"][0]["value"] == 6
    folder = artifact / "toyfile"
    manifest = json.loads((folder / "toy.json").read_text())
    assert (manifest["precision"], manifest["identity"]) == ("red", sleepc.load(artifact).identity)
    assert (folder / "tokenizer.json").is_file()
    wanted = run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 5)
    for place in (artifact, folder):
        assert run_here(capsys, "run", place, PROMPT, "--max-tokens", 5, "--backend", "toyfile") == wanted
    ids = np.arange(12)
    session = sleepc.load(artifact).session(backend="toyfile")
    np.testing.assert_array_equal(session.feed(ids), sleepc.load(artifact).session().feed(ids))
    assert run_here(capsys, "verify", folder)[0] == 0
    code, said, _ = run_here(capsys, "export", artifact, "--to", "toyfile", "--colour", "blue", "--force")
    assert (code, "toy.bin" in said) == (0, True)


def test_native_code_runs_only_if_a_person_says_so(
    toy: Toy, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(artifact, tmp_path / "artifact")
    sleepc.load(place).export(to="toyfile", colour="native", force=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    by = ("--backend", "toyfile")
    for command in (
        ("run", place, "w1", "--max-tokens", 1, *by),
        ("chat", place, *by),
        ("eval", place, "--task", "copy", "--samples", 1, "--distances", "1", *by),
        ("verify", place / "toyfile"),
    ):
        code, _, said = run_here(capsys, *command)
        assert (code, "--native-code" in said) == (2, True), said
        code, _, said = run_here(capsys, *command, "--native-code")
        assert code == 0, said
    with pytest.raises(UsageError, match="native_code=True"):
        sleepc.load(place).session(backend="toyfile")
    for make in (sleepc.Program.session, sleepc.Program.steps):
        make(sleepc.load(place, native_code=True), backend="toyfile")


def test_files_for_a_host(toy: Toy, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are written without a text, checked, and not run."""
    folder = tmp_path / "toys"
    assert run_here(capsys, "export", artifact, "--to", "toyhost", "-o", folder)[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "toyhost.json"]
    assert run_here(capsys, "verify", folder)[0] == 0
    code, _, said = run_here(capsys, "run", folder, "w1")
    assert (code, f"{folder} is for a host of toys, and sleepc does not run it" in " ".join(said.split())) == (2, True)
    tokens = tmp_path / "tokens"
    tokens.write_text("1 2 3")
    for command in (("export", artifact, "--to", "toyhost", "-o", tmp_path / "other"), ("verify", folder)):
        code, _, said = run_here(capsys, *command, "--tokens", tokens)
        assert (code, "no tokens" in said, "--tokens" in said) == (2, True, True), said


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("export", "{}", "--to", "toyfile", "--wheels", "2"), "2 wheels are too few"),
        (("export", "{}", "--to", "toyfile", "--ep", "cuda"), "the target toyfile has no option ep"),
        (("export", "{}", "--to", "onnx", "--wheels", "4"), "the target onnx has no option wheels"),
        (("export", "{}", "--to", "car"), f"Targets: {', '.join(table.TARGETS)}, toyfile"),
        (
            ("run", "{}", "w1", "--backend", "car"),
            f"Backends: {', '.join((*table.BACKENDS, 'toy', 'still', *table.TARGETS))}, toyfile",
        ),
        (("run", "{}/alone", "w1"), "Give --backend toyfile"),
        (("convert", "{}/alone", "-o", "{}/out"), "is a sleepc export, not a model"),
        (("run", "{}", "w1", "--backend", "toyfile", "--dtype", "float32"), "a toy has no dtype"),
    ],
)
def test_what_does_not_fit(
    toy: Toy, artifact: Path, command: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sleepc.load(artifact).export(artifact / "alone", to="toyfile", force=True)
    sleepc.load(artifact).export(to="toyfile", force=True)
    code, _, said = run_here(capsys, *(each.format(artifact) for each in command))
    assert (code, words in said) == (2, True), said


def test_options_from_python(toy: Toy, artifact: Path, tmp_path: Path) -> None:
    program = sleepc.load(artifact)
    exported = program.export(tmp_path / "a", to="toyfile", wheels=3, colour="green")
    assert (exported.path, list(exported.files)) == (tmp_path / "a", ["toy.bin"])
    with pytest.raises(UsageError, match="no option speed"):
        program.export(tmp_path / "b", to="toyfile", speed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
