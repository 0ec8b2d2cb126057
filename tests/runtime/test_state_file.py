"""State files: what they say, and every way in which one is refused."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.runtime.session import Session
from sleepc.runtime.steps import Signature
from tests.runtime.fake import FakeState, FakeSteps

Header = dict[str, Any]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    session = Session(FakeSteps(), batch=2, identity="one")
    session.feed([[1, 2, 3, 4, 5], [6, 7]])
    session.save_state(tmp_path / "state.safetensors")
    return tmp_path / "state.safetensors"


def edit(path: Path, change: Callable[[Header], object], *, seal: bool = True) -> None:
    """Change the header of a safetensors file and leave its data; with `seal` its checksum is of what it is now."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    if seal and "__metadata__" in header:
        header["__metadata__"]["sha256"] = checksum(header, data[8 + length :])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def checksum(header: Header, data: bytes) -> str:
    """Of metadata and arrays, as a file has it."""
    rest = {key: text for key, text in header["__metadata__"].items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(header.keys() - {"__metadata__"}):
        entry = header[name]
        digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
        digest.update(data[slice(*entry["data_offsets"])])
    return digest.hexdigest()


def refused(path: Path, message: str, **options: Any) -> SleepcError:
    """The error of loading; the session is as it was before."""
    session = Session(options.pop("steps", FakeSteps()), batch=2, identity="one", **options)
    session.feed([[1], [2]])
    expected = session.select_rows([0, 1]).feed([[3], [4]])
    with pytest.raises(SleepcError, match=f"(?s){message}") as caught:
        session.load_state(path)
    assert caught.value.fix
    np.testing.assert_array_equal(session.feed([[3], [4]]), expected)
    return caught.value


def test_the_file_says_what_it_holds(saved: Path) -> None:
    with safe_open(saved, framework="numpy") as file:
        meta = file.metadata()
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert meta["format"] == "sleepc.state"
    assert meta["version"] == "2"
    assert meta["identity"] == "one"
    assert json.loads(meta["signature"])["0.memory"] == ["bf16", "B", 1]
    assert kinds["0.memory"] == "BF16"
    assert kinds["position"] == "I64"
    assert kinds["slept"] == "BOOL"
    assert kinds["session.logits"] == "F64"
    assert [p.name for p in saved.parent.iterdir()] == [saved.name], "nothing is left beside it"


def test_continue_from_a_file(saved: Path) -> None:
    session = Session(FakeSteps(), batch=2)
    session.feed([[1, 2, 3, 4, 5], [6, 7]])
    other = Session(FakeSteps(), batch=2, identity="one")
    other.load_state(saved)
    assert [t.tolist() for t in other.generate(9)] == [t.tolist() for t in session.generate(9)]
    feeding = [[1, 2], [3, 4, 5]]
    one, two = other.feed(feeding), session.feed(feeding)
    assert one.dtype == two.dtype
    np.testing.assert_array_equal(one, two)


def test_an_empty_session_can_be_kept(tmp_path: Path) -> None:
    Session(FakeSteps()).save_state(tmp_path / "s")
    session = Session(FakeSteps())
    session.feed([1, 2])
    session.load_state(tmp_path / "s")
    with pytest.raises(UsageError, match="nothing to continue from"):
        session.generate(1)
    np.testing.assert_array_equal(session.feed([1, 2]), Session(FakeSteps()).feed([1, 2]))


def test_only_a_state_file_is_replaced_by_one(saved: Path, tmp_path: Path) -> None:
    """Whoever names another file by mistake keeps it; what began as a state may be damaged."""
    session = Session(FakeSteps())
    session.feed([1, 2])
    notes, state, empty = tmp_path / "notes.txt", tmp_path / "state", tmp_path / "empty"
    notes.write_text("mine")
    with pytest.raises(UsageError, match=r"exists and is not a state file"):
        session.save_state(notes)
    assert notes.read_text() == "mine"
    state.write_bytes(saved.read_bytes()[:-7])
    empty.touch()
    for path in (state, empty, state):
        session.save_state(path)
        session.load_state(path)


def test_a_load_repairs_a_broken_session(saved: Path) -> None:
    steps = FakeSteps()
    session = Session(steps, batch=2, identity="one")
    steps.fail_in = "wake"
    with pytest.raises(KeyboardInterrupt):
        session.feed([[1], [2]])
    steps.fail_in = ""
    session.load_state(saved)
    assert session.since.tolist() == [1, 2]


@pytest.mark.parametrize("cut", [0, 7, 8, 100, -1])
def test_cut_off(saved: Path, cut: int) -> None:
    saved.write_bytes(saved.read_bytes()[:cut])
    refused(saved, "cut off or damaged.*feed the text again")


def test_not_a_state_file(saved: Path) -> None:
    edit(saved, lambda h: h.pop("__metadata__"))
    refused(saved, "not a sleepc state file")
    saved.write_text("a poem")
    refused(saved, "cut off or damaged")


def test_any_changed_byte_is_noticed(saved: Path) -> None:
    """Or changes nothing: the state that is loaded is the one that was saved."""
    whole = saved.read_bytes()
    session = Session(FakeSteps(), batch=2, identity="one")
    session.load_state(saved)
    wanted = session.feed([[1, 2], [3, 4]])
    loaded = 0
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 7
        saved.write_bytes(changed)
        other = Session(FakeSteps(), batch=2, identity="one")
        try:
            other.load_state(saved)
        except SleepcError:
            continue
        loaded += 1
        np.testing.assert_array_equal(other.feed([[1, 2], [3, 4]]), wanted)
    assert loaded < 10, "only a space of the header's padding makes no difference"


def test_a_checksum_that_is_wrong_or_gone(saved: Path) -> None:
    whole = saved.read_bytes()
    changes: list[Callable[[Header], object]] = [
        lambda h: h["__metadata__"].update(sha256="0" * 64),
        lambda h: h["__metadata__"].update(sha256=""),
        lambda h: h["__metadata__"].update({"note.x": "more"}),
    ]
    for change in changes:
        edit(saved, change, seal=False)
        refused(saved, "damaged after it was written")
        saved.write_bytes(whole)
    edit(saved, lambda h: h["__metadata__"].pop("sha256"), seal=False)
    refused(saved, "damaged after it was written")


def test_a_file_from_before_there_were_checksums(saved: Path) -> None:
    """It is read, with a note."""
    session = Session(FakeSteps(), batch=2, identity="one")
    session.load_state(saved)
    wanted = session.feed([[1, 2], [3, 4]])
    edit(saved, lambda h: (h["__metadata__"].pop("sha256"), h["__metadata__"].update(version="1")), seal=False)
    with pytest.warns(SleepcWarning, match="before state files had a checksum"):
        session.load_state(saved)
    np.testing.assert_array_equal(session.feed([[1, 2], [3, 4]]), wanted)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["/dev/zero", "itself", "a pipe", "a sparse file"])
def test_what_is_no_file_or_far_too_large(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "state"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a sparse file":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.symlink_to(path if kind == "itself" else kind)
    refused(path, "cannot read state|too many for a state of this model")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path / "none", "cannot read"), UsageError)
    assert isinstance(refused(tmp_path, "cannot read"), UsageError)
    session = Session(FakeSteps())
    with pytest.raises(SleepcError, match=r"(?s)cannot be written.*choose a folder"):
        session.save_state(tmp_path / "none" / "s")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SleepcError, match="it exists and is not a file"):
        session.save_state(tmp_path / "folder")
    with pytest.raises(UsageError, match="not a file name"):
        session.save_state("")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_another_version(saved: Path) -> None:
    edit(saved, lambda h: h["__metadata__"].update(version="3"))
    refused(saved, "version 3, and this sleepc reads 2.*the sleepc that wrote it")


def test_another_model(saved: Path) -> None:
    refused(saved, r"another model.*window \('4' in the file, '5' here\)", steps=FakeSteps(5))
    refused(saved, "another model.*vocab", steps=FakeSteps(4, 12))
    edit(saved, lambda h: h["__metadata__"].update(identity="two"))
    refused(saved, r"another model.*identity \('two'")


def test_slots_that_heads_share_otherwise(tmp_path: Path) -> None:
    """As many in all: the arrays have the same shapes."""
    steps, other = FakeSteps(), FakeSteps()
    steps.budgets, other.budgets = {1: (3, 1)}, {1: (1, 3)}
    session = Session(steps, batch=2, identity="one")
    session.save_state(tmp_path / "state")
    with pytest.raises(SleepcError, match=r"another model.*budgets"):
        Session(other, batch=2, identity="one").load_state(tmp_path / "state")
    session.load_state(tmp_path / "state")


class Wider(FakeSteps):
    def signature(self) -> Signature:
        return {**super().signature(), "1.S": ("f32", ("B", 2, 4))}


class Narrower(FakeSteps):
    def signature(self) -> Signature:
        return {name: kind for name, kind in super().signature().items() if name != "1.S"}


@pytest.mark.parametrize("steps", [Wider(), Narrower()])
def test_another_signature(saved: Path, steps: FakeSteps) -> None:
    refused(saved, r"array 1\.S \(\['f32', 'B', 2, 3\] in the file", steps=steps)


@pytest.mark.parametrize("text", ["{", "[]", "{} ", "[" * 100_000])
def test_a_signature_that_is_none(saved: Path, text: str) -> None:
    edit(saved, lambda h: h["__metadata__"].update(signature=text))
    refused(saved, "another model")


def test_another_batch(saved: Path) -> None:
    session = Session(FakeSteps(), identity="one")
    with pytest.raises(SleepcError, match=r"2 rows, and this session 1.*\n.*batch=2"):
        session.load_state(saved)


def test_tensors_that_are_not_what_the_metadata_says(saved: Path) -> None:
    whole = saved.read_bytes()
    edit(saved, lambda h: h["1.S"].update(shape=[2, 3, 2]))
    refused(saved, r"array 1\.S of the state file is F32 \[2, 3, 2\], not F32 \[2, 2, 3\]")
    saved.write_bytes(whole)
    edit(saved, lambda h: h["0.memory"].update(dtype="F16"))
    refused(saved, r"array 0\.memory of the state file is F16")
    saved.write_bytes(whole)
    edit(saved, lambda h: h.update(extra=h.pop("1.S")))
    refused(saved, r"arrays 1\.S, extra")


@pytest.mark.parametrize(("name", "value"), [("since", 4), ("since", -1), ("position", -1)])
def test_impossible_clocks(saved: Path, name: str, value: int) -> None:
    data = bytearray(saved.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    start = 8 + length + json.loads(data[8 : 8 + length])[name]["data_offsets"][0]
    data[start : start + 8] = struct.pack("<q", value)
    saved.write_bytes(data)
    edit(saved, lambda h: None)
    refused(saved, "clocks are impossible")


@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")])
def test_a_failed_write_leaves_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    before = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, step, full)
    session = Session(FakeSteps())
    with pytest.raises(SleepcError, match="No space left on device"):
        session.save_state(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    session.feed([1])


def test_a_backend_whose_arrays_are_not_its_signature(tmp_path: Path) -> None:
    def arrays(change: Callable[[dict[str, Any]], object]) -> FakeSteps:
        class Lying(FakeSteps):
            def to_named_arrays(self, state: FakeState) -> dict[str, Any]:
                held = super().to_named_arrays(state)
                change(held)
                return held

        return Lying()

    lies: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (lambda a: a.pop("1.S"), r"differ in 1\.S"),
        (lambda a: a.update({"1.S": a["1.S"].astype(np.float64)}), "array is float64"),
        (lambda a: a.update({"1.S": a["1.S"][:, :1]}), r"float32 \[1, 1, 3\].*f32 \[1, 2, 3\]"),
        (lambda a: a.update(since=a["since"] + 1), r"backend counts \[2\].*session \[1\]"),
    ]
    for change, message in lies:
        session = Session(arrays(change))
        session.feed([1])
        with pytest.raises(SleepcError, match=f"(?s){message}"):
            session.save_state(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_odd_layout_is_written_in_order(tmp_path: Path) -> None:
    class Turned(FakeSteps):
        def to_named_arrays(self, state: FakeState) -> dict[str, Any]:
            held = super().to_named_arrays(state)
            held["1.S"] = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(1, 2, 3))
            return held

    Session(Turned()).save_state(tmp_path / "s")
    session = Session(FakeSteps())
    session.load_state(tmp_path / "s")
    assert session._state.arrays["1.S"].ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_an_element_type_that_no_file_can_hold() -> None:
    class Odd(FakeSteps):
        def signature(self) -> Signature:
            return {**super().signature(), "x": ("c64", ("B",))}

    with pytest.raises(SleepcError, match="element type 'c64'"):
        Session(Odd())
