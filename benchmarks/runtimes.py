"""Our ONNX files in other runtimes, compared by value with ONNX Runtime: wake and sleep, over two sleeps.

Each runtime has an environment of its own under build/runtimes (pip, or npm for onnxruntime-web), made the first time.
Exports: a tiny random model, whose memories answer as much as its attention, by several recipes; without --tiny also
--model. --write puts the table into docs/runtimes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import peers
import runtime_worker
from common import Row, arguments, console, machine, make_tiny, report, some_of

import sleepc
from sleepc.hf.packaged import model_named
from sleepc.verify.memory_values import shaken

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "runtimes.md"
NUMPY = "numpy==2.4.6"
PINS: dict[str, tuple[str, ...]] = {
    "openvino": ("openvino==2026.4.0",),
    "web": ("onnxruntime-web@1.30.0",),
    "tract": ("tract==0.23.9",),
    "reference": ("onnx==1.23.2",),
    "iree": ("iree-base-compiler==3.13.0", "iree-base-runtime==3.13.0", "onnx==1.22.0"),
}
NAMES = {
    "openvino": "OpenVINO, CPU",
    "web": "onnxruntime-web, wasm in Node.js",
    "tract": "tract",
    "reference": "onnx's ReferenceEvaluator",
    "iree": "IREE, llvm-cpu",
}
PORTABLE = {"ops": "portable", "one_token": True}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "portable": ({"passes": 3}, PORTABLE),
    "portable, keep": ({"passes": 3, "keep": {"slots": 80, "dtype": "int8"}}, PORTABLE),
    "portable, recurrent": ({"consolidation": "recurrent", "passes": 2}, PORTABLE),
    "portable, online": ({"write": "online"}, PORTABLE),
    "ort, sleeps portable": ({"passes": 3}, {"ops": "ort", "sleep_ops": "portable", "one_token": True}),
}
OF_LARGE = ("portable", "portable, keep")
WINDOW = 128
SLEEPS = ("sleep_replay.onnx", "sleep_recurrent.onnx")
BOUND = 1e-3  # of an export against the eager backend
COLUMNS = ("runtime", "model", "case", "file", "error", "worst", "refused")


def main() -> None:
    """Run the benchmark."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", type=some_of([*PINS]), default=[*PINS], help=", ".join(PINS))
    parser.add_argument("--cases", type=some_of([*map(_folder, CASES)]), default=[*map(_folder, CASES)], help="recipes")
    parser.add_argument("--reuse", action="store_true", help="the exports of an earlier run, where they are")
    parser.add_argument("--write", action="store_true", help="write docs/runtimes.md")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "runtimes", help="a folder for all of it")
    options = parser.parse_args()
    found = []
    for row in rows(options):
        found.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
    if not options.json:
        report(found, as_json=False, title="exports in other runtimes", columns=COLUMNS)
    if options.write:
        PAGE.write_text(page(found), encoding="utf-8")


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The machine, then each runtime with each export."""
    yield machine() | {"onnxruntime": version("onnxruntime")}
    models = ["tiny", *([] if options.tiny else [options.model])]
    chosen = [(model, case) for model in models for case in CASES if _folder(case) in options.cases]
    chosen = [(model, case) for model, case in chosen if model == "tiny" or case in OF_LARGE]
    exports = [(model, case, export_of(options.work, model, case, options.reuse)) for model, case in chosen]
    for runtime in options.only:
        command = environment(options.work / runtime, runtime)
        for model, case, folder in exports:
            console.log(f"{runtime}: {model}, {case}")
            for row in followed(command, folder):
                yield {"kind": "runtimes", "runtime": runtime, "model": model, "case": case, **row}


# ------------------------------------------------------------------------------------------------- environments


def environment(folder: Path, runtime: str) -> list[str]:
    """The command that follows an export in this runtime; what it needs is installed where it is not yet."""
    pins = PINS[runtime]
    if runtime != "web":
        python = peers.environment(folder, *pins, NUMPY)
        return [str(python), str(Path(__file__).with_name("runtime_worker.py")), runtime]
    mark = folder / "ready"
    if not mark.is_file() or mark.read_text() != "\n".join(pins):
        console.log(f"installing {', '.join(pins)} into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text("{}")
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--save-exact", *pins]
        subprocess.run(npm, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        mark.write_text("\n".join(pins))
    return ["node", str(Path(__file__).with_name("runtime_worker.mjs")), str(folder)]


def followed(command: list[str], folder: Path) -> Iterator[Row]:
    """What a runtime's own process says of an export."""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(folder / "onnx"), str(folder)], capture_output=True, text=True, env=variables)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    yield from map(json.loads, lines)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        yield {"file": "", "refused": f"its process ended with {done.returncode}: {' '.join(last)[:300]}"}


# ------------------------------------------------------------------------------------------------- exports


def export_of(work: Path, model: str, case: str, reuse: bool) -> Path:
    """A folder with the export, and what ONNX Runtime computes with it."""
    folder = work / "exports" / Path(model).name / _folder(case)
    if reuse and (folder / "steps.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe, options = CASES[case]
    source = make_tiny(folder / "model") if model == "tiny" else model_named(model, lambda what, _: console.log(what))
    program = sleepc.convert(source, {"window": WINDOW, **recipe})
    program.graphs = shaken(program.graphs)
    program.identity = program.opened = ""
    program.export(folder / "onnx", to="onnx", tokens=_tokens(program.graphs.vocab, 300), **options)
    record(folder, rows=2 if model == "tiny" else 1)
    return folder


def _tokens(vocab: int, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(0).integers(0, vocab, count)]


def record(folder: Path, rows: int) -> None:
    """Read a text in ONNX Runtime, over two sleeps, the second row three tokens behind; write what it gave."""
    export, steps, at = folder / "onnx", [], 0
    about = json.loads((export / "onnx.json").read_text(encoding="utf-8"))
    (folder / "steps.json").write_text("[]")
    (folder / "values.bin").write_bytes(b"\0")
    known = runtime_worker.Steps(export, folder)
    asleep = (about["sleep_recurrent"] or about["sleep_replay"])["file"]
    run = {file: runtime_worker.open_onnxruntime(export / file) for file in (about["wake"]["file"], asleep)}
    state, rng = known.new_state(rows), np.random.default_rng(1)
    with (folder / "values.bin").open("wb") as values:
        for name, count in _schedule(about["window"]):
            step = _step(about, name, count, rows, rng, asleep)
            file = step["files"][0]
            found = run[file](runtime_worker.inputs_of(about, file, state | known.given(step)))
            for output, array in found.items():
                kind = next(k for k, v in runtime_worker.TYPES.items() if v == array.dtype.name)
                step["outputs"].append([output, kind, list(array.shape), at])
                at += values.write(np.ascontiguousarray(array).tobytes())
            at += values.write(b"\0" * (-at % 8))
            state = known.changed(state, step["kind"], found)
            steps.append(step)
    (folder / "steps.json").write_text(json.dumps(steps))


def _schedule(window: int) -> Iterator[tuple[str, int]]:
    """Names of steps and their tokens; 0 is a sleep."""
    for number in ("first", "second"):
        yield f"{number} 20 tokens", 20
        yield f"{number} one token", 1
        yield f"{number} rest of the window", window - 21
        yield f"{number} sleep", 0
    yield "last 20 tokens", 20
    yield "last token", 1


def _step(about: Row, name: str, count: int, rows: int, rng: np.random.Generator, asleep: str) -> Row:
    if not count:
        return {"name": name, "kind": "sleep", "rows": rows, "files": [asleep], "outputs": [],
                "given": {"passes": about["passes"]}, "shapes": {"passes": []}}  # fmt: skip
    lengths = [count - (3 * row if count == 20 else 0) for row in range(rows)]
    files = [about["wake"]["file"], *([about["wake_one"]["file"]] if count == 1 and about["wake_one"] else [])]
    given = {
        "tokens": rng.integers(0, about["vocab"], (rows, count)).tolist(),
        "lengths": lengths,
        "logits_at": [[length - 1] for length in lengths],
    }
    shapes = {"tokens": [rows, count], "lengths": [rows], "logits_at": [rows, 1]}
    return {"name": name, "kind": "wake", "rows": rows, "files": files, "outputs": [], "given": given, "shapes": shapes}


def _folder(case: str) -> str:
    return case.replace(", ", "-").replace(" ", "-")


# ------------------------------------------------------------------------------------------------- the page

HEAD = """# Our ONNX files in other runtimes

Written by `benchmarks/runtimes.py --write`, which makes an environment for each runtime under build/, with these
versions. The text is read in ONNX Runtime {onnxruntime} and in the runtime, over two sleeps, two rows of which one has
padding; figures are the largest difference over the largest number, of logits and of every state, each call from ONNX
Runtime's state ("carried": logits at the end, from the runtime's own). At most 1e-3 is asked.
[export.md](export.md#other-runtimes) says how each takes the files. Measured {day}, {cpu}.

The tiny model is a random Llama of two layers, window 128, whose memories answer as much as its attention.
"""


def page(found: list[Row]) -> str:
    """docs/runtimes.md."""
    first, *results = found
    lines = [HEAD.format(day=date.today().isoformat(), **first)]
    lines += [
        "| runtime | model, export | wake | one token | sleep | carried |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    notes: list[str] = []
    for key in dict.fromkeys((row["runtime"], row["model"], row["case"]) for row in results):
        mine = [row for row in results if (row["runtime"], row["model"], row["case"]) == key]
        runtime, model, case = key
        name = f"{NAMES[runtime]} ({', '.join(pin.replace('==', ' ').replace('@', ' ') for pin in PINS[runtime])})"
        cells = [_cell(mine, files, notes) for files in (("wake.onnx",), ("wake_one.onnx",), SLEEPS)]
        carried = next((f"{row['carried']:.0e}" for row in mine if "carried" in row), "")
        lines.append(f"| {name} | {model}, {case} | {' | '.join(cells)} | {carried} |")
    lines += ["", "What was refused, or differs:", "", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def _cell(mine: list[Row], files: tuple[str, ...], notes: list[str]) -> str:
    row = next((row for row in mine if row.get("file") in (*files, "")), None)
    if row is None:
        return ""
    if "refused" in row:
        notes.append(f"{NAMES[row['runtime']]}, {row['case']}, {row['file']}: `{row['refused'].replace('`', '')}`")
        return f"refused ({len(notes)})"
    if row["error"] > BOUND:
        notes.append(
            f"{NAMES[row['runtime']]}, {row['case']}, {row['file']}: {row['worst']} has an error of {row['error']:.2g}"
        )
        return f"{row['error']:.0e} ({len(notes)})"
    return f"{row['error']:.0e}"


if __name__ == "__main__":
    main()
