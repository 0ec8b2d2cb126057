"""The programs of five tiny models, after every stage, are the texts in tests/golden, letter by letter."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.golden.meant import MEANT, reason
from tests.golden.same import cases
from tests.golden.same_compare import PARTS, Arrays, Told, arrays_differ, exports_differ, parts_differ
from tests.golden.texts import FOLDER, MODELS, RECIPES, differences, made, written

RULE = "If that is meant: python -m tests.golden.write, and CONTRIBUTING.md says what else a commit has to bring."


@pytest.mark.parametrize("model", MODELS)
def test_the_texts_are_those_that_are_kept(model: str) -> None:
    wrong = differences(written(model), made(model))
    assert not wrong, f"\n{wrong}\n{RULE}"


def test_nothing_else_is_kept() -> None:
    """A text of a model or a recipe that is gone would be compared with nothing."""
    for path in written():
        model, name = path.split("/")
        assert model in MODELS, path
        assert name.split(".")[0] in ("front", "blocks", *RECIPES), path
    assert sum(len(text) for text in written().values()) < 1_500_000
    assert sorted(path.name for path in (FOLDER / "changes").glob("*.py") if not re.match(r"\d{4}_", path.name)) == [
        "__init__.py"
    ]


def test_a_difference_is_told_with_its_place() -> None:
    kept = {"llama/blocks.txt": "program\n  level: STEP\n\ngraph head {\n  %0: f32[B,T] = input\n}\n"}
    new = {"llama/blocks.txt": kept["llama/blocks.txt"].replace("f32", "f64")}
    told = differences(kept, new).splitlines()
    assert told[0] == "llama/blocks.txt, line 5, in: graph head"
    assert "-  %0: f32[B,T] = input" in told
    assert "+  %0: f64[B,T] = input" in told
    assert "nothing is made" in differences(kept, {})
    assert not differences(kept, dict(kept))


def test_a_bit_is_a_difference_and_a_name_is_not() -> None:
    base = {"logits": np.zeros(3), "state S": np.arange(4.0)}
    assert not arrays_differ(base, {name: value.copy() for name, value in base.items()}).differs
    told = arrays_differ(base, {**base, "logits": np.array([0.0, 0.0, -0.0])})
    assert told.differs
    assert "logits: 1 of 3 numbers differ, the first at (2,)" in told.words
    assert arrays_differ(base, {**base, "logits": np.zeros(3, np.float32)}).differs
    assert arrays_differ(base, {"logits": base["logits"]}).differs
    renamed = arrays_differ(base, {"logits": base["logits"], "state M": base["state S"]})
    assert not renamed.differs
    assert renamed.words


def test_a_difference_has_a_size() -> None:
    base: Arrays = {"logits": np.zeros(3), "state": np.ones(2, np.float32), "count": np.array([3])}
    assert arrays_differ(base, {**base, "logits": np.array([0, 1e-15, 0]), "count": np.array([2])}).size == 1
    assert arrays_differ(base, {**base, "logits": np.array([0, 1e-15, 0])}).size == 1e-15
    assert arrays_differ(base, {**base, "logits": np.array([0, np.nan, 1e-15])}).size == np.inf
    assert arrays_differ(base, {**base, "state": np.ones(2)}).size == np.inf


def test_a_state_that_is_refused_hides_nothing_else(tmp_path: Path) -> None:
    for folder, logits in (("base", 0.0), ("new", 1.0)):
        (tmp_path / folder).mkdir()
        for part in ("converted", "loaded", "state"):
            save_file({"logits": np.full(2, logits if part == "loaded" else 0)}, tmp_path / folder / part)
    assert parts_differ(tmp_path / "base", tmp_path / "new").keys() == {"loaded"}
    (tmp_path / "new" / "state.txt").write_text("SleepcError: no\nfix\n")
    found = parts_differ(tmp_path / "base", tmp_path / "new")
    assert [part for part, told in found.items() if told.differs] == ["loaded", "state"]
    assert found["state"].words == "base: works | new: SleepcError: no fix"
    (tmp_path / "base" / "state.txt").write_text("KeyError: no\n")
    (tmp_path / "new" / "state.txt").write_text("KeyError: no\n")
    assert parts_differ(tmp_path / "base", tmp_path / "new")["state"].differs
    (tmp_path / "new" / "error.txt").write_text("SleepcError: no\n")
    assert parts_differ(tmp_path / "base", tmp_path / "new").keys() == {"error"}


def test_only_what_is_named_is_meant() -> None:
    """By commit, case, part and size: each alone is not enough."""
    meant = next(each for each in MEANT if each.most < np.inf)
    case, part = meant.cases.replace("*", "gpt2"), meant.parts[0]
    assert reason(case, part, Told(True, size=meant.most), {meant.commit}) == meant
    assert not reason(case, part, Told(True, size=meant.most * 2), {meant.commit})
    assert not reason(case, part, Told(True), {meant.commit})
    assert not reason(case, part, Told(True, size=meant.most), set())
    assert not reason("gpt2 parallel", part, Told(True, size=meant.most), {meant.commit})
    assert not reason(case, "error", Told(True, size=meant.most), {meant.commit})


def test_what_is_named_is_compared() -> None:
    names = [case["name"] for case in cases()]
    for each in MEANT:
        assert re.fullmatch(r"[0-9a-f]{40}", each.commit), each
        assert fnmatch.filter(names, each.cases), each
        assert set(each.parts) <= set(PARTS), each


def test_exports_are_the_same_by_what_they_compute(tmp_path: Path) -> None:
    """A node's own name is for people; its options, its wiring and weights are not."""
    onnx = pytest.importorskip("onnx")

    def export(folder: str, name: str, epsilon: float, weights: list[float]) -> Path:
        values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in ("x", "y")]
        node = onnx.helper.make_node("LayerNormalization", ["x", "w"], ["y"], name=name, epsilon=epsilon)
        held = onnx.numpy_helper.from_array(np.array(weights, np.float32), "w")
        graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [held])
        (tmp_path / folder).mkdir()
        onnx.save(onnx.helper.make_model(graph), tmp_path / folder / "wake.onnx")
        return tmp_path / folder

    base = export("base", "a", 1e-5, [1, 2])
    renamed = exports_differ(base, export("renamed", "b", 1e-5, [1, 2]))
    assert not renamed.differs
    assert "wake.onnx" in renamed.words
    assert (
        "only the base has LayerNormalization(x, w) -> y"
        in exports_differ(base, export("other", "a", 2e-5, [1, 2])).words
    )
    assert "other values of w" in exports_differ(base, export("weights", "a", 1e-5, [1, 3])).words


def test_exports_may_have_other_names_inside(tmp_path: Path) -> None:
    """Of values that a graph makes, and of nodes in another order, in a body too; what flows where is no name."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper

    def export(folder: str, names: str, wiring: str = "ab", turn: bool = False) -> Path:
        info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in ("x", "y", "inside")]
        a, b, c = tuple(names)
        flows = {"a": a, "b": b}
        inner = helper.make_node("Sub", [flows[w] for w in wiring], ["inside"])
        body = helper.make_graph([inner], "body", [], info[2:])
        nodes = [helper.make_node("Exp", ["x"], [a]), helper.make_node("Neg", ["x"], [b])]
        choice = helper.make_node("If", ["yes"], [c], then_branch=body, else_branch=body)
        last = helper.make_node("Abs", [c], ["y"])
        yes = onnx.numpy_helper.from_array(np.array(True), "yes")
        graph = helper.make_graph([*nodes[:: -1 if turn else 1], choice, last], "g", info[:1], info[1:2], [yes])
        (tmp_path / folder).mkdir()
        onnx.save(helper.make_model(graph), tmp_path / folder / "wake.onnx")
        return tmp_path / folder

    base = export("base", "abc")
    assert not exports_differ(base, export("names", "pqr")).differs
    assert not exports_differ(base, export("order", "pqr", turn=True)).differs
    assert "If(yes) -> c" in exports_differ(base, export("wiring", "abc", wiring="ba")).words
    assert exports_differ(base, export("swapped", "bac")).differs is False
