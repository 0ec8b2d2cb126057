"""One commit's part of tests/golden/same.py, in a process of its own: what sleepc makes of each case, into a folder.

Of sleepc only the public API is used (`convert`, `load`, `Program.save`, `export`, `session`) and, to set memories,
`Program.graphs.params`; what is inside may have any names. Models are made by the tests/families.py of *this* checkout,
so that no commit that is compared has a say in their weights.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
import warnings
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

import sleepc

HERE = Path(__file__).resolve().parents[2]
# What two rows read, call by call: three windows of 8 tokens, each on its own clock. Some families have 24 positions.
CALLS = ((5, 11), (13, 2), (6, 9), (1, 1))
PIECE = 3  # tokens in a call that continues from a state file
NOISE = 0.3


def main() -> None:
    """Arguments: the checkout that sleepc has to come from, the folder to write into, and that of the base commit."""
    checkout, folder, base = (Path(argument) for argument in sys.argv[1:])
    assert sleepc.__file__ is not None
    assert Path(sleepc.__file__).resolve().is_relative_to(checkout.resolve()), f"sleepc comes from {sleepc.__file__}"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("ignore")
    borrowed("examples.nanogpt", "examples/nanogpt.py")
    families = borrowed("same_families", "tests/families.py")
    for case in json.loads(sys.stdin.read()):
        place = folder / case["folder"]
        place.mkdir(parents=True)
        try:
            run(case, families, place, base / case["folder"])
        except Exception as error:  # a result like any other: both commits have to say the same
            noted(error, place / "error.txt", base, folder)
            if not isinstance(error, sleepc.SleepcError):
                traceback.print_exc()
        print(case["name"], flush=True)


def borrowed(name: str, path: str) -> ModuleType:
    """A module of the checkout that this file is in, whatever PYTHONPATH says."""
    spec = importlib.util.spec_from_file_location(name, HERE / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(case: dict[str, Any], families: ModuleType, place: Path, base: Path) -> None:
    """Convert, set memories, save; what it computes as converted and, of the artifact and the state that the base has
    written, as loaded. With `export`, what its files compute in ONNX Runtime instead.
    """
    exported: dict[str, Any] | None = case["export"]
    module = families.make_module(case["family"], torch.float64 if exported is None else torch.float32)
    if case["calm"] != 1:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(case["calm"])
    program = sleepc.convert(module, {"window": families.WINDOW, "sinks": 2, **case["recipe"]})
    set_memories(program)
    program.save(place / "artifact")
    if exported is not None:
        tokens = np.random.default_rng(5).integers(0, families.VOCAB, 64).tolist()
        try:
            program.export(tokens=tokens, **exported)
        except sleepc.SleepcError as error:
            if "has no option fast" not in error.what:  # commits without it round so anyway
                raise
            program.export(tokens=tokens, **{name: value for name, value in exported.items() if name != "fast"})
    backend = "eager" if exported is None else "onnx"
    save_file(computed(program.session(2, backend=backend), families.VOCAB, place / "made.state"), place / "converted")
    loaded = sleepc.load(base / "artifact")
    save_file(computed(loaded.session(2, backend=backend), families.VOCAB, place / "loaded.state"), place / "loaded")
    again = loaded.session(2, backend=backend)
    try:
        again.load_state(base / "loaded.state")
        logits = np.asarray(again.feed([[3] * PIECE, [7] * PIECE], logits="all"))
        save_file({"logits after the base's state": logits}, place / "state")
    except sleepc.SleepcError as error:  # all the rest of the case is compared
        noted(error, place / "state.txt", base)


def noted(error: Exception, file: Path, *folders: Path) -> None:
    """Write what was said, without the names of the folders."""
    said = f"{type(error).__name__}: {error}\n"
    for folder in folders:
        said = said.replace(str(folder), "")
    file.write_text(said)


def set_memories(program: Any) -> None:
    """Give every parameter that the conversion added noise from a generator of its own, so that memories show: fresh
    ones have maps that are zero. By its name, not its place among the others.
    """
    for key, param in program.graphs.params.items():
        if param.new:
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            value = param.materialise()
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64) * NOISE
            value.add_((noise * 2 / value.shape[1] ** 0.5 if value.dim() == 2 else noise).to(value.dtype))


def computed(session: Any, vocab: int, state: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Logits of every call and of a sleep between two, and the state in the middle and at the end, as in its file."""
    rng = np.random.default_rng(3)
    found = {}
    for i, counts in enumerate(CALLS):
        rows = [rng.integers(0, vocab, count).tolist() for count in counts]
        found[f"logits of call {i + 1}"] = np.asarray(session.feed(rows, logits="all"))
        if i in (1, len(CALLS) - 1):
            session.save_state(state)
            found |= {f"state {name} after call {i + 1}": value for name, value in load_file(state).items()}
        if i == 2:
            session.sleep()
    return found


if __name__ == "__main__":
    main()
