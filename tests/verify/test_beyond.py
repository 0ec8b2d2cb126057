"""What lies beyond the window is judged: perplexity by distance against full attention's, its cause, and the option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sleepc.verify import distance, far, streams
from sleepc.verify.beyond import judge, ranges
from sleepc.verify.distance import cut, follow, full_attention, looked_at
from sleepc.verify.far import Far, long_enough
from sleepc.verify.mutations import MUTATIONS
from sleepc.verify.report import PerplexityRow
from sleepc.verify.subject import Subject
from sleepc.verify.verify import Measuring, VerifyReport, verify_program
from tests.families import VOCAB, family

NINE = {"overrides": [{"layers": "1", "window": 9}]}
TOKENS = np.random.default_rng(3).integers(0, VOCAB, 400)


def subject(name: str = "llama", tokens: int = 400, **options: Any) -> Subject:
    from sleepc.backends.eager.backend import load

    found = family(name)
    if name == "llama":  # its rotary positions have no end
        found = replace(found, canonical=replace(found.canonical, max_positions=None))
    step, recipe = found.convert(**options)
    return Subject(step, found.canonical, recipe, TOKENS[:tokens], found.logits, load)


def rows(ratio: float, *, full: float = 5.0, sliding: float | None = None, read: int = 100) -> list[PerplexityRow]:
    """Inside all is well; beyond, the second range is `ratio` times as perplexed."""
    near, worst = (8, 16, full, full, full, read), (16, 120, full, sliding or full * ratio, full * ratio, read)
    return [PerplexityRow(1, 8, full, full, full, 7), PerplexityRow(*near), PerplexityRow(*worst)]


@pytest.mark.parametrize(
    ("ratio", "options", "accept", "verdict"),
    [
        (1.0, {}, False, "holds"),
        (1.49, {}, False, "holds"),
        (1.6, {}, False, "worse"),
        (4.1, {}, False, "ruined"),
        (float("inf"), {}, False, "ruined"),
        (4.1, {}, True, "accepted"),
        (1.6, {}, True, "worse"),
        (9.0, {"strategy": "replace", "write": "online"}, False, "expected"),
        (9.0, {"eviction": "hard"}, False, "expected"),
        (9.0, {"strategy": "insert", "consolidation": "recurrent", "passes": 2}, False, "expected"),
    ],
)
def test_the_worst_range_decides(ratio: float, options: dict[str, Any], accept: bool, verdict: str) -> None:
    found = judge(subject(**options), rows(ratio), 120, accept=accept)
    assert found.verdict == verdict
    assert found.ok == (verdict != "ruined")
    assert found.bad == (ratio > 1.5) == bool(found.fix)
    assert found.row is not None
    assert found.row.tokens_from == (16 if ratio > 1 else 8)
    assert found.ratio == pytest.approx(ratio)
    assert f"{ratio:.2f} times" in found.sentence()


@pytest.mark.parametrize(
    ("name", "options", "sliding", "words"),
    [
        (
            "mistral-13",
            {"own_windows": "narrow"},
            None,
            ("layers 0-2 see 13 tokens in the original and keep 8 ", "Try: --window 13"),
        ),
        ("mistral-13", NINE, None, ("layers 0-2 see 13 tokens in the original and keep 8, 9 ", "Try: --window 13")),
        ("falcon", {}, None, ("64 positions", "--last-position renumber")),
        ("llama", {"sinks": 0}, None, ("no sinks", "--sinks 4")),
        ("llama", {}, None, ("too small", "--window")),
        ("llama", {}, 6.0, ("memories", "calibrate")),
        ("llama", {"eviction": "hard"}, None, ("hard eviction", "--eviction sliding")),
        ("gpt2", {}, None, ("24 positions", "texts of up to 24 tokens")),
        ("llama", {"strategy": "replace", "write": "online"}, None, ("training", "sleepc distil")),
    ],
)
def test_the_cause_and_the_option_are_named(
    name: str, options: dict[str, Any], sliding: float | None, words: tuple[str, str]
) -> None:
    text = judge(subject(name, **options), rows(8, sliding=sliding), 120, accept=False).sentence()
    assert words[0] in text
    assert words[1] in text


def test_what_is_not_measured_says_why() -> None:
    short, bare = subject(tokens=40), subject()
    bare = replace(bare, original=None)
    for about, found, words in (
        (short, [], "the text has 40 tokens"),
        (bare, [], "the original was not given"),
        (subject("gpt2"), [], "24 positions"),
        (subject(), [], "tokens were read"),
        (subject(), rows(9, read=20), "tokens were read"),
        (subject(), rows(9, full=VOCAB * 0.9), "only guesses"),
    ):
        made = judge(about, found, len(about.tokens), accept=False)
        assert made.verdict == "not measured"
        assert made.ok
        assert words in made.sentence()


def report_of(seen: Subject, good: int, **options: Any) -> VerifyReport:
    """Against an original that knows what follows, from token `good` on."""

    def original(tokens: Tensor) -> Tensor:
        logits = family("llama").logits(tokens)
        known = range(good, tokens.shape[1] - 1)
        logits[0, known, tokens[0, good + 1 :]] += 20.0
        return logits

    ids = seen.tokens.tolist()
    return verify_program(
        seen.step, seen.canonical, seen.recipe, ids, original=original, measuring=Measuring(**options)
    )


def test_a_program_of_no_use_beyond_its_window_fails_though_all_invariants_hold() -> None:
    seen = subject()
    report = report_of(seen, seen.recipe.window)
    assert not report.failed
    assert not report.ok
    assert report.beyond is not None
    assert report.beyond.ratio is not None
    assert report.beyond.ratio > 4
    told = report.to_json()["beyond"]
    assert told["verdict"] == "ruined"
    assert told["converted"] / told["full"] == pytest.approx(told["ratio"])
    assert report_of(seen, seen.recipe.window, accept_quality=True).ok
    unjudged = report_of(seen, seen.recipe.window, perplexity=False)
    assert unjudged.ok
    assert unjudged.beyond is None


def test_streams_pass_narrowed_windows_and_long_ones() -> None:
    mistral = subject("mistral-13", own_windows="narrow")
    assert mistral.narrowed() == {0: 13, 1: 13, 2: 13}
    assert not subject("mistral-13", own_windows="narrow", window=13).narrowed()
    many = np.resize(TOKENS, 9000)
    for window, needed in ((8, 136), (256, 768), (512, 1032), (1024, 1536), (4096, 4608), (8192, 512)):
        seen = subject()
        recipe = seen.recipe.model_copy(update={"window": window})
        assert long_enough(replace(seen, recipe=recipe, tokens=many), True) == needed


@pytest.mark.parametrize(
    ("name", "kept", "exact"),
    [
        ("llama", 5, 5),  # it sees everything
        ("mistral-13", 5, 5),
        ("mistral-5", 5, 8),  # all that it sees
        ("mistral-5", 3, 3),
        ("mistral-13", "none", 8),
    ],
)
def test_a_layer_may_keep_fewer_tokens_than_come_between_sleeps(name: str, kept: int | str, exact: int) -> None:
    """It is compared with the original as far as it is to compute the same."""
    seen = subject(name, overrides=[{"layers": "0", "window": kept, "strategy": "leave"}], own_windows="narrow")
    assert seen.exact == exact
    report = verify_program(
        seen.step,
        seen.canonical,
        seen.recipe,
        TOKENS.tolist(),
        original=seen.original,
        measuring=Measuring(perplexity=False),
    )
    assert report.ok
    assert next(c.detail for c in report.checks if c.invariant == 2) == f"logits of {exact} tokens"


# ------------------------------------------------------------------------------------------------- large vocabularies


def test_pieces_cover_the_stream_and_are_read_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "SPENT", 4 * 1000 * 64 * 9)
    pieces = cut(256, 1030, 1000)
    assert [p.start for p in pieces[1:]] == [p.end for p in pieces[:-1]]
    assert (pieces[0].start, pieces[-1].end) == (0, 1030)
    for start, end in ((255, 511), (511, 1023)):
        beyond = [p for p in pieces if start <= p.start < end]
        assert beyond[-1].end == end
        assert [p.end - p.start for p in beyond] == [64] * len(beyond)
        assert (sum(p.read for p in beyond), beyond[0].read, beyond[-1].read) == (2, True, True)


def test_what_is_left_out_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Surprises of the pieces that are read are the same, whatever else is."""
    seen = subject()
    tokens = np.resize(seen.tokens, 600)
    steps = seen.load(seen.step)
    whole = cut(8, 600, VOCAB)
    monkeypatch.setattr(distance, "SPENT", 1)
    few = cut(8, 600, VOCAB)
    read = looked_at(few)
    assert 0 < int(read.sum()) < int(looked_at(whole).sum()) == 599
    pairs = [[follow(steps, tokens, pieces) for pieces in (few, whole)]]
    pairs.append([full_attention(tokens, pieces, seen.original_at) for pieces in (few, whole)])
    for some, every in pairs:
        torch.testing.assert_close(some[read], every[read], rtol=1e-9, atol=1e-9)
        assert bool(some[~read].isnan().all())


@pytest.mark.parametrize("fault", [None, *list(MUTATIONS)[::5]])
def test_faults_are_found_where_few_logits_are_asked_for(fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LARGE", 1)
    monkeypatch.setattr(far, "COMPARED", 4 * VOCAB * 6)
    monkeypatch.setattr(distance, "SPENT", 1)
    seen = subject("gemma2", passes=3)
    step = seen.step if fault is None else MUTATIONS[fault](seen.step)
    if step is None or fault in ("evicted tokens stay", "positions go on after hard eviction"):
        return  # nothing to plant it in, or nothing that it changes
    report = verify_program(
        step, seen.canonical, seen.recipe, TOKENS[:40].tolist(), measuring=Measuring(perplexity=False)
    )
    failed = [c for c in report.checks if not c.ok and not (c.value is not None and c.value < 2e-5)]
    assert bool(failed) == (fault is not None)


def test_the_far_stream_is_read_once() -> None:
    """By each model: the errors inside, against the oracle, and the surprises come of one reading."""
    seen = subject()
    count = {"original": 0, "steps": 0}

    def original(tokens: Tensor) -> Tensor:
        count["original"] += 1
        return family("llama").logits(tokens)

    def load(step: Any) -> Any:
        count["steps"] += 1
        return seen.load(step)

    stream = Far(replace(seen, original=original, load=load), inside=True, perplexity=True)
    assert stream.followed.inside < 1e-4
    assert stream.followed.oracle < 1e-9
    assert stream.perplexity()
    assert count == {"original": 2, "steps": 2}  # inside the window, and all; converted, and without memories


def test_ranges_for_people() -> None:
    assert ranges({5: 1, 0: 1, 1: 1, 2: 1}) == "0-2, 5"
