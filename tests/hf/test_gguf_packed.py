"""Quantised tensors of GGUF files as packed weights: values by a reference of each kind of its own, in float64, number
by number as ggml-quants.c describes the blocks; and which parameter of a model has them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sleepc.errors import SleepcError
from sleepc.hf.gguf_packed import KINDS, LEVELS, packed
from sleepc.ir.packed import METADATA, PackedWeight, Packing, StoredPacked, packed_in
from sleepc.ir.tensorfile import TensorFile

Array = Any


def half(block: bytes, at: int) -> float:
    return float(np.frombuffer(block, np.float16, 1, at)[0])


def nibble(codes: bytes, i: int, run: int) -> int:
    """Number i of codes whose bytes hold two numbers that are half a run apart."""
    byte = codes[i // run * (run // 2) + i % (run // 2)]
    return byte >> 4 if i % run >= run // 2 else byte & 15


def two_bits(codes: bytes, i: int) -> int:
    """Number i of 256: 32 bytes hold 128 numbers, a quarter of them in each pair of bits."""
    return codes[i // 128 * 32 + i % 32] >> 2 * (i % 128 // 32) & 3


def six_bits(packed: bytes, group: int) -> tuple[int, int]:
    """Scale and minimum of a group of Q4_K and Q5_K (get_scale_min_k4)."""
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    low = packed[group + 4]
    return low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4


def scale_of_q3(packed: bytes, group: int) -> int:
    four = packed[group % 8] >> (4 if group >= 8 else 0) & 15
    return (four | (packed[8 + group % 4] >> 2 * (group // 4) & 3) << 4) - 32


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def number(kind: str, b: bytes, i: int) -> float:
    """Number i of a block."""
    if kind == "Q4_0":
        return half(b, 0) * (nibble(b[2:], i, 32) - 8)
    if kind == "Q4_1":
        return half(b, 0) * nibble(b[4:], i, 32) + half(b, 2)
    if kind in ("Q5_0", "Q5_1"):
        at = 2 if kind == "Q5_0" else 4
        q = nibble(b[at + 4 :], i, 32) | (int.from_bytes(b[at : at + 4], "little") >> i & 1) << 4
        return half(b, 0) * (q - 16) if kind == "Q5_0" else half(b, 0) * q + half(b, 2)
    if kind == "Q8_0":
        return half(b, 0) * signed(b[2 + i])
    if kind == "Q2_K":
        return half(b, 80) * (b[i // 16] & 15) * two_bits(b[16:80], i) - half(b, 82) * (b[i // 16] >> 4)
    if kind == "Q3_K":
        q = two_bits(b[32:96], i) - (0 if b[i % 32] >> i // 32 & 1 else 4)
        return half(b, 108) * scale_of_q3(b[96:108], i // 16) * q
    if kind in ("Q4_K", "Q5_K"):
        scale, least = six_bits(b[4:16], i // 32)
        q = nibble(b[16:], i, 64) if kind == "Q4_K" else nibble(b[48:], i, 64) | (b[16 + i % 32] >> i // 32 & 1) << 4
        return half(b, 0) * scale * q - half(b, 2) * least
    if kind == "Q6_K":
        q = (nibble(b[:128], i, 128) | two_bits(b[128:192], i) << 4) - 32
        return half(b, 208) * signed(b[192 + i // 16]) * q
    if kind == "IQ4_NL":
        return half(b, 0) * int(LEVELS[nibble(b[2:], i, 32)])
    assert kind == "IQ4_XS"
    group = i // 32
    step = (b[4 + group // 2] >> 4 * (group % 2) & 15 | (int.from_bytes(b[2:4], "little") >> 2 * group & 3) << 4) - 32
    return half(b, 0) * step * int(LEVELS[nibble(b[8:], i, 32)])


HALVES = {
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}


def random_rows(kind: str, rows: int, blocks: int) -> Array:
    """Bytes of a tensor of a kind: any codes, and scales that are numbers."""
    rng, size = np.random.default_rng(len(kind)), KINDS[kind][1]
    found = rng.integers(0, 256, (rows * blocks, size), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        found[:, at : at + 2] = rng.standard_normal((rows * blocks, 1)).astype(np.float16).view(np.uint8)
    return found.reshape(rows, blocks * size)


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_that_the_kind_says(kind: str) -> None:
    rows, size = random_rows(kind, 3, 2), KINDS[kind][1]
    weight = packed(kind, rows)
    assert weight is not None
    count = weight.shape[1] // 2
    expected = np.array(
        [
            [number(kind, row[at : at + size].tobytes(), i) for at in range(0, len(row), size) for i in range(count)]
            for row in rows
        ]
    )
    assert np.abs(weight.value() - expected).max() <= 1e-6 * np.abs(expected).max()
    assert np.abs(expected).max() > 1
    assert np.array_equal(weight.rows(np.array([2, 0])).value(), weight.value()[[2, 0]])


def test_a_kind_whose_values_are_no_steps_has_no_packed_form() -> None:
    assert packed("IQ2_XXS", np.zeros((2, 66), np.uint8)) is None


def test_parts_that_do_not_fit_are_refused() -> None:
    weight = packed("Q4_K", random_rows("Q4_K", 3, 2))
    assert weight is not None
    for part in ("scales", "steps", "lows"):
        parts = {**weight.parts(), part: weight.parts()[part][:, :1].repeat(3, 1)}
        with pytest.raises(SleepcError, match="do not fit each other"):
            PackedWeight.of(weight.how, parts)
    with pytest.raises(SleepcError, match="do not fit each other"):
        PackedWeight.of(weight.how, {**weight.parts(), "scales": weight.scales.astype(np.float32)})


# ------------------------------------------------------------------------------------------------- the file of a model

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate, which is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.hf.ggufs import quantised_folder

    return quantised_folder(tmp_path_factory.mktemp("gguf"))


def stored(folder: Path) -> Iterator[tuple[str, StoredPacked]]:
    floats = TensorFile(folder / "model.safetensors")
    by_hash = packed_in(TensorFile(folder / "packed.safetensors"))
    for name in floats.tensors:
        if found := by_hash.get(floats.sha256(name)):
            yield name, found


def test_every_quantised_matrix_is_there_with_its_rows_as_the_model_has_them(folder: Path) -> None:
    """Rows of q and k are in another order in the file: pairs of rotary positions are neighbours there."""
    floats, found = TensorFile(folder / "model.safetensors"), dict(stored(folder))
    kinds = {name: each.how.kind for name, each in found.items()}
    layer = {"self_attn.q_proj": "Q4_1", "self_attn.k_proj": "Q4_1", "self_attn.v_proj": "Q5_0"}
    layer |= {"self_attn.o_proj": "Q4_0", "mlp.gate_proj": "Q4_1", "mlp.up_proj": "Q4_1", "mlp.down_proj": "Q8_0"}
    expected = {f"model.layers.{i}.{name}.weight": kind for i in (0, 1) for name, kind in layer.items()}
    assert kinds == {"model.embed_tokens.weight": "Q8_0", **expected}
    for name, each in found.items():
        value = floats.map(name)
        assert torch.allclose(
            torch.from_numpy(each.read().value()), value, rtol=0, atol=1e-6 * float(value.abs().max())
        )


def test_a_part_that_was_changed_is_found(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    data = bytearray((folder / path.name).read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    names = []
    for each in packed_in(TensorFile(path)).values():
        try:
            each.read()
        except SleepcError as error:
            names.append(error.what)
    assert len(names) == 1
    assert "was changed after it was written" in names[0]


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 3},
        {"group": 7},
        {"raised": -1},
        {"turned": 1},
        {"kind": "a kind"},
        {"hashes": {"numbers": ""}},
        {"of": None, "bits": None},
    ],
)
def test_a_header_that_describes_nothing_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    from safetensors.numpy import load_file, save_file

    file = TensorFile(folder / "packed.safetensors")
    said = json.loads(file.metadata[METADATA])
    first = next(iter(said))
    save_file(
        load_file(file.path), tmp_path / "p", metadata={METADATA: json.dumps({**said, first: said[first] | change})}
    )
    with pytest.raises(SleepcError, match="does not describe packed weights"):
        packed_in(TensorFile(tmp_path / "p"))


def test_columns_that_are_rows_in_the_file_are_turned() -> None:
    from sleepc.hf.gguf_fit import _fitted

    weight = packed("Q8_0", random_rows("Q8_0", 3, 2))
    assert weight is not None
    turned = _fitted(weight, weight.value().T, None, "")  # type: ignore[arg-type]
    assert turned is not None
    assert turned.how == Packing("Q8_0", 8, 32, 0, True)
