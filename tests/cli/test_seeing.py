"""Pictures, differences, bisections and the doctor: that they show what is there, and find what was planted."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import sleepc as package
from sleepc import doctor
from sleepc.artifact import About, save_artifact
from sleepc.backends import table
from sleepc.backends.eager.backend import EagerBackend
from sleepc.cli.picture.draw import draw
from sleepc.cli.picture.facts import Facts, facts_of
from sleepc.diffing import diff_graphs, diff_programs
from sleepc.errors import UsageError
from sleepc.inspection import inspect_program
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.text import parse_graph
from sleepc.ir.weights import HeldTensor
from sleepc.memory.parameters import MIX, OUTPUT, key_of
from sleepc.passes.rewrite.bound_attention import BoundAttention
from sleepc.passes.stateful.add_sleep import AddSleep
from tests.cli.models import run_here as run
from tests.cli.models import save_model, sleepc
from tests.families import family

SVG = "{http://www.w3.org/2000/svg}"

SLOW = pytest.mark.slow


# ------------------------------------------------------------------------------------------------- pictures


def facts(name: str, **options: Any) -> Facts:
    subject = family(name)
    step, recipe = subject.convert(**options)
    return facts_of(name, inspect_program(subject.canonical, step, recipe), step, recipe)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("llama", {}, ["blocks 0–2: 3 alike", "2 × 8 × 8 numbers", "written when asleep", "mix", "first 2"]),
        ("gemma2", {}, ["window: the nearest 5 tokens", "window: the latest 8 tokens", "scores capped at 2"]),
        ("llama4", {}, ["the original: attention over chunks of 5 tokens", "the original: attention over all tokens"]),
        ("gpt2", {"layers": "every:2"}, ["no memory here: what leaves the window is gone", "block 1", "24 positions"]),
        ("llama", {"strategy": "insert"}, ["add", "written by every token", "blocks 0–2: 3 alike"]),
        pytest.param("qwen2", {"eviction": "hard", "sinks": 0}, ["The window is emptied; nothing"], marks=SLOW),
        (
            "llama",
            {"strategy": "replace", "layers": "1"},
            ["in the place of attention: read and written by every token"],
        ),
        ("llama", {"consolidation": "recurrent", "passes": 4, "loop": "0:2"}, ["3×", "Then block 2"]),
        ("llama", {"consolidation": "recurrent", "passes": 4, "settle": 0.1}, ["≤ 3×", "0.1"]),
        ("llama", {"consolidation": "gradient", "mlps": "1-2"}, ["Blocks 1–2 and the head", "learn"]),
        (
            "gemma2",
            {"overrides": [{"layers": "1", "window": "none"}]},
            ["no memory here: attention is as in", "all of 62"],
        ),
    ],
)
def test_a_picture_shows_what_the_program_has(name: str, options: dict[str, Any], shown: list[str]) -> None:
    found = "\n".join(texts(draw(facts(name, **options))))
    for words in shown:
        assert words in found, found


@pytest.mark.parametrize(
    ("options", "place", "awake", "asleep"),
    [
        ({}, "beside", False, True),
        ({"write": "online"}, "beside", True, False),
        ({"write": "online", "passes": 2}, "beside", True, True),
        ({"strategy": "insert"}, "after", True, False),
        ({"strategy": "insert", "write": "sleep"}, "after", False, True),
        ({"strategy": "replace"}, "instead", True, False),
    ],
)
def test_where_memories_stand_and_when_they_are_written(
    options: dict[str, Any], place: str, awake: bool, asleep: bool
) -> None:
    (part,) = facts("llama", **options).parts()
    assert (part.memory.place, part.memory.awake, part.memory.asleep) == (place, awake, asleep)
    if place != "instead":  # which has no window, and a memory for each query head
        assert (part.memory.shapes, part.kept, part.everything) == (((2, 8, 8),), 8, False)


def test_numbers_of_a_picture_are_those_of_the_program() -> None:
    found = facts("gemma2")
    step, _ = family("gemma2").convert()
    assert sum(p.state_bytes * len(p.blocks) for p in found.parts()) == step.state_bytes() - _clock_bytes(step)
    assert sorted(i for p in found.parts() for i in p.blocks) == [0, 1, 2]


def _clock_bytes(step: ProgramGraphs) -> int:
    return sum(spec.bytes_per_row() for spec in step.states)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_picture_runs_nothing_and_fetches_nothing(name: str) -> None:
    svg = draw(facts(name))
    assert not re.search(r"script|href|@import|url\(|onload|foreignObject", svg)
    assert "prefers-color-scheme: dark" in svg
    page = ElementTree.fromstring(svg)
    kinds = {node.get("class") for node in page.iter() if node.get("class")}
    style = page.findtext(f"{SVG}style") or ""
    light, dark = style.split("@media")
    for kind in kinds:
        assert f".{kind} {{" in light
        assert f".{kind} {{" in dark


@pytest.mark.parametrize("options", [{}, {"strategy": "insert", "consolidation": "recurrent", "passes": 64}])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "x" * 300])
def test_no_text_leaves_the_page(name: str, options: dict[str, Any]) -> None:
    shown = replace(facts(name if len(name) < 10 else "llama", **options), name=name)
    page = ElementTree.fromstring(draw(shown))
    for node in page.iter(f"{SVG}text"):
        width = 0.6 * float(node.get("font-size", "0")) * len(node.text or "")
        left = float(node.get("x", "0")) - {"middle": width / 2, "end": width}.get(node.get("text-anchor", ""), 0)
        assert left >= 0, node.text
        assert left + width <= float(page.get("width", "0")), node.text
        assert 0 < float(node.get("y", "0")) < float(page.get("height", "0"))


def test_names_are_text_in_a_picture() -> None:
    shown = facts("llama")
    name = '</text><script>alert("1")</script>&\x00\x1b\udcff\uffff'
    svg = draw(replace(shown, name=name))
    assert "<script" not in svg
    assert svg.encode("utf-8")
    assert texts(svg)[0].startswith("</text><script>")


def test_inspect_draws_models_and_artifacts(
    model: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "picture.svg"
    code, table, _ = run(capsys, "inspect", artifact, "--svg", file)
    assert (code, "breaks even" in table) == (0, True)
    first = file.read_text(encoding="utf-8")
    assert texts(first)[0] == "artifact"
    assert run(capsys, "inspect", model, "--svg", file, "--json")[0] == 0
    assert texts(file.read_text(encoding="utf-8"))[0] == "model", "an older picture is replaced"
    assert list(tmp_path.iterdir()) == [file]


def test_a_picture_replaces_no_other_file(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    for target in (notes, tmp_path, tmp_path / "absent" / "p.svg"):
        code, _, said = run(capsys, "inspect", artifact, "--svg", target)
        assert (code, said.startswith("error: ")) == (2, True), said
    assert notes.read_text() == "mine"


def test_a_picture_is_written_whole_or_not_at_all(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    code, _, said = run(capsys, "inspect", artifact, "--svg", tmp_path / "p.svg")
    assert (code, "disk is full" in said) == (1, True)
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------- diff

TEXT = """graph head {
  %0: f32[B,T,4] = input "h"
  %1: f32[4] = param "a"
  %2: f32[4] = param "b"
  %3: f32[4] = aten.sub.Tensor(%1, %2)  # one
  %4: f32[B,T,4] = aten.mul.Tensor(%0, %3)
  %5: f32[B,T,4] = aten.sigmoid(%4)
  return "logits"=%5
}
"""


@pytest.mark.parametrize(
    ("old", "new", "added", "removed"),
    [
        ("  # one", "  # two", 0, 0),
        ("(%1, %2)", "(%2, %1)", 1, 1),
        ("aten.mul.Tensor(%0, %3)", "aten.add.Tensor(%0, %3)", 1, 1),
        ('"logits"=%5', '"logits"=%4', 1, 1),
        ('"logits"=%5', '"logits"=%5, "h"=%0', 1, 1),
    ],
)
def test_only_lines_that_mean_something_else_differ(old: str, new: str, added: int, removed: int) -> None:
    assert old in TEXT
    found = diff_graphs("head", parse_graph(TEXT, "STEP"), parse_graph(TEXT.replace(old, new), "STEP"))
    assert (found.added, found.removed) == (added, removed), found.lines


def test_new_numbers_for_the_same_values_are_no_difference() -> None:
    a = parse_graph(TEXT, "STEP")
    b = parse_graph(TEXT, "STEP")
    port = b.add_port("param", "c", b.ports()["a"].meta["type"])
    assert port in b.fx.nodes
    found = diff_graphs("head", a, b)
    assert [line for line in found.lines if line[0] in "+-"] == ['+  %3: f32[4] = param "c"']


def test_programs_of_the_same_recipe_are_equal() -> None:
    a, b = (family("gemma2").convert()[0] for _ in range(2))
    assert diff_programs(a, b).equal


def test_every_kind_of_difference_is_told() -> None:
    a, _ = family("llama").convert()
    b, _ = family("llama").convert(strategy="insert", layers="every:2")
    found = diff_programs(a, b)
    assert not found.equal
    assert any("block.1 (block 1)" in g.name for g in found.graphs)
    assert key_of(1, OUTPUT) in found.added
    assert key_of(0, MIX) in found.removed
    assert any(text.startswith("S: f64[B,2,8,8] accumulate → none (blocks 0, 2)") for text in found.states)
    canonical = diff_programs(family("llama").canonical, a)
    assert "level CANONICAL → STEP" in canonical.facts


@pytest.mark.parametrize("key", ["head", "memory"])
def test_one_changed_number_is_a_difference(key: str) -> None:
    a, _ = family("llama").convert()
    b = a.clone()
    chosen = next(name for name in b.params if key in name)
    value = b.params[chosen].materialise().clone()
    value.view(-1)[0] += 1e-7
    b.params[chosen] = HeldTensor(value, new=b.params[chosen].new)
    assert diff_programs(a, b).changed == [chosen]


def test_diff_ends_like_diff(model: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = package.convert(model, {"window": 4, "sinks": 2}).save(tmp_path / "other")
    code, said, _ = run(capsys, "diff", artifact, artifact)
    assert (code, said.startswith("equal")) == (0, True)
    code, said, _ = run(capsys, "diff", artifact, other)
    assert code == 1
    assert re.search(r"^recipe +window 8 → 4$", said, re.M), said
    assert "+  %16: i64[B,T] = sleepc.window_slots(%14, window=4, sinks=2)" in said or "window=4" in said
    code, said, _ = run(capsys, "diff", model, artifact, "--json")
    assert code == 1
    assert json.loads(said)["recipe"] == ["only B is converted"]
    code, _, said = run(capsys, "diff", artifact, tmp_path / "absent")
    assert (code, said.startswith("error: ")) == (2, True)


# --------------------------------------------------------------------------------------------------- bisect


def bisected(capsys: pytest.CaptureFixture[str], target: Path, *options: object) -> tuple[int, dict[str, Any]]:
    code, said, _ = run(capsys, "bisect", target, "--json", *options)
    return code, json.loads(said)


@pytest.mark.filterwarnings("ignore::sleepc.errors.SleepcWarning")  # recurrent passes that nobody trained
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"strategy": "insert", "layers": "every:2", "write": "sleep", "passes": 2}, marks=SLOW),
        {"strategy": "replace", "layers": "1", "overrides": [{"layers": "2", "strategy": "parallel"}]},
        pytest.param({"consolidation": "recurrent", "passes": 2, "loop": "0:2", "dtype": "float64"}, marks=SLOW),
    ],
)
def test_a_sound_conversion_keeps_the_numbers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    target = package.convert(model, {"window": 8, "sinks": 2, **options}).save(tmp_path / "out")
    code, found = bisected(capsys, target)
    assert (code, found["ok"], found["culprit"]) == (0, True, None), found
    assert found["rows"][0]["step"] == "capture"
    replaced = [r["step"] for r in found["rows"] if "attention is replaced" in r["detail"]]
    assert replaced == (["replace-attention"] if options.get("strategy") == "replace" else [])
    assert all(r["error"] < 1e-4 for r in found["rows"] if r["step"] not in replaced)


def spoil(kind: type[Any], monkeypatch: pytest.MonkeyPatch, fault: Callable[[ProgramGraphs], None]) -> None:
    """Let a pass also plant a fault."""
    sound = kind.run

    def run_and_spoil(self: Any, program: ProgramGraphs) -> int:
        count: int = sound(self, program)
        fault(program)
        return count

    monkeypatch.setattr(kind, "run", run_and_spoil)


def wrong_scale(program: ProgramGraphs) -> None:
    for cls in program.classes.values():
        for node in cls.wake.calls():
            if node.target is torch.ops.sleepc.window_attention.default:
                node.kwargs = {**node.kwargs, "scale": 2.0}


def unknown_port(program: ProgramGraphs) -> None:
    next(iter(program.head.calls())).args = ()


def test_the_table_names_the_pass_in_words(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(BoundAttention, monkeypatch, wrong_scale)
    code, said, _ = run(capsys, "bisect", artifact)
    assert (code, "first wrong after: bound-attention" in said, "WRONG" in said) == (1, True, True), said


@pytest.mark.parametrize(("kind", "name"), [(BoundAttention, "bound-attention"), (AddSleep, "add-sleep")])
def test_the_pass_that_changes_numbers_is_named(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: type[Any], name: str
) -> None:
    spoil(kind, monkeypatch, wrong_scale)
    code, found = bisected(capsys, artifact)
    assert (code, found["culprit"]) == (1, name)
    good = [r["ok"] for r in found["rows"] if r["step"] != "the artifact's program"]
    assert good == sorted(good, reverse=True), "everything before it is right"


def test_the_pass_that_breaks_the_program_is_named(
    artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(BoundAttention, monkeypatch, unknown_port)
    code, found = bisected(capsys, artifact)
    assert (code, found["culprit"]) == (1, "bound-attention")
    assert found["rows"][-1]["error"] is None


def changed(artifact: Path, out: Path, key: str, by: float) -> Path:
    """The artifact with one other parameter, all hashes right."""
    program = package.load(artifact)
    old = program.graphs.params[key]
    program.graphs.params[key] = HeldTensor(old.materialise() + by, new=old.new)
    save_artifact(out, program.graphs, About(program.recipe, program.source), tokenizer=artifact)
    return out


def test_a_changed_parameter_of_the_artifact_is_named(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = next(k for k, p in package.load(artifact).graphs.params.items() if not p.new and len(p.shape) == 2)
    target = changed(artifact, tmp_path / "out", key, 0.5)
    code, found = bisected(capsys, target)
    assert (code, found["culprit"]) == (1, "the artifact's program")
    assert found["stored"]["changed"] == [key]
    _, said, _ = run(capsys, "bisect", target)
    assert "not the one that its recipe makes" in said
    assert key in said


def test_trained_memories_are_told_and_are_no_fault(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = changed(artifact, tmp_path / "out", key_of(1, MIX), 0.5)
    code, found = bisected(capsys, target)
    assert (code, found["ok"], found["trained"]) == (0, True, [key_of(1, MIX)])


def test_bytes_that_changed_on_disk_are_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = package.convert(model, {"window": 8, "sinks": 2}).save(tmp_path / "out", standalone=True)
    file = target / "new.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    code, found = bisected(capsys, target)
    assert (code, len(found["damaged"])) == (1, 1)


def test_a_changed_graph_of_the_artifact_is_named(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = package.load(artifact)
    wrong_scale(program.graphs)
    save_artifact(tmp_path / "out", program.graphs, About(program.recipe, program.source), tokenizer=artifact)
    code, found = bisected(capsys, tmp_path / "out")
    assert (code, found["culprit"]) == (1, "the artifact's program")
    assert [g["name"] for g in found["stored"]["graphs"]] == ["block.0 (blocks 0–2)"]


def test_bisect_is_told_where_the_original_is(
    model: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_model(tmp_path / "other")
    assert bisected(capsys, artifact, "--against", other)[0] == 0
    foreign = save_model(tmp_path / "qwen", "qwen2")
    code, found = bisected(capsys, artifact, "--against", foreign)
    assert (code, found["culprit"]) == (1, "the artifact's program")
    code, _, said = run(capsys, "bisect", model)
    assert (code, "not a sleepc artifact" in said) == (2, True)
    assert run(capsys, "bisect", artifact, "--tolerance", "-1")[0] == 2
    code, found = bisected(capsys, artifact, "--tolerance", "1e-12")
    assert (code, found["culprit"]) == (1, "bound-attention"), "a tolerance below rounding"


# --------------------------------------------------------------------------------------------------- doctor


def test_doctor_says_what_works_and_is_quick() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = sleepc("doctor", "--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    marks = {f["what"]: f["mark"] for f in found["findings"]}
    assert marks["eager"] == marks["torch"] == "ok"
    assert {"CUDA", "cache", "hub", "demo model"} <= set(marks)
    # CPU time, since the machine may be busy: 2.1 s where importing torch takes 1.2, and 6.4 on cores that others share
    assert after.ru_utime - before.ru_utime < 10


def findings(group: str) -> dict[str, doctor.Finding]:
    return {f.what: f for f in doctor.examine() if f.group == group}


def test_a_broken_backend_is_told_and_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise OSError(f"libfoo.so for {name}\nsecond line")

    monkeypatch.setattr(table, "import_module", broken)
    found = findings("backends")["eager"]
    assert (found.mark, "libfoo.so" in found.detail, "second line" in found.detail) == ("broken", True, False)
    assert found.fix
    assert not doctor.works(doctor.examine())


def test_a_backend_says_what_it_misses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(EagerBackend, "missing", lambda backend: "no [accelerator] here")
    code, said, _ = run(capsys, "doctor")
    assert (code, "no [accelerator] here" in said) == (1, True)


def test_every_backend_has_a_line() -> None:
    folders = {p.name for p in Path(table.__file__).parent.glob("*") if (p / "__init__.py").is_file()}
    runners = set(table.runners())
    assert set(findings("backends")) == runners
    assert folders - {"check"} == runners | folders & set(
        table.exporters()
    )  # some only write; `check` is what they share


def test_the_compiler_is_found_or_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "runners", lambda: ())
    (tmp_path / "c++").write_text("")
    (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    found = findings("device")["C++ compiler"]
    assert (found.mark, found.detail) == ("ok", f"{tmp_path / 'c++'}: --compile")
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = findings("device")["C++ compiler"]
    assert (found.mark, found.detail.split(":")[0]) == ("missing", "no-such-compiler is not found")
    assert "apt-get install g++" in found.fix


def test_disk_caches_and_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "hub" / "models--org--tiny").mkdir(parents=True)
    found = findings("storage")
    assert found["cache"].mark == "broken"
    assert found["hub"].detail.startswith("offline")
    assert "1 models cached" in found["hub"].detail
    assert found["demo model"].fix == "make demo"
    monkeypatch.setattr(doctor, "REQUIRED", (*doctor.REQUIRED, "no-such-package"))
    assert findings("packages")["no-such-package"].mark == "missing"
    assert not doctor.works(doctor.examine())


def test_an_installation_for_exports_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `sleepc doctor` says without PyTorch (test_exported has a real one), and where that is not enough."""
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("torch", "transformers") else version(name))
    code, said, _ = run(capsys, "doctor")
    assert (code, "exports can be run here" in said, "pip install torch" in said) == (0, True, True), said
    for target in table.TARGETS:
        monkeypatch.setattr(f"sleepc.backends.{target}.installed.version_of", lambda name: None)
    code, said, _ = run(capsys, "doctor", "--json")
    found = json.loads(said)
    assert (code, found["ok"], found["runs"]) == (1, False, "nothing")
    runtime = next(f for f in found["findings"] if f["group"] == "exports")
    assert (runtime["mark"], "pip install" in runtime["fix"]) == ("missing", True)


def test_an_artifact_is_no_model(
    model: Path, artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "onnx.json").write_text("{}")
    commands: list[tuple[Any, ...]] = [
        ("convert", artifact, "-o", tmp_path / "out"),
        ("verify", artifact, "--against", artifact),
        ("distil", artifact, "--self", "--teacher", artifact, "-o", tmp_path / "out"),
        ("eval", artifact, "--task", "copy", "--against", artifact),
        ("bisect", artifact, "--against", artifact),
    ]
    for command in commands:
        code, said, told = run(capsys, *command)
        assert (code, said) == (2, ""), told
        assert f"{artifact} is a sleepc artifact, not a model" in told
        assert str(model) in told, "which one it was made from"
    for name in ("convert", "inspect"):
        options = ("-o", tmp_path / "out") if name == "convert" else ()
        code, _, told = run(capsys, name, tmp_path / "export", *options)
        assert (code, "is a sleepc export, not a model" in told) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    for odd in (3, None, {"window": 8}):
        with pytest.raises(UsageError, match=rf"(model|target) is .*, of type {type(odd).__name__}\nGive a path"):
            package.convert(odd)  # type: ignore[arg-type]
