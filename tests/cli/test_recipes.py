"""Recipe files: every option is a key, flags win, mistakes are named, and what was resolved is in the artifact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sleepc.errors import UsageError
from sleepc.recipe import Recipe, make_recipe
from sleepc.recipe_file import MAX_BYTES, read_recipe
from tests.cli.conftest import Here
from tests.cli.models import ROOT

RECIPE = """\
# what a person writes
strategy: insert
window: 8
sinks: 2
passes: 2
consolidation: recurrent
loop: middle
settle: 0.25
overrides:
  - layers: "0"
    window: none        # keeps its attention
  - {layers: "2", rule: delta, strategy: parallel}
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


@pytest.mark.filterwarnings("always::sleepc.errors.SleepcWarning")
def test_flags_win_and_the_artifact_has_what_was_resolved(here: Here, model: Path, tmp_path: Path) -> None:
    recipe, out = write(tmp_path, RECIPE), tmp_path / "out"
    done = here("convert", model, "-o", out, "--recipe", recipe, "--passes", 3, "--seed", 5, "--settle", 0.999)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: 3 recurrent passes on a program that was not trained")
    stored = Recipe.model_validate(json.loads((out / "sleepc.json").read_text())["recipe"])
    assert (stored.strategy, stored.window, stored.passes, stored.seed, stored.loop) == ("insert", 8, 3, 5, "middle")
    left, insert, parallel = stored.plan(3)
    assert (left.strategy, left.window) == ("leave", None)
    assert (insert.strategy, insert.rule, insert.window) == ("insert", "gated_delta", 8)
    assert (parallel.strategy, parallel.rule) == ("parallel", "delta")
    shown = here("inspect", out).stdout
    assert "window of all positions" in shown
    assert "3 passes of recurrent over block 1, fewer once one changes memories by no more than 0.999" in shown
    run = here("run", out, " ".join(f"w{i}" for i in range(20)), "--max-tokens", 2, "--stats")
    assert "2 sleeps of 2 passes" in run.stderr


@pytest.mark.parametrize(
    ("text", "said", "fix"),
    [
        ("windw: 8", "no option named 'windw'", "Did you mean 'window'?"),
        ("overrides: [{layers: '0', rle: delta}]", "no option named 'overrides.0.rle'", "Did you mean 'rule'?"),
        ("zzzz: 8", "no option named 'zzzz'", "Options: strategy, rule"),
        ("window: many", "window = 'many'", ""),
        ("passes: 65", "passes = 65", ""),
        ("settle: 1", "settle = 1", ""),
        ("settle: .nan", "settle = nan", ""),
        ("[1, 2]", "a recipe is a mapping", ""),
        ("window: [", "line 1", ""),
        ("window: !!python/object/apply:os.system [true]", "could not determine a constructor", ""),
        ("x: &a [1]\ny: *b", "undefined alias", ""),
        ("", "has no options", "Write one `option: value`"),
        ("# later", "has no options", ""),
        ("window: 8\nsinks: 2\n'window': 9", "line 3: 'window' is given twice", ""),
        ("overrides: [{layers: '0', rule: delta, rule: gated}]", "'rule' is given twice", ""),
        ("window = 8", "a recipe is a mapping", "looks like TOML"),
        ("[recipe]\nwindow = 8", "line 2", "looks like TOML"),
        ("layers: 1", "layers = 1", 'layers: "1"'),
        ("layers: [1, 3]", "layers = [1, 3]", 'layers: "1,3"'),
        ("overrides: [{layers: 1}]", "overrides.0.layers = 1", 'layers: "1"'),
        ("overrides: [{layer: 0}]", "no option named 'overrides.0.layer'", "Did you mean 'layers'?"),
        ("overrides: [{rule: delta}]", "field required", 'layers: "0"'),
        ("overrides: {layers: '1'}", "overrides = ", "Write a list"),
        ("window:", "window = None", ""),
        ("eviction: no", "eviction = 'no'", ""),
        ("[" * 5000, "not YAML", ""),
        ("window: " + "9" * 5000, "not YAML", ""),
        ("a: &a [1]\nb: &b [*a, *a]\nwindow: *b", "no option named 'a'", ""),
        ("1: 2", "a recipe is a mapping", ""),
        ("#" * (MAX_BYTES + 1), "too many for a recipe", ""),
    ],
)
def test_mistakes_are_named(text: str, said: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as found:
        read_recipe(write(tmp_path, text))
    assert said in found.value.what
    assert fix in found.value.fix
    assert "recipe.yaml" in found.value.where


NUMBERS = [name for name, kind in Recipe.model_fields.items() if kind.annotation in (int, float)]


@pytest.mark.parametrize("name", [*NUMBERS, "strategy", "layers", "eviction"])
@pytest.mark.parametrize("value", [True, False])
def test_true_is_no_number(name: str, value: bool, tmp_path: Path) -> None:
    assert {"window", "passes", "sinks", "seed", "settle"} <= set(NUMBERS)
    with pytest.raises(UsageError, match=f"{name} = {value}: true and false are not values"):
        make_recipe({name: value})
    with pytest.raises(UsageError, match=f"{name} = {value}"):
        read_recipe(write(tmp_path, f"{name}: {str(value).lower()}"))
    with pytest.raises(UsageError, match=rf"overrides\.0\.window = {value}"):
        make_recipe({"overrides": [{"layers": "0", "window": value}]})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("window: 010", {"window": 10}),
        ("loop: 1:3", {"loop": "1:3"}),
        ("settle: 1e-3", {"settle": 0.001}),
        ("settle: .5", {"settle": 0.5}),
        ('{"window": 8, "layers": "1"}', {"window": 8, "layers": "1"}),
    ],
)
def test_values_are_what_they_look_like(text: str, wanted: dict[str, object], tmp_path: Path) -> None:
    """In YAML 1.1, 010 is 8, and 1:3 is 63."""
    assert read_recipe(write(tmp_path, text)) == wanted


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_file_that_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the recipe"):
        read_recipe(tmp_path / name)


def test_of_several_overrides_the_last_one_wins() -> None:
    overrides = [{"layers": "all", "rule": "delta", "window": 512}, {"layers": "1", "rule": "gated"}]
    plans = make_recipe({"overrides": overrides, "layers": "0-1"}).plan(3)
    assert [p.rule for p in plans] == ["delta", "gated", "delta"]
    assert [p.window for p in plans] == [512, 512, 512]
    assert [p.strategy for p in plans] == ["parallel", "parallel", "leave"]


def test_a_layer_that_older_recipes_keep_is_left() -> None:
    """`keep` was the name of `leave`: it is read, and written as it is called now."""
    made = make_recipe({"overrides": [{"layers": "0", "strategy": "keep"}, {"layers": "2", "strategy": "leave"}]})
    assert [override.strategy for override in made.overrides] == ["leave", "leave"]
    assert [plan.strategy for plan in made.plan(3)] == ["leave", "parallel", "leave"]
    assert Recipe.model_validate_json(made.model_dump_json()) == made
    with pytest.raises(UsageError, match="strategy = 'keep'"):
        make_recipe({"strategy": "keep"})


@pytest.mark.parametrize(
    ("loop", "count", "wanted"),
    [("all", 3, (0, 3)), ("middle", 1, (0, 1)), ("middle", 2, (0, 2)), ("middle", 3, (1, 2)), ("middle", 30, (8, 22))],
)
def test_loop_ranges(loop: str, count: int, wanted: tuple[int, int]) -> None:
    assert make_recipe({"loop": loop}).loop_range(count) == wanted


def test_the_page_about_recipes_has_every_option(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert all(f"| `{name}` |" in page for name in Recipe.model_fields)
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    plans = make_recipe(read_recipe(write(tmp_path, example))).plan(30)
    assert [plans[i].strategy for i in (0, 3, 29)] == ["leave", "parallel", "leave"]
    assert [plans[i].rule for i in (2, 3)] == ["gated_delta", "delta"]


@pytest.mark.parametrize("given", [5, "window: 8", [("window", 8)], True, 0])
def test_a_recipe_is_a_dictionary(given: object) -> None:
    with pytest.raises(UsageError, match="a recipe is a dictionary of options"):
        make_recipe(given)  # type: ignore[arg-type]
