"""What a person names as a model, or has in its folder, and is not quite one: said with what to name, or to fetch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sleepc.errors import SleepcError, UsageError
from sleepc.hf.load import load_module
from sleepc.hf.resolve import resolve
from sleepc.hf.tokenizer import load_tokenizer
from sleepc.progress import silent
from tests.cli.models import save_model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_pointer_of_git_lfs_is_no_file(saved: Path, tmp_path: Path, name: str) -> None:
    """A clone without git-lfs has them for all large files."""
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / name).write_text(POINTER)
    with pytest.raises(SleepcError, match=rf"{name} is only a Git LFS pointer") as caught:
        _read(folder)
    assert "git lfs pull" in caught.value.fix


@pytest.mark.parametrize("name", ["x.gguf", "x.GGUF"])
def test_a_pointer_to_a_gguf_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(SleepcError, match="Git LFS pointer"):
        resolve(tmp_path / name, silent)
    (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        resolve(tmp_path / name, silent)


def test_what_to_name_instead_is_said(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(saved / "model.safetensors", silent)
    assert f"Name its folder: {saved}" in caught.value.fix
    (tmp_path / "x-Q4_0.GGUF").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="has no config") as caught:
        resolve(tmp_path, silent)
    assert str(tmp_path / "x-Q4_0.GGUF") in caught.value.fix


def _read(folder: Path) -> None:
    load_module(resolve(folder, silent))
    load_tokenizer(folder)
