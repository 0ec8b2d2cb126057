"""SleepForCausalLM gives what a Session gives, in whatever way transformers asks; and what it cannot do is said."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache
from transformers.generation.streamers import BaseStreamer

from sleepc.causal_lm.cache import SleepCache
from sleepc.causal_lm.model import SleepForCausalLM
from sleepc.errors import UsageError
from sleepc.train.parameters import trained_keys
from sleepc.train.pieces import Piece, batch_of
from sleepc.train.student import Computing, Student, parts_of
from tests.causal_lm.conftest import RECIPES, converted
from tests.families import VOCAB

LENGTHS = (21, 3, 8)  # two windows and a half, a part of one, one to the token
MORE = 9


@pytest.fixture(params=list(RECIPES))
def model(request: pytest.FixtureRequest) -> SleepForCausalLM:
    return SleepForCausalLM(converted(request.param))


@pytest.fixture
def plain() -> SleepForCausalLM:
    return SleepForCausalLM(converted("plain"))


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(1, VOCAB, n).tolist() for n in LENGTHS]


def padded(rows: list[list[int]], side: str) -> dict[str, Tensor]:
    """Rows of one length, 0 where there is padding."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, at], mask[i, at] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def continued(model: SleepForCausalLM, row: list[int], more: int = MORE) -> list[int]:
    """The ids of a Session."""
    session = model.program.session()
    session.feed(row)
    return [int(step[0]) for step in session.generate(more)]


def generated(model: SleepForCausalLM, **options: Any) -> list[list[int]]:
    """Greedy, without the prompt."""
    width = options["input_ids"].shape[1]
    options = {"max_new_tokens": MORE, "do_sample": False, "pad_token_id": 0, **options}
    found: list[list[int]] = model.generate(**options)[:, width:].tolist()
    return found


def test_ids_are_those_of_a_session(model: SleepForCausalLM) -> None:
    rows = prompts()
    wanted = [continued(model, row) for row in rows]
    assert [generated(model, input_ids=torch.tensor([row]))[0] for row in rows] == wanted
    for side in ("left", "right"):
        assert generated(model, **padded(rows, side)) == wanted, side


def test_logits_are_those_of_a_session_at_once_and_in_calls(model: SleepForCausalLM) -> None:
    ids = torch.tensor([prompts()[0]])
    wanted = torch.from_numpy(model.program.session().feed(ids.numpy(), logits="all"))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, wanted, rtol=0, atol=1e-9)
        cache: Any = None
        parts: list[Tensor] = []
        for part in torch.split(ids, [5, 1, 13, 2], 1):
            out = model(part, cache=cache)
            cache, parts = out.cache, [*parts, out.logits]
            assert cache.get_seq_length() == sum(each.shape[1] for each in parts)
        torch.testing.assert_close(torch.cat(parts, 1), wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(model(ids, logits_to_keep=3).logits, wanted[:, -3:], rtol=0, atol=1e-9)
        at = torch.tensor([2, 11])
        torch.testing.assert_close(model(ids, logits_to_keep=at).logits, wanted[:, at], rtol=0, atol=1e-9)


def test_padding_anywhere_reads_nothing(plain: SleepForCausalLM) -> None:
    row = prompts()[0]
    ids, mask = torch.zeros(2, 30, dtype=torch.long), torch.zeros(2, 30, dtype=torch.long)
    for i in range(2):
        places = np.sort(np.random.default_rng(i).permutation(30)[: len(row)])
        ids[i, places], mask[i, places] = torch.tensor(row), 1
    with torch.no_grad():
        alone, found = plain(torch.tensor([row])).logits[0], plain(ids, mask).logits
        last = plain(ids, mask, logits_to_keep=1).logits
    for i in range(2):
        torch.testing.assert_close(found[i][mask[i] == 1], alone, rtol=0, atol=1e-9)
        first = int(mask[i].argmax())
        assert not found[i, :first].any()
        for at in range(first, 30):  # after padding stands what stood after the token before it
            seen = int(mask[i, : at + 1].sum())
            torch.testing.assert_close(found[i, at], alone[seen - 1], rtol=0, atol=1e-9)
    torch.testing.assert_close(last, alone[-1].expand(2, 1, -1), rtol=0, atol=1e-9)


def test_beams_reorder_the_state(plain: SleepForCausalLM) -> None:
    options = {**padded(prompts(), "left"), "num_beams": 3}
    found = generated(plain, **options)
    assert found == generated(plain, **options, use_cache=False)  # which reads everything again for every token
    assert found != [continued(plain, row) for row in prompts()]


def test_sampling_and_what_stops_it(plain: SleepForCausalLM) -> None:
    row = prompts()[0]
    ids, wanted = torch.tensor([row]), continued(plain, row)
    assert generated(plain, input_ids=ids, do_sample=True, top_k=1)[0] == wanted
    assert generated(plain, input_ids=ids, do_sample=True, num_return_sequences=3, top_k=1) == [wanted] * 3
    torch.manual_seed(0)
    first = generated(plain, input_ids=ids, do_sample=True)
    assert first != [wanted]
    assert generated(plain, input_ids=ids, eos_token_id=wanted[4])[0] == wanted[: wanted.index(wanted[4]) + 1]


class Heard(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    def put(self, value: Tensor) -> None:
        self.heard += value.flatten().tolist()

    def end(self) -> None:
        self.heard.append(-1)


def test_a_streamer_hears_every_token(plain: SleepForCausalLM) -> None:
    row, heard = prompts()[1], Heard()
    generated(plain, input_ids=torch.tensor([row]), streamer=heard)
    assert heard.heard == [*row, *continued(plain, row), -1]


def test_a_cache_is_continued_and_copied(plain: SleepForCausalLM) -> None:
    first, second = prompts()[0], prompts()[2]
    ids = torch.tensor([first])
    found = plain.generate(ids, max_new_tokens=MORE, do_sample=False, return_dict_in_generate=True)
    kept = found.cache
    assert repr(kept) == f"<sleepc cache of 1 rows after {len(first) + MORE - 1} places>"
    before = copy.deepcopy(kept)
    longer = torch.cat([found.sequences, torch.tensor([second])], 1)
    session = plain.program.session()
    session.feed(longer.numpy())
    wanted = [int(step[0]) for step in session.generate(5)]
    assert generated(plain, input_ids=longer, cache=kept, max_new_tokens=5)[0] == wanted
    before.batch_repeat_interleave(2)
    assert generated(plain, input_ids=longer.repeat(2, 1), cache=before, max_new_tokens=5) == [wanted] * 2


def test_the_loss_is_that_of_the_next_tokens_and_flows_through_sleeps(model: SleepForCausalLM) -> None:
    batch = padded(prompts(), "right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model.train()  # which keeps no cache
    out = model(**batch, labels=labels)
    assert out.cache is None
    wanted = cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(out.loss, (wanted / (sum(LENGTHS) - len(LENGTHS))).float(), check_dtype=False)
    torch.autograd.backward(wanted)
    student = Student({"own": model.graphs}, trained_keys(model.graphs, "new"), None, Computing())
    student.abreast = False  # as the model reads: in another order llama rounds to other numbers of float32
    carry, total = student.begin(len(LENGTHS)), torch.zeros(())
    tokens, lengths, goals = map(torch.from_numpy, batch_of([Piece(np.array(row)) for row in prompts()]))
    for part in parts_of(tokens, lengths, goals, window=8):
        loss, carry = student.read("lengthen", "own", part, carry)
        total = total + loss
    torch.autograd.backward(total)
    found = dict(model.named_parameters())
    assert any(master.grad is not None and master.grad.any() for master in student.masters.values())
    for key, master in student.masters.items():
        torch.testing.assert_close(found[key].grad, master.grad, rtol=1e-5, atol=1e-8, msg=key)


def test_a_bias_is_its_layers_and_tied_weights_are_one() -> None:
    program = converted("plain", name="qwen2")
    model = SleepForCausalLM(program)
    layer = model.get_submodule("model.layers.1.self_attn.q_proj")
    assert isinstance(layer, torch.nn.Linear)
    assert layer.bias is not None
    assert {*model.state_dict()} >= {"model.layers.1.self_attn.q_proj.bias", "lm_head.weight"}
    ids = torch.tensor([prompts()[0]])
    with torch.no_grad():
        before = model(ids).logits
        torch.testing.assert_close(before, torch.from_numpy(program.session().feed(ids.numpy(), logits="all")))
        layer.bias.add_(1)
        assert not torch.equal(model(ids).logits, before)
        assert torch.equal(torch.from_numpy(program.session().feed(ids.numpy(), logits="all")), before)  # copies


def test_what_cannot_be_is_said(plain: SleepForCausalLM) -> None:
    ids = torch.tensor([prompts()[1]])
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        generated(plain, input_ids=ids, prompt_lookup_num_tokens=2)
    with pytest.raises(UsageError, match="cannot be taken back"):
        SleepCache(plain._steps_now(), 1).crop(-1)
    for wrong in (DynamicCache(), SleepCache(plain._steps_now(), 2)):
        with pytest.raises(UsageError, match="no cache of this model with 1 rows"):
            plain(ids, cache=wrong)
    for name in ("inputs_embeds", "position_ids", "output_hidden_states", "cu_seq_lens_q"):
        with pytest.raises(UsageError, match=name):
            plain(ids, **{name: torch.zeros(1, 3)})
    with pytest.raises(UsageError, match="vocabulary is fixed"):
        plain.resize_token_embeddings(70)
    with pytest.raises(UsageError, match="not in the vocabulary"):
        plain(torch.tensor([[VOCAB]]))
    with pytest.raises(UsageError, match="does not become one in torch"):
        plain.half()  # type: ignore[no-untyped-call]


def test_a_cache_whose_call_broke_off_is_not_used(plain: SleepForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor([prompts()[1]])
    with torch.no_grad():
        cache = plain(ids).cache
        steps = plain._steps_now()
        monkeypatch.setattr(steps, "wake_tensors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            plain(ids, cache=cache)
        monkeypatch.undo()
        with pytest.raises(UsageError, match="broke off"):
            plain(ids, cache=cache)
        cache.reset()
        torch.testing.assert_close(plain(ids, cache=cache).logits, plain(ids).logits)


@pytest.mark.parametrize("mask", [(2, 2), (2, 4), (1, 3), (3,), (2, 1, 3, 3)])
def test_a_mask_of_another_shape_is_refused(plain: SleepForCausalLM, mask: tuple[int, ...]) -> None:
    """Also one of ones alone, which would say nothing."""
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(UsageError, match="after 0 places in the cache"):
        plain(ids, attention_mask=torch.ones(mask))
    with pytest.raises(UsageError, match=r"they are \[3\]"):
        plain(ids[0], attention_mask=torch.ones(3))


def test_a_copy_after_calls_is_a_model_of_its_own(model: SleepForCausalLM) -> None:
    ids = torch.tensor([prompts()[0]])
    wanted = model(ids).logits
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.5)
    assert not torch.equal(other(ids).logits, wanted)
    torch.testing.assert_close(model(ids).logits, wanted, rtol=0, atol=0)
