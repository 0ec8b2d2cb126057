"""A tiny model through torch-mlir and IREE: written, checked, opened, run; and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch._subclasses.fake_tensor import FakeTensorMode

import sleepc
from sleepc.api import Program
from sleepc.backends.check.sleeps import with_passes
from sleepc.backends.mlir import importing
from sleepc.backends.mlir import lower as lower_files
from sleepc.backends.mlir.compiling import compile_module, join
from sleepc.backends.mlir.decompositions import DECOMPOSITIONS
from sleepc.backends.mlir.devices import DEVICES
from sleepc.backends.mlir.entries import entries_of
from sleepc.backends.mlir.importing import function_of
from sleepc.backends.mlir.load import MlirProgram
from sleepc.backends.mlir.manifest import ModuleManifest
from sleepc.backends.mlir.steps import IreeSteps
from sleepc.backends.mlir.target import TARGET
from sleepc.backends.mlir.traced import EntryPoint, in_block
from sleepc.cli.main import main
from sleepc.errors import SleepcError
from sleepc.exporting import lower
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Steps
from tests.cli.models import run_here, save_model
from tests.conformance.backends import load

pytestmark = pytest.mark.skipif(TARGET.missing() is not None, reason=str(TARGET.missing()))
aten = torch.ops.aten
ROOT = Path(__file__).resolve().parents[3]
TOKENS = [i * 7 % 61 for i in range(21)]
EXTRA = {"name": "more", "dtype": "f32", "sizes": (1,)}
FILES = {"mlir.json", "program.vmfb", "weights.safetensors", "tokenizer.json"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """An artifact whose window is longer than a chunk."""
    made = sleepc.convert(save_model(tmp_path_factory.mktemp("model")), {"window": 8, "sinks": 2, "passes": 2})
    return sleepc.load(made.save(tmp_path_factory.mktemp("artifact") / "sleeping"), native_code=True)


@pytest.fixture(scope="module")
def program(artifact: Program) -> Program:
    """The same with an export."""
    artifact.export(to="mlir", chunk=4)
    return artifact


def opened(program: Program) -> MlirProgram:
    """Its export."""
    assert program.path is not None
    export = TARGET.open(program.path / "mlir")
    export.native_code = True
    return export


def test_an_export_computes_what_the_artifact_does(program: Program, tmp_path: Path) -> None:
    assert program.path is not None
    folder = program.path / "mlir"
    manifest = json.loads((folder / "mlir.json").read_text())
    assert {file.name for file in folder.iterdir()} >= FILES
    assert manifest["report"]["ok"]
    assert manifest["report"]["weights"] > 20
    assert len(manifest["report"]["checks"]) > 10
    assert "a prompt's last token" in {row["check"] for row in manifest["report"]["checks"]}
    eager, export = program.session(2), program.session(2, backend="mlir")
    rows = [TOKENS[:9], TOKENS]
    np.testing.assert_allclose(export.feed(rows), eager.feed(rows), rtol=0, atol=1e-5)
    export.save_state(tmp_path / "state")
    eager.load_state(tmp_path / "state")
    rest = [[5, 6], [7]]
    np.testing.assert_allclose(export.feed(rest, logits="all")[0], eager.feed(rest, logits="all")[0], rtol=0, atol=1e-5)
    assert export.stats.sleeps == eager.stats.sleeps > 1


def test_sleeps_take_other_numbers_of_passes(program: Program) -> None:
    """As many as are asked for: 2 are the program's own."""
    assert program.path is not None
    tokens = np.array([TOKENS[:8]], np.int64)
    for passes in (1, 2, 5):
        steps: list[Steps] = [opened(program).steps(passes=passes), load(with_passes(program.graphs, passes))]
        found = []
        for each in steps:
            _, state = each.wake(each.new_state(1), tokens, np.array([8]), "none")
            found.append(each.to_named_arrays(each.sleep(state, np.ones(1, np.bool_))))
        for name, wanted in found[1].items():
            np.testing.assert_allclose(found[0][name], wanted, rtol=0, atol=1e-5, err_msg=f"{passes} passes, {name}")


def test_commands_run_and_verify_it(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.path is not None
    code, said, complaint = run_here(capsys, "verify", program.path / "mlir", "--native-code")
    assert (code, "saved and loaded" in said) == (0, True), complaint
    run = ("run", program.path, "w1 w2", "--backend", "mlir", "--max-tokens", "3")
    code, said, complaint = run_here(capsys, *run, "--native-code")
    assert (code, bool(said.strip())) == (0, True), complaint
    code, _, complaint = run_here(capsys, "run", program.path, "w1", "--backend", "mlir", "--device", "cuda")
    assert (code, "run on the CPU" in complaint) == (2, True), complaint
    for command in (run, ("verify", program.path / "mlir")):
        code, _, complaint = run_here(capsys, *command)
        assert (code, "native code" in complaint, "--native-code" in complaint) == (2, True, True), complaint


def test_the_function_of_a_prompts_last_token_is_checked(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program.path is not None
    run = IreeSteps._run

    def wrong(self: IreeSteps, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        first = {"lengths": self._there(np.ones(1, np.int64))} if name == "last" else {}
        return run(self, name, {**values, **first})

    monkeypatch.setattr(IreeSteps, "_run", wrong)
    with pytest.raises(SleepcError, match="a prompt's last token"):
        program.export(tmp_path / "export", to="mlir", chunk=4)
    code, said, _ = run_here(capsys, "verify", program.path / "mlir", "--native-code", "--json")
    assert code == 1
    assert [row["check"] for row in json.loads(said)["checks"] if not row["ok"]] == ["a prompt's last token"]


def test_a_changed_file_is_refused(program: Program, tmp_path: Path) -> None:
    assert program.path is not None
    folder = Path(shutil.copytree(program.path / "mlir", tmp_path / "export"))
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)
    export = TARGET.open(folder)
    export.native_code = True
    with pytest.raises(SleepcError, match=r"weights.safetensors was changed after the export"):
        export.steps()


def _cut(manifest: dict[str, Any], folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:1000])


def _another_function(manifest: dict[str, Any], folder: Path) -> None:
    manifest["functions"] |= dict.fromkeys(("again", "behind"), manifest["functions"]["sleep"])


def _one_output_more(manifest: dict[str, Any], folder: Path) -> None:
    outputs = manifest["functions"]["token"]["outputs"]
    outputs.append({**outputs[0], "name": "more"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_cut, "cannot open program.vmfb with weights.safetensors"),
        (_another_function, "cannot open .*: it has no function (again|behind)"),
        (_one_output_more, "cannot run token"),
    ],
)
def test_files_that_do_not_go_together_are_told(
    program: Program, tmp_path: Path, change: Callable[[dict[str, Any], Path], None], said: str
) -> None:
    """Whoever writes a manifest may seal it, so what its hash says is no proof of what IREE finds."""
    assert program.path is not None
    folder = Path(shutil.copytree(program.path / "mlir", tmp_path / "export"))
    manifest = opened(program).manifest.model_dump()
    change(manifest, folder)
    with pytest.raises(SleepcError, match=said) as caught:
        Session(IreeSteps(folder, ModuleManifest.model_validate(manifest), threads=1)).feed(TOKENS[:1])
    assert "Export again" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["functions"]["token"]["inputs"].append(EXTRA), "token takes more than a session has"),
        (lambda m: m["functions"]["sleep"]["inputs"].append(EXTRA), "sleep takes more than a session has"),
        (lambda m: m["functions"]["token"]["inputs"].pop(0), "token does not take|token takes"),
        (lambda m: m.update(settle=0.5), "no pass says how much it changes"),
        (lambda m: m.update(precision="fp33"), "another precision"),
        (lambda m: m["states"][-1].update(dims=("B", *[2**31 - 1] * 3)), "that no machine has room for"),
    ],
)
def test_a_manifest_that_says_what_cannot_be_is_refused(
    program: Program, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    manifest = opened(program).manifest.model_dump()
    change(manifest)
    with pytest.raises(ValidationError, match=said):
        ModuleManifest.model_validate(manifest)


def test_names_of_parameters_are_in_any_script(artifact: Program, tmp_path: Path) -> None:
    names = {"input_layernorm": "größe", "post_attention_layernorm": "語 1"}

    def renamed(key: str) -> str:
        for old, new in names.items():
            key = key.replace(old, new)
        return key

    assert artifact.path is not None
    program = sleepc.load(artifact.path)
    graphs = program.graphs
    blocks = [replace(b, params={port: renamed(key) for port, key in b.params.items()}) for b in graphs.layout]
    params = {renamed(key): param for key, param in graphs.params.items()}
    program.graphs = replace(graphs, layout=blocks, params=params)
    report = program.export(tmp_path / "out", to="mlir", chunk=4, tokens=TOKENS * 4).report
    assert report["ok"]


def random(matrix: torch.Tensor, right: torch.Tensor, **options: bool) -> torch.Tensor:
    """What torch-mlir lowers and IREE refuses: random numbers, which have a seed that nothing declares."""
    return right * torch.rand_like(right)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({}, r"aten\.linalg_solve_triangular is not lowered to linalg \(sleep, block 0\)"),
        (
            {**DECOMPOSITIONS, aten.linalg_solve_triangular.default: random},
            r"does not compile aten\.rand_like for llvm-cpu: .*global_seed \(sleep, block 0, --iree llvm-cpu\)",
        ),
    ],
)
def test_an_operator_that_a_compiler_refuses_is_named_with_its_block(
    artifact: Program,
    written: dict[Any, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By torch-mlir and by IREE. And with --debug what the compiler was given is all that is kept."""
    monkeypatch.setattr(lower_files, "entries_of", lambda *given: [e for e in entries_of(*given) if e.name == "sleep"])
    monkeypatch.setattr(importing, "DECOMPOSITIONS", written)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        main(["export", str(artifact.path), "--to", "mlir", "--chunk", "4", "-o", str(tmp_path / "export"), "--debug"])
    told, (kept,) = capsys.readouterr().err, tmp_path.iterdir()
    assert re.search(said, told)
    assert f"kept in {kept}" in told
    assert "sleep, block 0: aten." in kept.read_text()


@pytest.mark.parametrize("function", ["inv", "cholesky"])
def test_an_operator_that_checks_its_matrix_is_named(function: str) -> None:
    """The check is an operator with effects, which torch.export gives inputs and outputs of their own."""

    def run(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with in_block(3):
            return {"y": getattr(torch.linalg, function)(values["x"]) + 1}

    with FakeTensorMode():
        x = torch.empty(4, 4)
    with pytest.raises(importing.NotLowered) as caught:
        function_of(EntryPoint("sleep", {}, {"x": x}, run), "linalg")
    assert (caught.value.operator, caught.value.place) == (f"aten.linalg_{function}_ex", "sleep, block 3")


def test_a_compiler_that_crashes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = tmp_path / "torch-mlir-opt"
    crashes.write_text("#!/bin/sh\nkill -FPE $$\n")
    crashes.chmod(0o700)
    monkeypatch.setattr(importing, "_opt", lambda: str(crashes))
    with pytest.raises(importing.NotLowered, match="ended with -8") as caught:
        importing.lowered_text(importing.DIALECTS["linalg"], "module {}")
    assert caught.value.text == "module {}"


@pytest.fixture(scope="module")
def text(artifact: Program) -> str:
    """The module of a tiny program, of a token and of a sleep."""
    _, lowered = lower(artifact.graphs, TARGET.lowering(artifact.graphs, TARGET.options()))
    entries = {entry.name: entry for entry in entries_of(lowered, 4)}
    return join([function_of(entries[name], "linalg") for name in ("token", "sleep")])


@pytest.mark.slow
@pytest.mark.parametrize(("device", "arch"), [(name, arch) for name, d in DEVICES.items() for arch in d.known or [""]])
def test_what_is_offered_compiles(text: str, tmp_path: Path, device: str, arch: str) -> None:
    compile_module(text, tmp_path / "program.vmfb", device, arch)
    assert (tmp_path / "program.vmfb").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("arch", DEVICES["cuda"].refused)
def test_what_is_refused_does_not_compile(text: str, tmp_path: Path, arch: str) -> None:
    """A compiler that does it needs no refusal any more."""
    with pytest.raises(importing.NotLowered):
        compile_module(text, tmp_path / "program.vmfb", "cuda", arch)


@pytest.mark.slow
@pytest.mark.parametrize(("device", "dialect"), [("cuda", "torch"), ("llvm-cpu", "stablehlo")])
def test_an_export_has_code_for_another_device_and_texts(
    artifact: Program, tmp_path: Path, device: str, dialect: str
) -> None:
    exported = artifact.export(tmp_path / "export", to="mlir", iree=device, emit=dialect, chunk=4)
    said = (exported.path / f"sleep.{dialect}.mlir").read_text()
    assert said.count("func.func @sleep") == 1
    assert "sleep, block 1: aten." in said
    assert f" {dialect}." in said
    others = [name for name in exported.files if name.startswith(f"program.{device}")]
    assert bool(others) == (device != "llvm-cpu")


@pytest.mark.slow
def test_the_example_fuses_what_was_emitted(artifact: Program, tmp_path: Path) -> None:
    folder = artifact.export(tmp_path / "export", to="mlir", emit="linalg", chunk=4).path
    command: list[str | Path] = [
        sys.executable,
        ROOT / "examples" / "mlir_opt.py",
        folder / "token.linalg.mlir",
        tmp_path / "fused",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line.split() for line in done.stdout.splitlines() if line.startswith("linalg.generic ")]
    assert int(line[1]) > int(line[3]) > 0
    assert "func.func @token" in (tmp_path / "fused").read_text()
