"""What a Python user is told: keyword arguments instead of flags, short texts, and nothing of torch's logs."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

import sleepc
from sleepc.errors import SleepcWarning, UsageError
from tests.cli.models import ROOT, run_here
from tests.families import make_module

FLAG = re.compile(r"(?<![\w-])--?[a-z]")


@pytest.fixture(scope="module")
def program() -> sleepc.Program:
    return sleepc.convert(make_module("llama", torch.float32), {"window": 8, "sinks": 2})


CALLS: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "device": (lambda p, d: p.session(device="foo"), "device"),
    "cuda": (lambda p, d: p.session(device="cuda:77"), "device"),
    "dtype": (lambda p, d: p.session(dtype="int3"), "dtype"),
    "backend": (lambda p, d: p.session(backend="abacus"), "backend"),
    "narrower dtype": (lambda p, d: p.session(dtype="bfloat16"), "dtype"),
    "target": (lambda p, d: p.export(d / "x", to="tflite"), "to"),
    "precision": (lambda p, d: p.export(d / "x", precision="fp3"), "precision"),
    "window": (lambda p, d: sleepc.convert("x", {"window": 0}), "window"),
    "strategy": (lambda p, d: sleepc.convert("x", {"strategy": "magic"}), "strategy"),
    "settle": (lambda p, d: sleepc.convert("x", {"settle": 0.5}), "settle"),
    "layers": (lambda p, d: sleepc.convert(make_module("llama", torch.float32), {"layers": "77"}), "layers"),
    "stages": (lambda p, d: p.distil(stages="up", work=d / "w"), "stages"),
    "low_rank_lr": (lambda p, d: p.distil(low_rank_lr=-1.0, work=d / "w"), "low_rank_lr"),
    "task": (lambda p, d: p.train("nothing", work=d / "w"), "task"),
    "exists": (lambda p, d: p.save(d), "force=True"),
    "artifact": (lambda p, d: sleepc.load(d), "sleepc.convert"),
}


RECIPES: list[tuple[dict[str, Any], str]] = [
    ({"window": 0}, "window = 0"),
    ({"window": True}, "true and false"),
    ({"passes": "x"}, "passes = 'x'"),
    ({"settle": float("nan")}, "settle = nan"),
    ({"windw": 8}, "Did you mean 'window'?"),
    ({"layers": [1, 2]}, 'layers: "1,2"'),
    ({"keep": {"slots": 0}}, "keep.slots = 0"),
    ({"overrides": [{"layers": "0", "rul": "delta"}]}, "Did you mean 'rule'?"),
]


@pytest.mark.parametrize(("options", "words"), RECIPES)
def test_a_recipe_by_itself_says_what_a_dictionary_says(options: dict[str, Any], words: str) -> None:
    said = []
    unchecked = sleepc.Recipe.model_construct(**options)
    for make in (sleepc.Recipe, lambda **given: sleepc.convert("x", given)):
        with pytest.raises(UsageError, match=re.escape(words)) as caught:
            make(**options)
        said.append(str(caught.value))
    assert said[0] == said[1]
    if options.keys() <= dict(sleepc.Recipe()).keys():
        with pytest.raises(UsageError, match=re.escape(words)):
            sleepc.convert("x", unchecked)


RECIPE_CALLS: list[Callable[[], Any]] = [
    lambda: sleepc.Recipe({"window": 8}),  # type: ignore[call-arg,arg-type]
    lambda: setattr(sleepc.Recipe(), "window", 8),
    lambda: sleepc.Recipe().plan("3"),  # type: ignore[arg-type]
    lambda: sleepc.Recipe().loop_range(0),
]


@pytest.mark.parametrize("number", range(len(RECIPE_CALLS)))
def test_what_a_recipe_does_not_do(number: int) -> None:
    with pytest.raises(UsageError) as caught:
        RECIPE_CALLS[number]()
    assert caught.value.fix


def test_recipes_inside_of_files_are_errors_of_these_files() -> None:
    with pytest.raises(ValidationError):  # which whoever reads a file says in words, with its name
        sleepc.Recipe.model_validate({"window": 0})


@pytest.mark.parametrize("name", CALLS)
def test_errors_speak_of_arguments(name: str, program: sleepc.Program, tmp_path: Path) -> None:
    call, word = CALLS[name]
    with pytest.raises(UsageError) as caught:
        call(program, tmp_path)
    said = f"{caught.value}".replace(str(tmp_path), "")
    assert word in said
    assert not FLAG.search(said), said
    assert said == "".join(
        (caught.value.what, f" ({caught.value.where})" if caught.value.where else "", f"\n{caught.value.fix}")
    ).replace(str(tmp_path), "")


def test_the_command_line_speaks_of_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = run_here(capsys, "convert", tmp_path, "-o", tmp_path)
    assert (code, "--force" in told, "(-o)" in told) == (2, True, True)
    warning = SleepcWarning("Use --passes 1.")
    assert (str(warning), warning.on_command_line) == ("Use passes 1.", "Use --passes 1.")


@pytest.mark.parametrize(
    ("command", "code", "kind"),
    [
        (("convert", "absent", "-o", "out", "--json"), 2, "USAGE"),
        (("convert", "absent", "-o", "out", "--json", "--windw", "8"), 2, "USAGE"),
        (("inspect", "--json", "quantised"), 2, "QUANTISED"),
        (("verify", "broken", "--json"), 1, "FAILED"),
    ],
)
def test_failures_are_one_object_too(
    command: tuple[str, ...],
    code: int,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("quantised/config.json", '{"quantization_config": {"quant_method": "awq"}}'),
        ("broken/sleepc.json", "{"),
    ):
        Path(name).parent.mkdir()
        Path(name).write_text(text)
    found, said, told = run_here(capsys, *command)
    data = json.loads(said)
    assert (found, data["ok"], data["error"]["code"]) == (code, False, kind)
    assert set(data["error"]) == {"code", "what", "where", "fix"}
    assert data["error"]["what"] in told
    assert data["error"]["fix"]


def test_representations_are_short(program: sleepc.Program) -> None:
    for text in (repr(program), repr(program.session())):
        assert len(text) < 200
        assert "window 8" in text


def test_what_cannot_be_pickled_says_what_to_do(program: sleepc.Program) -> None:
    for thing, words in ((program, "program.save"), (program.session(), "save_state")):
        with pytest.raises(UsageError, match="cannot be pickled") as caught:
            ForkingPickler.dumps(thing)  # as between processes
        assert words in caught.value.fix


def test_a_program_can_be_copied(program: sleepc.Program) -> None:
    wanted = program.session().feed([1, 2, 3])
    for made in (copy.copy(program), copy.deepcopy(program)):
        assert made is not program
        assert (made.session().feed([1, 2, 3]) == wanted).all()


def test_a_module_that_is_no_model_is_told_in_two_lines() -> None:
    code = (
        "import sleepc; from torch import nn\n"
        "for module in (nn.Linear(3, 3), nn.LSTM(3, 3)):\n"
        "    try: sleepc.convert(module)\n"
        "    except sleepc.SleepcError as error: print(len(str(error).splitlines()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("2\n2\n", "")
