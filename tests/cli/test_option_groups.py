"""Groups of options: what typer makes of them, and that they say what recipes and settings of trainings have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from sleepc.cli.cartridge import CartridgeMaking
from sleepc.cli.convert import RecipeOptions
from sleepc.cli.distil import DistilOptions
from sleepc.cli.option_groups import TYPER, argument, flag, flat, switch, with_options
from sleepc.cli.train import TrainOptions
from sleepc.cli.training_options import LoopOptions, StepOptions, TrainedOptions
from sleepc.memory.features import FEATURES
from sleepc.memory.registry import RULES
from sleepc.passes.consolidation.registry import CONSOLIDATIONS
from sleepc.passes.keep.registry import SCORES
from sleepc.passes.rewrite.rounded import FORMS
from sleepc.recipe import Gradient, Hebbian, Keep, Recipe, Soft
from sleepc.train.cartridge import CartridgeSettings
from sleepc.train.settings import Settings

PAGES = Path(__file__).resolve().parents[2] / "docs"


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = flag("How large.", default=3, min=1)
    loud: bool = switch("Say more.", "--loud")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = flag("Its name.", "--name", "-n", default=...)
    inner: Inner
    where: str | None = argument("Where it is.")


def ran(*arguments: str) -> tuple[int, list[Outer]]:
    """The exit code, and what a command was called with."""
    seen: list[Outer] = []

    @with_options
    def command(options: Outer) -> None:
        seen.append(options)

    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, arguments).exit_code, seen


def test_groups_are_made_of_what_was_given() -> None:
    assert ran("-n", "ann") == (0, [Outer(name="ann", inner=Inner(size=3, loud=False), where=None)])
    assert ran("there", "--name", "ann", "--loud", "--size", "7") == (
        0,
        [Outer(name="ann", inner=Inner(size=7, loud=True), where="there")],
    )


@pytest.mark.parametrize("arguments", [(), ("-n", "ann", "--size", "0"), ("-n", "ann", "--no-loud")])
def test_what_does_not_fit_is_refused(arguments: tuple[str, ...]) -> None:
    assert ran(*arguments) == (2, [])


def test_flat_has_the_options_of_groups_in_groups() -> None:
    assert flat(Outer(name="ann", inner=Inner(size=7, loud=True))) == {
        "name": "ann",
        "size": 7,
        "loud": True,
        "where": None,
    }


def test_two_options_of_one_name_are_an_error() -> None:
    def command(options: Outer, more: Inner) -> None:
        del options, more

    with pytest.raises(ValueError, match="duplicate parameter name"):
        with_options(command)


# What a recipe has in one, and the command in several options.
GROUPS: dict[str, type[BaseModel]] = {"gradient": Gradient, "hebbian": Hebbian, "soft": Soft}


def test_every_option_of_a_recipe_is_a_flag_of_convert() -> None:
    flags = [name for name in Recipe.model_fields if name != "overrides"]
    at = flags.index("keep") + 1
    flags[at:at] = ["keep_score", "keep_budgets", "keep_dtype"]  # a recipe has these in `keep`
    for group, options in GROUPS.items():
        at = flags.index(group)
        flags[at : at + 1] = [f"{group}_{name}" for name in options.model_fields]
    assert [each.name for each in fields(RecipeOptions)] == flags


@pytest.mark.parametrize("command", [DistilOptions, TrainOptions])
def test_groups_of_a_training_stand_in_both_commands(command: type) -> None:
    assert {"TrainedOptions", "StepOptions", "LoopOptions", "WorkOptions"} <= {
        str(each.type) for each in fields(command)
    }


# What depends on the program, and steps of a training: 0 of them mean as many as tokens give.
UNTOLD: dict[type[BaseModel], set[str]] = {Settings: {"stages", "passes", "steps"}, CartridgeSettings: {"slots"}}


@pytest.mark.parametrize(
    ("group", "model"),
    [
        (RecipeOptions, Recipe),
        (CartridgeMaking, CartridgeSettings),
        *((group, Settings) for group in (DistilOptions, TrainOptions, TrainedOptions, StepOptions, LoopOptions)),
    ],
)
def test_the_help_tells_the_default_that_is_used(group: Any, model: type[BaseModel]) -> None:
    defaults = {name: option.default for name, option in model.model_fields.items() if option.default is not False}
    defaults = {name: default for name, default in defaults.items() if name not in UNTOLD.get(model, ())}
    for name in ("keep", *GROUPS):  # they have none
        defaults.pop(name, None)
    told = {each.name: each.metadata[TYPER].show_default for each in fields(group) if each.name in defaults}
    if group is RecipeOptions:
        every: dict[str, type[BaseModel]] = {**GROUPS, "keep": Keep}
        for name, parts in every.items():
            defaults |= {f"{name}_{part}": option.default for part, option in parts.model_fields.items()}
        defaults.pop("gradient_span")  # which only one kind of loss has
        told |= {each.name: each.metadata[TYPER].show_default for each in fields(group) if each.name in defaults}
    assert told
    assert {name: type(defaults[name])(shown) for name, shown in told.items()} == {
        name: defaults[name] for name in told
    }


@pytest.mark.parametrize(
    ("name", "known", "page"),
    [
        ("rule", RULES, "recipes.md"),
        ("consolidation", CONSOLIDATIONS, "recipes.md"),
        ("features", FEATURES, "recipes.md"),
        ("keep_score", SCORES, "keep.md"),
    ],
)
def test_help_and_pages_name_all_that_is_registered(name: str, known: Mapping[str, object], page: str) -> None:
    words = next(each.metadata[TYPER].help for each in fields(RecipeOptions) if each.name == name)
    text = (PAGES / page).read_text(encoding="utf-8")
    assert [each for each in known if not re.search(rf"\b{each}\b", words) or f"`{each}`" not in text] == []


def test_slots_have_the_forms_that_recipes_name() -> None:
    named = get_args(Keep.model_fields["dtype"].annotation)
    assert named == ("float", *FORMS)
    words = next(each.metadata[TYPER].help for each in fields(RecipeOptions) if each.name == "keep_dtype")
    assert all(name in words for name in named)
