"""The commands of docs/serving.md against the engines' own parsers and classes, in wheels that lie in SLEEPC_WHEELS."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "serving.md"
ENGINES = ("vllm", "sglang")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> tuple[str, ZipFile]:
    """Its name, and its wheel."""
    found = sorted(Path(os.environ.get("SLEEPC_WHEELS", "/nowhere")).glob(f"{request.param}-*.whl"))
    if not found:
        pytest.skip(f"no wheel of {request.param} in SLEEPC_WHEELS")
    return request.param, ZipFile(found[-1])


def asked(text: str, name: str) -> set[str]:
    """The options of its commands on the page."""
    lines = [line for line in text.splitlines() if re.match(rf"    {name} serve ", line)]
    return {option for line in lines for option in re.findall(r"--[a-z][a-z-]*", line)}


def options(name: str, wheel: ZipFile) -> set[str]:
    """Those that its server takes: literals of add_argument, or SGLang's fields with their aliases."""
    if name == "vllm":
        calls = [node for node in walk(wheel, "vllm/engine/arg_utils.py") if isinstance(node, ast.Call)]
        adding = [call for call in calls if getattr(call.func, "attr", "") == "add_argument"]
        return {text for call in adding for each in call.args for text in literals(each)}
    found: set[str] = set()
    for path in wheel.namelist():
        if re.fullmatch(r"sglang/srt/arg_groups/fields/\w+\.py", path):
            for node in walk(wheel, path):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found |= {"--" + node.target.id.replace("_", "-"), *literals(node.annotation)}
    return found


def walk(wheel: ZipFile, path: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(wheel.read(path)))


def literals(node: ast.AST) -> set[str]:
    """The texts below it that are options."""
    texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return {text for text in texts if re.fullmatch(r"--[a-z][a-z-]*", text)}


def test_every_option_of_the_page_is_one(engine: tuple[str, ZipFile]) -> None:
    name, wheel = engine
    known = options(name, wheel)
    wanted = asked(PAGE.read_text(), name)
    assert len(known) > 100
    assert len(wanted) >= 3
    assert wanted <= known
    assert not {"--tensor-parallel-sise"} & known


def test_the_class_is_known(engine: tuple[str, ZipFile]) -> None:
    """By its name in config.json, and which layers it takes for native."""
    name, wheel = engine
    if name == "vllm":
        assert '"Qwen3_5ForCausalLM": ("qwen3_5", "Qwen3_5ForCausalLM")' in source(
            wheel, "model_executor/models/registry.py"
        )
        assert "config.layer_types[" in source(wheel, "model_executor/models/qwen3_5.py")
        assert "mamba_ssm_dtype" in source(wheel, "model_executor/models/config.py")
        return
    models = source(wheel, "srt/models/qwen3_5_text.py")
    assert re.search(r"^EntryClass = .*Qwen3_5ForCausalLM", models, re.MULTILINE)
    assert 'model_type = "qwen3_5_text"' in source(wheel, "srt/configs/qwen3_5.py")
    assert "self.full_attention_interval == 0" in source(wheel, "srt/configs/qwen3_next.py")


def source(wheel: ZipFile, path: str) -> str:
    """A file of the engine's package."""
    package = "vllm" if any(name.startswith("vllm/") for name in wheel.namelist()) else "sglang"
    return wheel.read(f"{package}/{path}").decode()


def test_the_page_has_commands_of_both() -> None:
    text = PAGE.read_text()
    assert asked(text, "vllm") >= {"--tensor-parallel-size", "--max-model-len"}
    assert asked(text, "sglang") >= {"--model-path", "--tp-size"}
