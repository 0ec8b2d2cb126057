"""Native layers learn, and what they learned goes out as a checkpoint of transformers' own class."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sleepc as package
from sleepc.memory.parameters import PROJECTION, key_of
from tests.cli.models import run_here
from tests.natives import KEPT, TOKENS, converted, qwen3

FAST = ("--tokens", 340, "--length", 28, "--batch", 4, "--lr", 0.002, "--device", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = converted(tmp_path_factory.mktemp("native"), qwen3(), KEPT).path
    assert path is not None
    return path


@pytest.fixture(scope="module")
def text(made: Path) -> Path:
    """Of so few words that whoever learns anything knows them better."""
    rng, file = random.Random(0), made.parent / "text.jsonl"
    rows = (" ".join(f"w{rng.randrange(1, 20)}" for _ in range(70)) for _ in range(30))
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return file


@torch.no_grad()
def _of_transformers(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return model(input_ids=torch.tensor([TOKENS[:40]])).logits.numpy()


@pytest.mark.parametrize("options", [("distil", "--recall", 0), ("train",)], ids=lambda o: o[0])
def test_what_was_trained_is_exported(
    made: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[object, ...]
) -> None:
    artifact = Path(shutil.copytree(made, tmp_path / "artifact"))
    command, *rest = options
    code, _, err = run_here(capsys, command, artifact, "--text", text, *FAST, *rest)
    assert code == 0, err
    before, after = package.load(made), package.load(artifact)
    key = key_of(0, PROJECTION)
    changed = before.graphs.params[key].materialise() - after.graphs.params[key].materialise()
    assert float(changed.abs().max()) > 1e-5, "the map of queries, keys and values learns"
    wanted = after.session().feed(TOKENS[:40], logits="all")
    assert np.abs(wanted - before.session().feed(TOKENS[:40], logits="all")).max() > 1e-3
    code, _, err = run_here(capsys, "export", artifact, "--to", "hf", "-o", tmp_path / "out", "--text", text)
    assert code == 0, err
    assert np.abs(_of_transformers(tmp_path / "out") - wanted).max() <= 1e-4 * np.abs(wanted).max()
