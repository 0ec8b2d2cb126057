import operator as python

import pytest
import torch
from torch._ops import OpOverload

from sleepc.errors import SleepcError
from sleepc.ir.levels import TEXT_LEVELS, is_allowed, operator, operator_name, table

aten = torch.ops.aten


def test_names_and_operators_are_one_to_one() -> None:
    for name, target in table().items():
        assert operator_name(target) == name
        for level in TEXT_LEVELS:
            assert operator(name, level) is target


def test_every_operator_of_the_table_is_pure() -> None:
    forbidden = {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output}
    for name, target in table().items():
        if not isinstance(target, OpOverload):
            continue
        assert not target._schema.is_mutable, name
        assert not forbidden & set(target.tags), name
        kinds = {str(a.type) for a in target._schema.arguments if not a.kwarg_only}
        assert not any(k for k in kinds if "Generator" in k or "Device" in k), name


@pytest.mark.parametrize(
    "name",
    [
        *["aten.rand", "aten.add_.Tensor", "aten.from_file", "aten.to.device", "aten.dropout"],
        *["os.system", "aten.__class__", "sleepc.__doc__", "sym.__import__", "aten.bernoulli"],
        *["aten.linear.default", "aten.empty.memory_format", "aten.empty_like"],
        *["", "aten.", "getitem.x"],
    ],
)
def test_other_names_are_not_looked_up(name: str) -> None:
    with pytest.raises(SleepcError, match="unknown operator"):
        operator(name, "STEP")


def test_a_trace_may_name_what_torch_export_writes() -> None:
    for name in ("aten.linear", "aten.dropout", "aten.add_.Tensor", "aten.scatter_.src"):
        assert operator_name(operator(name, "ATEN")) == name
    for name, level in (("aten.from_file", "ATEN"), ("aten.dropout", "STEP"), ("aten.add_.Tensor", "CANONICAL")):
        with pytest.raises(SleepcError, match="unknown operator"):
            operator(name, level)
    with pytest.raises(SleepcError, match="unknown level"):
        operator("aten.linear", "GONE")


def test_a_trace_may_hold_what_a_file_may_not() -> None:
    assert is_allowed(aten.dropout.default, "ATEN")
    assert not is_allowed(aten.dropout.default, "STEP")
    assert not is_allowed(aten.add_.Tensor, "ATEN")
    assert is_allowed(python.add, "ATEN")
    assert is_allowed(python.add, "STEP")
    assert not is_allowed(print, "ATEN")
    assert not is_allowed(print, "STEP")


@pytest.mark.parametrize("target", [print, torch.add, "aten.add", torch.ops.aten.add])
def test_only_operators_have_names(target: object) -> None:
    with pytest.raises(SleepcError, match="not an operator"):
        operator_name(target)
