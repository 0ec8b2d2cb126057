"""Bad input: one clear line with cause and remedy, the right exit code, no traceback, nothing half-written."""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sleepc as package
from sleepc import artifact as artifacts
from sleepc.cli.main import main
from sleepc.errors import Refusal, SleepcError, UsageError
from tests.cli.models import save_model
from tests.test_full_disk import files_of

Edit = Callable[[Path], Any]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


@pytest.fixture
def artifact(model: Path) -> Path:
    program = package.convert(model, {"window": 8, "sinks": 2})
    return program.save(model.parent / "artifact")


def failing(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run a command that fails; its exit code and what it said."""
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.startswith("error: "), said
    return int(caught.value.code or 0), said


def convert(capsys: pytest.CaptureFixture[str], model: Path, *options: object) -> tuple[int, str]:
    out = model.parent / "out"
    before = sorted(model.parent.iterdir())
    result = failing(capsys, "convert", model, "-o", out, "--window", 8, "--sinks", 2, *options)
    assert sorted(model.parent.iterdir()) == before, "something was left behind"
    return result


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def truncate(folder: Path) -> None:
    data = weights(folder).read_bytes()
    weights(folder).write_bytes(data[: len(data) // 2])


def garble_header(folder: Path) -> None:
    data = bytearray(weights(folder).read_bytes())
    data[8:20] = b"x" * 12
    weights(folder).write_bytes(bytes(data))


def plant_nan(folder: Path) -> None:
    data = bytearray(weights(folder).read_bytes())
    data[-4:] = struct.pack("<f", float("nan"))
    weights(folder).write_bytes(bytes(data))


def edit_config(**changes: Any) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def drop_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights(folder))
    del tensors["lm_head.weight"]
    save_file(tensors, weights(folder))


def as_pickle(folder: Path) -> None:
    weights(folder).rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        (truncate, 1, "safetensors"),
        (garble_header, 1, "header"),
        (plant_nan, 1, "NaN"),
        (drop_head, 2, "1 missing (lm_head.weight)"),
        (as_pickle, 2, "pickle"),
        (lambda f: (f / "config.json").write_text("{"), 2, "config.json"),
        (lambda f: (f / "config.json").unlink(), 2, "config.json"),
        (lambda f: weights(f).unlink(), 2, "safetensors"),
        (edit_config(quantization_config={"quant_method": "gptq", "bits": 4}), 2, "gptq"),
        (edit_config(quantization_config={"quant_method": "awq"}), 2, "awq"),
        (edit_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), 2, "bitsandbytes"),
        (edit_config(is_encoder_decoder=True), 2, "encoder"),
    ],
)
def test_damaged_and_foreign_checkpoints(
    model: Path, capsys: pytest.CaptureFixture[str], edit: Edit, code: int, words: str
) -> None:
    edit(model)
    found, said = convert(capsys, model)
    assert (found, words in said) == (code, True), said
    assert len(said.splitlines()) >= 2, "a remedy belongs to it"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--layers", "7"), "layer 7"),
        (("--layers", "1-"), "layers"),
        (("--window", "0"), "window"),
        (("--strategy", "magic"), "strategy"),
        (("--window", "60", "--sinks", "40000"), "positions"),
        (("--dtype", "int8"), "dtype"),
    ],
)
def test_options_that_do_not_fit(
    model: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    code, said = convert(capsys, model, *options)
    assert (code, words in said) == (2, True), said


def test_window_beyond_learned_positions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_model(tmp_path / "model", "gpt2")
    code, said = convert(capsys, model, "--window", "30")
    assert code == 2
    assert "24" in said


def test_missing_model_and_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(capsys, "convert", tmp_path / "nothing", "-o", tmp_path / "out")[0] == 2
    (tmp_path / "notes.txt").write_text("hello")
    assert failing(capsys, "convert", tmp_path / "notes.txt", "-o", tmp_path / "out")[0] == 2
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    assert failing(capsys, "convert", tmp_path / "x.gguf", "-o", tmp_path / "out")[0] == 2
    assert failing(capsys, "run", tmp_path / "nothing", "hello")[0] == 2
    assert failing(capsys, "run", tmp_path / "nothing", "-f")[0] == 2


def test_output_that_exists(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = model.parent / "out"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    for options in ((), ("--force",)):
        code, said = failing(capsys, "convert", model, "-o", taken, *options)
        assert (code, "exists" in said) == (2, True)
    assert (taken / "thesis.txt").read_text() == "mine"


def test_models_that_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import BertConfig, BertLMHeadModel, MambaConfig, MambaForCausalLM

    sizes: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
    bert = BertLMHeadModel(BertConfig(**sizes, num_attention_heads=4, intermediate_size=48))
    code, said = convert(capsys, save_model(tmp_path / "bert", module=bert))
    assert (code, "bidirectional" in said) == (2, True), said
    mamba = MambaForCausalLM(MambaConfig(**sizes, state_size=4))
    code, said = convert(capsys, save_model(tmp_path / "mamba", module=mamba))
    assert (code, "no softmax attention" in said) == (2, True), said


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_one_changed_byte_anywhere_in_an_artifact(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = {"config.json", "generation_config.json", "tokenizer.json"}
    files = [p for p in artifact.rglob("*") if p.is_file() and p.name not in skipped]
    assert len(files) >= 7
    for path in files:
        before = path.read_bytes()
        change_byte(path)
        code, said = failing(capsys, "run", artifact, "w1 w2", "--max-tokens", 1)
        assert code == 1, (path, said)
        path.write_bytes(before)


def test_changed_weights_of_the_original(artifact: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_byte(weights(model))
    code, said = failing(capsys, "run", artifact, "w1 w2", "--max-tokens", 1)
    assert (code, "changed" in said) == (1, True), said


def test_newer_artifact_and_missing_weights(artifact: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = artifact / "sleepc.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 2', '"format": 4', 1))
    code, said = failing(capsys, "run", artifact, "w1", "--max-tokens", 1)
    assert (code, "format 4" in said, "pgrade" in said) == (2, True, True), said
    manifest.write_text(text)
    weights(model).rename(model / "gone")
    code, said = failing(capsys, "run", artifact, "w1", "--max-tokens", 1)
    assert (code, "gone" in said) == (1, True), said


def test_a_graph_cannot_name_a_foreign_operator(artifact: Path) -> None:
    """Even with all hashes right: what is not in the table is refused, and nothing is run."""
    import hashlib

    from sleepc.sealed_json import digest

    path = artifact / "program" / "head.txt"
    text = path.read_text().replace("aten.linear", "os.system", 1)
    path.write_text(text)
    manifest = json.loads((artifact / "sleepc.json").read_text())
    manifest["head"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    manifest["sha256"] = digest(manifest)
    (artifact / "sleepc.json").write_text(json.dumps(manifest))
    with pytest.raises(SleepcError, match=r"os\.system"):
        package.load(artifact)


def test_paths_do_not_lead_out_of_an_artifact(artifact: Path) -> None:
    from sleepc.sealed_json import digest

    for place, value in (("head", "../../etc/passwd"), ("head", "/etc/passwd")):
        manifest = json.loads((artifact / "sleepc.json").read_text())
        manifest[place]["file"] = value
        manifest["sha256"] = digest(manifest)
        (artifact / "sleepc.json").write_text(json.dumps(manifest))
        with pytest.raises(SleepcError, match="leads out"):
            package.load(artifact)


def test_tokens_out_of_range(artifact: Path) -> None:
    session = package.load(artifact).session()
    with pytest.raises(UsageError, match="61"):
        session.feed([1, 2, 61])
    assert session.feed([1, 2]).shape == (1, 61)


def test_dtype_and_device_that_are_not_there(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = failing(capsys, "run", artifact, "w1", "--dtype", "bfloat16")
    assert (code, "--dtype bfloat16" in said) == (2, True)
    assert failing(capsys, "run", artifact, "w1", "--dtype", "int3")[0] == 2
    assert failing(capsys, "run", artifact, "w1", "--backend", "abacus")[0] == 2
    if not torch.cuda.is_available():
        assert failing(capsys, "run", artifact, "w1", "--device", "cuda")[0] == 2


def test_nothing_to_read(artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert failing(capsys, "run", artifact)[0] == 2
    assert failing(capsys, "run", artifact, "-f", artifact / "absent.txt")[0] == 2


def test_a_full_disk(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may not grow beyond 4 kB: the conversion fails in one line and leaves nothing."""
    save = artifacts.save_artifact

    def limited(*arguments: Any, **options: Any) -> Any:
        with files_of(4096):
            return save(*arguments, **options)

    monkeypatch.setattr(artifacts, "save_artifact", limited)
    code, said = convert(capsys, model, "--no-verify")
    assert (code, "disk is full" in said) == (1, True), said


def test_debug_shows_the_trace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "nothing"), "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_a_question_is_neither_asked_nor_answered(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Standard input says yes, and is left alone; the code that it would allow is not run."""
    (model / "modeling_x.py").write_text(f"open({str(model / 'ran')!r}, 'w').close()\n")
    mapped = {"AutoConfig": "modeling_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    edit_config(model_type="of_nobody_s", auto_map=mapped)(model)
    answers = io.StringIO("y\ny\n")
    monkeypatch.setattr(sys, "stdin", answers)
    code, said = convert(capsys, model)
    assert (code, "brings its own code" in said, answers.read()) == (2, True, "y\ny\n"), said
    assert not (model / "ran").exists()


def test_refusals_carry_a_code(model: Path) -> None:
    edit_config(quantization_config={"quant_method": "gptq"})(model)
    with pytest.raises(Refusal) as caught:
        package.convert(model)
    assert caught.value.code == "QUANTISED"


@pytest.mark.parametrize(
    ("arguments", "help_of"),
    [(("export", "x"), " export"), (("convert",), " convert"), (("run", "x", "--windw"), " run"), (("nothing",), "")],
)
def test_who_misspells_an_option_is_told_whose_options_to_look_up(
    arguments: tuple[str, ...], help_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = failing(capsys, *arguments)
    assert (code, f"`sleepc{help_of} --help` lists" in said) == (2, True), said
