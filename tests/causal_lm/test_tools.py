"""What people use around a model of transformers works on this one: pipelines, stop strings, Trainer, adapters."""

from __future__ import annotations

from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import pytest
import torch
from torch import Tensor

from sleepc.api import load
from sleepc.causal_lm.model import SleepForCausalLM
from sleepc.errors import UsageError
from tests.causal_lm.conftest import load_model, load_words
from tests.families import VOCAB

TEXT = "w5 w17 w3 w40 w8 w22 w31 w9 w9 w12 w50"


@pytest.fixture
def model(artifact: Path) -> SleepForCausalLM:
    return load_model(artifact)


def logits_of(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def test_a_pipeline_writes_what_a_session_writes(artifact: Path, model: SleepForCausalLM) -> None:
    from transformers import pipeline

    words = load_words(artifact)
    writes: Any = pipeline("text-generation", model=model, tokenizer=words, device="cpu")
    found = writes([TEXT, "w1 w2"], batch_size=2, max_new_tokens=9, do_sample=False, return_full_text=False)
    for text, (answer,) in zip((TEXT, "w1 w2"), found, strict=True):
        session = load(artifact).session()
        session.feed(words(text)["input_ids"])
        assert words(answer["generated_text"])["input_ids"] == [int(step[0]) for step in session.generate(9)]


def test_a_stop_string_ends_an_answer(artifact: Path, model: SleepForCausalLM) -> None:
    from tokenizers import Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(BPE({letter: i for i, letter in enumerate((ascii_letters + digits)[:VOCAB])}, []))
    made.decoder = Fuse()
    letters = PreTrainedTokenizerFast(tokenizer_object=made)  # type: ignore[no-untyped-call]
    ids = torch.tensor([letters("SevenWords")["input_ids"]])
    session = load(artifact).session()
    session.feed(ids.numpy())
    wanted = [int(step[0]) for step in session.generate(9)]
    stop = letters.decode(wanted[3:5])
    found: Any = model.generate(
        ids, max_new_tokens=9, do_sample=False, pad_token_id=0, stop_strings=[stop], tokenizer=letters
    )
    assert found[0, ids.shape[1] :].tolist() == wanted[:5]


def test_what_is_saved_loads_again(artifact: Path, model: SleepForCausalLM, tmp_path: Path) -> None:
    ids = torch.arange(1, 22)[None]
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path / "same")
    assert (
        load(tmp_path / "same").identity == load(artifact).identity
    )  # weights that did not change stay where they are
    again = load_model(tmp_path / "same", dtype="float64", device_map="cpu")
    assert again.generation_config.max_new_tokens == 7
    assert (again.dtype, again.config.dtype) == (torch.float64, torch.float64)
    torch.testing.assert_close(logits_of(again, ids), logits_of(model, ids).double(), rtol=0, atol=1e-4)
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight.mul_(1.5)  # type: ignore[operator]
    model.save_pretrained(tmp_path / "other", standalone=True)
    torch.testing.assert_close(logits_of(load_model(tmp_path / "other"), ids), logits_of(model, ids))
    other = load(tmp_path / "other")
    assert other.report["training"]["weights"] == ["model.layers.1.mlp.up_proj.weight"]
    found = torch.from_numpy(other.session().feed(ids.numpy(), logits="all"))
    torch.testing.assert_close(found, logits_of(model, ids))


def test_what_an_artifact_is_not_loaded_or_saved_with_is_said(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot run in bfloat16"):
        load_model(artifact, dtype="bfloat16")
    with pytest.raises(UsageError, match="unknown dtype 'int7'"):
        load_model(artifact, dtype="int7")
    with pytest.raises(UsageError, match="unknown device"):
        load_model(artifact, device_map="auto")
    with pytest.raises(UsageError, match="revision is nothing that an artifact is loaded with"):
        load_model(artifact, revision="main")
    with pytest.raises(UsageError, match="push_to_hub is nothing"):
        load_model(artifact).save_pretrained(tmp_path / "x", push_to_hub=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not one of sleepc's"):
        load_model(artifact).save_pretrained(tmp_path)


def test_trainer_takes_a_step(artifact: Path, model: SleepForCausalLM, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    words = load_words(artifact)
    data = [words(TEXT), words("w1 w2 w3 w1 w2 w3"), words("w7 w7 w7 w8")]
    told = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=3,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorForLanguageModeling(words, mlm=False)
    trainer = Trainer(model, told, train_dataset=data, eval_dataset=data, data_collator=collator)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1
    saved = load_model(tmp_path / "checkpoint-1")
    torch.testing.assert_close(logits_of(saved, torch.arange(1, 22)[None]), logits_of(model, torch.arange(1, 22)[None]))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft reads it
def test_an_adapter_is_trained_saved_and_merged(artifact: Path, model: SleepForCausalLM, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    ids = torch.arange(1, 22)[None]
    base = logits_of(model, ids)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    )
    assert {name.split("lora_")[1][:1] for name, p in adapted.named_parameters() if p.requires_grad} == {"A", "B"}
    adapted.train()
    optimizer, losses = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05), []
    for _ in range(4):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    adapted.eval()
    found, written = logits_of(adapted, ids), adapted.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    with pytest.raises(UsageError, match="an adapter is no part of an artifact"):
        model.save_pretrained(tmp_path / "model")
    adapted.save_pretrained(tmp_path / "adapter")
    with adapted.disable_adapter():
        torch.testing.assert_close(logits_of(adapted, ids), base)
    again = peft.PeftModel.from_pretrained(load_model(artifact), tmp_path / "adapter", trust_remote_code=False)
    torch.testing.assert_close(logits_of(again, ids), found)
    again.merge_and_unload().save_pretrained(tmp_path / "merged")
    session = load(tmp_path / "merged").session()
    session.feed(ids.numpy())
    assert [int(step[0]) for step in session.generate(5)] == written[0, 21:].tolist()
