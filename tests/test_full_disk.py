"""A disk that is full at any byte: one error that names the target, nothing half-written, what was there is whole."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sleepc
from sleepc.api import Program
from sleepc.errors import SleepcError
from tests.families import family


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """Files may have `most` bytes: a larger one is what a full disk is (EFBIG)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def program() -> Program:
    return sleepc.convert(family("llama", torch.float32).module, {"window": 8, "sinks": 2})


def save(program: Program, target: Path) -> None:
    replace(program).save(target)  # which notes its place


def export(program: Program, target: Path) -> None:
    program.export(target)


def export_in_blocks(program: Program, target: Path) -> None:
    program.export(target, precision="int8")


def sizes(folder: Path) -> list[int]:
    return sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()})


@pytest.mark.parametrize("write", [save, export, pytest.param(export_in_blocks, marks=pytest.mark.slow)])
def test_at_any_byte(program: Program, tmp_path: Path, write: Callable[[Program, Path], None]) -> None:
    """Just short of every file's end, in its middle, and before its first byte."""
    target = tmp_path / "out"
    write(program, tmp_path / "whole")
    found = sizes(tmp_path / "whole")
    limits = {size - 1 for size in found} | {size // 2 for size in found} | {1}
    for most in sorted(limits)[:: max(len(limits) // 5, 1)]:
        with files_of(most), pytest.raises(SleepcError, match="the disk is full") as caught:
            write(program, target)
        assert caught.value.where == str(target)
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    write(program, target)
    assert sorted(p.name for p in target.rglob("*")) == sorted(p.name for p in (tmp_path / "whole").rglob("*"))
