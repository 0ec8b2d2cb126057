"""The example of a host loop says what `sleepc run` says, where there is neither PyTorch nor sleepc."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sleepc as package
from sleepc.backends.onnx.call import Style
from sleepc.hf.tokenizer import copy_tokenizer
from sleepc.verify.memory_values import shaken
from tests.backends.onnx.exports import lower
from tests.bare import ROOT, make_bare, run_bare
from tests.cli.models import run_here, save_model

EXAMPLE = ROOT / "examples" / "onnx_host_loop.py"
PROMPT = " ".join(f"w{i * 7 % 61}" for i in range(21))
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "columns": ({}, True),
    "whole": ({}, False),
    "recurrent": ({"consolidation": "recurrent", "passes": 2}, True),
    "replace": ({"overrides": [{"layers": "1", "strategy": "replace"}]}, True),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bare(tmp_path_factory.mktemp("bare"))


@pytest.mark.filterwarnings("ignore::sleepc.errors.SleepcWarning")  # of passes that nothing was trained for
@pytest.mark.parametrize("case", CASES)
def test_it_says_what_sleepc_says(
    model: Path, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    recipe, columns = CASES[case]
    graphs = shaken(package.convert(model, {"window": 8, "sinks": 2, **recipe}).graphs)
    (tmp_path / "onnx.json").write_text(lower(graphs, tmp_path, Style(columns=columns)).model_dump_json())
    copy_tokenizer(model, tmp_path)
    code, wanted, said = run_here(capsys, "run", tmp_path, PROMPT, "--max-tokens", 25, "--backend", "onnx")
    assert code == 0, said
    alone = shutil.copy(EXAMPLE, tmp_path / "loop.py")  # outside the checkout, whose folder is not to be imported from
    done = run_bare(bare, "-I", alone, tmp_path, PROMPT, 25)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == wanted
    assert len(wanted.split()) > 3


def test_it_ends_where_the_model_ends(model: Path, bare: Path, tmp_path: Path) -> None:
    graphs = package.convert(model, {"window": 8, "sinks": 2}).graphs
    (tmp_path / "onnx.json").write_text(lower(graphs, tmp_path, Style()).model_dump_json())
    copy_tokenizer(model, tmp_path)
    said = run_bare(bare, EXAMPLE, tmp_path, PROMPT, 9).stdout.split()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": int(said[3][1:])}))
    again = run_bare(bare, EXAMPLE, tmp_path, PROMPT, 9).stdout.split()
    assert again == said[: said.index(said[3])]


def test_it_is_short_and_imports_nothing_of_ours() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    tree = ast.walk(ast.parse(text))
    names = {a.name for n in tree if isinstance(n, ast.Import) for a in n.names}
    assert names == {"json", "sys", "numpy", "onnxruntime"}
    assert "sleepc." not in text
