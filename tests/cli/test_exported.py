"""run, chat and eval of an ONNX export, in an environment without PyTorch; and exports that cannot be believed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sleepc as package
from sleepc.backends.onnx import installed, load
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.sealed_json import digest
from tests.bare import make_bare, run_bare
from tests.cli.models import json_of, run_here, save_model
from tests.cli.test_chat import TEMPLATE

PROMPT = " ".join(f"w{i * 7 % 61}" for i in range(21))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with an export, of a model with a chat template."""
    model = save_model(tmp_path_factory.mktemp("model"))
    (model / "chat_template.jinja").write_text(TEMPLATE)
    (model / "generation_config.json").write_text('{"eos_token_id": 58}')
    program = package.convert(model, {"window": 8, "sinks": 2})
    folder = program.save(tmp_path_factory.mktemp("artifact") / "sleeping")
    program.export()
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment without PyTorch."""
    return make_bare(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def bare(python: Path) -> Callable[..., Any]:
    """Runs a command in it."""

    def command(*arguments: object, stdin: str = "") -> Any:
        return run_bare(python, "-m", "sleepc", *arguments, "--backend", "onnx", stdin=stdin)

    for name in ("torch", "transformers", "networkx", "huggingface_hub"):
        done = run_bare(python, "-c", f"import {name}")
        assert done.returncode == 1
        assert f"No module named '{name}'" in done.stderr
    return command


def test_the_doctor_knows_an_installation_for_exports(python: Path) -> None:
    done = run_bare(python, "-m", "sleepc", "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "exports can be run here" in done.stdout


def test_run_says_what_pytorch_says(
    artifact: Path, bare: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for place, how in ((artifact, "--no-chat"), (artifact / "onnx", "--chat")):
        code, wanted, _ = run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 25, how)
        done = bare("run", place, PROMPT, "--max-tokens", 25, *([how] if how == "--no-chat" else []))
        assert (done.returncode, done.stderr) == (code, "")
        assert done.stdout == wanted
        assert len(wanted.split()) == {"--no-chat": 25, "--chat": 23}[how]


def test_an_export_needs_no_artifact(artifact: Path, bare: Callable[..., Any], tmp_path: Path) -> None:
    alone = shutil.copytree(artifact / "onnx", tmp_path / "anywhere")
    found = json_of(bare("run", alone, "w1 w2", "--chat", "--max-tokens", 3, "--json"))
    assert found == json_of(bare("run", artifact, "w1 w2", "--chat", "--max-tokens", 3, "--json")) | {
        key: found[key]
        for key in ("ms_per_token", "ms_per_token_p99", "reading_seconds", "sleep_in_tokens")
        if key in found
    }


def test_a_state_goes_from_one_backend_to_the_other(
    artifact: Path,
    bare: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    state = tmp_path / "state"
    monkeypatch.setattr("sys.stdin", io.StringIO())
    whole = run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 12)[1].split()
    first = run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 5, "--state", state)[1].split()
    second = bare("run", artifact, "--max-tokens", 4, "--state", state).stdout.split()
    third = run_here(capsys, "run", artifact, "--max-tokens", 3, "--state", state)[1].split()
    assert [*first, *second, *third] == whole


def test_chat_says_what_pytorch_says(
    artifact: Path, bare: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = "w1 w2 w3\nw4\n/undo\nw5\n/stats\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(talk))
    wanted = run_here(capsys, "chat", artifact, "--max-tokens", 6)[1]
    done = bare("chat", artifact, "--max-tokens", 6, stdin=talk)
    assert (done.returncode, done.stdout) == (0, wanted)
    assert "state" in done.stderr


def close(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    """Are the figures of these rows the same, but for rounding?"""
    for row, other in zip(found, wanted, strict=True):
        assert row.pop("model") == other.pop("model")
        assert row == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize(
    ("task", "more"),
    [
        *((task, ("--distances", "1,3")) for task in ("perplexity", "retrieval", "copy")),
        ("khop", ("--set", "hops=1,2")),
    ],
)
def test_eval_measures_what_pytorch_measures(
    artifact: Path, bare: Callable[..., Any], capsys: pytest.CaptureFixture[str], task: str, more: tuple[str, ...]
) -> None:
    options = ("eval", artifact, "--task", task, "--samples", 2, *more, "--json")
    wanted = json.loads(run_here(capsys, *options)[1])
    found = json_of(bare(*options))
    assert found["models"] == ["converted"]
    close(found["rows"], [row for row in wanted["rows"] if row["model"] == "converted"])
    assert len(found["rows"]) > 1
    assert any("memories off" in note for note in found["notes"])


def test_eval_sweeps_passes(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("eval", artifact, "--task", "perplexity", "--samples", 1, "--sweep", "passes=1,3", "--json")
    wanted = json.loads(run_here(capsys, *options)[1])["rows"]
    found = json.loads(run_here(capsys, *options, "--backend", "onnx")[1])
    assert found["models"] == ["passes=1", "passes=3"]
    close(found["rows"], [row for row in wanted if row["model"] != "sliding"])


def test_commands_that_need_pytorch_say_so(artifact: Path, tmp_path: Path) -> None:
    python = make_bare(tmp_path)
    for command in (("run", artifact, "w1"), ("inspect", artifact), ("convert", artifact, "-o", tmp_path / "x")):
        done = run_bare(python, "-m", "sleepc", *command)
        assert done.returncode == 2, done.stderr
        assert "not installed" in done.stderr
        assert "--backend onnx" in done.stderr


# -- from Python ---------------------------------------------------------------------------------


def test_sessions_of_a_program(artifact: Path) -> None:
    program = package.load(artifact)
    wanted = program.session(2).feed([[1, 2, 3], list(range(20))])
    assert program.session(2, backend="onnx").feed([[1, 2, 3], list(range(20))]) == pytest.approx(wanted, abs=1e-4)
    program.identity = ""  # as training leaves it
    with pytest.raises(UsageError, match="changed since"):
        program.steps(backend="onnx")
    with pytest.raises(UsageError, match="does not train"):
        program.steps(backend="onnx", train=True)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dtype", "float32"), "precision"),
        (("--device", "cuda"), "CUDA"),
        (("--device", "tpu"), "unknown device"),
        (("--backend", "abacus"), "abacus"),
    ],
)
def test_options_that_do_not_fit(
    artifact: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    for command in (("run", artifact, "w1"), ("chat", artifact)):
        code, _, said = run_here(capsys, *command, "--backend", "onnx", *options)
        assert (code, words in said) == (2, True), said


def test_eval_refuses_what_needs_pytorch(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("eval", artifact, "--task", "copy", "--backend", "onnx")
    code, _, said = run_here(capsys, *options, "--against", "x")
    assert (code, "full attention" in said) == (2, True), said


def test_no_export(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = shutil.copytree(artifact, tmp_path / "plain")
    shutil.rmtree(plain / "onnx")
    code, _, said = run_here(capsys, "run", plain, "w1", "--backend", "onnx")
    assert (code, f"sleepc export {plain} --to onnx" in said) == (2, True), said
    code, _, said = run_here(capsys, "run", tmp_path, "w1", "--backend", "onnx")
    assert (code, "neither" in said) == (2, True), said
    code, _, said = run_here(capsys, "run", artifact / "onnx", "w1")
    assert (code, "--backend onnx" in said) == (2, True), said


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({}, r"sleepc\[onnx\]"),
        ({"onnxruntime": "1.25.0"}, "older"),
        ({"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.30.0"}, "both"),
    ],
)
def test_a_runtime_that_is_missing_or_old(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(installed, "version_of", versions.get)
    with pytest.raises(UsageError, match=words):
        load.load(artifact).session()


def test_an_export_of_another_state_of_the_artifact(artifact: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(artifact, tmp_path / "changed")
    data = json.loads((changed / "onnx" / "onnx.json").read_text())
    seal(changed / "onnx", {**data, "identity": "0" * 64})
    for place in (changed, changed / "onnx"):
        with pytest.raises(UsageError, match="another state") as caught:
            load.load(place)
        assert "sleepc export" in caught.value.on_command_line[2]
        assert "`program.export`" in caught.value.fix


Change = Callable[[dict[str, Any]], object]


def seal(folder: Path, data: dict[str, Any], *, files: bool = False) -> None:
    """Write onnx.json with its own hash made right, and with `files` those of the files."""
    if files:
        data["hashes"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in data["hashes"]}
    (folder / "onnx.json").write_text(json.dumps({**data, "sha256": digest(data)}))


def _set(*path: Any, value: Any) -> Change:
    """Sets what stands at a path of keys."""

    def change(data: dict[str, Any]) -> None:
        *places, last = path
        for place in places:
            data = data[place]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("format", value=2), "format 2"),
        (_set("extra", value=1), "extra"),
        (_set("weights", value="../weights.bin"), "weights"),
        (_set("wake", "file", value="../x.onnx"), "wake.file"),
        (_set("wake", "file", value="absent.onnx"), "hashes of other files"),
        (_set("weights_size", value=7), "bytes instead of 7"),
        (_set("vocab", value=0), "vocab"),
        (_set("passes", value=1000), "passes"),
        (_set("states", value=[]), "no clock"),
        (_set("states", 0, "dims", value=["B", 3]), "no clock"),
        (_set("states", 3, "dims", value=["B", 2, 10, 1 << 40]), "states"),
        (_set("states", 3, "name", value="position"), "one name"),
        (_set("states", 3, "wake", "row", value=7), "rows"),
        (_set("states", 3, "wake", "slots", value="nowhere"), "nowhere|not written"),
        (_set("states", 0, "wake", "output", value="nowhere"), "nowhere"),
        (_set("wake", "outputs", value=[]), "no logits"),
        (lambda d: d["wake"]["outputs"].append(d["wake"]["outputs"][0]), "two values of one name"),
        (lambda d: d["wake"]["outputs"][-1].update(dims=["B", "X"]), "size that nobody knows|not of its states"),
    ],
)
def test_manifests_that_are_not_believed(artifact: Path, tmp_path: Path, change: Change, words: str) -> None:
    folder = shutil.copytree(artifact / "onnx", tmp_path / "export")
    data = json.loads((folder / "onnx.json").read_text())
    change(data)
    seal(folder, data)
    with pytest.raises(SleepcError, match=words) as caught:
        load.load(folder)
    assert caught.value.fix


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000, b'{"format": "x"}', b"\xff"])
def test_files_that_are_no_manifests(artifact: Path, tmp_path: Path, text: bytes) -> None:
    folder = shutil.copytree(artifact / "onnx", tmp_path / "export")
    (folder / "onnx.json").write_bytes(text)
    with pytest.raises(SleepcError, match=r"onnx\.json"):
        load.load(folder)


def test_a_link_out_of_the_export(artifact: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact / "onnx", tmp_path / "export")
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(SleepcError, match="leads out"):
        load.load(folder)


def test_graphs_that_are_not_what_the_manifest_says(artifact: Path, tmp_path: Path) -> None:
    """Even with all hashes right."""
    folder = shutil.copytree(artifact / "onnx", tmp_path / "export")
    data = json.loads((folder / "onnx.json").read_text())
    shutil.copy(folder / "sleep_replay.onnx", folder / "wake.onnx")
    seal(folder, data, files=True)
    with pytest.raises(SleepcError, match="different inputs from what the manifest"):
        load.load(folder).session()
    (folder / "wake.onnx").write_bytes(b"nothing")
    seal(folder, data, files=True)
    with pytest.raises(SleepcError, match="cannot open"):
        load.load(folder).session()


# -- what was exported is what runs --------------------------------------------------------------


@pytest.fixture
def export(artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(artifact / "onnx", tmp_path / "export")


FILES = ["wake.onnx", "sleep_replay.onnx", "weights.bin"]


def change(path: Path) -> None:
    """One bit, in place."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_of_the_same_size(export: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    change(export / name)
    for command in (("run", export, "w1", "--backend", "onnx"), ("verify", export)):
        code, _, said = run_here(capsys, *command)
        assert (code, f"{name} was changed after the export" in said) == (1, True), said


@pytest.mark.parametrize("name", FILES)
def test_an_export_that_is_replaced_while_it_is_open(export: Path, name: str) -> None:
    """What is opened later is what was checked, or an error."""
    program, opened = load.load(export), load.load(export)
    session = opened.session()
    wanted = session.feed(list(range(5)))
    shutil.copy(export / name, export / "new")
    change(export / "new")
    (export / "new").replace(export / name)
    with pytest.raises(SleepcError, match=f"{name} was replaced while it was open"):
        program.session()
    with pytest.raises(SleepcError, match=f"{name} was replaced while it was open"):
        session.feed(list(range(10)))  # sleeps, by a graph that is opened for it
    assert wanted.shape == (1, 61)


def test_a_changed_word_of_the_manifest(export: Path) -> None:
    text = (export / "onnx.json").read_text()
    (export / "onnx.json").write_text(text.replace('"precision": "fp32"', '"precision": "int4"'))
    with pytest.raises(SleepcError, match=r"onnx\.json was changed after it was written"):
        load.load(export)


def test_an_export_from_before_files_had_hashes(export: Path) -> None:
    data = json.loads((export / "onnx.json").read_text())
    del data["hashes"], data["sha256"]
    (export / "onnx.json").write_text(json.dumps(data))
    with pytest.warns(SleepcWarning, match="before files had hashes"):
        assert load.load(export).session().feed([1, 2]).shape == (1, 61)


@pytest.mark.parametrize("below", ["onnx", "a/onnx"])
def test_an_export_in_the_hubs_cache(export: Path, tmp_path: Path, below: str) -> None:
    """Its files are links of a snapshot to blobs."""
    snapshot = tmp_path / "models--x" / "snapshots" / "0123" / below
    (tmp_path / "models--x" / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(export.iterdir())):
        blob = tmp_path / "models--x" / "blobs" / f"{number:040x}"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    found, wanted = (load.load(place).session().feed(list(range(20))) for place in (snapshot, export))
    assert np.array_equal(found, wanted)
    for name in ("weights.bin", "tokenizer.json"):
        inside = (snapshot / name).readlink()
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(export / name)
        with pytest.raises(SleepcError, match=f"{name} leads out"):
            load.load(snapshot)
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(inside)


def test_verify(artifact: Path, export: Path, bare: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    """With the artifact around it, and alone and without PyTorch."""
    code, said, _ = run_here(capsys, "verify", artifact / "onnx", "--json")
    checks = {row["check"]: row for row in json.loads(said)["checks"]}
    assert (code, len(checks)) == (0, 6)
    assert 0 < checks["the artifact"]["value"] < 1e-3
    assert checks["saved and loaded"]["value"] == 0
    alone = run_bare(make_bare(export.parent / "bare"), "-m", "sleepc", "verify", export, "--json")
    assert [row["check"] for row in json_of(alone)["checks"]] == [name for name in checks if name != "the artifact"]
    code, _, said = run_here(capsys, "verify", export, "--against", "x")
    assert (code, "--against" in said) == (2, True)


def test_verify_finds_what_hashes_do_not(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A manifest, sealed, by which the host forgets what the calls before have read."""
    data = json.loads((export / "onnx.json").read_text())
    for state in data["states"]:
        if state["wake"]["kind"] == "columns":
            state["wake"] = {"kind": "kept"}
    seal(export, data)
    code, said, _ = run_here(capsys, "verify", export, "--json")
    assert code == 1
    assert [row["check"] for row in json.loads(said)["checks"] if not row["ok"]] == ["read in pieces"]
