"""GGUF files, made here by the gguf package from tiny models, become directories with the same model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.hf import gguf as subject
from sleepc.hf.gguf_file import SPLIT_FIX
from sleepc.hf.tokenizer import load_tokenizer

pytest.importorskip("gguf", reason="the gguf package is not installed")
pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate, which is not installed")

from tests.hf.ggufs import tiny, write_gguf

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tiny("Llama"), tmp_path / "tiny.gguf")


def convert(path: Path) -> Path:
    return subject.gguf_to_directory(path, lambda what, share: None)


FIRST = """
import sys
from pathlib import Path
from sleepc.hf.gguf import gguf_to_directory
print(gguf_to_directory(Path(sys.argv[1]), lambda what, share: None))
sys.exit("torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """(file, directory, what was said) of a conversion that was begun where modules of strangers lie."""
    place = tmp_path_factory.mktemp("first")
    model, strange = tiny("Llama"), {"a.new.thing": 3}
    path = write_gguf(model, place / "tiny.gguf", metadata=strange, tokenizer={"ggml.pre": "newest"})
    trap = place / "trap"
    (trap / "sleepc").mkdir(parents=True)
    for stranger in ("torch.py", "gguf.py", "sleepc/__init__.py"):
        (trap / stranger).write_text("raise SystemExit('a stranger ran')")
    environment = os.environ | {"SLEEPC_CACHE": str(place / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", FIRST, str(path)]
    done = subprocess.run(command, cwd=trap, env=environment, capture_output=True, text=True)
    # The memory of dequantisation is the child's; the one that asks does not even import PyTorch.
    assert done.returncode == 0, done.stderr
    return path, Path(done.stdout.strip()), done.stderr


def test_the_directory_holds_the_same_model(first: tuple[Path, Path, str]) -> None:
    _, folder, _ = first
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert [path for path in folder.parent.iterdir() if path != folder] == []
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=False)
    model.eval()
    tokens = torch.arange(2, 26)[None]
    with torch.no_grad():
        assert torch.allclose(model(tokens).logits, tiny("Llama")(tokens).logits, atol=1e-4)

    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("abcd ef")) == "abcd ef"
    assert tokenizer.eos_ids == (1,)


def test_a_file_is_converted_once_and_what_is_not_carried_over_is_said_every_time(
    first: tuple[Path, Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(path: Path, target: Path) -> list[str]:
        raise AssertionError("the second time nothing is converted")

    path, folder, said = first
    monkeypatch.setenv("SLEEPC_CACHE", str(folder.parent))
    monkeypatch.setattr(subject, "_convert_in_child", never)
    with pytest.warns(SleepcWarning) as caught:
        assert convert(path) == folder
    for texts in ([said], [str(each.message) for each in caught]):
        assert any("llama.a.new.thing" in text for text in texts)
        assert any("tokenizer.ggml.pre = newest" in text for text in texts)
    monkeypatch.setattr(subject, "READER", subject.READER + 1)  # what an older reader made is not taken
    with pytest.raises(AssertionError, match="the second time"):
        convert(path)


def test_what_the_child_refuses_is_an_error_of_its_kind(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tiny("Llama"), tmp_path / "x.gguf", others={"split.no": 1, "split.count": 3})
    with pytest.raises(UsageError, match="part 2 of 3") as caught:
        convert(path)
    assert (caught.value.where, caught.value.exit_code) == (str(path), 2)
    assert caught.value.on_command_line[2] == SPLIT_FIX
    assert list(cache.iterdir()) == []


def test_flags_in_what_the_child_says_stay_flags() -> None:
    """The command line shows the words that the error was raised with, not Python's for them."""
    program = "import sys; from sleepc.hf import gguf_child as c; from sleepc.errors import UsageError\n"
    program += "def convert(*given): raise UsageError('no', fix='Use --force.')\n"
    program += "c.convert = convert; sys.exit(c.main('x', 'y'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout) == {"exit_code": 2, "what": "no", "fix": "Use --force."}


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_a_truncated_file_leaves_nothing_behind(file: Path, cache: Path, share: float) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(SleepcError, match="cannot be read") as caught:
        convert(file)
    assert caught.value.where == str(file)
    assert "Traceback" not in str(caught.value)
    assert list(cache.iterdir()) == []


def test_what_is_no_gguf_file(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "x.gguf"
    with pytest.raises(SleepcError, match="cannot read"):
        convert(path)
    path.write_bytes(b"GGML and more")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        convert(path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        convert(path)


def test_a_part_is_refused_by_its_name_before_it_is_read(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model-00002-of-00003.gguf"
    path.write_bytes(subject.MAGIC)
    with pytest.raises(UsageError, match="part 2 of 3"):
        convert(path)


def test_without_the_gguf_package_it_says_what_to_install(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(subject.MAGIC)
    monkeypatch.setattr(subject, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs gguf") as caught:
        convert(path)
    assert "sleepc[gguf]" in caught.value.fix


BEGIN = """
import sys
from pathlib import Path
from sleepc.cli.ending import endable
from sleepc.hf.gguf import gguf_to_directory
with endable():
    gguf_to_directory(Path(sys.argv[1]), lambda what, share: print(what, flush=True))
"""


def _begun(file: Path, cache: Path) -> subprocess.Popen[str]:
    """A process in the middle of a conversion, which would end by itself if nobody read what it says."""
    command = [sys.executable, "-c", BEGIN, str(file)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    while "dequantising" not in process.stdout.readline():
        assert process.poll() is None
    while not (cache.is_dir() and any(cache.iterdir())):
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_conversion_that_is_ended_leaves_nothing(file: Path, cache: Path, number: signal.Signals) -> None:
    with _begun(file, cache) as process:
        process.send_signal(number)
    assert process.returncode != 0
    assert list(cache.iterdir()) == []


def test_what_a_killed_conversion_left_goes_at_the_next_one(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _begun(file, cache) as process:
        process.kill()
    assert len(list(cache.iterdir())) == 1

    def quick(path: Path, target: Path) -> list[str]:
        (target / "config.json").write_text("{}")
        return []

    monkeypatch.setattr(subject, "_convert_in_child", quick)
    with pytest.warns(SleepcWarning, match="a process that was killed had left"):
        folder = convert(file)
    assert list(cache.iterdir()) == [folder]
