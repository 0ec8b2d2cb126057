"""Probes come as near as they can to what questions look at, of a text that no evaluation has."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from sleepc.api import Program
from sleepc.inspection import inspect_program
from sleepc.manifest import Source
from sleepc.passes.keep.registry import find as find_score
from sleepc.passes.rewrite.kept_pairs import probe_keys
from sleepc.progress import silent
from sleepc.tasks.keywords import last_end
from sleepc.tasks.question_file import parse_questions
from sleepc.train import probes, share_slots
from sleepc.train.probes import LEAST, OWN, RIDGE, AskedText, _asked, measured_probes
from sleepc.verify.memory_values import shaken
from tests import evaluations
from tests.families import VOCAB, WINDOW, family

SINKS = 2


def made(length: int, read: int, seed: int) -> AskedText:
    generator = torch.Generator().manual_seed(seed)
    return AskedText(tuple(torch.randint(0, VOCAB, (length,), generator=generator).tolist()), read, 2)


TEXTS = [made(44, 33, 0), made(30, 24, 1)]


def converted(**options: Any) -> Program:
    subject = family("llama")
    keep = {"slots": 3, "budgets": "equal"}
    graphs, recipe = subject.convert(**{"window": WINDOW, "sinks": SINKS, "keep": keep, **options})
    return Program(graphs, recipe, Source(name="llama", kind="module"), canonical=subject.canonical)


@cache
def measured(length: int = 2) -> dict[int, torch.Tensor]:
    return measured_probes(
        family("llama").canonical, TEXTS[:length], converted().recipe, find_score("probe"), (2, 0, 2), silent
    )


def test_they_are_what_makes_the_sum_of_squares_least() -> None:
    """Against weights and keys that transformers gives, and the objective as it is written down."""
    model: Any = family("llama").module
    model.config._attn_implementation = "eager"
    keys: list[torch.Tensor] = []
    attentions = [layer.self_attn.k_proj for layer in model.model.layers]
    hooks = [each.register_forward_hook(lambda _, given, out: keys.append(out)) for each in attentions]
    sums: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for text in TEXTS:
        keys.clear()
        with torch.no_grad():
            seen = model(input_ids=torch.tensor([text.tokens]), output_attentions=True).attentions
        for layer in (0, 2):
            for head in range(2):
                weights = seen[layer][0, 2 * head : 2 * head + 2, text.read :, : text.read].double()
                k = keys[layer][0].double().view(len(text.tokens), 2, -1)[: text.read, head]
                unit = k / k.norm(dim=1, keepdim=True)
                base = []
                for at in range(0, text.read, WINDOW):
                    mean = unit[at : at + WINDOW].mean(0)
                    base.append(-(unit[at : at + WINDOW] @ mean) / mean.norm())
                wanted = (weights.amax((0, 1)) + LEAST).log() - torch.cat(base)
                sums.setdefault((layer, head), []).append((unit[SINKS:], wanted[SINKS:]))
    for hook in hooks:
        hook.remove()
    found = measured()
    assert found.keys() == {0, 2}
    for (layer, head), parts in sums.items():
        w = found[layer][head].double().requires_grad_()
        rest = [(y - x @ w) - (y - x @ w).mean() for x, y in parts]
        (slope,) = torch.autograd.grad(sum((r @ r for r in rest), RIDGE * (w @ w)), w)
        scale = max(float(y.abs().sum()) for _, y in parts)
        assert float(slope.abs().max()) < 1e-4 * scale
        assert float(w.detach().norm()) > 1e-3


def test_two_texts_say_something_else_than_one() -> None:
    assert not torch.allclose(measured(1)[0], measured()[0], atol=1e-3)


@pytest.mark.parametrize("texts", [TEXTS, []])
def test_a_program_gets_them_with_its_budgets(texts: list[AskedText], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or keeps those that it has where no text can be read. Its second layer had no slots."""
    budgets: Any = [[4, 5], [], [4, 5]] if texts else "equal"
    program = converted(keep={"slots": 3, "budgets": budgets})
    fresh = inspect_program(family("llama").canonical, program.graphs, program.recipe)
    assert "questions would look at (once calibrate" in fresh.sleep
    program.graphs = shaken(program.graphs)
    before = {key: program.graphs.params[key].materialise() for key in probe_keys(program.graphs).values()}
    monkeypatch.setattr(share_slots, "asked_texts", lambda *_: texts)
    monkeypatch.setattr(Program, "tokenizer", lambda self: None)
    monkeypatch.setattr(share_slots, "_tokens", lambda program, _: TEXTS[0].tokens * 20)
    report = share_slots.share_slots(program, None, silent)
    assert report.questions == sum(each.questions for each in texts)
    whole = measured_probes(family("llama").canonical, TEXTS, program.recipe, find_score("probe"), (2, 2, 2), silent)
    assert 1 in probe_keys(program.graphs)
    for i, key in probe_keys(program.graphs).items():
        wanted = whole[i] if texts else before[key]
        assert torch.equal(program.graphs.params[key].materialise().float(), wanted.float())
    assert "once calibrate" not in inspect_program(family("llama").canonical, program.graphs, program.recipe).sleep


class Words:
    """A tokenizer of words, for a base model."""

    def has_template(self) -> bool:
        return False

    def encode(self, text: str) -> list[int]:
        return [hash(word) % VOCAB for word in text.split()]


@pytest.mark.parametrize("longest", [4000, 700, 90])
def test_a_text_is_cut_to_what_the_model_can_read(longest: int) -> None:
    """With the questions that are answered in what is left."""
    documents, notes = parse_questions(OWN.read_text(encoding="utf-8"), OWN.name)
    assert not notes
    whole = [len(each.questions) for each in documents]
    assert len(whole) == 6
    assert set(whole) == {15}
    words: Any = Words()
    found = [_asked(words, each, longest) for each in documents]
    for each in found:
        assert each is None or (2 <= each.questions <= 15 and each.read < len(each.tokens) <= longest)
    counts = [each.questions if each else 0 for each in found]
    assert (counts == whole) is (longest == 4000)
    assert sum(counts) > 0 or longest == 90
    assert _asked(words, replace(documents[0], text="Nothing."), longest) is None
    assert all(last_end(q.answers, each.text) is not None for each in documents for q in each.questions)


def test_no_sentence_is_one_of_an_evaluation() -> None:
    def sentences(text: str) -> set[str]:
        parts = {" ".join(re.findall(r"\w+", part.lower())) for part in re.split(r"[.?!:\n]", text)}
        return {part for part in parts if len(part.split()) > 2}

    measured = {each for text in evaluations.texts() for each in sentences(text)}
    documents, _ = parse_questions(OWN.read_text(encoding="utf-8"), OWN.name)
    own = {each for d in documents for text in (d.text, *(q.question for q in d.questions)) for each in sentences(text)}
    assert len(own) > 400
    assert not own & measured


def test_a_model_without_room_for_questions_reads_none() -> None:
    words: Any = Words()
    assert probes.asked_texts(words, 20) == []
