"""A virtual environment with what exports need and no more: no PyTorch, no transformers. Nothing is downloaded."""

from __future__ import annotations

import os
import re
import subprocess
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "pydantic", "typer", "rich", "safetensors", "pyyaml"),
    "jinja2",
)
HEAVY = ("torch", "transformers", "networkx", "huggingface-hub", "onnx", "onnx-ir", "accelerate")


def make_bare(folder: Path) -> Path:
    """The interpreter of a new environment, into which the packages of this one are linked."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in closure(NEEDED):
        for file in metadata.distribution(name).files or ():
            top = file.parts[0]
            source = Path(str(metadata.distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(source)
    return folder / "bin" / "python"


def closure(names: tuple[str, ...]) -> list[str]:
    """Distributions and all that they need, of which the heavy ones (a tokenizer's way to a hub) are left out."""
    found: dict[str, None] = {}
    left = list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found or name in HEAVY:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another system or version of Python
            continue
        found[name] = None
        left += [re.split(r"[^\w.-]", text)[0] for text in requires if "extra ==" not in text]
    return list(found)


def run_bare(python: Path, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the environment's Python on this checkout, to its end."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(python), *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
