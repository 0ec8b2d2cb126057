"""`sleepc adapt` and `sleepc convert --adapter`: an artifact is adapted, or stays as it was to the byte."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sleepc import api, artifact
from sleepc.converting import convert
from sleepc.digests import weights_digest
from sleepc.errors import SleepcWarning
from sleepc.ir.weights import HeldTensor
from sleepc.sealed_json import digest
from sleepc.train.adapter import rank_of, with_values, write_adapter
from tests.cli.models import run_here, save_model
from tests.families import make_module
from tests.train.changes import trained


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its conversion `plain`, and an `adapter` with maps of rank 2 and one trained weight."""
    folder = tmp_path_factory.mktemp("adapt")
    model = save_model(folder / "model", module=make_module("olmo2", torch.float32))
    program = convert(model, {"window": 6, "sinks": 2})
    program.save(folder / "plain")
    keys = trained(program, rank=2, weights=True)
    write_adapter(folder / "adapter", program, keys, {"settings": {"tokens": 64}})
    program.save(folder / "trained")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def copy_of(made: Path, tmp_path: Path) -> Path:
    """The plain artifact in a folder where there is nothing else."""
    shutil.copytree(made / "plain", tmp_path / "here" / "plain")
    return tmp_path / "here" / "plain"


def test_an_artifact_is_replaced_and_holds(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = copy_of(made, tmp_path)
    before = api.load(plain).identity
    code, said, _ = run_here(capsys, "adapt", plain, made / "adapter")
    assert code == 0
    assert "LoRA matrices of rank 2" in said
    assert "1 weights of the model itself" in said
    found = api.load(plain)
    assert found.identity == api.load(made / "trained").identity != before
    assert found.report["training"]["settings"] == {"tokens": 64}
    assert [p.name for p in plain.parent.iterdir()] == ["plain"]
    code, said, _ = run_here(capsys, "verify", plain)
    assert code == 0, said
    assert "the model's own weights have been trained" in said
    code, said, _ = run_here(capsys, "bisect", plain, "--json")
    assert code == 0, said
    told = json.loads(said)
    assert told["rows"][-1]["detail"] == "its weights have been trained: other numbers are meant"
    assert set(found.report["training"]["weights"]) < set(told["trained"])


def test_another_artifact_is_made(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, out = contents(made / "plain"), tmp_path / "out"
    code, said, _ = run_here(capsys, "adapt", made / "plain", made / "adapter", "-o", out, "--merge", "--json")
    assert code == 0
    told = json.loads(said)
    assert (told["rank"], told["merged"], told["output"]) == (2, True, str(out))
    assert told["weights"] == len(told["training"]["weights"]) == 14
    assert told["identity"] != told["before"]
    assert contents(made / "plain") == before
    found = api.load(out)
    assert rank_of(found.graphs) == 0
    assert found.identity == told["identity"]
    assert found.verify(tokens=range(40)).ok


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_merging_says_what_rounding_took(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float
) -> None:
    program = convert(made / "model", {"window": 6, "sinks": 2, "dtype": "bfloat16"})
    program.save(tmp_path / "low")
    trained(program, rank=2)
    small = {key: p.materialise() * scale for key, p in program.graphs.params.items() if key.endswith(".low_b")}
    program.graphs = with_values(program.graphs, small)
    params = program.graphs.params
    write_adapter(tmp_path / "adapter", program, [], {})
    with warnings.catch_warnings():
        warnings.simplefilter("always", SleepcWarning)
        arguments = ("adapt", tmp_path / "low", tmp_path / "adapter", "--merge", "-o")
        code, said, err = run_here(capsys, *arguments, tmp_path / "merged", "--json")
        assert code == 0, err
        assert "% of their change" in run_here(capsys, *arguments, tmp_path / "again")[1]
    wanted = lost = 0.0
    merged, plain = api.load(tmp_path / "merged").graphs, api.load(tmp_path / "low").graphs
    for key in small:
        weight = next(k for k in plain.params if _is_beside(program.graphs, key, k))
        a, b = (params[k].materialise().double() for k in (key.removesuffix("b") + "a", key))
        wanted += float((b @ a).square().sum())
        whole = plain.params[weight].materialise().bfloat16().double() + b @ a
        lost += float((merged.params[weight].materialise().double() - whole).square().sum())
    told = json.loads(said)["merge_lost"]
    assert told == pytest.approx((lost / wanted) ** 0.5, rel=1e-6)
    assert (told > 0.3) == (scale < 1), told
    assert (f"rounding to bfloat16 lost {min(told, 1):.0%} of what the LoRA matrices change" in err) == (scale < 1)


def _is_beside(graphs: Any, low: str, weight: str) -> bool:
    """Is the parameter `weight` the one that these LoRA matrices adapt?"""
    for block in graphs.layout:
        ports = {key: port for port, key in block.params.items()}
        if low in ports:
            return bool(block.params[ports[low].removesuffix(".low_b")] == weight)
    return False


def test_a_conversion_takes_the_options_of_the_training(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("convert", made / "model", "--adapter", made / "adapter", "--no-verify", "-o")
    code, _, err = run_here(capsys, *arguments, tmp_path / "same")
    assert (code, err) == (0, "")
    found = api.load(tmp_path / "same")
    assert (found.recipe.window, found.recipe.sinks) == (6, 2)
    assert found.identity == api.load(made / "trained").identity
    (tmp_path / "recipe.yaml").write_text("window: 7\n")
    with warnings.catch_warnings():
        warnings.simplefilter("always", SleepcWarning)  # tests make them errors
        code, _, err = run_here(
            capsys, *arguments, tmp_path / "other", "--recipe", tmp_path / "recipe.yaml", "--sinks", 1
        )
    assert code == 0
    assert err.startswith("warning: the adapter was trained with other options: window 6 → 7, sinks 2 → 1.")
    found = api.load(tmp_path / "other")
    assert (found.recipe.window, found.recipe.sinks) == (7, 1)


def test_the_hash_is_of_the_values_wherever_they_are(made: Path) -> None:
    graphs = api.load(made / "plain").graphs
    held = replace(graphs, params={key: HeldTensor(p.materialise(), p.new) for key, p in graphs.params.items()})
    assert weights_digest(held) == weights_digest(graphs)
    first = min(key for key, p in graphs.params.items() if not p.new)
    held.params[first] = HeldTensor(held.params[first].materialise() + 1)
    assert weights_digest(held) != weights_digest(graphs)


def test_an_artifact_from_before_there_were_hashes(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = copy_of(made, tmp_path)
    data = json.loads((plain / "sleepc.json").read_text())
    assert data["source"].pop("weights_sha256")
    (plain / "sleepc.json").write_text(json.dumps({**data, "sha256": digest(data)}))
    with warnings.catch_warnings():
        warnings.simplefilter("always", SleepcWarning)
        code, _, err = run_here(capsys, "adapt", plain, made / "adapter")
    assert code == 0
    assert err.startswith("warning: the artifact does not say which weights it was made of")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plain", "absent"], 2, "there is no adapter"),
        (["plain", "model/model.safetensors"], 2, "is not a sleepc adapter"),
        (["plain", "model/config.json"], 1, "not a valid safetensors file"),
        (["plain", "cut"], 1, "not a valid safetensors file"),
        (["plain", "foreign"], 2, "trained on other weights"),
        (["plain", "adapter", "-o", "model"], 2, "exists"),
        (["plain", "adapter", "-o", "model", "--force"], 2, "is not one of sleepc's"),
        (["model", "adapter"], 2, "is not a sleepc artifact"),
        (["absent", "adapter"], 2, "is not a sleepc artifact"),
    ],
)
def test_what_cannot_be_done_changes_nothing(
    made: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    (made / "cut").write_bytes((made / "adapter").read_bytes()[:-1])
    program = api.load(made / "plain")
    program.source = program.source.model_copy(update={"weights_sha256": "0" * 64})
    write_adapter(made / "foreign", program, [], {})
    before = contents(made)
    found = run_here(capsys, "adapt", *(a if a.startswith("-") else made / a for a in arguments))
    assert found[0] == code
    assert found[2].startswith("error: ")
    assert said in found[2]
    assert contents(made) == before


def test_a_full_disk_leaves_the_old_artifact(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = copy_of(made, tmp_path)
    before = contents(plain.parent)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "new.safetensors")

    monkeypatch.setattr(artifact, "write_tensors", full)
    code, _, err = run_here(capsys, "adapt", plain, made / "adapter")
    assert code == 1
    assert "the disk is full" in err
    assert contents(plain.parent) == before
    assert [p.name for p in plain.parent.iterdir()] == ["plain"]
