"""Exports whose weights are those of a quantised GGUF file, number by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import sleepc
from sleepc.api import Program
from sleepc.backends.contract import Draft
from sleepc.backends.onnx.call import Style
from sleepc.backends.onnx.check.files import Stored, check_files
from sleepc.backends.onnx.check.weights import check_weights, kept, source_facts
from sleepc.backends.onnx.target import TARGET, Options
from sleepc.backends.onnx.weights import FILE, Weights, several
from sleepc.errors import SleepcError, UsageError
from sleepc.ir.packed import Packing
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.weights import FileTensor, HeldTensor, Param, packed_of
from sleepc.passes.runner import run_stages
from tests.backends.onnx.exports import lower_weights

pytest.importorskip("gguf", reason="the gguf package is not installed")
pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate, which is not installed")

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 30, 96)]
DOWN, UP = "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    from tests.hf.ggufs import quantised_folder

    return sleepc.convert(quantised_folder(tmp_path_factory.mktemp("gguf")), {"window": 8, "sinks": 2})


def written(graphs: ProgramGraphs, folder: Path, precision: str) -> Weights:
    """The files in a precision, and what their weights are."""
    folder.mkdir(exist_ok=True)
    return lower_weights(graphs, folder, Style(precision=precision))[1]  # type: ignore[arg-type]


def changed(folder: Path, found: Weights, stored: Mapping[str, Stored], form: str) -> None:
    """One bit of the first weight of that form becomes another."""
    place = next(place for name, place in stored.items() if found.written[name][1] == form)
    data = bytearray((folder / FILE).read_bytes())
    data[place.offset + 1] ^= 0x10
    (folder / FILE).write_bytes(data)


def forms(found: Weights) -> dict[str, str]:
    """The form of each matrix of the first block, by its short name."""
    return {
        key.split(".")[-2]: form
        for keys, form in found.written.values()
        for key in several(keys)
        if ".layers.0." in key and "norm" not in key and form.rpartition(".")[2] in ("packed", "int4", "transposed")
    }


def test_an_export_at_source_precision_is_lossless(program: Program, tmp_path: Path) -> None:
    """Graphs, weights and state are as for every export, and products in float32 are those of the program itself."""
    options = Options(precision="source")
    lowered = run_stages(program.graphs, TARGET.lowering(program.graphs, options))
    report = TARGET.write(lowered, options, Draft(tmp_path, program.graphs, TOKENS)).report
    assert report["ok"]
    assert (report["kept"], report["requantised"]) == ({"Q4_0": 2, "Q4_1": 8, "Q5_0": 2, "Q8_0": 3}, {})
    (exact,) = [row["value"] for row in report["checks"] if row["figure"] == "KL per token, exact"]
    (rounded,) = [row["value"] for row in report["checks"] if row["figure"] == "KL per token"]
    assert abs(exact) < 1e-6 < rounded
    before, after = report["perplexity"]["before"], report["perplexity"]["exact"]
    assert after == pytest.approx(before, rel=1e-5)
    (recall,) = report["recall"]  # four windows back, as far as a passage of this text can be
    assert recall["tokens"] == 32
    assert recall["after"] == pytest.approx(recall["before"], abs=0.05)
    assert recall["after"] != recall["before"]


def test_calls_of_one_token_read_packed_weights_beside_those_in_floats(program: Program, tmp_path: Path) -> None:
    """What the source has in 4 bits, and what has more stays in floats; both compute the program's own numbers."""
    options = Options(packed=True)
    lowered = run_stages(program.graphs, TARGET.lowering(program.graphs, options))
    report = TARGET.write(lowered, options, Draft(tmp_path, program.graphs, TOKENS)).report
    assert report["ok"]
    assert (report["kept"], report["requantised"]) == ({"Q4_0": 2, "Q4_1": 8}, {})
    errors = [row["value"] for row in report["checks"] if row["figure"] in ("logits", "state")]
    assert max(errors) < 1e-5
    graph = onnx.load(tmp_path / "wake.onnx", load_external_data=False).graph
    (choice,) = (node for node in graph.node if node.op_type == "If")
    bodies = {attribute.name: [node.op_type for node in attribute.g.node] for attribute in choice.attribute}
    assert [body.count("MatMulNBits") for body in (bodies["then_branch"], bodies["else_branch"])] == [
        6,
        0,
    ]  # q with k, o, gate with up
    assert TARGET.options_of(TARGET.open(tmp_path))["packed"] is True


@pytest.mark.parametrize("part", ["packed", "packed.scales", "packed.lows"])
def test_a_second_copy_is_compared_with_the_weights_too(program: Program, tmp_path: Path, part: str) -> None:
    found = lower_weights(program.graphs, tmp_path, Style(packed=True))[1]
    stored = check_files(tmp_path, ["wake.onnx", "sleep_replay.onnx"])[0]
    check_weights(program.graphs, found, stored)
    changed(tmp_path, found, stored, part)
    with pytest.raises(SleepcError, match="are not those of its source"):
        check_weights(program.graphs, found, stored)


def test_artifacts_refer_to_what_the_source_has_or_copy_it(program: Program, tmp_path: Path) -> None:
    inside, outside = (sleepc.load(program.save(tmp_path / f"{i}", standalone=i)) for i in (True, False))
    for each in (inside, outside):
        assert each.identity == program.identity
        found = packed_of(each.graphs.params[DOWN])
        assert found is not None
        assert found.how == Packing("Q8_0", 8, 32)
        assert (found.file.path.parent == each.path) is (each is inside)
        again = sleepc.load(each.save(tmp_path / f"again-{each is inside}"))
        assert packed_of(again.graphs.params[UP]) is not None


def test_verify_finds_what_changed_of_the_source_s_own(program: Program, tmp_path: Path) -> None:
    """Programs do not read it, so it is looked at where bytes are asked for."""
    saved = sleepc.load(program.save(tmp_path / "artifact", standalone=True))
    found = packed_of(saved.graphs.params[DOWN])
    assert found is not None
    with found.file.path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    changed = sleepc.load(saved.path or tmp_path)
    changed.check_bytes()
    with pytest.raises(SleepcError, match="bytes of 1 tensors have changed since the conversion"):
        changed.check_bytes(again=True)


def test_what_training_changed_stays_as_it_is(program: Program, tmp_path: Path) -> None:
    graphs = program.graphs
    changed = HeldTensor(graphs.params[UP].materialise() + 1)
    other = replace(graphs, params={**graphs.params, UP: changed})
    found = written(other, tmp_path, "source")
    assert (forms(found)["up_proj"], forms(found)["gate_proj"]) == ("transposed", "packed")
    check_weights(other, found, check_files(tmp_path, ["wake.onnx", "sleep_replay.onnx"])[0])
    trained = sleepc.load(replace(program, graphs=other, report={}).save(tmp_path / "trained"))
    assert packed_of(trained.graphs.params[UP]) is None
    assert packed_of(trained.graphs.params[DOWN]) is not None


def test_int4_keeps_what_has_four_bits_and_names_what_has_more(program: Program, tmp_path: Path) -> None:
    found = written(program.graphs, tmp_path, "int4")
    packed = dict.fromkeys(["q_proj", "k_proj", "o_proj", "gate_proj", "up_proj"], "packed")
    assert forms(found) == {**packed, "v_proj": "int4", "down_proj": "int4"}
    facts = source_facts(found)
    assert facts["kept"] == {"Q4_0": 2, "Q4_1": 8}
    assert facts["requantised"][DOWN] == "Q8_0"
    assert len(facts["requantised"]) == 5


def test_a_kind_without_a_packed_form_is_rounded_anew_and_named(program: Program, tmp_path: Path) -> None:
    params = dict(program.graphs.params)
    param = params[DOWN]
    assert isinstance(param, FileTensor)
    assert param.packed is not None
    params[DOWN] = replace(param, packed=replace(param.packed, how=Packing("IQ2_XXS", 0, 0), hashes=()))
    graphs = replace(program.graphs, params=params)
    found = written(graphs, tmp_path, "source")
    assert source_facts(found)["requantised"] == {DOWN: "IQ2_XXS"}


@pytest.mark.parametrize("part", ["packed", "packed.scales", "packed.lows"])
def test_a_number_that_is_another_one_is_found(program: Program, tmp_path: Path, part: str) -> None:
    found = written(program.graphs, tmp_path, "source")
    stored = check_files(tmp_path, ["wake.onnx", "sleep_replay.onnx"])[0]
    check_weights(program.graphs, found, stored)
    changed(tmp_path, found, stored, part)
    with pytest.raises(SleepcError, match="are not those of its source"):
        check_weights(program.graphs, found, stored)


def test_a_weight_of_another_shape_is_found(program: Program) -> None:
    weight = program.graphs.params[DOWN]
    assert isinstance(weight, FileTensor)
    assert weight.packed is not None
    value = weight.materialise().numpy()
    assert not kept(value, weight.packed.read())
    assert "shape" in kept(value.T, weight.packed.read())


def test_where_there_is_nothing_to_keep_it_is_refused(program: Program) -> None:
    floats: dict[str, Param] = {
        key: HeldTensor(param.materialise(), param.new) for key, param in program.graphs.params.items()
    }
    with pytest.raises(UsageError, match="quantised GGUF file"):
        TARGET.lowering(replace(program.graphs, params=floats), Options(precision="source"))
    with pytest.raises(UsageError, match="kernels of ONNX Runtime's own"):
        TARGET.check(Options(precision="source", ops="portable"))
    with pytest.raises(UsageError, match="in 4 bits"):
        TARGET.lowering(replace(program.graphs, params=floats), Options(packed=True))
    for other in (Options(packed=True, precision="source"), Options(packed=True, ops="portable")):
        with pytest.raises(UsageError, match="second copy of weights in 4 bits is for files in fp32"):
            TARGET.check(other)
