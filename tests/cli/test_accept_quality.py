"""`convert` and `verify` judge what lies beyond the window: a ruined model is saved only where the user says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sleepc.verify.original import Original
from tests.cli.models import run_here, save_model
from tests.families import VOCAB, make_module


def long_model() -> nn.Module:
    """With positions enough to see what is beyond its window."""
    module = make_module("llama", torch.float32)
    module.config.max_position_embeddings = 512  # type: ignore[union-attr]
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("beyond") / "model", module=long_model())


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original knows what follows, wherever it may look as far back as it likes."""

    def at(self: Original, tokens: Tensor, places: Tensor) -> Tensor:
        del self
        following = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)[:, places]
        return 8.0 * one_hot(following, VOCAB).float()

    monkeypatch.setattr(Original, "at", at)


@pytest.mark.usefixtures("knowing")
def test_a_ruined_model_is_saved_only_when_that_is_accepted(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("convert", model, "-o", out, "--window", 16, "--sinks", 0)
    code, said, error = run_here(capsys, *options)
    assert code == 1
    assert not out.exists()
    assert "all hold" in said
    assert "times that of full attention" in error
    assert "--sinks 4" in error
    assert "--accept-quality saves it anyway" in error
    code, _, error = run_here(capsys, *options, "--accept-quality")
    assert code == 0
    assert error.startswith("warning: perplexity beyond the window")
    stored = json.loads((out / "sleepc.json").read_text())["report"]["verify"]["beyond"]
    assert stored["verdict"] == "accepted"
    assert stored["ratio"] > 4
    code, said, error = run_here(capsys, "verify", out, "--json")
    assert code == 1
    found = json.loads(said)
    assert not found["ok"]
    assert all(check["ok"] for check in found["checks"])
    assert found["beyond"]["verdict"] == "ruined"
    assert run_here(capsys, "verify", out, "--accept-quality")[0] == 0


@pytest.mark.usefixtures("knowing")
def test_what_needs_training_by_design_is_saved_with_a_warning(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, _, error = run_here(capsys, "convert", model, "-o", out, "--window", 16, "--strategy", "replace")
    assert code == 0
    assert out.exists()
    assert "warning: perplexity beyond the window" in error
    assert "sleepc distil" in error


def test_random_tokens_say_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, error = run_here(capsys, "convert", model, "-o", tmp_path / "out", "--window", 16)
    assert code == 0
    assert "the original only guesses at these tokens" in said
    assert "warning" not in error
