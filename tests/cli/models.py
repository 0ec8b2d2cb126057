"""Tiny checkpoints on disk, with a tokenizer, and the command line in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.families import VOCAB, make_module

ROOT = Path(__file__).resolve().parents[2]


def save_model(folder: Path, name: str = "llama", module: nn.Module | None = None) -> Path:
    """A checkpoint of the family in float32, with a tokenizer of VOCAB words "w0" .. ."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    module = module or make_module(name, torch.float32)
    module.save_pretrained(folder)  # type: ignore[operator]
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sleepc(
    *arguments: object, stdin: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sleepc", *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        },
        timeout=250,
    )


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command with --json printed; it must have succeeded."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def run_here(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run a command in this process: exit code, stdout, stderr."""
    from sleepc.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return int(caught.value.code or 0), said.out, said.err
