"""Slots go to the heads that look back at a window when it comes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sleepc
from sleepc.api import Program
from sleepc.errors import SleepcWarning, UsageError
from sleepc.ir.program import ProgramGraphs
from sleepc.manifest import Source
from sleepc.passes.pipeline import rewrite_stages
from sleepc.passes.plan import budgets
from sleepc.passes.runner import run_stages
from sleepc.progress import silent
from sleepc.recipe import make_recipe
from sleepc.recipe_file import MAX_BYTES, read_budgets
from sleepc.train.budgets import FEW, TEXT, _limited, _shares, echo, twice
from sleepc.train.measured_recipe import measured_recipe
from tests.families import VOCAB, WINDOW, family

SINKS = 2


def recipe(slots: int = 3, **options: Any) -> Any:
    return make_recipe({"window": WINDOW, "sinks": SINKS, "keep": {"slots": slots}, **options})


def test_what_a_pair_is_worth_is_the_greatest_weight_of_the_second_reading() -> None:
    """Against the model's own weights, which transformers gives."""
    subject = family("llama")
    rows = torch.randint(0, VOCAB, (3, SINKS + WINDOW), generator=torch.Generator().manual_seed(0))
    rows = torch.cat([rows, rows[:, SINKS:]], 1)
    model: Any = subject.module
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        weights = model(input_ids=rows, output_attentions=True).attentions
    found = echo(subject.canonical, rows, SINKS, silent)
    for layer, wanted in zip(found, weights, strict=True):
        second = wanted[:, :, -WINDOW:, SINKS : SINKS + WINDOW].amax(2)
        assert torch.allclose(layer.double(), second.unflatten(1, (2, -1)).amax(2).double(), atol=1e-5)


def test_the_best_pairs_get_the_slots() -> None:
    worth = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.6, 0.2, 0.1, 0.1], [0.0, 0.0, 0.0, 0.05]])
    assert _shares(worth, TEXT, 4).tolist() == [3 * TEXT / 4, TEXT / 4, 0]


@pytest.mark.parametrize(
    ("counts", "slots", "most", "wanted"),
    [
        ([6.0, 3.0, 3.0], 12, 100, [6, 3, 3]),
        ([10.0, 1.0, 1.0], 12, 6, [6, 3, 3]),
        ([2.5, 2.5, 1.0], 6, 100, [3, 2, 1]),
        ([9.0, 0.0, 0.0], 9, 4, [4, 1, 1]),
    ],
)
def test_slots_are_whole_and_limited(counts: list[float], slots: int, most: int, wanted: list[int]) -> None:
    assert _limited(torch.tensor(counts), slots, most) == wanted


def test_a_conversion_stores_the_numbers() -> None:
    subject = family("llama")
    program = sleepc.convert(subject.module, {"window": WINDOW, "sinks": SINKS, "keep": 3})
    keep = program.recipe.keep
    assert keep is not None
    assert isinstance(keep.budgets, tuple)
    assert [len(each) for each in keep.budgets] == [2, 2, 2]
    assert sum(map(sum, keep.budgets)) == 3 * 6
    assert [program.graphs.sizes(i).get("S", 0) for i in range(3)] == [sum(each) for each in keep.budgets]


def test_layers_with_a_window_of_their_own_get_none() -> None:
    canonical = family("gemma2").canonical
    found = measured_recipe(canonical, recipe(), lambda: list(range(40)), silent).keep
    assert found is not None
    assert [len(each) for each in found.budgets] == [0, 2, 0]
    assert budgets(found, [0, 2, 0])


def test_too_little_text_is_refused() -> None:
    with pytest.raises(UsageError, match="say nothing about what heads look for"):
        measured_recipe(family("llama").canonical, recipe(), lambda: [1, 2, 3], silent)


def looks_back(canonical: ProgramGraphs) -> list[float]:
    """The best layers' share of what budgets without a limit give."""
    rows = twice(canonical, recipe(), TOKENS, FEW)
    worth = [each.flatten() for each in echo(canonical, rows, SINKS, silent)]
    length = (rows.shape[1] - SINKS) // 2
    best = max(6 * 128 * len(rows) * length // TEXT, 1)
    least = torch.cat(worth).sort(descending=True).values[best - 1]
    return [float((each >= least).sum()) for each in worth]


TOKENS = torch.randint(0, VOCAB, (200,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize("count", [1, 2])
def test_layers_that_look_back_most_are_left(count: int) -> None:
    canonical = family("llama").canonical
    wanted = looks_back(canonical)
    asked = make_recipe({"window": WINDOW, "sinks": SINKS, "layers": f"auto:{count}"})
    found = measured_recipe(canonical, asked, lambda: TOKENS, silent)
    best = sorted(sorted(range(3), key=lambda i: -wanted[i])[:count])
    plans = found.plan(3)
    assert [i for i, plan in enumerate(plans) if plan.window is None] == best
    assert [plan.strategy == "leave" for plan in plans] == [i in best for i in range(3)]


def test_what_is_left_open_is_measured_in_one_reading() -> None:
    canonical, asked, shares = family("llama").canonical, [], []
    open_ = recipe(layers="auto:1")

    def tokens() -> list[int]:
        asked.append(1)
        return TOKENS

    found = measured_recipe(canonical, open_, tokens, lambda what, share: shares.append(share))
    assert (len(asked), shares.count(1.0)) == (1, 1)
    left = measured_recipe(canonical, open_.model_copy(update={"keep": None}), lambda: TOKENS, silent)
    again = measured_recipe(canonical, left.model_copy(update={"keep": open_.keep}), lambda: TOKENS, silent)
    assert found == again
    assert found.keep is not None
    assert [len(each) for each in found.keep.budgets] == [0 if p.window is None else 2 for p in found.plan(3)]
    assert measured_recipe(canonical, found, lambda: pytest.fail("nothing is open"), silent) == found


@pytest.mark.parametrize("options", [{"strategy": "replace"}, {"overrides": [{"layers": "all", "window": "none"}]}])
def test_nothing_is_read_for_layers_that_cannot_keep_pairs(options: dict[str, Any]) -> None:
    asked = recipe(**options)
    canonical = family("llama").canonical
    assert measured_recipe(canonical, asked, lambda: pytest.fail("nothing is to be measured"), silent) == asked
    with pytest.raises(UsageError, match="no layer can keep pairs"):
        run_stages(canonical, rewrite_stages(asked, 3))


def test_a_left_layer_is_full_attention() -> None:
    """Far from the window a change of the first token is still felt, which a window of its own forgets."""
    options = {"window": WINDOW, "sinks": 0}
    program = sleepc.convert(family("llama").module, {**options, "layers": "auto:2"})
    assert sum(plan.window is None for plan in program.recipe.plan(3)) == 2
    assert "auto" not in program.recipe.layers
    tokens = TOKENS[:50]
    other = [(tokens[0] + 1) % VOCAB, *tokens[1:]]

    def last(made: sleepc.Program, ids: list[int]) -> Any:
        return made.session().feed(ids, logits="last")

    assert abs(last(program, tokens) - last(program, other)).max() > 1e-6


@pytest.mark.parametrize(("layers", "words"), [("auto:3", "at least one"), ("auto:0", "cannot read layers")])
def test_layers_that_cannot_be_left(layers: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        sleepc.convert(family("llama").module, {"window": WINDOW, "layers": layers})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"budgets": [[1]], "budgets": [[2]]}', "the key 'budgets' twice"),
        ('{"budgets": [[1]], "about": {"a": 1, "a": 2}}', "the key 'a' twice"),
        ('{"budgets": [["3"]]}', "budgets.0.0: Input should be a valid integer"),
        ('{"budgets": [[true]]}', "budgets.0.0: Input should be a valid integer"),
        ('{"budgets": [[3.0]]}', "budgets.0.0: Input should be a valid integer"),
        ('{"budgets": [[NaN]]}', "budgets.0.0: "),
        ('{"budgets": [[-1]]}', "budgets.0.0: Input should be greater than or equal to 0"),
        ('{"budgets": [3]}', "budgets.0: "),
        ('{"slots": [[3]]}', "budgets: Field required"),
        ("[[3]]", "should be an object"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("\ufeff" * 2 + "{}", "not JSON"),
        (" " * (MAX_BYTES + 1), "too many for a file of budgets"),
    ],
)
def test_a_file_that_is_none_of_budgets_is_refused(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "budgets.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_budgets(file)
    assert said in error.value.what
    assert error.value.where == str(file)


@pytest.mark.parametrize("place", ["missing", ".", "/dev/zero"])
def test_what_is_no_file_has_no_budgets(place: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read|no such file"):
        read_budgets(tmp_path / place)


def test_what_calibrate_writes_is_a_file_of_budgets_with_or_without_a_mark_in_front(tmp_path: Path) -> None:
    for mark in ("", "\ufeff"):
        (tmp_path / "found").write_text(mark + '{"slots": 2, "budgets": [[2, 5], [], [0, 1]]}\r\n', encoding="utf-8")
        assert read_budgets(tmp_path / "found") == ((2, 5), (), (0, 1))


@pytest.mark.parametrize("wrong", ["3", True, 2.0, -1, None, 1 << 21])
def test_slots_are_whole_numbers_in_every_recipe(wrong: Any) -> None:
    with pytest.raises(UsageError, match="budgets"):
        make_recipe({"keep": {"budgets": [[1, wrong]]}})


def test_given_budgets_say_how_many_slots_there_are() -> None:
    """As `inspect` has it, and as a calibration shares them anew."""
    canonical, given = family("llama").canonical, ((4, 1), (0, 1), (0, 0))
    with pytest.warns(SleepcWarning, match="3 slots on average, and the budgets take precedence with 1$"):
        found = measured_recipe(canonical, recipe(keep={"slots": 3, "budgets": given}), list, silent)
    asked = recipe(keep={"budgets": given})  # without a word about slots
    for each in (found, measured_recipe(canonical, asked, list, silent)):
        assert each.keep is not None
        assert (each.keep.slots, each.keep.budgets) == (1, given)


def test_budgets_without_a_slot_are_refused() -> None:
    asked = recipe(keep={"budgets": [[0, 0], [], [0, 0]]})
    with pytest.raises(UsageError, match="no KV head a slot"):
        run_stages(family("llama").canonical, rewrite_stages(asked, 3))


def test_a_state_that_memory_has_no_room_for_is_refused_with_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = family("llama")
    graphs, asked = subject.convert(keep={"slots": 12, "budgets": "equal"})
    program = Program(graphs, asked, Source(name="llama", kind="module"))
    needed = program.graphs.state_bytes()
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 2 * needed}.__getitem__)
    assert program.session(2).batch == 2
    with pytest.raises(UsageError, match=r"of which \d.kept.k \[3, 24, 8\] .*this machine has"):
        program.session(3)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": needed - 1}.__getitem__)
    with pytest.raises(UsageError, match="fewer slots"):
        sleepc.convert(subject.module, asked)
