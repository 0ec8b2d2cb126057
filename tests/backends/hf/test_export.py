"""A checkpoint for transformers: the same logits, and what it tells where there can be none."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sleepc
from sleepc.api import Program
from sleepc.backends.hf import check as checking
from sleepc.backends.hf import checkpoint as writing
from sleepc.backends.hf.dense import host_of, of_config, windows_of
from sleepc.backends.hf.engines import FULL, LINEAR, interval_of, refusals, said
from sleepc.backends.hf.fitting import no_host, of_sleeps, own_kinds
from sleepc.backends.hf.obstacles import Host, of_layers, possible, refusal
from sleepc.backends.report import Figure
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.recipe import make_recipe
from sleepc.runtime.session import Session
from sleepc.train.adapter import with_values
from tests.cli.models import run_here, save_model
from tests.families import make_module
from tests.natives import KEPT, NATIVE, TOKENS, converted, qwen3


def loaded(folder: Path) -> Any:
    """As any user loads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=torch.tensor([TOKENS[:40]])).logits[0]
    return found


def differ(program: Program, model: Any) -> float:
    wanted = Session(program.steps(), 1).feed(TOKENS[:40], logits="all")[0]
    return float((logits(model) - torch.from_numpy(wanted)).abs().max())


@pytest.fixture(scope="module")
def program(native: Program) -> Program:
    return native


@pytest.fixture(scope="module")
def checkpoint(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program.export(tmp_path_factory.mktemp("hf") / "out", to="hf", tokens=TOKENS).path


def test_a_dense_model_with_native_layers_is_one_of_qwen3_5s_class(program: Program, checkpoint: Path) -> None:
    model = loaded(checkpoint)
    assert type(model).__name__ == "Qwen3_5ForCausalLM"
    assert model.config.layer_types == [LINEAR, FULL, LINEAR]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert differ(program, model) < 1e-4
    report = json.loads((checkpoint / "native.json").read_text())["report"]
    assert [row["figure"] for row in report["checks"]] == ["logits, one call", "logits, one by one"]
    assert all(row["value"] < 1e-4 for row in report["checks"])
    prompt = torch.tensor([TOKENS[:20]])
    found = model.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 20:]
    session = Session(program.steps(), 1)
    session.feed(TOKENS[:20])
    assert found.tolist() == [int(step[0]) for step in session.generate(12)]


@pytest.mark.slow
def test_untied_and_in_bfloat16(tmp_path: Path) -> None:
    program = converted(tmp_path, qwen3(tie_word_embeddings=False), KEPT)
    model = loaded(program.export(tmp_path / "out", to="hf", tokens=TOKENS).path)
    assert not model.config.tie_word_embeddings
    assert differ(program, model) < 1e-4
    narrow = loaded(program.export(tmp_path / "half", to="hf", tokens=TOKENS, dtype="bfloat16").path)
    assert narrow.dtype == torch.bfloat16


def test_licence_card_and_tokenizer_go_with_it(checkpoint: Path) -> None:
    assert (checkpoint / "LICENSE").read_text() == "Do as you like."
    assert (checkpoint / "README.original.md").read_text().endswith("# The original\n")
    card = (checkpoint / "README.md").read_text()
    assert re.search(r"^license: apache-2.0$", card, re.MULTILINE)
    assert "library_name: transformers" in card
    assert "layout: native" in card
    assert (checkpoint / "tokenizer.json").is_file()
    assert (checkpoint / "generation_config.json").is_file()


def test_models_without_norms_of_q_and_k_only_if_no_attention_is_left(tmp_path: Path) -> None:
    program = converted(tmp_path, make_module("llama", torch.float32), NATIVE)
    with pytest.warns(SleepcWarning, match="runs the checkpoint without a cache"):
        model = loaded(program.export(tmp_path / "out", to="hf", tokens=TOKENS).path)
    assert model.config.layer_types == [LINEAR] * 3
    assert differ(program, model) < 1e-4
    found = model.generate(torch.tensor([TOKENS[:20]]), max_new_tokens=4, do_sample=False, pad_token_id=0)[0, 20:]
    session = Session(program.steps(), 1)
    session.feed(TOKENS[:20])
    assert found.tolist() == [int(step[0]) for step in session.generate(4)]
    with pytest.raises(UsageError, match="vllm needs a layer with attention"):
        program.export(tmp_path / "no", to="hf", tokens=TOKENS, runtime="vllm")
    assert not (tmp_path / "no").exists()


def test_what_is_in_the_way_is_told_layer_by_layer() -> None:
    overrides = [
        {"layers": "1-2", "strategy": "replace"},
        {"layers": "3", "strategy": "leave", "window": "none"},
        {"layers": "4", "strategy": "leave"},
    ]
    recipe = make_recipe({"window": 8, "passes": 2, "overrides": overrides})
    plans, host = recipe.plan(5), Host("Qwen3_5ForCausalLM", normed=False)
    error = refusal(host, of_layers(plans, host), of_sleeps(recipe, 5), plans)
    assert "layers 0: it has a memory beside attention (strategy parallel)" in error.what
    assert "layers 1-2: it keeps biases, q/k norms and their factors" in error.what
    assert "layers 3: it kept its attention, without the norms of q and k" in error.what
    assert "layers 4: its attention has a window of 8 tokens" in error.what
    assert "the whole model: its sleeps do what no class does: 2 passes of replay" in error.what
    assert "--strategy replace --layout native --passes 1" in error.on_command_line[2]
    assert 'layers: "0-2"' in possible(Host("", normed=True), plans)


def test_windows_of_the_original_s_own_are_in_the_way() -> None:
    config = qwen3(use_sliding_window=True, sliding_window=6, max_window_layers=1).config
    assert windows_of(config) == [0, 6, 6]
    host = host_of(config)
    assert host is not None
    recipe = make_recipe({**NATIVE, "overrides": [{"layers": "0-1", "strategy": "leave", "window": "none"}]})
    found = of_layers(recipe.plan(3), host)
    assert found == {"its attention has a window of its own of 6 tokens, and the class sees all of them": [1]}
    assert 'layers: "1-2", overrides: [{layers: "0", strategy: leave' in possible(host, recipe.plan(3))
    config.sliding_window = config.max_position_embeddings
    assert windows_of(config) == [0, 0, 0]


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    """Six blocks in bfloat16, which go wrong together by more than one alone may."""
    folder = tmp_path_factory.mktemp("rounded")
    kept = {**NATIVE, "overrides": [{"layers": "1,4", "strategy": "leave", "window": "none"}]}
    program = converted(folder, qwen3(num_hidden_layers=6).to(torch.bfloat16), kept)
    return program, program.export(folder / "out", to="hf", tokens=TOKENS).path


def test_rounded_checkpoints_are_compared_block_by_block(
    rounded: tuple[Program, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, out = rounded
    checks = json.loads((out / "native.json").read_text())["report"]["checks"]
    names = ["blocks, one call", "logits, one call", "blocks, one by one", "logits, one by one"]
    assert [row["figure"] for row in checks] == names
    assert all(0 < row["value"] <= 0.05 for row in checks)
    monkeypatch.setattr(checking, "parts_of", lambda *_: None)
    assert max(row.value for row in checking.compare(program.graphs, out, TOKENS, 0.05)) > 0.05


@pytest.mark.parametrize(
    ("name", "change", "where"),
    [
        ("model.layers.4.self_attn.o_proj.weight", lambda value: value / 2, "block 4 the worst"),
        ("model.layers.2.post_attention_layernorm.weight", lambda value: value + 1, "block 2 the worst"),
        ("model.layers.0.linear_attn.dt_bias", lambda value: value + 1, "block 0 the worst"),
        ("model.embed_tokens.weight", lambda value: value.roll(1, 0), "the embedding the worst"),
    ],
)
def test_a_fault_in_a_rounded_checkpoint_is_found_where_it_is(
    rounded: tuple[Program, Path], tmp_path: Path, name: str, change: Any, where: str
) -> None:
    program, out = rounded
    folder = Path(shutil.copytree(out, tmp_path / "out"))
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, name: change(weights[name])}, folder / "model.safetensors", {"format": "pt"})
    rows = checking.compare(program.graphs, folder, TOKENS, 0.05)
    found = [row for row in rows if row.figure.startswith("blocks")]
    assert [(row.ok, row.detail.partition(",")[0]) for row in found] == [(False, where)] * 2


def test_what_computes_something_else_leaves_nothing(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "compare", lambda *_, **__: [Figure("transformers", "logits", 1.0, 1e-4)])
    with pytest.raises(SleepcError, match="logits 1, at most"):
        program.export(tmp_path / "no", to="hf", tokens=TOKENS)
    assert list(tmp_path.iterdir()) == []


def test_a_model_whose_blocks_no_class_has() -> None:
    from transformers import GPT2Config

    plans = make_recipe({"window": 8}).plan(3)
    error = no_host(GPT2Config(), plans)
    assert "none has the blocks of gpt2 with native layers" in error.what
    assert "layers 0-2: it has a memory beside attention" in error.what
    assert "--to onnx" in error.on_command_line[2]


def test_what_no_recipe_changes_is_said() -> None:
    plans, host = make_recipe(NATIVE).plan(3), Host("Qwen3_5ForCausalLM", normed=True, windows=(0, 5, 0))
    original = of_config(qwen3(hidden_act="gelu").config)
    error = refusal(host, {}, [], plans, original=original)
    assert "the whole model: its activation is gelu" in error.what
    assert error.on_command_line[-1].startswith("No recipe makes it possible.")
    assert possible(host, plans).endswith("--passes 1 --own-windows narrow")  # else layer 1 keeps its attention


def test_tokens_are_compared_also_where_the_first_sleep_is_near_the_last_position(program: Program) -> None:
    def count(window: int, last: int | None) -> int:
        graphs = replace(program.graphs, window=window, max_positions=last)
        return len(checking.tokens_read(graphs, range(1000)))

    assert [count(8, None), count(8, 64), count(40, 64), count(256, 64)] == [48, 48, 40, 64]


@pytest.mark.slow
def test_a_hybrid_that_only_changed_weights_keeps_its_class(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "qwen3-5")
    program = sleepc.convert(model, {"window": 8, "sinks": 2, "overrides": [{"layers": "all", "window": "none"}]})
    key = "model.layers.0.mlp.up_proj.weight"
    program.graphs = with_values(program.graphs, {key: program.graphs.params[key].materialise() * 1.5})
    out = program.export(tmp_path / "out", to="hf", tokens=TOKENS, runtime="sglang").path
    assert json.loads((out / "config.json").read_text())["full_attention_interval"] == 2
    found = loaded(out)
    assert type(found).__name__ == "Qwen3_5ForCausalLM"
    assert differ(program, found) < 1e-4
    assert float((logits(found) - logits(loaded(model))).abs().max()) > 1e-3


def test_runtimes_are_asked_for_a_hybrid_that_stays_as_it_is() -> None:
    config = make_module("qwen3-5", torch.float32).config
    assert own_kinds(config, "mlx", "hf") == (LINEAR, FULL)
    config.layer_types = [FULL, LINEAR]  # type: ignore[union-attr]
    assert own_kinds(config, "vllm", "hf") == (FULL, LINEAR)
    with pytest.raises(UsageError, match="mlx takes every n-th layer"):
        own_kinds(config, "mlx", "hf")
    assert own_kinds(qwen3().config, "mlx", "hf") == ()


@pytest.mark.parametrize(
    ("kinds", "step"), [("LLFLLF", 3), ("LFLF", 2), ("LLL", 4), ("FLL", None), ("LFFL", None), ("LLFLL", 3), ("FF", 1)]
)
def test_regular_layers_are_found(kinds: str, step: int | None) -> None:
    assert interval_of([{"L": LINEAR, "F": FULL}[kind] for kind in kinds]) == step


@pytest.mark.parametrize(
    ("engine", "kinds", "why"),
    [
        ("mlx", "LFFL", "every n-th layer"),
        ("sglang", "FLLF", "every n-th layer"),
        ("llama.cpp", "FF", "only with linear layers"),
        ("mlx", "LL", "needs a layer with attention"),
        ("llama.cpp", "FLLF", ""),
        ("vllm", "FLLF", ""),
        ("transformers", "LL", ""),
    ],
)
def test_what_a_runtime_does_not_run_is_refused(engine: str, kinds: str, why: str) -> None:
    found = "; ".join(refusals(engine, [{"L": LINEAR, "F": FULL}[kind] for kind in kinds], {}))
    assert why in found
    assert bool(why) == bool(found)


def test_scaled_positions_that_a_runtime_has_not_are_refused() -> None:
    kinds, scaled = [LINEAR, FULL], {"rope_type": "llama3"}
    assert refusals("llama.cpp", kinds, {"rope_type": "yarn"}) == refusals("vllm", kinds, scaled) == []
    assert "by default, linear, yarn, and here it is rope_type llama3" in refusals("llama.cpp", kinds, scaled)[0]


def test_one_configuration_does_not_serve_all() -> None:
    kinds = [LINEAR, FULL]
    assert said("transformers", kinds) == {"model_type": "qwen3_5_text"}
    assert said("sglang", kinds) == {"model_type": "qwen3_5_text", "full_attention_interval": 2}
    assert said("mlx", kinds) == {"model_type": "qwen3_5", "full_attention_interval": 2}


def test_the_command(program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Export for a runtime, verify, see what would be sent to the hub; a changed file is found."""
    words = tmp_path / "words.txt"
    words.write_text(" ".join(f"w{i}" for i in TOKENS))
    out = tmp_path / "out"
    asked = ("export", program.path, "--to", "hf", "-o", out, "--text", words)
    code, _, error = run_here(capsys, *asked, "--for", "cars")
    assert code == 2
    assert "no runtime is called 'cars'" in error
    assert run_here(capsys, *asked, "--for", "llama.cpp")[0] == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "qwen3_5_text"
    assert run_here(capsys, "verify", out)[0] == 0
    code, shown, _ = run_here(capsys, "push", out, "me/model", "--dry-run")
    assert code == 0
    assert "model.safetensors" in shown
    assert "would send" in shown
    code, _, error = run_here(capsys, "push", program.path, "me/model", "--dry-run")
    assert code == 2
    assert "refers to weights that are elsewhere" in error
    (out / "config.json").write_text("{}")
    assert run_here(capsys, "verify", out)[0] == 1
