"""Kernels written ahead of time for GPUs that are not here: what the manifests say of the files, and what is refused.

Triton compiles nothing in a process whose kernels are interpreted: the export is made by a process of its own. What it
says that a host has to do is done here, in the interpreter.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[triton]'")

import sleepc
from examples.nanogpt import GPT
from sleepc.backends.triton import ahead, choices
from sleepc.backends.triton.ahead import DeviceFiles, write_device
from sleepc.backends.triton.devices import DEVICES
from sleepc.backends.triton.kernels import channels, chunked, replayed, single
from sleepc.backends.triton.manifest import DeviceManifest, KernelFacts, OperationFacts
from sleepc.backends.triton.plan import operations
from sleepc.errors import UsageError
from sleepc.ops import naive
from tests.cli.models import run_here
from tests.ops.cases import Memory, memory, worst

ROOT = Path(__file__).resolve().parents[3]
TARGETS = ("sm_90", "gfx942")
RECIPE = {"window": 20, "sinks": 2, "passes": 3, "write": "online"}


def convert(**recipe: Any) -> sleepc.Program:
    torch.manual_seed(0)
    return sleepc.convert(GPT(vocab=31, width=32, heads=2, blocks=2, context=64), {**RECIPE, **recipe})


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert().save(tmp_path_factory.mktemp("ahead") / "artifact")


@pytest.fixture(scope="module")
def exported(artifact: Path) -> Path:
    """An export for both kinds of GPU, made as a person makes it."""
    command = [sys.executable, "-m", "sleepc", "export", str(artifact), "--to", "triton", "--target", "sm_90, gfx942"]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(artifact.parent / "cache")}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["report"]
    assert report["ok"]
    assert {row["check"].split()[0] for row in report["checks"]} == set(TARGETS)
    return artifact / "triton"


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """The export, to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def manifest_of(folder: Path, target: str) -> DeviceManifest:
    return DeviceManifest.model_validate_json((folder / f"{target}.json").read_text(encoding="utf-8"))


# -- what is in the files ------------------------------------------------------------------------


class Elf:
    """Sections and symbols of a 64-bit ELF file."""

    def __init__(self, data: bytes) -> None:
        assert data[:5] == b"\x7fELF\x02"
        self.data = data
        (start,), (size, count, names) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<HHH", data, 58)
        found = [struct.unpack_from("<IIQQQQIIQQ", data, start + size * at) for at in range(count)]
        self.sections = {self._text(found[names][4] + each[0]): each for each in found}
        self.symbols: dict[str, tuple[int, int]] = {}  # kind, place in the file
        self.names: list[str] = []
        for each in found:
            for at in range(0, each[5] if each[1] in (2, 11) else 0, 24):
                name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, each[4] + at)
                self.names.append(self._text(found[each[6]][4] + name))
                if 0 < section < count:
                    place = found[section][4] + value - found[section][3]
                    self.symbols[self.names[-1]] = info & 15, place

    def notes(self, section: str, kind: int) -> Iterator[tuple[str, int]]:
        """The numbers of one kind in such a section of NVIDIA's, by symbol."""
        at, size = self.sections[section][4:6]
        end = at + size
        while at < end:
            form, found, length = struct.unpack_from("<BBH", self.data, at)
            if (form, found) == (4, kind):
                symbol, number = struct.unpack_from("<II", self.data, at + 4)
                yield self.names[symbol], number
            at += 4 + (length if form == 4 else 0)

    def _text(self, at: int) -> str:
        return self.data[at : self.data.index(b"\0", at)].decode()


def registers_in(elf: Elf, symbol: str, target: str) -> Callable[[int], bool]:
    """What the code says of a number of registers: NVIDIA's the number, AMD's how many eights of them."""
    if target.startswith("sm_"):
        exact = dict(elf.notes(".nv.info", 0x2F))[symbol]  # EIATTR_REGCOUNT
        return lambda count: count == exact
    (settings,) = struct.unpack_from("<I", elf.data, elf.symbols[f"{symbol}.kd"][1] + 48)
    eights = (settings & 63) + 1
    return lambda count: -(-count // 8) == eights


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifest_says_what_the_files_are(exported: Path, target: str) -> None:
    made = manifest_of(exported, target)
    assert {each.kernel for each in made.kernels.values()} == {"step", "solve", "prepare", "carry", "read", "replay"}
    for each in made.kernels.values():
        elf = Elf((exported / each.code).read_bytes())
        assert elf.symbols[each.symbol][0] == 2  # a function
        assert registers_in(elf, each.symbol, target)(each.registers)
        assert not registers_in(elf, each.symbol, target)(each.registers + 8)
        assembly = (exported / each.assembly).read_text()
        assert takes(assembly, target) == [8 if one.type.startswith("*") else 4 for one in each.arguments] + [8, 8]
        assert str(ROOT) not in assembly
        assert 0 < each.shared <= DEVICES[target].shared


TAKEN = """
import sys
import sleepc
from sleepc.backends.triton.taken_on import taken_on
from sleepc.errors import SleepcError
graphs = sleepc.load(sys.argv[1]).graphs
print("\\n".join(taken_on(graphs, "sm_90", 232448)))
try:
    taken_on(graphs, "sm_90", 1000)
except SleepcError as error:
    print(error.what)
"""


@pytest.mark.slow
def test_what_kernels_take_is_told_as_it_is_written(artifact: Path, exported: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(artifact.parent / "cache")}
    command = [sys.executable, "-c", TAKEN, str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    *lines, refused = done.stdout.splitlines()
    wanted = [
        f"{it.kernel}: {it.registers} registers, {it.shared} bytes of shared memory"
        for it in manifest_of(exported, "sm_90").kernels.values()
    ]
    assert sorted(re.sub(r" for sm_90, heads of .*?:", ":", line) for line in lines) == sorted(wanted)
    assert "wants " in refused
    assert " bytes of shared memory of 1000" in refused


def takes(assembly: str, target: str) -> list[int]:
    """Bytes of every argument, as the assembly says."""
    if target.startswith("sm_"):
        return [int(bits) // 8 for bits in re.findall(r"\.param \.[ubf](\d+)", assembly.split(")\n", 1)[0])]
    return [int(size) for size in re.findall(r"^\s+\.size:\s+(\d+)$", assembly, re.MULTILINE)]


def test_files_are_named_by_what_is_in_them(exported: Path) -> None:
    found = {path.name for path in exported.iterdir()}
    named = set()
    for target in TARGETS:
        made = manifest_of(exported, target)
        named |= {f"{target}.json", *made.files}
        for each in made.kernels.values():
            for name in (each.code, each.assembly):
                assert name.split("-")[1].split(".")[0] == made.files[name].sha256[:16]
    assert found == named | {"kernels.json", "README.md"}


def test_launchers_compile_and_are_linked_into_one_host(exported: Path, tmp_path: Path) -> None:
    """Without the headers of a driver too."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler: apt-get install gcc")
    wanted, made = set(), []
    for target in TARGETS:
        options = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-c", str(exported / f"{target}.c")]
        made.append(str(tmp_path / f"{target}.o"))
        subprocess.run([compiler, *options, "-o", made[-1]], check=True)
        wanted |= {f"load_kernels_{target}"}
        wanted |= {f"start_{target}_{name}" for name in manifest_of(exported, target).kernels}
    linked = tmp_path / "linked.o"
    subprocess.run([compiler, "-r", "-nostdlib", *made, "-o", str(linked)], check=True)
    assert wanted <= set(Elf(linked.read_bytes()).symbols)


# -- what a host does ----------------------------------------------------------------------------

FUNCTIONS = {
    kernel.fn.__name__: kernel
    for kernel in (
        *(channels.sums, channels.scores, chunked.solve, chunked.prepare, chunked.carry, chunked.read),
        *(single.step, single.recall, replayed.replay),
    )
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def follow(made: DeviceManifest, it: OperationFacts, given: dict[str, Tensor]) -> list[Tensor]:
    """An operation as its launches say, started in the interpreter with the constants of the compiled kernels."""
    first = given[next(iter(it.inputs))]
    sizes: dict[Any, int] = {"B": first.shape[0], "T": first.shape[2], "chunks": -(-first.shape[2] // it.chunk)}
    for name, each in it.inputs.items():
        assert given[name].shape == tuple(sizes.get(d, d) for d in each.dims)
    tensors = dict(given)
    for name, each in it.buffers.items():
        shape = [int(sizes.get(d, d)) for d in each.dims]
        tensors[name] = torch.full(shape, float("nan"), dtype=DTYPES[each.dtype])
    for launch in it.launches:
        kernel = made.kernels[launch.kernel]
        programs = sizes["B"] * launch.per_row * (sizes["chunks"] if launch.per_chunk else 1)
        arguments = [tensors.get(str(x), sizes.get(x, x)) for x in launch.arguments.values()]
        FUNCTIONS[kernel.kernel][(programs,)](*arguments, **constants_of(kernel), num_warps=kernel.warps)
    return [tensors[name] for name in it.results]


def constants_of(it: KernelFacts) -> dict[str, Any]:
    return {name: choices.TYPES[str(x)] if name == "DOT" else x for name, x in it.constants.items()}


def single_precision(tokens: int, rows: int = 2, channel: bool = False) -> Memory:
    x = memory(tokens, rows=rows, heads=2, memories=2, dk=16, dv=16, channel=channel)
    return x.to(torch.float32, torch.float32)


@pytest.mark.parametrize(("said", "tokens"), [("1", 1), ("T", 37)])
def test_a_host_that_does_as_told_computes_the_delta_rule(exported: Path, said: str, tokens: int) -> None:
    check_delta_rule(manifest_of(exported, "sm_90"), said, single_precision(tokens))


def check_delta_rule(made: DeviceManifest, said: str, x: Memory) -> None:
    """An operation of a manifest against the loop over tokens."""
    (it,) = (each for each in made.operations if (each.operator, each.tokens) == ("delta_rule", said))
    given = dict(zip(("q", "k", "v", "g", "beta"), x.stream, strict=True)) | {"state": x.state}
    options: dict[str, Any] = dict(it.options)
    want = naive.delta_rule(*x.stream, [x.state], **options)
    for got, wanted in zip(follow(made, it, given), want, strict=True):
        assert worst(got, wanted) < 2e-6


def check_replay(made: DeviceManifest, x: Memory) -> None:
    (it,) = (each for each in made.operations if each.operator == "replay")
    assert (it.tokens, it.blocks, it.options["passes"]) == ("20", [0, 1], 3)
    options: dict[str, Any] = dict(it.options)
    given = dict(zip(("k", "v", "g", "beta"), x.record, strict=True)) | {"state": x.state}
    (want,) = naive.replay(*x.record, [x.state], **options)
    assert worst(follow(made, it, given)[0], want) < 2e-6


def test_a_host_that_does_as_told_sleeps(exported: Path) -> None:
    check_replay(manifest_of(exported, "gfx942"), single_precision(20))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the compiler says of a kernel, instead of compiling it."""
    said = {"name": "kernel", "shared": 7, "num_ctas": 1, "hash": "0" * 64}
    made = SimpleNamespace(metadata=SimpleNamespace(**said), asm={"hsaco": b"code", "amdgcn": "text"})
    monkeypatch.setattr(ahead, "compile_for", lambda *_: made)
    monkeypatch.setattr(ahead, "registers_of", lambda *_: (8, 0))
    facts: dict[str, Any] = vars(made.metadata)
    return facts


def written(folder: Path, **recipe: Any) -> tuple[DeviceManifest, list[str]]:
    """A manifest of code that is not compiled, and its kernels by operation, in their order."""
    made = write_device(folder, DEVICES["gfx942"], operations(convert(**recipe).graphs), "")
    names = [" ".join(launch.kernel.split("_")[0] for launch in each.launches) for each in made.operations]
    return made, names


def test_decay_per_channel(compiled: dict[str, Any], tmp_path: Path) -> None:
    made, names = written(tmp_path, decay="channel")
    assert names[:2] == ["step", "sums scores solve prepare carry scores read"]
    check_delta_rule(made, "1", single_precision(1, channel=True))
    check_delta_rule(made, "T", single_precision(35, rows=1, channel=True))


def test_memories_that_sleeps_alone_write(compiled: dict[str, Any], tmp_path: Path) -> None:
    made, names = written(tmp_path, write="sleep")
    assert names == ["recall", "recall", "solve prepare solve prepare replay"]
    check_replay(made, single_precision(20))
    for it, tokens in zip(made.operations, (1, 70), strict=False):
        x = single_precision(tokens)
        options: dict[str, Any] = dict(it.options)
        want = naive.delta_rule_read(x.q, [x.state], **options)
        assert worst(follow(made, it, {"q": x.q, "state": x.state})[0], want) < 2e-6


def test_a_rule_that_does_not_correct(compiled: dict[str, Any], tmp_path: Path) -> None:
    made, names = written(tmp_path, rule="linear", passes=1)
    assert names == ["step", "carry read"]
    check_delta_rule(made, "T", single_precision(37))


def test_a_narrow_program_is_given_what_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a program in bfloat16: keys of many tokens are in it, those of one token as its graphs have them."""
    monkeypatch.setattr("sleepc.backends.triton.launch.INTERPRETED", False)  # nothing is started
    one, *others = operations(convert(dtype="bfloat16").graphs)
    assert [one.inputs[name].dtype for name in ("q", "k", "v", "g", "state")] == ["fp32"] * 5
    assert [it.operator for it in others] == ["delta_rule", "replay"]
    for it in others:
        assert [it.inputs[name].dtype for name in ("k", "v", "g", "beta", "state")] == ["bf16"] * 2 + ["fp32"] * 3
        assert {use.started.problem.dot for use in it.uses} == {"bf16"}


# -- what is refused -----------------------------------------------------------------------------


def test_the_export_is_whole(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, told = run_here(capsys, "verify", exported)
    assert (code, "the export is whole" in said, "sm_90 carry" in said) == (0, True, True), told
    code, _, told = run_here(capsys, "run", exported, "w1")
    assert (code, "is for host programs on a GPU, and sleepc does not run it" in told) == (2, True)
    code, _, told = run_here(capsys, "verify", exported, "--text", exported / "sm_90.c")
    assert (code, "no tokens are read here" in told) == (2, True)
    code, _, told = run_here(capsys, "convert", exported, "-o", exported.parent / "out")
    assert (code, "is a sleepc export, not a model" in told) == (2, True)


def _one(folder: Path, suffix: str) -> Path:
    return next(iter(sorted(folder.glob(f"*.{suffix}"))))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _leads_out(path: Path) -> None:
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: _flip(_one(folder, "cubin")), "was changed after the export"),
        (lambda folder: _flip(folder / "gfx942.c"), "was changed after the export"),
        (lambda folder: _one(folder, "hsaco").write_bytes(b"short"), "has 5 bytes instead of"),
        (lambda folder: _one(folder, "ptx").unlink(), "is missing"),
        (lambda folder: _leads_out(_one(folder, "cubin")), "leads out of the export"),
        (lambda folder: _edit(folder / "sm_90.json", "threads", "warps"), "bytes instead of"),
        (
            lambda folder: _edit(folder / "kernels.json", '"ok": true', '"ok": false'),
            "was changed after it was written",
        ),
        (lambda folder: (folder / "kernels.json").write_text("{"), "kernels.json"),
    ],
    ids=["code", "launcher", "size", "missing", "link", "device", "report", "json"],
)
def test_damage_is_found(
    copy: Path, damage: Callable[[Path], Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy)
    code, _, told = run_here(capsys, "verify", copy)
    assert (code, words in told) == (1, True), told


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_manifest_of_other_tensors_is_not_valid(exported: Path) -> None:
    data = json.loads((exported / "sm_90.json").read_text())
    data["operations"][0]["launches"][0]["arguments"]["k"] = "nothing"
    with pytest.raises(ValueError, match="k of step_0 is nothing"):
        DeviceManifest.model_validate(data)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target", "sm_90,sm_91"), f"Targets: {', '.join(DEVICES)}."),
        ((), "no GPU is named"),
        (("--target", "sm_90"), "nothing is compiled in Triton's interpreter"),
        (("--target", "sm_90", "--ep", "cuda"), "the target triton has no option ep"),
    ],
)
def test_options_that_do_not_fit(
    artifact: Path, tmp_path: Path, options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, told = run_here(capsys, "export", artifact, "--to", "triton", "-o", tmp_path / "out", *options)
    assert (code, words in " ".join(told.split())) == (2, True), told
    assert not list(tmp_path.iterdir())


def test_what_has_no_room_is_refused_by_name(compiled: dict[str, Any], tmp_path: Path) -> None:
    compiled["shared"] = 70000
    (started,) = (use.started for use in operations(convert().graphs)[1].uses if use.started.kernel is chunked.carry)
    with pytest.raises(UsageError, match=r"carry for heads of 16 by 16 needs 70000 bytes .* gfx942 has 65536"):
        DeviceFiles(tmp_path, DEVICES["gfx942"]).name_of(started)
    compiled["launch_cooperative_grid"] = True
    with pytest.raises(sleepc.SleepcError, match="carry asks a host for launch_cooperative_grid"):
        DeviceFiles(tmp_path, DEVICES["gfx950"]).name_of(started)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"rule": "titans"}, "rule titans in float32"),
        ({"dtype": "float64"}, "16 by 16 in float64, has no kernel"),
    ],
)
def test_memories_without_kernels_are_refused(recipe: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        operations(convert(**recipe).graphs)
