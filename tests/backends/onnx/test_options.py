"""Files for runtimes that want less: a graph for one token, and sleeps in plain operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.check.one_token import check_one_token
from sleepc.backends.onnx.emit import MICROSOFT
from sleepc.backends.onnx.manifest import ExportManifest
from sleepc.ir.program import ProgramGraphs
from sleepc.verify.memory_values import shaken
from tests.backends.onnx.exports import lower
from tests.families import VOCAB, family

TOKENS = np.arange(20) * 7 % VOCAB


@pytest.fixture(scope="module")
def program() -> ProgramGraphs:
    """Memories are written by every token, so that a graph for many has Scans."""
    step, _ = family("llama", torch.float32).convert(window=8, sinks=2, write="online", passes=2)
    return shaken(step)


def operators(path: Path) -> Counter[tuple[str, str]]:
    """Of the graph itself: how often each is there, by domain and name."""
    model = onnx.load(path, load_external_data=False)
    return Counter((node.domain, node.op_type) for node in model.graph.node)


def failed(program: ProgramGraphs, folder: Path, manifest: ExportManifest) -> list[str]:
    rows = check_one_token(folder, manifest, TOKENS, program.all_states())
    assert len(rows) == 2
    return [row.figure for row in rows if not row.ok]


def test_files_for_other_runtimes(program: ProgramGraphs, tmp_path: Path) -> None:
    manifest = lower(program, tmp_path, Style(plain_sleeps=True, one_token=True))
    assert manifest.wake_one is not None
    assert next(t.dims for t in manifest.wake_one.inputs if t.name == "tokens") == ("B", 1)
    sleep, one = operators(tmp_path / "sleep_replay.onnx"), operators(tmp_path / "wake_one.onnx")
    assert not any(domain == MICROSOFT for domain, _ in sleep)
    assert not {op for _, op in (*sleep, *one)} & {"If", "Loop", "Scan"}
    assert failed(program, tmp_path, manifest) == []
    model = onnx.load(tmp_path / "wake_one.onnx", load_external_data=False)
    wrong = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    for node in wrong:
        node.op_type = "Tanh"
    (tmp_path / "wake_one.onnx").write_bytes(model.SerializeToString())
    assert (bool(wrong), failed(program, tmp_path, manifest)) == (True, ["logits", "state"])
    assert check_one_token(tmp_path, manifest.model_copy(update={"wake_one": None}), TOKENS, program.all_states()) == []
