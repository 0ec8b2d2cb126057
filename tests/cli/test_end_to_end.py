"""The commands as a person runs them, on a tiny checkpoint; in a process of their own where that proves more."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Here
from tests.cli.models import ROOT, json_of, save_model, sleepc

WORDS = " ".join(f"w{i % 60 + 1}" for i in range(30))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def artifact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "out"
    done = sleepc("convert", model, "-o", out, "--window", 8, "--sinks", 2)
    assert done.returncode == 0, done.stderr
    for stage in ("capture", "rewrite", "verify", "saved", "next"):
        assert any(line.startswith(stage) for line in done.stdout.splitlines()), done.stdout
    assert not [p for p in out.parent.iterdir() if p != out]
    return out


def test_inspect_tells_the_same_of_model_and_artifact(here: Here, model: Path, artifact: Path) -> None:
    seen = json_of(here("inspect", artifact, "--json"))
    assert (seen["sites"], seen["convertible"], len(seen["blocks"])) == (3, 3, 3)
    assert seen["new_parameters"] > 0
    assert seen["state_bytes"] > 0
    original = json_of(here("inspect", model, "--json"))
    assert [b["kv_heads"] for b in original["blocks"]] == [b["kv_heads"] for b in seen["blocks"]]
    shown = here("inspect", artifact, "--why").stdout
    assert "breaks even" in shown


def test_verify_holds_and_prints_perplexity(here: Here, artifact: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(WORDS * 2)
    report = json_of(here("verify", artifact, "--text", text, "--hash", "--json"))
    assert report["ok"]
    assert {c["invariant"] for c in report["checks"]} == set(range(1, 10))
    assert report["perplexity"]
    shown = here("verify", artifact, "--text", text)
    assert shown.returncode == 0
    assert "all invariants hold" in shown.stdout


def test_a_state_goes_on_in_another_process(here: Here, artifact: Path, tmp_path: Path) -> None:
    options = ("--max-tokens", 3, "--json")
    whole = json_of(here("run", artifact, WORDS, "--max-tokens", 6, "--json"))
    assert whole["sleeps"] > 2
    state = tmp_path / "state"
    first = json_of(here("run", artifact, WORDS, "--state", state, *options))
    second = json_of(sleepc("run", artifact, "--state", state, *options))
    assert first["text"].split() + second["text"].split() == whole["text"].split()
    assert second["state_bytes"] == whole["state_bytes"]


def test_a_state_of_another_conversion_is_refused(here: Here, model: Path, artifact: Path, tmp_path: Path) -> None:
    """Its tensors have the same shapes, and would mean something else."""
    other, state = tmp_path / "other", tmp_path / "state"
    assert here("convert", model, "-o", other, "--window", 8, "--sinks", 2, "--rule", "delta").returncode == 0
    assert here("run", artifact, "w1 w2", "--state", state, "--max-tokens", 1).returncode == 0
    before = state.read_bytes()
    done = here("run", other, "--state", state, "--max-tokens", 1)
    assert (done.returncode, state.read_bytes()) == (1, before)
    assert done.stderr.startswith("error:")
    assert "another model" in done.stderr


def test_prompt_file_and_standard_input_read_the_same(
    here: Here, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompt"
    file.write_text(WORDS)
    by_file = here("run", artifact, "-f", file, "--max-tokens", 4)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(WORDS.encode())))
    by_pipe = here("run", artifact, "--max-tokens", 4)
    assert by_file.returncode == by_pipe.returncode == 0, by_file.stderr + by_pipe.stderr
    assert by_file.stdout == by_pipe.stdout
    assert by_file.stdout.strip()


def test_sampling_options_and_stats(here: Here, artifact: Path) -> None:
    options = ("--temperature", 1.5, "--top-k", 20, "--top-p", 0.95, "--max-tokens", 8)
    one = here("run", artifact, WORDS, *options, "--seed", 1, "--stats")
    again = here("run", artifact, WORDS, *options, "--seed", 1)
    other = here("run", artifact, WORDS, *options, "--seed", 2)
    assert one.stdout == again.stdout != other.stdout
    assert "ms/token" in one.stderr
    first = one.stdout.split()[0]
    stopped = here("run", artifact, WORDS, *options, "--seed", 1, "--stop", first)
    assert stopped.stdout.strip() == ""


def test_standalone_needs_nothing_else(here: Here, model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    save_model(copy)
    done = here("convert", copy, "-o", tmp_path / "out", "--window", 8, "--sinks", 2, "--standalone", "--no-verify")
    assert done.returncode == 0, done.stderr
    copy.rename(tmp_path / "elsewhere")
    assert here("run", tmp_path / "out", WORDS, "--max-tokens", 2).returncode == 0


def test_graphs_are_dumped_and_json_is_one_object(here: Here, model: Path, tmp_path: Path) -> None:
    options = ("--window", 8, "--sinks", 2, "--no-verify", "--json", "--strategy", "insert", "--layers", "every:2")
    done = here("convert", model, "-o", tmp_path / "out", "--dump-graphs", tmp_path / "graphs", *options)
    assert json_of(done)["inspection"]["sites"] == 3
    assert "insert-memory" in " ".join(str(p) for p in (tmp_path / "graphs").rglob("*"))
    recipe = json.loads((tmp_path / "out" / "sleepc.json").read_text())["recipe"]
    assert (recipe["strategy"], recipe["layers"]) == ("insert", "every:2")


def test_interrupted_conversion_leaves_nothing(model: Path, tmp_path: Path) -> None:
    """In the middle: once the first passes have run, which the graphs that they dump tell."""
    dumped, output = tmp_path / "graphs", tmp_path / "work" / "out"
    output.parent.mkdir()
    command = [sys.executable, "-m", "sleepc", "convert", str(model), "-o", str(output), "--window", "8"]
    process = subprocess.Popen(
        [*command, "--dump-graphs", str(dumped)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where a shell runs the tests in the background, Ctrl-C is ignored, and children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    limit = time.monotonic() + 200
    while not list(dumped.rglob("*.txt")) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not list(output.parent.iterdir())


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_failure(unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(
        [sys.executable, "-m", "sleepc", "doctor"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), said) == (0, b"")


def test_help_is_fast_and_imports_no_torch() -> None:
    code = "import sys; from sleepc.cli import main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert "convert" in sleepc("--help").stdout


def test_verify_fails_for_a_planted_fault(here: Here, artifact: Path, tmp_path: Path) -> None:
    from sleepc.api import load
    from sleepc.artifact import About, save_artifact
    from sleepc.verify.mutations import MUTATIONS

    program = load(artifact)
    mutant = MUTATIONS["scale wrong"](program.graphs)
    assert mutant is not None
    save_artifact(tmp_path / "mutant", mutant, About(program.recipe, program.source), tokenizer=artifact)
    done = here("verify", tmp_path / "mutant", "--json")
    assert done.returncode == 1, done.stderr
    assert not json.loads(done.stdout)["ok"]


def test_many_files_and_hub_ids_from_the_cache(here: Here, model: Path, tmp_path: Path) -> None:
    from tests.families import make_module

    folder = tmp_path / "hub" / "models--org--tiny" / "snapshots" / "abc"
    make_module("llama", torch.float32).save_pretrained(folder, max_shard_size="20KB")  # type: ignore[operator]
    assert len(list(folder.glob("*.safetensors"))) > 2
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("abc")
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    many = json_of(sleepc("inspect", "org/tiny", "--json", environment=environment))
    one = json_of(here("inspect", model, "--json"))
    assert many == one
    absent = sleepc("inspect", "org/absent", environment=environment)
    assert absent.returncode == 1
    assert "not in the local cache" in absent.stderr
