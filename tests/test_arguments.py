"""Arguments of wrong types from Python: one clear error, before any work, for each that a public call takes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sleepc
from sleepc.backends.onnx.load import load as load_export
from sleepc.errors import UsageError
from sleepc.runtime.arguments import typed
from sleepc.tasks.rule110 import Rule110
from sleepc.train.run import Run
from tests.families import family

ODD = 5, 2.5, b"bytes", {"a": 1}, [5], ("a", 5), object(), True, torch.zeros(3), sleepc.Recipe()


@pytest.fixture(scope="module")
def program() -> sleepc.Program:
    return sleepc.convert(family("llama", torch.float32).module, {"window": 8, "sinks": 2})


def calls(program: sleepc.Program) -> dict[str, Callable[..., Any]]:
    session = program.session()
    own = ("session", "steps", "verify", "adapt", "calibrate", "distil", "train", "save", "export")
    return {
        **{name: getattr(program, name) for name in own},
        **{name: getattr(session, name) for name in ("generate", "restore", "save_state", "load_state")},
        "sleepc.load": sleepc.load,
        "sleepc.convert": sleepc.convert,
        "sleepc.inspect": sleepc.inspect,
        "load_export": load_export,
    }


NEEDED: dict[str, dict[str, Any]] = {
    "generate": {"max_tokens": 1},
    "sleepc.convert": {"model": "nowhere/at/all"},
    "sleepc.inspect": {"target": "nowhere/at/all"},
    "save_state": {"path": "nowhere/at/all"},
    "adapt": {"path": "nowhere/at/all"},
    "save": {"path": "nowhere/at/all"},
    "calibrate": {"text": []},
}


def test_every_argument_of_every_call(program: sleepc.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each odd value is taken for what the call makes of it, or refused with our own error; never one of Python's."""
    monkeypatch.chdir(tmp_path)
    refused = 0
    for where, call in calls(program).items():
        for name in names(call, where):
            for value in ODD:
                refused += is_refused(call, {**NEEDED.get(where, {}), name: value}, f"{where}({name}={value!r})")
    assert refused > 300
    assert list(tmp_path.iterdir()) == []


def names(call: Callable[..., Any], where: str) -> list[str]:
    """Arguments of a call, but flags, which may be true; settings of trainings have a test of their own."""
    signatures = [call, *([Run] if where in ("distil", "train") else [])]
    found = {name: p for each in signatures for name, p in inspect.signature(each).parameters.items()}
    more = ["temperature", "top_k", "top_p"] if where == "generate" else []
    wanted = [name for name, p in found.items() if p.kind is not p.VAR_KEYWORD and "bool" not in str(p.annotation)]
    return [*wanted, *more]


def is_refused(call: Callable[..., Any], arguments: dict[str, Any], where: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(**arguments)
        except sleepc.SleepcError as error:
            return bool(error.what and error.fix) or _not_told(where)
        except Exception as error:  # what it must not be
            raise AssertionError(where) from error
    return False


def _not_told(where: str) -> bool:
    raise AssertionError(f"{where}: what to do?")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: sleepc.load(5), r"path is 5, of type int\nGive a path \(a text, or a pathlib.Path\)\."),  # type: ignore[arg-type]
        (lambda p: p.save(b"x"), r"path is b'x', of type bytes\nGive a path"),
        (lambda p: p.session(device=torch.device("cpu")), r"device is .*, of type device\nGive a text\."),
        (lambda p: p.session(dtype=5), r"dtype is 5, of type int\nGive a text or None\."),
        (lambda p: p.session(batch=1.5), r"batch 1\.5 is not a whole number"),
        (lambda p: p.save("x", force="no"), r"force is 'no', of type str\nGive True or False\."),
        (lambda p: p.distil("notes.txt"), r"text is 'notes.txt', of type str\nGive a list of paths\."),
        (lambda p: p.distil(work=5), r"work is 5, of type int\nGive a path"),
        (lambda p: p.train("khop", half="yes"), r"half is 'yes', of type str\nGive True or False\."),
        (lambda p: p.train("khop", hooks=5), r"hooks is 5, of type int\nGive Hooks or None\."),
        (lambda p: p.session().generate(1, top_p="x"), r"top_p 'x' is not a number"),
        (lambda p: p.distil([5]), r"text is \[5\], of type list\nGive a list of paths\."),
        (lambda p: p.verify(tokens=5), r"tokens is 5, of type int\nGive a list of numbers or None\."),
        (lambda p: p.verify(progress=5), r"progress is 5, of type int"),
        (lambda p: p.session().restore(5), r"snapshot is 5, of type int\nGive Snapshot\."),
        (lambda p: p.train(5), r"task is 5, of type int\nGive a text or Puzzle or None\."),
        (lambda p: p.train(Rule110), r"task is <class .*, of type .*\nGive a text or Puzzle or None\."),
        (lambda p: sleepc.convert(torch.nn.Linear), r"model is <class .*Linear.*, of type type\nGive a path"),  # type: ignore[arg-type]
        (lambda p: p.calibrate(["x"], tokens=-1), r"tokens = -1: input should be greater than or equal to 1"),
        (lambda p: p.session().generate(1, stop_ids=5), r"stop_ids is 5, of type int\nGive a list of numbers\."),
        (lambda p: p.session().save_state("a\0b"), r"path is not a path: embedded null byte"),
        (lambda p: sleepc.load("x" * 5000), r"path is not a path: File name too long"),
        (lambda p: sleepc.inspect("x" * 5000), r"target is not a path: File name too long"),
        (lambda p: p.export(to=5), r"to is 5, of type int"),
        (lambda p: sleepc.convert(5), r"model is 5, of type int\nGive a path .* or Module\."),  # type: ignore[arg-type]
        (lambda p: sleepc.convert("x", 5), r"recipe is 5, of type int\nGive Recipe or a dictionary or None\."),  # type: ignore[arg-type]
    ],
)
def test_words(program: sleepc.Program, call: Callable[[Any], object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(program)


def test_what_is_taken() -> None:
    """Whatever has the meaning: paths of any class, numbers of numpy, arrays for lists."""
    import numpy as np

    @typed
    def call(a: str | Path = "", b: int = 0, *, c: list[int] | None = None, d: float = 0.0, **rest: Any) -> str:
        return f"{a} {b} {c} {d} {rest}"

    class Place:
        def __fspath__(self) -> str:
            return "place"

    assert call("x", 2) == "x 2 None 0.0 {}"
    assert call(Place(), np.int64(3), d=np.float32(1), e="rest").endswith("3 None 1.0 {'e': 'rest'}")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="too many"):
        call("x", 2, 3)  # type: ignore[call-arg,arg-type]
