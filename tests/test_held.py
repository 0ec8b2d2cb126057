"""What was written is what is run: a program holds the files that it opened, whatever comes to stand at their paths."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import sleepc
from sleepc.api import Program
from sleepc.errors import SleepcError, UsageError
from tests.cli.models import save_model
from tests.test_full_disk import files_of

TOKENS = [i * 7 % 61 for i in range(21)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one architecture; every header of one is that of the other."""
    one = save_model(tmp_path_factory.mktemp("models") / "one")
    other = shutil.copytree(one, one.parent / "other")
    weights = {name: value.flip(0).clone() for name, value in load_file(one / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    return one, other


@pytest.fixture(scope="module")
def artifacts(models: tuple[Path, Path]) -> tuple[Path, Path]:
    """Standalone artifacts of both."""
    made = []
    for model in models:
        program = sleepc.convert(model, {"window": 8, "sinks": 2})
        made.append(program.save(model.with_suffix(".artifact"), standalone=True))
    return made[0], made[1]


@pytest.fixture
def place(artifacts: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the first, to be replaced."""
    return shutil.copytree(artifacts[0], tmp_path / "artifact")


def logits(program: Program) -> np.ndarray:
    return program.session().feed(TOKENS)


def same(found: np.ndarray, artifact: Path) -> bool:
    """Are these the logits of an artifact? (A tensor at another place of a file may be added up in another order.)"""
    return close(found, logits(sleepc.load(artifact)))


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return np.allclose(found, wanted, atol=1e-5)


def replace_whole(place: Path, other: Path) -> None:
    sleepc.load(other).save(place, standalone=True, force=True)


def replace_weights(place: Path, other: Path) -> None:
    """Each file by itself, as a download does."""
    for file in other.glob("*.safetensors"):
        shutil.copyfile(file, place / "new")
        (place / "new").replace(place / file.name)


@pytest.mark.parametrize("replace", [replace_whole, replace_weights])
@pytest.mark.parametrize("first", ["checked before", "not yet used"])
def test_a_replaced_artifact(
    artifacts: tuple[Path, Path], place: Path, replace: Callable[[Path, Path], None], first: str
) -> None:
    """A program answers with the weights that it was loaded with."""
    program = sleepc.load(place)
    if first == "checked before":
        logits(program)
    replace(place, artifacts[1])
    assert same(logits(program), artifacts[0])
    assert not same(logits(program), artifacts[1])
    program.save(place.parent / "again", standalone=True) if replace is replace_weights else None
    if replace is replace_whole:
        assert same(logits(sleepc.load(place)), artifacts[1])
        for use in (program.tokenizer, lambda: program.save(place.parent / "again")):
            with pytest.raises(SleepcError, match=r"replaced(?s:.*)Load it again"):
                use()
    else:
        assert same(logits(sleepc.load(place.parent / "again")), artifacts[0])
        with pytest.raises(SleepcError, match="have changed since the conversion"):
            logits(sleepc.load(place))


@pytest.mark.parametrize("first", ["checked before", "not yet used"])
def test_weights_that_are_written_over(artifacts: tuple[Path, Path], place: Path, first: str) -> None:
    """In place, without a new file: noticed."""
    program = sleepc.load(place)
    if first == "checked before":
        logits(program)
    for file in artifacts[1].glob("*.safetensors"):
        shutil.copyfile(file, place / file.name)
    with pytest.raises(SleepcError, match="changed"):
        logits(program)


def test_readers_while_it_is_replaced(artifacts: tuple[Path, Path], place: Path) -> None:
    """They get the one or the other, whole, and no error."""
    programs = [sleepc.load(path) for path in artifacts]
    wanted = [logits(program) for program in programs]
    done = threading.Event()
    seen: list[int] = []
    faults: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                found = logits(sleepc.load(place))
                seen.append([close(found, one) for one in wanted].index(True))
        except (SleepcError, ValueError) as error:
            faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(12):
        programs[(n + 1) % 2].save(place, standalone=True, force=True)
        programs = [sleepc.load(path) for path in artifacts]
    done.set()
    reader.join()
    assert not faults
    assert set(seen) == {0, 1}


def test_the_original_is_replaced(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights by reference: what was loaded stays, and nothing is written that refers to other bytes."""
    model = shutil.copytree(models[0], tmp_path / "model")
    program = sleepc.convert(model, {"window": 8, "sinks": 2})
    before = logits(program)
    shutil.copyfile(models[1] / "model.safetensors", model / "new")
    (model / "new").replace(model / "model.safetensors")
    assert close(logits(program), before)
    with pytest.raises(SleepcError, match=r"model\.safetensors was replaced while it was open"):
        program.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with files_of((model / "model.safetensors").stat().st_size - 1), pytest.raises(SleepcError, match="full") as caught:
        program.save(tmp_path / "out", standalone=True)
    assert caught.value.where == str(tmp_path / "out"), "not the original"
    program.save(tmp_path / "out", standalone=True)
    assert close(logits(sleepc.load(tmp_path / "out")), before)


def test_all_files_have_the_rights_of_new_files(artifacts: tuple[Path, Path], tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        sleepc.load(artifacts[0]).save(tmp_path / "out")
    finally:
        os.umask(before)
    rights = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"new.safetensors", "weights.safetensors"} <= set(rights)
    assert set(rights.values()) == {0o644}, rights
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


class TestLinks:
    """Files that are links."""

    @staticmethod
    def in_the_cache(artifact: Path, root: Path, below: str = "") -> Path:
        """The artifact as the hub's cache has it: links of a snapshot to blobs."""
        blobs, snapshot = root / "models--x--y" / "blobs", root / "models--x--y" / "snapshots" / "0123" / below
        blobs.mkdir(parents=True)
        for number, file in enumerate(p for p in sorted(artifact.rglob("*")) if p.is_file()):
            link = snapshot / file.relative_to(artifact)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, blobs / f"{number:040x}")
            link.symlink_to(os.path.relpath(blobs / f"{number:040x}", link.parent))
        return snapshot

    @pytest.mark.parametrize("below", ["", "converted/by-me"])
    def test_of_the_hubs_cache(self, artifacts: tuple[Path, Path], tmp_path: Path, below: str) -> None:
        snapshot = self.in_the_cache(artifacts[0], tmp_path, below)
        assert all(p.is_symlink() for p in snapshot.rglob("*") if not p.is_dir())
        assert same(logits(sleepc.load(snapshot)), artifacts[0])
        (tmp_path / "link").symlink_to(snapshot)
        assert same(logits(sleepc.load(tmp_path / "link")), artifacts[0])
        assert sleepc.load(tmp_path / "link").tokenizer().encode("w3 w4") == [3, 4]

    @pytest.mark.parametrize("where", ["out", "blobs", "models--x--y/blobs/deeper", "models--z/blobs"])
    @pytest.mark.parametrize("file", ["program/head.txt", "new.safetensors", "tokenizer.json"])
    def test_elsewhere(self, artifacts: tuple[Path, Path], tmp_path: Path, where: str, file: str) -> None:
        snapshot = self.in_the_cache(artifacts[0], tmp_path)
        away = tmp_path / where
        away.mkdir(parents=True)
        (snapshot / file).resolve().rename(away / "file")
        (snapshot / file).unlink()
        (snapshot / file).symlink_to(away / "file")
        with pytest.raises(SleepcError, match=f"{file} leads out of the artifact"):
            sleepc.load(snapshot)

    @pytest.mark.parametrize("file", ["program/head.txt", "new.safetensors", "sleepc.json", "tokenizer.json"])
    @pytest.mark.parametrize("to", ["itself", "/dev/zero"])
    def test_loops_and_devices(self, place: Path, file: str, to: str) -> None:
        (place / file).unlink()
        (place / file).symlink_to(place / file if to == "itself" else to)
        with pytest.raises((SleepcError, UsageError)):
            sleepc.load(place).tokenizer()
