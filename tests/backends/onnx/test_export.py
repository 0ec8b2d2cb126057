"""The check of an export finds what is planted: in the weights, in constants, in graphs, in how a sleep is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import sleepc
from sleepc.api import Program
from sleepc.backends.check.compare import compare
from sleepc.backends.check.measure import relative
from sleepc.backends.check.reading import Found, tokens_needed
from sleepc.backends.contract import Draft
from sleepc.backends.onnx.call import TRANSLATIONS, Style
from sleepc.backends.onnx.check import check as checking
from sleepc.backends.onnx.check.check import CheckedFiles, check
from sleepc.backends.onnx.check.files import Stored, check_files
from sleepc.backends.onnx.check.quality import Quality
from sleepc.backends.onnx.check.weights import check_weights, dequantised, plain, quantised
from sleepc.backends.onnx.installed import missing_exporter, missing_runtime
from sleepc.backends.onnx.manifest import ExportManifest
from sleepc.backends.onnx.quantise import quantise
from sleepc.backends.onnx.target import TARGET, Options
from sleepc.backends.onnx.weights import FILE, Weights
from sleepc.backends.report import Figure, Report
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.ir.states import StateSpec
from sleepc.ir.weights import HeldTensor
from sleepc.passes.adapt.retype import Retype
from sleepc.passes.base import Stage
from sleepc.passes.runner import run_stages
from tests.backends.onnx.exports import lower_weights
from tests.families import VOCAB, make_module

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, VOCAB, 96)]


@pytest.fixture(scope="module")
def program() -> Program:
    return sleepc.convert(make_module("llama", torch.float32), {"window": 8, "sinks": 2})


@dataclass
class Lowered:
    """Files that nobody has checked yet."""

    program: Program
    folder: Path
    manifest: ExportManifest
    weights: Weights

    @classmethod
    def make(cls, program: Program, folder: Path, precision: str = "fp32") -> Lowered:
        folder.mkdir(exist_ok=True)
        style = Style(precision=precision)  # type: ignore[arg-type]
        return cls(program, folder, *lower_weights(program.graphs, folder, style))

    def stored(self) -> dict[str, Stored]:
        return check_files(self.folder, [graph.file for graph in self.manifest.graphs])[0]

    def check(self) -> Report:
        graphs = self.program.graphs
        return check(CheckedFiles(graphs, self.folder, self.manifest, TOKENS, lambda what, share: None), self.weights)

    @contextmanager
    def changed(self) -> Iterator[bytearray]:
        """The bytes of the weights' file, to be changed."""
        data = bytearray((self.folder / FILE).read_bytes())
        yield data
        (self.folder / FILE).write_bytes(data)

    def edit(self, change: Callable[[onnx.ModelProto], Any], file: str = "wake.onnx") -> None:
        model = onnx.load(self.folder / file, load_external_data=False)
        change(model)
        (self.folder / file).write_bytes(model.SerializeToString())


@pytest.fixture
def lowered(program: Program, tmp_path: Path) -> Lowered:
    return Lowered.make(program, tmp_path)


def failures(report: Report) -> set[str]:
    return {row.check for row in report.rows if not row.ok}


# ------------------------------------------------------------------------------------------------- sound exports


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_sound_export_passes_every_check(program: Program, tmp_path: Path, precision: str) -> None:
    report = Lowered.make(program, tmp_path, precision).check()
    assert report.ok, report.failures()
    checks = {row.check for row in report.rows}
    assert {"prefill", "decode", "prefill, then decode", "across two sleeps", "one token repeated"} <= checks
    assert {"calls of one, two and three tokens", "three rows, asleep one after the other"} <= checks
    assert {"a sleep of 1 pass", "a sleep of 2 passes"} <= checks
    assert ("text" in checks) == (precision == "int8") == bool(report.perplexity)
    assert not list(tmp_path.glob(".check*")) + list(tmp_path.glob("accurate*"))


def test_numbers_of_passes_make_different_sleeps(lowered: Lowered) -> None:
    """Else a graph that ignores its passes would not be found."""
    from sleepc.backends.check.sleeps import sleeps_of

    ((_, once, n), (_, twice, m)) = sleeps_of(lowered.program.graphs, replays=True)
    assert (n, m) == (1, 2)
    texts = [str([node.kwargs for node in next(iter(p.classes.values())).sleep.calls()]) for p in (once, twice)]  # type: ignore[union-attr]
    assert texts[0] != texts[1]


@pytest.fixture(scope="module")
def looped() -> Program:
    options = {"window": 8, "sinks": 2, "consolidation": "recurrent", "passes": 2, "loop": "0:2"}
    with pytest.warns(SleepcWarning):
        return sleepc.convert(make_module("gpt2", torch.float32), options)


def test_a_program_that_runs_blocks_again(looped: Program, tmp_path: Path) -> None:
    report = Lowered.make(looped, tmp_path).check()
    assert report.ok, report.failures()
    sleeps = {row.check for row in report.rows if row.check.startswith("a sleep")}
    assert sleeps == {"a sleep of 2 passes", "a sleep of 3 passes", "a sleep that runs no block again"}


def test_more_passes_are_only_tried_where_they_mean_something(lowered: Lowered) -> None:
    assert lowered.manifest.replays
    lowered.manifest = lowered.manifest.model_copy(update={"replays": False})
    assert "a sleep of 2 passes" not in {row.check for row in lowered.check().rows}


def test_what_rounding_costs_is_told_apart(program: Program, tmp_path: Path) -> None:
    """Random weights: the likeliest tokens are chance, and int4 changes them."""
    with pytest.raises(SleepcError, match="likeliest token") as caught:
        TARGET.write(program.graphs, Options(precision="int4", fast=True), Draft(tmp_path, program.graphs, TOKENS))
    assert "wider precision" in caught.value.fix


# ------------------------------------------------------------------------------------------------- planted faults


def test_a_weight_with_one_wrong_value(lowered: Lowered) -> None:
    place = next(s for s in lowered.stored().values() if len(s.shape) == 2)
    with lowered.changed() as data:
        data[place.offset + 5] ^= 1
    with pytest.raises(SleepcError, match=r"1 values differ"):
        lowered.check()


def test_a_weight_that_is_another_one(lowered: Lowered) -> None:
    names = [name for name, (_, form) in lowered.weights.written.items() if form == "transposed"]
    (first, second) = [n for n in names if lowered.stored()[n].shape == lowered.stored()[names[0]].shape][:2]
    lowered.weights.written[first], lowered.weights.written[second] = (
        lowered.weights.written[second],
        lowered.weights.written[first],
    )
    with pytest.raises(SleepcError, match="does not have the values of"):
        lowered.check()


def test_a_weight_that_is_no_parameter(lowered: Lowered) -> None:
    name = next(iter(lowered.stored()))
    del lowered.weights.written[name]
    with pytest.raises(SleepcError, match="is not a parameter of the program"):
        lowered.check()


@pytest.mark.parametrize("extra", [b"\0" * 8, b""])
def test_bytes_that_are_no_weight_and_bytes_that_are_missing(lowered: Lowered, extra: bytes) -> None:
    with lowered.changed() as data:
        if extra:
            data += extra
        else:
            del data[-8:]
    with pytest.raises(SleepcError, match="its weights end at"):
        lowered.check()


def test_two_weights_in_one_place(lowered: Lowered) -> None:
    def share(model: onnx.ModelProto) -> None:
        outside = [t for t in model.graph.initializer if t.external_data]
        pairs = ((a, b) for a, b in combinations(outside, 2) if list(a.dims) == list(b.dims))
        first, second = next(pairs)
        offset = next(e for e in first.external_data if e.key == "offset")
        next(e for e in second.external_data if e.key == "offset").value = str(int(offset.value) + 4)

    lowered.edit(share)
    with pytest.raises(SleepcError, match="share the bytes"):
        lowered.check()


def test_a_constant_that_is_no_number(lowered: Lowered) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and t.raw_data)
        tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()

    lowered.edit(spoil)
    with pytest.raises(SleepcError, match="is not a number"):
        lowered.check()


def test_a_large_constant(lowered: Lowered) -> None:
    lowered.edit(lambda m: m.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1 << 18), "table")))
    with pytest.raises(SleepcError, match="too many for a constant"):
        lowered.check()


def test_a_file_that_is_no_valid_model(lowered: Lowered) -> None:
    lowered.edit(lambda m: m.graph.node.append(onnx.helper.make_node("Nothing", ["tokens"], ["nothing"])))
    with pytest.raises(SleepcError, match=r"wake\.onnx is not a valid model"):
        lowered.check()


def test_a_node_that_the_provider_has_no_kernel_for(lowered: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "check_kernels", lambda path: [f"{path.name}: Det"])
    assert lowered.check().ok  # for the CPU
    lowered.manifest = lowered.manifest.model_copy(update={"ep": "cuda"})
    with pytest.raises(SleepcError, match=r"CUDA has no kernel for wake\.onnx: Det"):
        lowered.check()


def test_a_parameter_that_is_rounded_in_one_place_only(program: Program, tmp_path: Path) -> None:
    rounded = Lowered.make(program, tmp_path, "int8")
    stored = rounded.stored()
    key = next(keys for keys, form in rounded.weights.written.values() if form == "int8")
    whole = next(name for name, (_, form) in rounded.weights.written.items() if form == "plain" and name in stored)
    assert dequantised(program.graphs, rounded.weights, stored)
    rounded.weights.written[whole] = (key, "plain")
    with pytest.raises(UsageError, match="whole and in blocks"):
        dequantised(program.graphs, rounded.weights, stored)


def test_an_operator_that_is_translated_wrongly(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silu = torch.ops.aten.silu.default
    monkeypatch.setitem(TRANSLATIONS, silu, lambda c: c.e("Sigmoid", c.tensor(0)))
    found = failures(Lowered.make(program, tmp_path).check())
    assert {"prefill", "decode", "across two sleeps", "one token repeated"} <= found


def _wrong(steps: Any, name: str, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]) -> None:
    right = getattr(steps, name)
    monkeypatch.setattr(steps, name, lambda self, *a: change(right, self, *a))


def test_a_sleep_that_ignores_its_passes(lowered: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    from sleepc.backends.onnx.steps import OnnxSteps

    def once(right: Callable[..., Any], self: OnnxSteps, *arguments: Any) -> Any:
        self.passes = 1
        return right(self, *arguments)

    _wrong(OnnxSteps, "sleep", monkeypatch, once)
    assert failures(lowered.check()) == {"a sleep of 2 passes"}


def test_rows_that_sleep_with_others(lowered: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    from sleepc.backends.onnx.steps import OnnxSteps

    _wrong(OnnxSteps, "sleep", monkeypatch, lambda right, self, state, rows: right(self, state, np.ones_like(rows)))
    found = failures(lowered.check())
    assert found == {"three rows, forced sleeps", "three rows, asleep one after the other"}


# ------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(("block", "within"), [(0, True), (1, False)])
def test_tensors_of_one_memory_are_measured_together(block: int, within: bool) -> None:
    """A momentum near zero holds what rounding left of its memory; another memory is no scale for it."""
    specs = [
        StateSpec("memory", part, ("B", 2), torch.float32, "accumulate", block=i)
        for i, part in ((block, "S"), (0, "P"))
    ]
    expected = {specs[0].name: np.full(2, 2.0), specs[1].name: np.full(2, 2e-5)}
    found = {specs[0].name: expected[specs[0].name], specs[1].name: expected[specs[1].name] + 6e-7}
    logits = np.ones((1, 2), np.float32)
    rows = compare("a check", Found(logits, found), Found(logits, expected), "fp32", specs)
    assert [row.ok for row in rows] == [True, within]
    found[specs[1].name] = expected[specs[1].name] + 0.01
    rows = compare("a check", Found(logits, found), Found(logits, expected), "fp32", specs)
    assert [row.ok for row in rows] == [True, False]


@pytest.mark.parametrize(("dtype", "off", "ok"), [(torch.int8, 0.005, True), (torch.int8, 0.02, False)])
@pytest.mark.parametrize("block", [0, 1])
def test_a_memory_takes_what_pairs_in_few_bits_may_differ_by(
    dtype: torch.dtype, off: float, ok: bool, block: int
) -> None:
    """A dropped pair is written as its slots held it: of one number that was between two whole ones, a step."""
    specs = [
        StateSpec("kept", "k", ("B", 2), dtype, "overwrite", block=0),
        StateSpec("memory", "S", ("B", 2), torch.float32, "accumulate", block=block),
    ]
    slots, memory = np.zeros((1, 2), np.int8), np.ones((1, 2))
    logits = np.ones((1, 2), np.float32)
    expected = Found(logits, {specs[0].name: slots, specs[1].name: memory})
    found = Found(logits, {specs[0].name: slots, specs[1].name: memory - off})
    assert [row.ok for row in compare("a check", found, expected, "fp32", specs)] == [True, ok and block == 0]


def test_errors_are_relative_to_the_scale_and_nothing_hides_in_them() -> None:
    x = np.array([0.001, -0.004])
    assert relative(x + 0.0004, x) == pytest.approx(0.1)
    assert relative(np.array([1.0, np.nan]), np.ones(2)) == np.inf
    assert relative(np.ones((2, 1)), np.ones((1, 2))) == np.inf
    assert relative(np.zeros(3), np.zeros(3)) == 0.0
    assert relative(np.full(3, 1e-9), np.zeros(3)) == np.inf
    assert relative(x + 0.0004, x, [np.ones(3)]) == pytest.approx(0.0004)
    assert not Figure("a", "b", float("nan"), 1.0).ok
    assert not Figure("a", "b", float("nan"), 0.1, least=True).ok


def test_forms_are_compared_bit_for_bit_or_by_half_steps() -> None:
    w = np.random.default_rng(0).standard_normal((40, 48)).astype(np.float32)
    assert not plain(w, w.T.copy(), "transposed")
    assert "shape" in plain(w, w, "transposed")
    assert not plain(w, w.astype(np.float16), "half")
    assert "beyond the range" in plain(w * 1e6, w.astype(np.float16), "half")
    for bits in (4, 8):
        packed, scales = quantise(w, bits)
        assert not quantised(w, packed, scales, f"int{bits}")
        assert "half a step" in quantised(w, packed, scales * 1.3, f"int{bits}")
        packed[3, 0, 1] ^= 0x70
        assert quantised(w, packed, scales, f"int{bits}").startswith("1 values")


def test_quality_counts_what_is_lost() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4, 9)).astype(np.float32) * 4
    same, other = Quality(np.arange(4)), Quality(np.arange(4))
    same.add(0, logits, logits)
    other.add(0, rng.standard_normal((4, 9)), logits)
    assert all(row.ok for row in same.rows("int8"))
    assert not any(row.ok for row in other.rows("int4"))
    assert same.perplexity()["before"] == same.perplexity()["after"] != other.perplexity()["after"]


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("fp8", "ort", "cpu"), "fp8"),
        (("fp32", "onnx", "cpu"), "'onnx'"),
        (("fp32", "ort", "tpu"), "tpu"),
        (("int4", "portable", "cpu"), "kernels of ONNX Runtime's own"),
    ],
)
def test_options_that_there_are_not(options: tuple[str, str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TARGET.check(Options(*options))


def test_a_program_is_exported_in_float32() -> None:
    module = make_module("llama", torch.bfloat16)
    half = sleepc.convert(module, {"window": 8, "sinks": 2}).graphs
    assert half.dtype == torch.bfloat16
    assert run_stages(half, TARGET.lowering(half, Options())).dtype == torch.float32
    double = run_stages(half, (Stage("retype", "STEP", (Retype(torch.float64),)),))
    with pytest.raises(UsageError, match="float64"):
        TARGET.lowering(double, Options())


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({}, "not installed"),
        ({"onnxruntime": "1.20.0"}, "older than"),
        ({"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}, "uninstall both"),
        ({"onnxruntime-gpu": "1.25.1"}, None),
    ],
)
def test_runtimes_that_are_missing(
    versions: dict[str, str], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sleepc.backends.onnx.installed.version_of", versions.get)
    found = missing_runtime()
    assert found is None if words is None else words in (found or "")
    assert "onnx and onnx-ir are not installed" in (missing_exporter() or "")


def test_long_windows_are_not_read_whole() -> None:
    assert tokens_needed(4096) < 200
    assert tokens_needed(256) > 512


def test_weights_of_another_training(lowered: Lowered) -> None:
    """What they compute is another question: the values are compared with the program's own."""
    graphs = lowered.program.graphs
    key = "model.norm.weight"
    other = replace(graphs, params={**graphs.params, key: HeldTensor(graphs.params[key].materialise() + 1)})
    with pytest.raises(SleepcError, match="32 values differ"):
        check_weights(other, lowered.weights, lowered.stored())


def test_what_the_runtime_refuses_to_run(lowered: Lowered, monkeypatch: pytest.MonkeyPatch) -> None:
    from sleepc.backends.onnx.steps import OnnxSteps

    _wrong(OnnxSteps, "wake", monkeypatch, lambda right, self, state, *a: right(self, _cut(state), *a))
    with pytest.raises(SleepcError, match="ONNX Runtime cannot run the exported files"):
        lowered.check()


def _cut(state: Any) -> Any:
    raise Fail("a node has inputs that do not fit")


SLOTS = [
    StateSpec("kept", "token", ("B", 2), torch.int64, "overwrite", block=0),
    StateSpec("kept", "score", ("B", 2), torch.float32, "overwrite", block=0),
    StateSpec("kept", "k", ("B", 2), torch.int8, "overwrite", block=0),
    StateSpec("kept", "v", ("B", 2), torch.uint8, "overwrite", block=0),
    StateSpec("memory", "S", ("B", 2), torch.float32, "accumulate", block=1),
    StateSpec("count", "few", ("B",), torch.int16, "overwrite"),
    StateSpec("clock", "position", ("B",), torch.int64, "overwrite"),
]


def _slots(tokens: list[int], scores: list[float], numbers: list[int]) -> dict[str, Any]:
    """State of two blocks; the first keeps pairs of one row, in few bits."""
    return {
        "0.kept.token": np.array([tokens], np.int64),
        "0.kept.score": np.array([scores], np.float32),
        "0.kept.k": np.array([numbers], np.int8),
        "0.kept.v": np.array([[136, 136]], np.uint8),
        "1.S": np.ones((1, 2), np.float32),
        "few": np.array([3], np.int16),
        "position": np.array([9], np.int64),
    }


@pytest.mark.parametrize(
    ("change", "worst"),
    [
        ({}, 0.0),
        ({"0.kept.k": np.array([[1, 3]], np.int8)}, 0.0),  # a number between two whole ones
        ({"0.kept.k": np.array([[1, 5]], np.int8)}, 2 / 127),
        ({"0.kept.v": np.array([[136, 153]], np.uint8)}, 0.0),  # both numbers of a byte
        ({"0.kept.v": np.array([[136, 137 + 32]], np.uint8)}, 1 / 7),
        ({"0.kept.token": np.array([[4, 7]]), "0.kept.k": np.array([[1, 90]], np.int8)}, 0.0),  # of two that tie
        ({"0.kept.token": np.array([[4, 7]]), "0.kept.score": np.array([[0.5, 0.3]], np.float32)}, np.inf),
        ({"0.kept.token": np.array([[4, 7]]), "position": np.array([8])}, np.inf),
        ({"0.kept.score": np.array([[0.5, 0.3]], np.float32)}, 0.1),
        ({"few": np.array([4], np.int16)}, np.inf),  # a small counter is no number of a slot
    ],
)
def test_what_rounding_chooses_is_no_fault_of_an_export(change: dict[str, Any], worst: float) -> None:
    expected, logits = _slots([4, 6], [0.5, 0.25], [1, 2]), np.ones((1, 2), np.float32)
    figure = compare("", Found(logits, {**expected, **change}), Found(logits, expected), "fp32", SLOTS)[1]
    assert figure.value == pytest.approx(worst)
