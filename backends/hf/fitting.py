"""Does a class of transformers have a program's layers? What is in the way, if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sleepc.backends.hf.dense import NORMED, Dense, host_of, kinds_of, of_config
from sleepc.backends.hf.engines import FULL, OWN, refusals
from sleepc.backends.hf.obstacles import Host, of_layers, refusal
from sleepc.errors import UsageError
from sleepc.hf.resolve import CONFIG
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.analysis.find_sites import find_attention
from sleepc.passes.consolidation.registry import find as find_consolidation
from sleepc.recipe import LayerPlan, Recipe


def dense_of(program: ProgramGraphs, recipe: Recipe | None, config: Any, engine: str, to: str) -> Dense | None:
    """What the class that has native layers makes of a program, for the target `to`; None if every layer is as it was.

    Raises UsageError, with all that is in the way, for a program that it cannot express, or not one that the engine
    runs.
    """
    assert recipe is not None
    plans = _plans(program, recipe.plan(len(program.layout)))
    if all(plan.strategy == "leave" and plan.window is None for plan in plans):
        return None
    host = host_of(config)
    if host is None:
        raise no_host(config, plans, to)
    whole, original = of_sleeps(recipe, len(plans)), of_config(config)
    layers = of_layers(plans, host)
    if layers or whole or original:
        raise refusal(host, layers, whole, plans, to, original)
    kinds = kinds_of(plans)
    check_engine(engine, kinds, config.rope_parameters if FULL in kinds else {}, to, again=host.normed)
    return Dense(config, kinds, to)


def check_engine(engine: str, kinds: Sequence[str], rope: Mapping[str, Any], to: str, *, again: bool = False) -> None:
    """Raises UsageError if the engine does not run layers of these kinds; with `again` other layers could be chosen."""
    no = refusals(engine, kinds, rope)
    if not no:
        return
    fix = "Choose another runtime (--for)" if to == "hf" else "--to hf writes it, for other runtimes"
    if again and refusals(engine, kinds, {}):
        left = '[{layers: "every:4", strategy: leave, window: none}]'
        fix += f", or convert again with layers that keep attention, every n-th of them: overrides: {left}"
    raise UsageError("; ".join(no), where=f"--for {engine}" if to == "hf" else f"--to {to}", fix=f"{fix}.")


def own_kinds(config: Any, engine: str, to: str) -> Sequence[str]:
    """What Qwen3.5's class calls the layers of an original that is of it; none for one of another class. Raises
    UsageError if the engine does not run them.
    """
    text = config.get_text_config()
    if text.model_type != OWN:
        return ()
    check_engine(engine, text.layer_types, text.rope_parameters, to)
    return tuple(text.layer_types)


def of_sleeps(recipe: Recipe, blocks: int) -> list[str]:
    """What sleeps do that no checkpoint can say, if anything."""
    chosen = find_consolidation(recipe.consolidation)
    return [f"its sleeps do what no class does: {chosen.in_words(recipe, blocks)}"] if chosen.changes(recipe) else []


def _plans(program: ProgramGraphs, plans: tuple[LayerPlan, ...]) -> list[LayerPlan]:
    """The recipe's, but that layers which are recurrent by themselves are as they were."""
    found = []
    for block, plan in zip(program.layout, plans, strict=True):
        alone = plan.strategy == "leave" and find_attention(program.classes[block.cls].wake) is None
        found.append(LayerPlan("leave", plan.rule, plan.decay, plan.write, None) if alone else plan)
    return found


def config_of(folder: Path | None, to: str) -> Any:
    """The original's configuration, as a class of transformers. Raises UsageError if there is none."""
    from transformers import AutoConfig

    if folder is None or not (folder / CONFIG).is_file():
        what = "the original was a module in memory, and a checkpoint needs its config.json"
        raise UsageError(what, where=f"--to {to}", fix="Save it with save_pretrained, and convert that folder.")
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def no_host(config: Any, plans: Sequence[LayerPlan], to: str = "hf") -> UsageError:
    """What to say of a model whose blocks no class has with native layers."""
    host = Host(f"any class of transformers: none has the blocks of {config.model_type} with native layers", False)
    text = refusal(host, of_layers(plans, Host("", True)), [], plans, to).on_command_line[0]
    fix = f"{', '.join(NORMED)} have one. Other targets write this program as it is: --to onnx."
    return UsageError(text, where=f"--to {to}", fix=fix)
