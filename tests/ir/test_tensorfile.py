"""safetensors files: damage of every kind is a SleepcError, and what is sound is mapped, hashed and found again."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sleepc import held_file
from sleepc.errors import SleepcError
from sleepc.ir import locate, tensorfile
from sleepc.ir.locate import Locator
from sleepc.ir.tensorfile import TensorFile, UnreadableDtype, sample_places, scan

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
ONE = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": ONE["a"] | changes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


DAMAGED = {
    "no JSON": (b"{]", 8),
    "not UTF-8": (b'{"\xff": 1}', 8),
    "deeply nested": (b"[" * 100_000 + b"]" * 100_000, 0),
    "a list": ([], 8),
    "a number": (b"12", 8),
    "an entry that is no object": ({"a": 3}, 8),
    "an entry that is text": ({"a": "data_offsets"}, 8),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8),
    "offsets of one number": (entry(data_offsets=[0]), 8),
    "offsets that are text": (entry(data_offsets=["0", "8"]), 8),
    "offsets before the data": (entry(data_offsets=[-4, 4]), 8),
    "offsets backwards": (entry(data_offsets=[8, 0]), 8),
    "a hole before a tensor": (entry(data_offsets=[4, 12]), 12),
    "a dtype that is none": (entry(dtype="f 4"), 8),
    "a dtype that is a list": (entry(dtype=[]), 8),
    "a shape that is a number": (entry(shape=2), 8),
    "a shape of fractions": (entry(shape=[2.0]), 8),
    "a shape of booleans": (entry(shape=[True, 2]), 8),
    "a negative shape": (entry(shape=[-2]), 8),
    "a shape of other bytes": (entry(shape=[3]), 8),
    "many dimensions": (entry(shape=[1] * 9 + [2]), 8),
    "an empty tensor of impossible size": (entry(shape=[0, 1 << 40, 1 << 40], data_offsets=[0, 0]), 0),
    "overlapping tensors": (ONE | {"b": ONE["a"] | {"data_offsets": [4, 12]}}, 12),
    "the same bytes twice": (ONE | {"b": ONE["a"]}, 8),
    "less data than described": (ONE, 7),
    "more data than described": (ONE, 9),
}


@pytest.mark.parametrize("dtype", ["F4", "F8_E4M3", "U32", "C64"])
def test_a_dtype_that_cannot_be_read_is_named(path: Path, dtype: str) -> None:
    with pytest.raises(UnreadableDtype, match=rf"tensor a is stored as {dtype}") as caught:
        TensorFile(write(path, entry(dtype=dtype), bytes(8)))
    assert (caught.value.tensor, caught.value.dtype) == ("a", dtype)


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers(path: Path, name: str) -> None:
    header, size = DAMAGED[name]
    write(path, header, bytes(size))
    with pytest.raises(SleepcError, match=r"model\.safetensors is not a valid safetensors file") as caught:
        TensorFile(path)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("length", [0, 1, 1 << 20, (100 << 20) + 1, 1 << 62])
def test_lengths_of_header_that_cannot_be(path: Path, length: int) -> None:
    write(path, ONE, bytes(8), length)
    with pytest.raises(SleepcError, match="header cannot be"):
        TensorFile(path)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9])
def test_truncated_at_the_start(path: Path, size: int) -> None:
    write(path, ONE, bytes(8))
    os.truncate(path, size)
    with pytest.raises(SleepcError):
        TensorFile(path)


def test_what_is_not_there_or_no_file(path: Path) -> None:
    for bad in (path, path.parent):
        with pytest.raises(SleepcError, match="cannot read"):
            TensorFile(bad)


def test_sound_files_of_another_writer(path: Path) -> None:
    tensors = {"b": torch.arange(6).view(2, 3), "a": torch.randn(3, dtype=torch.bfloat16), "none": torch.empty(0, 4)}
    tensors |= {"flag": torch.tensor([True, False]), "number": torch.tensor(1.5, dtype=torch.float64)}
    save_file(tensors, path, metadata={"format": "pt"})
    file = TensorFile(path)
    assert set(file.tensors) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(file.map(name), value)
        assert file.map(name).dtype == value.dtype
    with pytest.raises(SleepcError, match="no tensor c"):
        file.map("c")


def test_a_tensor_at_an_odd_byte(path: Path) -> None:
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    header["b"] = {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}
    write(path, header, b"\x07" + struct.pack("<2f", 1.5, -2.0))
    file = TensorFile(path)
    assert file.map("a").tolist() == [7]
    assert file.map("b").tolist() == [1.5, -2.0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*tensorfile.DTYPES, "F8"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.tuples(st.integers(-1, 32), st.integers(-1, 32)) | JSON,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=JSON | st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRY | JSON), size=st.integers(0, 32)
)
def test_any_header(tmp_path: Path, header: Any, size: int) -> None:
    """A header is sound, and then every tensor can be had, or it is a SleepcError; nothing else comes out."""
    path = write(tmp_path / "any.safetensors", header, bytes(size))
    try:
        file = TensorFile(path)
    except SleepcError:
        return
    for name, found in file.tensors.items():
        assert file.map(name).shape == found.shape
        assert file.sha256(name, finite=True) == hashlib.sha256(bytes(found.end - found.start)).hexdigest()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=64))
def test_any_bytes(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(raw)
    with suppress(SleepcError):
        assert not TensorFile(path).tensors  # an empty header is the only sound one so small


def test_mapping_does_not_copy(path: Path) -> None:
    save_file({"a": torch.zeros(4 << 20), "b": torch.ones(4 << 20)}, path)
    file = TensorFile(path)
    before = _anonymous()
    first, again, other = file.map("a"), file.map("a"), file.map("b")
    assert first.data_ptr() == again.data_ptr()
    assert other.data_ptr() == first.data_ptr() + file.tensors["b"].start - file.tensors["a"].start
    assert float(other.sum()) == 4 << 20
    assert _anonymous() - before < 4 << 20


def test_a_write_to_a_mapped_tensor_stays_here(path: Path) -> None:
    save_file({"a": torch.zeros(4)}, path)
    bytes_before = path.read_bytes()
    TensorFile(path).map("a").fill_(3.0)
    assert path.read_bytes() == bytes_before


def _anonymous() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Anonymous:"))


def test_hashes_are_of_the_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_file, "PIECE", 1024)
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{n}": torch.randn(n, generator=generator) for n in (0, 1, 255, 256, 257, 2000)}
    save_file(tensors, path)
    file = TensorFile(path)
    want = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in tensors.items()}
    assert file.hashes() == want
    shares: list[float] = []
    assert scan([file], shares.append) == {path: want}
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("place", [0, 1023, 1024, 2999])
def test_nan_and_infinity_are_found(
    path: Path, monkeypatch: pytest.MonkeyPatch, place: int, dtype: torch.dtype, bad: float
) -> None:
    monkeypatch.setattr(held_file, "PIECE", 2048)
    value = torch.full((3000,), torch.finfo(dtype).max, dtype=dtype)
    value[1::2] = torch.finfo(dtype).min
    save_file({"fine": value.clone()}, path)
    scan([TensorFile(path)])
    value[place] = bad
    save_file({"fine": torch.zeros(3, dtype=dtype), "broken": value}, path)
    with pytest.raises(SleepcError, match="NaN or infinity: tensor broken"):
        scan([TensorFile(path)])
    assert TensorFile(path).sha256("broken") == hashlib.sha256(value.view(torch.uint8).numpy().tobytes()).hexdigest()


def test_integers_are_never_infinite(path: Path) -> None:
    save_file({"a": torch.full((8,), -1), "b": torch.full((8,), 255, dtype=torch.uint8)}, path)
    scan([TensorFile(path)])


def test_a_file_that_became_shorter(path: Path) -> None:
    save_file({"a": torch.zeros(40_000)}, path)
    file = TensorFile(path)
    os.truncate(path, file.size - 4)
    for use in (file.map, file.sha256, file.sample):
        with pytest.raises(SleepcError, match=r"model\.safetensors"):
            use("a")
    with pytest.raises(SleepcError, match="its header describes"):
        TensorFile(path)


def test_an_open_file_stays_what_it_is(path: Path) -> None:
    """Another one at its path is not read; one that is written over is noticed."""
    old, new = torch.zeros(40_000), torch.ones(40_000)
    save_file({"a": old}, path)
    file = TensorFile(path)
    digest, sample = file.sha256("a"), file.sample("a")
    path.unlink()
    save_file({"a": new}, path)
    assert torch.equal(file.map("a"), old)
    assert (file.sha256("a"), file.sample("a")) == (digest, sample)
    assert torch.equal(copy.deepcopy(file).map("a"), old)

    other = TensorFile(path)
    assert torch.equal(other.map("a"), new)
    os.utime(path, ns=(0, 0))
    with pytest.raises(SleepcError, match="changed while it was open"):
        other.map("a")


def test_a_mapping_lives_as_long_as_its_tensors(path: Path) -> None:
    save_file({"a": torch.zeros(4 << 20)}, path)
    file = TensorFile(path)
    value = file.map("a")
    assert str(path) in Path("/proc/self/maps").read_text()
    del value
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert file.map("a").shape == (4 << 20,)


@pytest.mark.parametrize("kind", ["pipe", "device", "loop"])
def test_what_is_no_regular_file_is_not_read(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(SleepcError, match="cannot read"):
        TensorFile(path)


@given(size=st.integers(0, 1 << 40))
def test_sample_places(size: int) -> None:
    places = sample_places(size)
    assert all(start >= 0 and start + count <= size for start, count in places)
    if size:
        assert places[0][0] == 0
        assert sum(places[-1]) == size


def locator(file: TensorFile) -> Locator:
    return Locator([file], {file.path: file.hashes()})


class TestLocator:
    """Which tensor of a file is it?"""

    def test_the_exact_name_first(self, path: Path) -> None:
        same = torch.randn(8, 8)
        save_file({"x.weight": same, "y.weight": same.clone(), "z.weight": same.clone()}, path)
        for key in ("x.weight", "y.weight", "z.weight"):
            assert locator(TensorFile(path)).find(same, key) == (path, key)
        assert locator(TensorFile(path)).find(same, "model.y.weight") == (path, "y.weight")

    def test_values_where_no_name_fits(self, path: Path) -> None:
        tensors = {"a": torch.randn(8, 8), "b": torch.randn(8, 8), "c": torch.randn(8, 8).bfloat16()}
        save_file(tensors, path)
        found_by = locator(TensorFile(path))
        assert found_by.find(tensors["b"].clone(), "a") == (path, "b")
        assert found_by.find(tensors["c"].clone(), "model.other") == (path, "c")
        assert found_by.find(tensors["b"].T, "b") is None
        assert found_by.find(tensors["b"].double(), "b") is None
        assert found_by.find(tensors["b"].to("meta"), "b") is None

    @pytest.mark.parametrize("place", [0, 99_999])
    def test_the_ends_of_a_large_tensor_count(self, path: Path, place: int) -> None:
        value = torch.randn(100_000)
        save_file({"a": value}, path)
        changed = value.clone()
        assert locator(TensorFile(path)).find(changed, "a") == (path, "a")
        changed[place] += 1
        assert locator(TensorFile(path)).find(changed, "a") is None

    def test_every_byte_of_a_large_tensor_counts(self, path: Path) -> None:
        """Equal in all that is sampled, and in no more: another tensor."""
        value = torch.zeros(1 << 20)
        save_file({"a": value}, path)
        for place in range(5, value.numel(), value.numel() // 7):
            changed = value.clone()
            changed[place] = 1
            assert locator(TensorFile(path)).find(changed, "a") is None
        assert locator(TensorFile(path)).find(value.clone(), "a") == (path, "a")

    def test_a_mapped_value_by_its_address(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its bytes are not looked at: no page of it becomes resident."""
        same = torch.randn(100_000)
        save_file({"x": same, "y": same.clone()}, path)
        value = TensorFile(path).map("y")
        monkeypatch.setattr(locate, "_sample", _unwanted)
        assert locator(TensorFile(path)).find(value, "x") == (path, "y")

    def test_a_mapped_value_that_was_written_to(self, path: Path) -> None:
        save_file({"a": torch.zeros(100_000)}, path)
        value = TensorFile(path).map("a")
        value[:] = 1.0
        assert locator(TensorFile(path)).find(value, "a") is None

    def test_without_proc(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(locate, "SMAPS", path.with_name("none"))
        save_file({"a": torch.randn(100_000)}, path)
        file = TensorFile(path)
        assert locator(file).find(file.map("a"), "b") == (path, "a")

    def test_a_path_that_needs_care(self, tmp_path: Path) -> None:
        """Links, spaces: the address, or else the bytes, find it."""
        folder = tmp_path / "my models"
        folder.mkdir()
        save_file({"a": torch.randn(100_000)}, folder / "m.safetensors")
        link = tmp_path / "link.safetensors"
        link.symlink_to(folder / "m.safetensors")
        file = TensorFile(link)
        assert locator(file).find(file.map("a"), "b") == (link, "a")


def _unwanted(value: torch.Tensor) -> bytes:
    raise AssertionError(f"{tuple(value.shape)} was read")
