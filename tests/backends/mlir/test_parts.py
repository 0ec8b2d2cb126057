"""What of the target needs neither torch-mlir nor IREE: its decompositions, its weights, what it says of versions."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from sleepc.backends import processor
from sleepc.backends.mlir import installed
from sleepc.backends.mlir.decompositions import remainder, solve_triangular, stable_sort
from sleepc.backends.mlir.devices import features_for
from sleepc.backends.mlir.empties import without_empties
from sleepc.backends.mlir.load import FORM, MlirProgram
from sleepc.backends.mlir.manifest import ModuleManifest
from sleepc.backends.mlir.target import TARGET, IreeOptions
from sleepc.backends.mlir.weights import ALIGNMENT, check_weights, write_weights
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.exporting import options_of
from sleepc.ir.tensorfile import TensorFile
from tests.families import family

FITTING = {"torch-mlir": "20261001", "iree-base-compiler": "3.13.0", "iree-base-runtime": "3.13.0"}


@pytest.mark.parametrize("tokens", [1, 5, 16, 64])
@pytest.mark.parametrize("keys", ["random", "repeated", "near"])
def test_solving_is_exact_for_repeated_keys(tokens: int, keys: str) -> None:
    make = torch.Generator().manual_seed(tokens)
    k = normalize(torch.randn(3, tokens, 8, generator=make, dtype=torch.float64), dim=-1)
    if keys != "random":
        k = normalize(k[:, :1] + (0.05 * k if keys == "near" else 0), dim=-1).expand_as(k)
    matrix = (k @ k.mT).tril(-1) + torch.eye(tokens)
    right = torch.randn(3, tokens, 4, generator=make, dtype=torch.float64)
    wanted = torch.linalg.solve_triangular(matrix, right, upper=False, unitriangular=True)
    found = solve_triangular(matrix.float(), right.float(), upper=False, unitriangular=True)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-6


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("dim", [1, -1])
def test_sorting_leaves_ties_as_they_stand(descending: bool, dim: int) -> None:
    values = torch.randint(0, 4, (2, 9, 5), generator=torch.Generator().manual_seed(1)).float()
    wanted = torch.sort(values, stable=True, dim=dim, descending=descending)
    found = stable_sort(values, stable=True, dim=dim, descending=descending)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("by", [4, -3, torch.tensor(5)])
def test_a_remainder_has_the_sign_of_what_is_divided_by(by: int | torch.Tensor) -> None:
    x = torch.arange(-9, 10)
    assert torch.equal(remainder(x, by), x.remainder(by))


def test_no_operator_is_left_with_tensors_without_elements() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
            nothing = x[:, :0]
            joined = torch.cat([nothing.view(2, 0) * 2, x], 1)
            maps = [torch.addmm(y[0], nothing, y[:0], beta=beta) for beta in (1, 2)]
            return joined, nothing @ y[:0], x @ y, nothing.exp(), *maps, nothing.sum(), nothing.sum(1, keepdim=True)

    x, y = torch.rand(2, 3), torch.rand(3, 4)
    program = torch.export.export(Module(), (x, y)).run_decompositions()
    without_empties(program)
    calls = [node for node in program.graph.nodes if node.op == "call_function" and "full" not in str(node.target)]
    assert not [node for node in calls if 0 in node.meta["val"].shape]
    assert not [node for node in calls for each in node.all_input_nodes if 0 in each.meta["val"].shape]
    for found, wanted in zip(program.module()(x, y), Module()(x, y), strict=True):
        assert torch.equal(found, wanted)


def test_weights_are_the_parameters_and_can_be_mapped(tmp_path: Path) -> None:
    program, _ = family("llama", torch.float32).convert()
    path = tmp_path / "weights.safetensors"
    write_weights(program, path)
    file = TensorFile(path)
    assert check_weights(program, path) == len(file.tensors) > 20
    whole = [entry for entry in file.tensors.values() if (entry.end - entry.start) % ALIGNMENT == 0]
    assert {entry.start % ALIGNMENT for entry in whole} == {0}
    assert len(whole) > len(file.tensors) / 2
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(SleepcError, match="does not have the values"):
        check_weights(program, path)


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({}, r"are not installed: pip install 'sleepc\[mlir\]'"),
        ({"torch-mlir": "20261001"}, "iree-base-compiler and iree-base-runtime are not installed"),
        ({**FITTING, "torch-mlir": "20260801"}, "torch-mlir 20260801 does not fit, and 20261001 does"),
        ({**FITTING, "iree-base-runtime": "3.12.1"}, r"iree-base-runtime 3.12.1 does not fit, and 3.13 does"),
    ],
)
def test_versions_that_do_not_fit_are_refused(
    versions: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "version_of", versions.get)
    with pytest.raises(UsageError, match=said):
        TARGET.check(IreeOptions())
    monkeypatch.setattr(installed, "version_of", FITTING.get)
    TARGET.check(IreeOptions())
    assert TARGET.missing() is TARGET.missing_runtime() is None
    assert "torch-mlir 20261001" in TARGET.about()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"iree": "tpu"}, "unknown device 'tpu'"),
        ({"emit": "tosa"}, "unknown dialect 'tosa'"),
        ({"chunk": 1}, "a chunk of 1 tokens"),
        ({"iree": "cuda", "arch": "sm_90"}, "does not compile for sm_90.*sm_89"),
        ({"iree": "rocm", "arch": "gfx1"}, "unknown architecture 'gfx1' of rocm.*gfx942, gfx1100"),
        ({"iree": "metal", "arch": "m1"}, "unknown architecture 'm1' of metal.*Leave it out"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"(?s){said}"):
        TARGET.check(IreeOptions(**options))


def test_options_of_another_type_are_refused() -> None:
    with pytest.raises(UsageError, match="chunk '4' is not a whole number"):
        options_of(TARGET, {"chunk": "4"})
    with pytest.raises(UsageError, match=r"chunk 4\.0"):
        options_of(TARGET, {"chunk": 4.0})
    assert options_of(TARGET, {"chunk": 4}).chunk == 4


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, name: str = "x86_64") -> None:
    """This process finds itself on another one."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n\nprocessor : 1\n" if flags else "")
    monkeypatch.setattr(processor, "CPUINFO", cpuinfo)
    monkeypatch.setattr(platform, "machine", lambda: name)


def export_of(arch: str) -> MlirProgram:
    """What an export for that architecture says that is made on this machine."""
    said = ModuleManifest.model_construct(
        module="program.vmfb", machine=processor.architecture(), features=sorted(features_for(arch))
    )
    found = MlirProgram(Path("export"), said, [], FORM)
    found.native_code = True
    return found


def test_an_export_runs_on_processors_that_it_was_compiled_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(installed, "version_of", FITTING.get)
    machine(monkeypatch, tmp_path, "sse2 avx2 fma bmi2 avx512f")
    made = {arch: export_of(arch) for arch in ("host", "x86-64-v3", "generic")}
    for each in made.values():
        each.check()
    machine(monkeypatch, tmp_path, "sse2 avx2 fma bmi2")
    made["x86-64-v3"].check()
    with pytest.raises(UsageError, match=r"(?s)processor with avx512f, which.*export/program.vmfb.*arch generic"):
        made["host"].check()
    machine(monkeypatch, tmp_path, "sse2")
    made["generic"].check()
    with pytest.raises(UsageError, match="needs a processor with avx2, bmi2, fma, which"):
        made["x86-64-v3"].check()
    machine(monkeypatch, tmp_path, "asimd", "aarch64")
    with pytest.raises(UsageError, match="for processors of x86_64, and this one is aarch64"):
        made["generic"].check()
    machine(monkeypatch, tmp_path, "")
    with pytest.warns(SleepcWarning, match="does not say whether its processor has .*avx2, bmi2, fma"):
        made["x86-64-v3"].check()


def test_what_the_processor_here_cannot_run_is_not_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An export is run where it is made: that is its check."""
    monkeypatch.setattr(installed, "version_of", FITTING.get)
    machine(monkeypatch, tmp_path, "sse2")
    TARGET.check(IreeOptions(arch="generic"))
    TARGET.check(IreeOptions(arch="host"))
    with pytest.raises(UsageError, match=r"(?s)avx2, bmi2, fma.*arch=x86-64-v3.*arch generic"):
        TARGET.check(IreeOptions(arch="x86-64-v3"))
    machine(monkeypatch, tmp_path, "")
    with pytest.raises(UsageError, match="does not say what its processor can do"):
        TARGET.check(IreeOptions(arch="host"))


@pytest.mark.parametrize(
    ("functions", "passes", "said"),
    [
        ((), 3, "sleep in 2 passes, and can in no other number: not in 3"),
        (("again",), 0, "can in 1 or more: not in 0"),
        (("again", "behind"), 1, "can in 2 or more: not in 1"),
    ],
)
def test_passes_that_there_is_no_function_for_are_refused(
    functions: tuple[str, ...], passes: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "version_of", FITTING.get)
    found = export_of("generic")
    found.manifest = found.manifest.model_copy(update={"functions": dict.fromkeys(functions), "passes": 2})
    with pytest.raises(UsageError, match=said):
        found.steps(passes=passes)


def test_native_code_is_not_loaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "version_of", FITTING.get)
    found = export_of("generic")
    found.check()
    found.native_code = False
    with pytest.raises(UsageError, match=r"(?s)it is native code.*program.vmfb.*native_code=True"):
        found.steps()
