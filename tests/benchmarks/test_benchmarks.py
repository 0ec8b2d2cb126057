"""Every benchmark runs, small, and says what it promises; how fast is not a matter of tests."""

from __future__ import annotations

import asyncio
import io
import json
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from sleepc.cli.main import main
from sleepc.hf.resolve import Checkpoint

ROOT = Path(__file__).parents[2]
PROMISED = {
    "decode_cpu": {"context", "sleepc_ms", "transformers_ms", "ratio", "state_bytes", "kv_cache_bytes", "prefill"},
    "perplexity": {"from", "to", "full", "sliding", "converted", "converted/sliding"},
    "native_memory": {"layers", "seconds", "anonymous_mib", "at_peak", "weights", "logits", "bound"},
    "convert_memory": {"case", "seconds", "anonymous_mib", "peak_rss_mib", "at_peak"},
}
# What a person is warned of, a benchmark goes on with.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sleepc.errors.SleepcWarning"),
    # The name that every supported version of transformers takes is deprecated in the newest.
    pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning"),
]
Run = Callable[..., str]
Rows = Callable[..., list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks import each other by their names; their children import sleepc."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a benchmark as a script, in this process, which has imported already what takes most of the time."""

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--tiny", *arguments])
        runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def rows(run: Run) -> Rows:
    """What a benchmark measures."""

    def rows(name: str, *arguments: str) -> list[dict[str, Any]]:
        machine, *found = [json.loads(line) for line in run(name, "--json", *arguments).splitlines()]
        assert machine.keys() >= {"cpu", "cores", "torch", "transformers"}
        assert machine["kind"] == "machine"
        for row in found:
            assert row.keys() >= PROMISED[name]
            assert row["kind"] == name
        return found

    return rows


def test_decode_cpu(rows: Rows) -> None:
    first, second = rows("decode_cpu")
    assert first["context"] < second["context"]
    assert first["state_bytes"] == second["state_bytes"]
    assert first["kv_cache_bytes"] < second["kv_cache_bytes"]
    assert min(first["sleepc_ms"], first["transformers_ms"], first["sleep_ms"]) > 0


def test_perplexity(rows: Rows) -> None:
    *ranges, whole = rows("perplexity")
    assert [(r["from"], r["to"]) for r in ranges] == [(0, 256), (256, 512), (512, 600)]
    assert (whole["from"], whole["to"]) == (0, 600)
    inside = ranges[0]
    assert inside["full"] == pytest.approx(inside["sliding"], rel=1e-4)
    assert inside["sliding"] == inside["converted"]
    assert ranges[2]["sliding"] != ranges[2]["converted"]


def test_distil_smollm2(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the standard library a part, which is read sooner."""
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(Path(asyncio.__file__).parent))
    adapter = tmp_path / "adapter.safetensors"
    said = run("distil_smollm2", "--json", "--work", str(tmp_path / "work"), "--adapter", str(adapter))
    _, *found = [json.loads(line) for line in said.splitlines()]
    curve = [row for row in found if row["kind"] == "distillation"]
    names = [row["model"] for row in curve]
    assert names[:3] == ["full", "sliding", "untrained"]
    assert names[-2:] == ["N=2", "N=4"]
    trained = [row["tokens"] for row in curve if row["model"] == "trained"]
    assert trained == sorted(trained)
    assert len(trained) == 5
    assert all(row["perplexity"] > 1 for row in curve)
    asked = {(row["model"], row["distance"]) for row in found if row["kind"] == "retrieval"}
    assert asked == {(m, d) for m in ("full", "sliding", "untrained", "trained") for d in (8, 16, 32, 64, 128)}
    with safe_open(adapter, framework="numpy") as file:
        assert json.loads(file.metadata()["facts"])["text"] == ["docstrings of Python's standard library"]


@pytest.mark.slow
def test_docstrings_of_the_standard_library(tmp_path: Path) -> None:
    text = import_module("training_text").docstrings(tmp_path / "docstrings.txt").read_text()
    assert len(text) > 500_000


@pytest.mark.slow
def test_distil_smollm2_with_kept_pairs(run: Run, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.safetensors"
    given = ("--json", "--keep", "4", "--text", __file__, "--adapter", str(adapter))
    first = run("distil_smollm2", *given)
    again = run("distil_smollm2", *given, "--begin", str(adapter))
    names = [[json.loads(line).get("model") for line in said.splitlines()] for said in (first, again)]
    assert names[0][1:6] == ["full", "sliding", "keep", "untrained", "trained"]
    assert names[1][1:7] == ["full", "sliding", "keep", "untrained", "begun", "trained"]
    with safe_open(adapter, framework="numpy") as file:
        begun = json.loads(file.metadata()["facts"])["begun"]
    assert (begun["text"], begun["keep"]) == ([Path(__file__).name], True)


def test_sleep_smollm2(run: Run) -> None:
    _, *found = [json.loads(line) for line in run("sleep_smollm2", "--json").splitlines()]
    assert [row["hops"] for row in found if row["kind"] == "original"] == [1, 2]
    asked = [(row["N"], row["lesson"], row["hops"]) for row in found if row["kind"] == "sleep"]
    assert asked == [(n, lesson, hops) for n in (1, 2) for lesson, hops in ((1, 1), (2, 1), (2, 2))]
    curves = [row for row in found if row["kind"] == "curve"]
    assert [len(row["curve"]) for row in curves] == [2, 1, 2, 1]
    assert [row["tokens"] for row in curves[:2]] == [row["tokens"] for row in curves[2:]]  # at equal tokens
    assert all(row["step_s"] > 0 and 0 <= row["right"] <= 1 for row in curves)


@pytest.mark.slow
def test_native_memory(rows: Rows) -> None:
    few, many = rows("native_memory")
    assert (few["layers"], many["layers"]) == (4, 8)
    assert many["weights"] > 1.5 * few["weights"]
    assert many["anonymous_mib"] < few["anonymous_mib"] + 20
    assert all(row["logits"] <= row["bound"] for row in (few, many))


@pytest.mark.slow
@pytest.mark.parametrize("cases", ["7b", "model,7b"])
def test_convert_memory(rows: Rows, cases: str) -> None:
    found = rows("convert_memory", "--cases", cases)
    assert [row["case"] for row in found] == cases.split(",")
    assert 0 < found[0]["anonymous_mib"] < found[0]["peak_rss_mib"]


def command_here(*arguments: str) -> dict[str, float]:
    """A command of sleepc's in this process."""
    with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code
    return {"sleepc_seconds": 1.0}


def test_onnx_cpu(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without genai, which belongs into an environment of its own."""
    monkeypatch.setattr(import_module("onnx_cpu"), "sleepc", command_here)
    said = run("onnx_cpu", "--json", "--work", str(tmp_path))
    _, *found = [json.loads(line) for line in said.splitlines()]
    assert [row["kind"] for row in found] == ["export", "loaded", "prefill", "onnx_cpu", "onnx_cpu", "memory"]
    exported, loaded, prefill, first, second, memory = found
    assert exported["sleepc_seconds"] > 0
    assert not memory["torch"]
    assert 0 < loaded["rss_mb"] < memory["peak_mb"]
    assert prefill["tokens"] == 600
    assert (first["context"], second["context"]) == (300, 600)
    assert 0 < first["sleepc_ms"] < first["sleepc_ms_with_sleep"]
    assert first["ratio"] is None


@pytest.mark.slow
def test_onnx_hybrid(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without genai; two windows and more of a random hybrid."""
    monkeypatch.setattr(import_module("onnx_cpu"), "sleepc", command_here)
    said = run("onnx_hybrid", "--json", "--work", str(tmp_path))
    start, *found = [json.loads(line) for line in said.splitlines()]
    assert start["parameters"] > 0
    assert [row["kind"] for row in found] == ["export", "logits", "prefill", "onnx_hybrid", "onnx_hybrid", "memory"]
    _, logits, prefill, first, second, _ = found
    assert logits["largest"] > 0
    assert (prefill["tokens"], first["context"], second["context"]) == (600, 300, 600)
    assert first["sleepc_ms"] > 0
    assert first["ratio"] is None


@pytest.mark.slow
def test_tune_cpu(run: Run) -> None:
    _, tuning, *found = [json.loads(line) for line in run("tune_cpu", "--json", "--rounds", "2").splitlines()]
    assert (tuning["kind"], tuning["measured"]) == ("tuning", tuning["entries"])
    *pairs, fastest = found
    assert {row["kind"] for row in pairs} >= {"change"}
    assert all(min(row["token_ratio"], row["read_ratio"]) > 0 for row in pairs)
    assert fastest["kind"] == "fastest defaults"


def test_cost_model(run: Run) -> None:
    """Each step of a program is predicted and measured, and summed up as ranks and factors."""
    machine, *found = [json.loads(line) for line in run("cost_model", "--json").splitlines()]
    assert min(machine[name] for name in ("bytes_per_second", "flops", "seconds_per_operator")) > 0
    names = ("decode", "read", "sleep")
    steps, summaries = ([row for row in found if row["kind"] == kind] for kind in ("cost_model", "summary"))
    assert [(row["step"], row["rows"]) for row in steps] == [(name, count) for count in (1, 2) for name in names]
    for row in steps:
        assert row["ratio"] == pytest.approx(row["predicted_ms"] / row["measured_ms"])
    assert [(row["of"], row["candidates"]) for row in summaries] == [("all", 6), *((name, 2) for name in names)]
    factors = [max(row["ratio"], 1 / row["ratio"]) for row in steps]
    assert summaries[0]["largest_factor"] == pytest.approx(max(factors))
    assert -1 <= summaries[0]["spearman"] <= 1


@pytest.mark.slow
def test_gpu(run: Run, tmp_path: Path) -> None:
    """Every part runs on the CPU, and a second run measures nothing again; of what is not there, rows say why."""
    given = ("--json", "--smoke", "--work", str(tmp_path / "rows.jsonl"))
    first, *found = [json.loads(line) for line in run("gpu", *given).splitlines()]
    made = [row for row in found if row["kind"] != "skipped"]
    assert {row["part"] for row in made} == {"kernels", "decode", "prefill", "train", "onnx"}
    assert {row["system"] for row in made} >= {"torch", "eager", "transformers", "onnx"}
    assert all((row["gpu"], row["torch"]) == (first["gpu"], first["torch"]) for row in made)
    assert all(row.get("ms", 1) > 0 and row.get("max_error", 0) < 1e-3 for row in made)
    assert next(row for row in made if row.get("precision") == "table")["different"]  # the CPU's are not CUDA's
    assert "kernels, fla" in {row["what"] for row in found if row["kind"] == "skipped" and row["reason"]}
    assert [json.loads(line) for line in run("gpu", *given, "--limit", "0").splitlines()] == [first, *found]


def test_kept_rows_are_of_the_same_measurement(tmp_path: Path) -> None:
    """Not of another model; nor half a line, nor what there was no memory for."""
    place, parts = import_module("gpu").place, import_module("parts")
    file, key = tmp_path / "rows.jsonl", {"system": "eager"}
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text(f'{{"name": "{folder.name}"}}')
    options = Namespace(tiny=False, device="cpu", tokens=64)
    a, b = (place(Checkpoint(folder.name, folder, {}, ()), options) for folder in folders)
    other = place(Checkpoint("a", folders[0], {}, ()), Namespace(**vars(options) | {"tokens": 8}))

    def full() -> Any:
        raise torch.OutOfMemoryError

    def measured(where: dict[str, Any], measure: Callable[[], Any]) -> list[Any]:
        return [
            row.get("ms", row.get("reason"))
            for row in parts.run_part("train", [(key, measure)], parts.Kept(file, where), 9)
        ]

    assert measured(a, full) == ["out of memory"]
    assert measured(a, lambda: {"ms": 1}) == [1]
    with file.open("a") as opened:
        opened.write('{"kind": "tra')
    assert [measured(where, lambda: {"ms": 2}) for where in (a, b, other)] == [[1], [2], [2]]
    assert [json.loads(line)["ms"] for line in file.read_text().splitlines()] == [1, 2, 2]


@pytest.mark.parametrize(
    ("name", "option", "value", "words"),
    [
        ("recall", "--only", "questions,question", "'question' is none of questions, retrieval,"),
        ("recall", "--keep", "128,few", "not whole numbers"),
        ("gpu", "--only", "decode,kernel", "'kernel' is none of kernels, decode, prefill, train, onnx"),
        ("convert_memory", "--cases", "modle", "'modle' is none of model, 7b"),
        ("decode_cpu", "--contexts", "1k", "not whole numbers"),
    ],
)
def test_what_is_misspelt_is_refused(
    name: str, option: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", option, value])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / f"{name}.py"), run_name="__main__")
    said = " ".join(capsys.readouterr().err.split())
    assert (ended.value.code, f"argument {option}: {words}" in said) == (2, True), said


def test_tables_are_for_people(run: Run) -> None:
    out = run("perplexity")
    assert "cpu" in out
    assert "converted/sliding" in out


@pytest.mark.slow
def test_cartridge(run: Run) -> None:
    machine, *found = [json.loads(line) for line in run("cartridge", "--slots", "0,4", "--json").splitlines()]
    assert machine["kind"] == "machine"
    begun, begun_small, states = "cartridge, as it began", "cartridge 4, as it began", {r["MB"] for r in found[1:]}
    assert [row["model"] for row in found] == ["full", "keep", begun, "cartridge", begun_small, "cartridge 4"]
    assert len(states) == 1  # of equal bytes
    assert found[3]["pairs"] > found[5]["pairs"] > 0


@pytest.mark.slow  # a minute and a half
def test_consolidations(run: Run) -> None:
    cells = "window alone;gated_delta;gated_delta, in_place"
    machine, *found = [json.loads(line) for line in run("consolidations", "--json", "--cells", cells).splitlines()]
    assert machine["kind"] == "machine"
    scratch = [(row["kind"], row["cell"]) for row in found if row["kind"] != "smollm2"]
    assert scratch == [(task, cell) for cell in cells.split(";")[1:] for task in ("retrieval", "khop")]
    assert all(row["step_ms"] > 0 and row["parameters"] > 0 for row in found if row["kind"] != "smollm2")
    large = {(row["cell"], row["trained"]): row for row in found if row["kind"] == "smollm2"}
    alone, plain, trained = large["window alone", 0], large["gated_delta", 0], large["gated_delta", 64]
    assert large["full", 0]["nats"] != alone["nats"] != plain["nats"] != trained["nats"]
    assert alone["state_bytes"] == plain["state_bytes"] < large["gated_delta, in_place", 0]["state_bytes"]
    assert min(row["sleep_ms"] for row in large.values() if row["cell"] != "full") > 0


@pytest.mark.slow
def test_recall(run: Run) -> None:
    machine, *found = [json.loads(line) for line in run("recall", "--json").splitlines()]
    assert machine["kind"] == "machine"
    totals = [row for row in found if "task" in row]
    asked = ("questions", "ruler-single", "ruler-multikey", "ruler-tracking")
    wanted = [(task, model) for task in asked for model in ("full", "sliding", "keep 8")]
    assert sorted((row["task"], row["model"]) for row in totals) == sorted([*wanted, ("retrieval", "keep 8")])
    sizes = {row["model"]: row["MB"] for row in totals if row["task"] == "questions"}
    assert 0.9 * sizes["keep 8"] < sizes["sliding"] <= sizes["keep 8"]
