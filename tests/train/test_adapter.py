"""Adapters: what a training changed comes back from a file, to the bit, or is refused with its reason."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sleepc import api
from sleepc.api import Program
from sleepc.converting import convert
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.manifest import Source
from sleepc.memory.parameters import MIX_BIAS
from sleepc.passes.rewrite.kept_pairs import PROBE, probe_keys
from sleepc.train.adapter import apply_adapter, merge_maps, rank_of, read_adapter, with_rank, with_values, write_adapter
from tests.families import VOCAB, make_module
from tests.train.changes import trained

OPTIONS: dict[str, Any] = {"window": 6, "sinks": 2}
FACTS: dict[str, Any] = {"settings": {"tokens": 100}, "loss": [2.0, 1.5]}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make_module("olmo2", torch.float32)


CONVERTED: dict[str, Program] = {}


def fresh(model: nn.Module, **options: Any) -> Program:
    """A conversion of its own, of which only the first of its kind takes time."""
    name = f"{id(model)} {options}"
    if name not in CONVERTED:
        CONVERTED[name] = convert(model, {**OPTIONS, **options})
    return replace(CONVERTED[name], graphs=CONVERTED[name].graphs.clone(), report={}, path=None, identity="")


def logits(program: Program) -> np.ndarray[Any, Any]:
    tokens = torch.randint(0, VOCAB, (15,), generator=torch.Generator().manual_seed(3)).tolist()
    found = program.session().feed(tokens, logits="all")
    assert found is not None
    return found


@pytest.mark.parametrize(("rank", "weights"), [(0, False), (2, False), (2, True)])
def test_an_adapter_makes_a_fresh_conversion_the_trained_program(
    model: nn.Module, tmp_path: Path, rank: int, weights: bool
) -> None:
    program = fresh(model)
    before = logits(program)
    keys = trained(program, rank, weights)
    write_adapter(tmp_path / "deep" / "a.adapter", program, keys, FACTS)
    wanted = logits(program)
    assert np.abs(wanted - before).max() > 1e-2

    adapter = read_adapter(tmp_path / "deep" / "a.adapter")
    assert set(adapter.values) == set(keys)
    assert adapter.header.rank == rank
    again = fresh(model)
    again.adapt(tmp_path / "deep" / "a.adapter")
    assert np.array_equal(logits(again), wanted)
    assert {k: p.new for k, p in again.graphs.params.items()} == {k: p.new for k, p in program.graphs.params.items()}
    report = again.report["training"]
    assert (report["settings"], report["loss"], report["rank"]) == (FACTS["settings"], FACTS["loss"], rank)
    assert len(report["weights"]) == (1 if weights else 0)

    again.adapt(tmp_path / "deep" / "a.adapter", merge=True)
    assert rank_of(again.graphs) == 0
    assert np.abs(logits(again) - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("options", "rank", "weights", "merged"),
    [({}, 0, False, False), ({}, 2, False, False), ({}, 2, True, True), ({"strategy": "insert"}, 0, False, False)],
)
def test_an_adapted_artifact_is_verified(
    model: nn.Module, tmp_path: Path, options: dict[str, Any], rank: int, weights: bool, merged: bool
) -> None:
    program = fresh(model, **options)
    plain = program.save(tmp_path / "plain")
    identity = program.identity
    write_adapter(tmp_path / "a", program, trained(program, rank, weights), FACTS)
    loaded = api.load(plain)
    loaded.adapt(tmp_path / "a", merge=merged)
    loaded.save(tmp_path / "out")
    assert loaded.identity != identity
    found = api.load(tmp_path / "out")
    assert found.identity == loaded.identity
    found.canonical = program.canonical
    report = found.verify(against=model, tokens=range(VOCAB))
    assert report.ok, report.checks
    assert all(c.value is not None for c in report.checks if c.invariant == 4)
    two = [c for c in report.checks if c.invariant == 2]
    if rank or weights:
        assert [c.detail for c in two] == ["does not apply: the model's own weights have been trained"]
    elif options:
        assert [c.detail for c in two] == ["does not apply: the inserted mixers have been trained"]
    else:
        assert all(c.value is not None for c in two)


def test_other_weights_without_a_training_are_found(model: nn.Module) -> None:
    program = fresh(model)
    trained(program, weights=True)
    assert 2 in program.verify().failed  # nobody noted a training


def test_maps_that_learned_nothing_are_still_the_original(model: nn.Module) -> None:
    program = fresh(model)
    program.graphs = with_rank(program.graphs, 2)
    report = program.verify()
    assert report.ok
    assert all(c.value is not None for c in report.checks if c.invariant == 2)


def test_training_goes_on_from_an_adapted_program(model: nn.Module, tmp_path: Path) -> None:
    first = fresh(model)
    write_adapter(tmp_path / "first", first, trained(first, rank=2, weights=True), {"run": 1})
    second = fresh(model)
    second.adapt(tmp_path / "first")
    only = [key for key in second.graphs.params if key.endswith(MIX_BIAS.port)]
    values = {key: torch.zeros_like(second.graphs.params[key].materialise()) for key in only}
    second.graphs = with_values(second.graphs, values)
    write_adapter(tmp_path / "second", second, only, {"run": 2})
    third = fresh(model)
    third.adapt(tmp_path / "second")
    assert np.array_equal(logits(third), logits(second))
    assert third.report["training"]["run"] == 2


def test_an_adapter_replaces_another(model: nn.Module, tmp_path: Path) -> None:
    made = {}
    for name, rank, weights in (("maps", 3, False), ("none", 0, False), ("weights", 2, True)):
        program = fresh(model)
        write_adapter(tmp_path / name, program, trained(program, rank, weights, seed=rank), {})
        made[name] = logits(program)
    program = fresh(model)
    for name in ("maps", "none", "weights"):
        program.adapt(tmp_path / name)
        assert np.array_equal(logits(program), made[name])
    with pytest.raises(UsageError, match="have been trained or merged") as found:
        program.adapt(tmp_path / "maps")
    assert "adapter FILE" in found.value.fix
    assert np.array_equal(logits(program), made["weights"])


def test_merging_says_which_weights_changed(model: nn.Module) -> None:
    program = fresh(model)
    trained(program, rank=2)
    assert merge_maps(program) == len(program.report["training"]["weights"]) == 7 * 2
    assert merge_maps(program) == 0


def test_a_trained_program_is_not_warned_of(model: nn.Module, tmp_path: Path) -> None:
    options: dict[str, Any] = {"consolidation": "recurrent", "passes": 2}
    with pytest.warns(SleepcWarning, match="not trained"):
        program = fresh(model, **options)
    write_adapter(tmp_path / "a", program, trained(program), FACTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = convert(model, adapter=tmp_path / "a")
        assert again.recipe == program.recipe
        assert np.array_equal(logits(again), logits(program))
        api.load(again.save(tmp_path / "out"))


def test_given_options_win_and_differences_are_told(model: nn.Module, tmp_path: Path) -> None:
    program = fresh(model)
    write_adapter(tmp_path / "a", program, trained(program), FACTS)
    with pytest.warns(SleepcWarning, match="window 6 → 7, eviction sliding → hard"):
        found = convert(model, {"window": 7, "eviction": "hard", "seed": 4}, adapter=tmp_path / "a")
    assert (found.recipe.window, found.recipe.sinks) == (7, 2)


def test_an_adapter_of_other_weights_is_refused(model: nn.Module, tmp_path: Path) -> None:
    program = fresh(model)
    write_adapter(tmp_path / "a", program, trained(program), FACTS)
    other = make_module("llama", torch.float32)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    with pytest.raises(UsageError) as found:
        fresh(other).adapt(tmp_path / "a")
    for source in (program.source, fresh(other).source):
        assert source.weights_sha256[:12] in found.value.what
        assert source.name in found.value.what


def test_without_a_hash_a_person_is_told(model: nn.Module, tmp_path: Path) -> None:
    program = fresh(model)
    program.source = Source.model_validate({"name": "x", "kind": "module"})  # as older manifests have it
    write_adapter(tmp_path / "a", program, trained(program), FACTS)
    with pytest.warns(SleepcWarning, match="cannot be checked"):
        fresh(model).adapt(tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strategy": "insert"}, "the program has no parameters blocks.0.memory."),
        ({"layers": "0"}, "the program has no parameters blocks.1.memory."),
        ({"decay": "channel"}, r"other shapes have blocks.0.memory.dt \[2\] instead of \[16\]"),
    ],
)
def test_what_does_not_fit_is_named(model: nn.Module, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    program = fresh(model)
    write_adapter(tmp_path / "a", program, trained(program), FACTS)
    target = fresh(model, **options)
    before = target.graphs
    with pytest.raises(UsageError, match=said):
        target.adapt(tmp_path / "a")
    assert target.graphs is before
    assert "training" not in target.report


# ---------------------------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "a"
    program = fresh(model)
    write_adapter(path, program, trained(program, rank=2), FACTS)
    return path


def rewritten(file: Path, out: Path, change: Callable[[dict[str, str], dict[str, torch.Tensor]], object]) -> Path:
    """The file with its metadata or tensors changed, as valid safetensors."""
    length = struct.unpack("<Q", file.read_bytes()[:8])[0]
    metadata: dict[str, str] = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
    tensors = load_file(file)
    change(metadata, tensors)
    save_file(tensors, out, metadata=metadata)
    return out


def first(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return tensors[min(tensors)]


DAMAGES: dict[str, tuple[Callable[[dict[str, str], dict[str, torch.Tensor]], object], type[SleepcError], str]] = {
    "newer": (lambda m, t: m.update(format="2"), UsageError, "format 2, and this sleepc reads format 1"),
    "no version": (lambda m, t: m.update(format="x"), SleepcError, "format"),
    "not ours": (lambda m, t: m.clear(), UsageError, "not a sleepc adapter"),
    "unknown key": (lambda m, t: m.update(more="1"), SleepcError, "more"),
    "recipe": (lambda m, t: m.update(recipe='{"window": 0}'), SleepcError, "recipe.window"),
    "recipe that is no JSON": (lambda m, t: m.update(recipe="{"), SleepcError, "recipe"),
    "facts": (lambda m, t: m.update(facts="[1]"), SleepcError, "facts"),
    "deep facts": (lambda m, t: m.update(facts='{"a":' + "[" * 9999 + "]" * 9999 + "}"), SleepcError, "facts"),
    "long facts": (lambda m, t: m.update(facts='{"a":"' + "x" * (1 << 20) + '"}'), SleepcError, "too long"),
    "rank": (lambda m, t: m.update(rank="1000000"), SleepcError, "rank"),
    "hash": (lambda m, t: m.update(weights_sha256="0"), SleepcError, "weights_sha256"),
    "a value": (lambda m, t: first(t).add_(1.0), SleepcError, "changed after it was written"),
    "a tensor gone": (lambda m, t: t.pop(min(t)), SleepcError, "changed after it was written"),
    "NaN": (lambda m, t: first(t).mul_(float("nan")), SleepcError, "NaN"),
    "whole numbers": (lambda m, t: t.update({min(t): first(t).to(torch.int64)}), SleepcError, "not floats"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(file: Path, tmp_path: Path, damage: str) -> None:
    change, kind, said = DAMAGES[damage]
    with pytest.raises(SleepcError, match=said) as found:
        read_adapter(rewritten(file, tmp_path / "bad", change))
    assert type(found.value) is kind
    assert found.value.fix


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_that_was_cut_off_is_refused(file: Path, tmp_path: Path, keep: int) -> None:
    (tmp_path / "cut").write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SleepcError, match="not a valid safetensors file"):
        read_adapter(tmp_path / "cut")


@pytest.mark.parametrize("name", ["absent", "."])
def test_a_path_that_leads_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="there is no adapter"):
        read_adapter(tmp_path / name)


def test_an_adapter_has_no_constants_of_keep(model: nn.Module, tmp_path: Path) -> None:
    """Budgets are the conversion's and not learned: an adapter goes with any, also with none."""
    kept, other = (fresh(model, keep={"slots": 2, "budgets": budgets}) for budgets in ("equal", [[1, 3], [4, 0]]))
    write_adapter(tmp_path / "a", kept, trained(kept, 2), FACTS)
    values = load_file(tmp_path / "a")
    assert not [key for key, value in values.items() if not value.dtype.is_floating_point]
    for program in (other, fresh(model)):
        before = {k: p.materialise() for k, p in program.graphs.params.items() if not p.dtype.is_floating_point}
        assert bool(before) == (program is other)
        with pytest.warns(SleepcWarning, match="other options: keep"):
            program.adapt(tmp_path / "a")
        after = {key: param.materialise() for key, param in program.graphs.params.items()}
        wanted = {**before, **{k: v for k, v in values.items() if program is other or not k.endswith(PROBE)}}
        assert not [key for key, value in wanted.items() if not torch.equal(after[key].to(value.dtype), value)]
    adapter = read_adapter(tmp_path / "a")
    head = next(key for key in other.graphs.params if not other.graphs.params[key].dtype.is_floating_point)
    with pytest.raises(UsageError, match="the conversion alone decides"):
        apply_adapter(other, replace(adapter, values={**adapter.values, head: torch.zeros(4)}))


def test_measured_probes_come_with_an_adapter_and_stay_without(model: nn.Module, tmp_path: Path) -> None:
    first, second, third = (fresh(model, keep={"slots": 2, "budgets": "equal"}) for _ in range(3))
    probes = set(probe_keys(first.graphs).values())
    assert probes
    trained(first)
    measured = {key: first.graphs.params[key].materialise() for key in probes}
    second.graphs = with_values(second.graphs, measured)
    first.graphs = with_values(first.graphs, {key: torch.zeros_like(value) for key, value in measured.items()})
    write_adapter(tmp_path / "unmeasured", first, [], FACTS)
    assert not probes & load_file(tmp_path / "unmeasured").keys()
    second.adapt(tmp_path / "unmeasured")
    write_adapter(tmp_path / "measured", second, [], FACTS)
    third.adapt(tmp_path / "measured")
    for program in (second, third):
        assert all(torch.equal(program.graphs.params[key].materialise(), measured[key]) for key in probes)
