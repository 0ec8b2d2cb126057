"""onnxruntime-genai in an environment of its own, and models by its own builder: a checkpoint in, folders out."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import time
from pathlib import Path

import peers
from common import Row, console
from peers import CannotBuild

from sleepc.hf.resolve import Checkpoint

GENAI = "onnxruntime-genai==0.18.0"


def python_of(folder: Path) -> Path:
    """The environment's Python. Its builder needs torch and transformers: it sees those of the running environment,
    behind its own packages. Raises CannotBuild.
    """
    python = peers.environment(folder, GENAI)
    inside = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(inside, check=True, capture_output=True, text=True).stdout.strip())
    (site / "builder_needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def build(python: Path, checkpoint: Checkpoint, precision: str, folder: Path) -> Row:
    """The checkpoint as a model of genai's for its CPU provider, made by its builder; seconds (0: it was there).

    Raises CannotBuild.
    """
    started = time.perf_counter()
    if not (folder / "genai_config.json").is_file():
        console.log(f"genai's builder, {precision}")
        command = [str(python), "-m", "onnxruntime_genai.models.builder", "-m", str(_named(checkpoint, folder))]
        command += ["-o", str(folder), "-p", precision, "-e", "cpu"]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise CannotBuild(f"genai's builder failed:\n{done.stderr[-3000:]}")
    return {"genai_seconds": time.perf_counter() - started}


def _named(checkpoint: Checkpoint, folder: Path) -> Path:
    """The checkpoint with `architectures` in its config, which the builder asks for and GGUF files do not have."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    copy = folder.with_name(f"{folder.name}.checkpoint")
    copy.mkdir(parents=True, exist_ok=True)
    for path in checkpoint.folder.iterdir():
        if not (copy / path.name).exists():
            (copy / path.name).symlink_to(path.resolve())
    config = dict(checkpoint.config)
    config["architectures"] = config.get("architectures") or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config["model_type"]]]
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    return copy
