"""An export in another runtime, step by step beside what ONNX Runtime gave: runs in that runtime's own environment,
with numpy and the standard library besides. See runtimes.py.

    python runtime_worker.py RUNTIME EXPORT STEPS

STEPS has steps.json and values.bin (`Steps`). Every step starts from ONNX Runtime's state; then, if all of them ran,
the whole text is read once more from the runtime's own states (`carried`). A JSON line for each graph, and for that.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]
Run = Callable[[Arrays], Arrays]
TYPES = {"f32": "float32", "i64": "int64", "bool": "bool", "i8": "int8", "u8": "uint8", "i16": "int16"}


class Steps:
    """What was read, and what came of it. A step has the `kind` wake or sleep, the `files` that compute it, what is
    `given` besides the state, and `outputs`: name, dtype, dims and offset in values.bin.
    """

    def __init__(self, export: Path, folder: Path) -> None:
        self.about = json.loads((export / "onnx.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.steps = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
        self.values = np.memmap(folder / "values.bin", np.uint8, "r")

    def new_state(self, rows: int) -> Arrays:
        """The state of rows that have read nothing."""
        shapes = {s["name"]: (s, [rows if d == "B" else d for d in s["dims"]]) for s in self.about["states"]}
        return {name: np.full(dims, s["initial"], TYPES[s["dtype"]]) for name, (s, dims) in shapes.items()}

    def expected(self, step: Mapping[str, Any]) -> Arrays:
        """What ONNX Runtime gave."""
        found = {}
        for name, dtype, dims, offset in step["outputs"]:
            kind = np.dtype(TYPES[dtype])
            end = offset + kind.itemsize * int(np.prod(dims, dtype=np.int64))
            found[name] = self.values[offset:end].view(kind).reshape(dims)
        return found

    def given(self, step: Mapping[str, Any]) -> Arrays:
        """What goes in besides the state."""
        return {name: np.array(value, np.int64).reshape(step["shapes"][name]) for name, value in step["given"].items()}

    def errors(self, state: Arrays, step: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, float]:
        """Of logits, and of every state that becomes another one; what tokens that are none compute does not count."""
        expected = self.expected(step)
        wanted, new = (self.changed(state, step["kind"], values) for values in (expected, found))
        errors = {s["name"]: apart(new[s["name"]], wanted[s["name"]]) for s in self.about["states"]}
        if "logits" in expected:
            errors["logits"] = apart(found["logits"], expected["logits"])
        return errors

    def changed(self, state: Arrays, kind: str, found: Mapping[str, Any]) -> Arrays:
        """The new state, as onnx.json says for each of its tensors."""
        new = dict(state)
        for spec in self.about["states"]:
            how = spec[kind]
            if how["kind"] == "replaced":
                new[spec["name"]] = np.array(found[how["output"]])
            elif how["kind"] == "columns":
                new[spec["name"]] = _written(state[spec["name"]], how, found)
        return new


def _written(old: Any, how: Mapping[str, Any], found: Mapping[str, Any]) -> Any:
    old, heads = old.copy(), old.shape[1]
    columns = found[how["output"]][:, heads * how["row"] : heads * (how["row"] + 1)]
    for row, slots in enumerate(found[how["slots"]]):
        for token, slot in enumerate(slots):
            if slot >= 0:
                old[row, :, slot] = columns[row, :, token]
    return old


def apart(found: Any, expected: Any) -> float:
    """The largest difference over the largest number."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        raise ValueError(f"shape {found.shape} instead of {expected.shape}")
    if not expected.size:
        return 0.0
    a, b = found.astype(np.float64), expected.astype(np.float64)
    if not np.isfinite(a).all():
        return float("inf")
    return float(abs(a - b).max() / max(abs(b).max(), 1e-30)) if (a != b).any() else 0.0


def follow(open_graph: Callable[[Path], Run], steps: Steps, export: Path) -> Iterator[dict[str, Any]]:
    """A row for each graph: its largest error and in which output, or why it does not run."""
    files = list(dict.fromkeys(file for step in steps.steps for file in step["files"]))
    found: dict[str, dict[str, Any]] = {file: {"file": file, "error": 0.0, "ms": {}} for file in files}
    runs: dict[str, Run] = {}
    for file, row in found.items():
        started = time.perf_counter()
        try:
            runs[file] = open_graph(export / file)
            row["open_s"] = round(time.perf_counter() - started, 2)
        except BaseException as error:  # runtimes have errors of all kinds; tract's are panics
            row["refused"] = words(error)
    state = steps.new_state(steps.steps[0]["rows"])
    for step in steps.steps:
        expected = steps.expected(step)
        for file in step["files"]:
            _one(runs, found[file], state, step, steps)
        state = steps.changed(state, step["kind"], expected)
    yield from found.values()
    if all("refused" not in row for row in found.values()):
        yield {"carried": carried(runs, steps)}


def _one(runs: Mapping[str, Run], row: dict[str, Any], state: Arrays, step: Any, steps: Steps) -> None:
    if "refused" in row:
        return
    started = time.perf_counter()
    try:
        outputs = runs[row["file"]](inputs_of(steps.about, row["file"], state | steps.given(step)))
        errors = steps.errors(state, step, outputs)
    except BaseException as error:
        row["refused"] = f"step {step['name']}: {words(error)}"
        return
    row["ms"][step["name"]] = round(1000 * (time.perf_counter() - started), 1)
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] >= row["error"]:
        row["error"], row["worst"] = errors[worst], f"{worst}, {step['name']}"


def carried(runs: Mapping[str, Run], steps: Steps) -> float:
    """The error of logits after all steps, each from the runtime's own state."""
    state, error = steps.new_state(steps.steps[0]["rows"]), 0.0
    for step in steps.steps:
        file = step["files"][-1]
        outputs = runs[file](inputs_of(steps.about, file, state | steps.given(step)))
        state = steps.changed(state, step["kind"], outputs)
        if "logits" in outputs:
            error = apart(outputs["logits"], steps.expected(step)["logits"])
    return error


def graph_of(about: Mapping[str, Any], file: str) -> Any:
    """What onnx.json says of a graph's inputs and outputs."""
    graphs = [about[name] for name in ("wake", "wake_one", "sleep_replay", "sleep_recurrent")]
    return next(graph for graph in graphs if graph and graph["file"] == file)


def names_of(path: Path) -> tuple[list[str], list[str]]:
    """The names of a graph's inputs and outputs, in order."""
    graph = graph_of(json.loads(path.with_name("onnx.json").read_text(encoding="utf-8")), path.name)
    return [tensor["name"] for tensor in graph["inputs"]], [tensor["name"] for tensor in graph["outputs"]]


def inputs_of(about: Mapping[str, Any], file: str, values: Arrays) -> Arrays:
    """Those that a graph has."""
    return {t["name"]: np.asarray(values[t["name"]], order="C") for t in graph_of(about, file)["inputs"]}


def words(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def open_onnxruntime(path: Path) -> Run:
    """ONNX Runtime, one thread."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(names, given), strict=True))


def open_openvino(path: Path) -> Run:
    """OpenVINO on the CPU, in float32, with weights as they are and activations that are not quantised."""
    import openvino as ov

    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "INFERENCE_NUM_THREADS": "1"}
    compiled = ov.Core().compile_model(path, "CPU", options)
    names = [output.any_name for output in compiled.outputs]
    return lambda given: dict(zip(names, (np.array(x) for x in compiled(given).values()), strict=True))


def open_reference(path: Path) -> Run:
    """onnx's ReferenceEvaluator."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    names = list(evaluator.output_names)
    return lambda given: dict(zip(names, evaluator.run(None, given), strict=True))


def open_tract(path: Path) -> Run:
    """tract."""
    import tract

    inputs, names = names_of(path)
    model, runnable = tract.onnx().load(str(path)).into_model(), []

    def run(given: Arrays) -> Arrays:
        if not runnable:  # it runs TopK where the number of rows is known
            model.transform(tract.SetSymbols({"B": len(given["since"])}))
            runnable.append(model.into_runnable())
        found = runnable[0].run([given[name] for name in inputs])
        return dict(zip(names, (value.to_numpy() for value in found), strict=True))

    return run


def open_iree(path: Path) -> Run:
    """IREE on the CPU, through its own importer of ONNX. Weights are parameters, mapped."""
    import iree.runtime as rt

    code, weights = _compiled(path)
    config = rt.Config("local-sync")
    modules = []
    if weights.is_file():
        index = rt.ParameterIndex()
        index.load(str(weights))
        modules = [rt.create_io_parameters_module(config.vm_instance, index.create_provider(scope=path.stem))]
    hal = rt.create_hal_module(config.vm_instance, config.device)
    program = rt.VmModule.mmap(config.vm_instance, str(code))
    context = rt.SystemContext(vm_modules=[hal, *modules, program], config=config)
    inputs, names = names_of(path)

    def run(given: Arrays) -> Arrays:
        found = context.modules[program.name][path.stem](*(given[name] for name in inputs))
        return dict(zip(names, (value.to_host() for value in found), strict=True))

    return run


def _compiled(path: Path) -> tuple[Path, Path]:
    """The code of a graph and its parameters, in a folder next to it; compiled if it is not there."""
    work, tools = path.parent / "iree", Path(sys.executable).parent
    work.mkdir(exist_ok=True)
    text, code, weights = (work / f"{path.stem}.{end}" for end in ("mlir", "vmfb", "irpa"))
    if code.is_file() and code.stat().st_mtime > path.stat().st_mtime:
        return code, weights
    importing = [tools / "iree-import-onnx", path, "-o", text, "--externalize-params", f"--params-scope={path.stem}"]
    _tool([*importing, f"--save-params-to={weights}"])
    device = ("--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu")
    _tool(
        [tools / "iree-compile", text, "-o", code, "--iree-input-type=onnx", *device, "--iree-llvmcpu-target-cpu=host"]
    )
    return code, weights


def _tool(command: list[Any]) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()[-1:]
        raise RuntimeError(f"{Path(command[0]).name}: {' '.join(lines)[:300]}")


OPENERS = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "reference": open_reference,
    "tract": open_tract,
    "iree": open_iree,
}

if __name__ == "__main__":
    export = Path(sys.argv[2])
    for row in follow(OPENERS[sys.argv[1]], Steps(export, Path(sys.argv[3])), export):
        print(json.dumps(row), flush=True)
