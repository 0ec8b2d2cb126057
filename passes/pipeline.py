"""The whole way of a model through the compiler, on one page. Read this first.

    ATEN       what torch.export saw: one flat graph, whose operators may write to their arguments
    CANONICAL  embed, block classes, head; attention is `sleepc::attention` with a mask class
    CONVERTED  attention is bounded, memories are added, the clock runs
    STEP       everything is a step from state to state: what is saved, and what backends run
    LOWERED    patterns of operators are one operator: what targets with kernels for them write

A pass that finds nothing to do returns 0; there are no conditions in the lists.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

import torch

from sleepc.errors import UsageError
from sleepc.ir.levels import FUSED, LOWERED
from sleepc.ir.program import ProgramGraphs
from sleepc.passes.adapt.retype import Retype
from sleepc.passes.base import Stage
from sleepc.passes.blocks.cut_blocks import CutBlocks
from sleepc.passes.blocks.drop_unused_params import DropUnusedParams
from sleepc.passes.blocks.expose_heads import ExposeHeads
from sleepc.passes.blocks.join_parts import JoinParts
from sleepc.passes.consolidation import registry as consolidations
from sleepc.passes.front.bind_positions import BindPositions
from sleepc.passes.front.check_operators import CheckOperators
from sleepc.passes.front.choose_by_length import ChooseByLength
from sleepc.passes.front.classify_masks import ClassifyMasks
from sleepc.passes.front.drop_noops import DropNoops
from sleepc.passes.front.join_attention import JoinAttention
from sleepc.passes.front.join_pieces import JoinPieces
from sleepc.passes.front.limit_positions import LimitPositions
from sleepc.passes.front.make_functional import MakeFunctional, SharedMemory
from sleepc.passes.front.pull_distance_numbers import PullDistanceNumbers
from sleepc.passes.front.pull_key_numbers import PullKeyNumbers
from sleepc.passes.front.raise_attention import RaiseAttention
from sleepc.passes.front.raise_delays import RaiseDelays
from sleepc.passes.front.respell_einsums import RespellEinsums
from sleepc.passes.front.split_complex import SplitComplex
from sleepc.passes.keep.registry import check as check_keep
from sleepc.passes.lower.drop_idle_masks import DropIdleMasks
from sleepc.passes.lower.drop_unread import DropUnread
from sleepc.passes.lower.find_rms_norm import FindRmsNorm
from sleepc.passes.lower.find_rotary import FindRotary
from sleepc.passes.lower.fuse_memory import FuseMemory
from sleepc.passes.lower.join_linears import JoinLinears
from sleepc.passes.plan import Groups, check_memory, check_rules, may_keep, memory_groups, rings
from sleepc.passes.rewrite.add_memory import AddMemory
from sleepc.passes.rewrite.bound_attention import BoundAttention
from sleepc.passes.rewrite.carry_states import CarryStates
from sleepc.passes.rewrite.insert_memory import InsertMemory
from sleepc.passes.rewrite.replace_attention import ReplaceAttention
from sleepc.passes.runner import run_stages
from sleepc.passes.stateful.add_sleep import AddSleep
from sleepc.passes.stateful.share_rings import ShareRings
from sleepc.recipe import Factors, LayerPlan, Recipe

Made = TypeVar("Made")


def front_stages(factors: Factors = "short") -> tuple[Stage, ...]:
    """ATEN -> CANONICAL. `factors` chooses those for calls of few or of many tokens, if a model has two sets.

    Raises SharedMemory for what is captured without being `decomposed`: see `functional`.
    """
    return (
        Stage(
            "front",
            "ATEN",
            (
                JoinPieces(),  # before writes become values: a tensor that is filled has no twin
                MakeFunctional(),
                DropNoops(),
                SplitComplex(),
                RespellEinsums(),
                RaiseAttention(),  # looks for matrix products
                RaiseDelays(),
                PullKeyNumbers(),
                PullDistanceNumbers(),
                LimitPositions(),  # bounds the grid that masks are evaluated on
                ClassifyMasks(),
                JoinAttention(),  # which see alike
                ChooseByLength(factors),  # once no mask is left that knows how long the call is
                BindPositions(),
                CheckOperators(),  # of what is left
            ),
        ),
        Stage(
            "blocks",
            "CANONICAL",
            (
                CutBlocks(),
                JoinParts(),
                ExposeHeads(),
                DropUnusedParams(),
            ),
        ),
    )


def functional(attempt: Callable[[bool], Made]) -> Made:
    """What `attempt(decomposed=False)` makes of a model; if one of its operators writes through a view, the model
    is captured once more, and taken apart by PyTorch: `attempt(True)`.
    """
    try:
        return attempt(False)
    except SharedMemory:
        return attempt(True)


def check_recipe(recipe: Recipe) -> None:
    """Raises UsageError for unknown rules and consolidations, or those that do not fit. Needs no model."""
    check_rules(recipe)
    consolidations.check(recipe)
    check_keep(recipe)
    if not recipe.overrides:  # all layers that get a memory get the same
        _check_memory(recipe, recipe.model_copy(update={"layers": "all"}).plan(1)[0])


def _check_memory(recipe: Recipe, plan: LayerPlan, layer: str = "") -> None:
    """Does the memory that a layer gets in the end fit? Overrides may overlap, so nothing less can be asked."""
    if plan.strategy != "leave":
        check_memory(plan, layer)
        consolidations.find(recipe.consolidation).check_memory(recipe, plan, layer)


def rewrite_stages(recipe: Recipe, blocks: int) -> tuple[Stage, ...]:
    """CANONICAL -> STEP, as the recipe says, for a model of `blocks` blocks.

    Raises UsageError for a recipe that does not fit.
    """
    check_recipe(recipe)
    plans, consolidation = recipe.plan(blocks), consolidations.find(recipe.consolidation)
    for i, plan in enumerate(plans):
        _check_memory(recipe, plan, f"layer {i}, ")
    consolidation.check_layers(recipe, plans)
    asleep = consolidations.asleep(recipe, blocks)
    replaced, parallel, inserted = (memory_groups(recipe, plans, s, asleep) for s in ("replace", "parallel", "insert"))
    memories = (*replaced, *parallel, *inserted)
    return (
        Stage(
            "rewrite",
            "CONVERTED",
            (
                _bounded(recipe, plans),
                CarryStates(),  # once the clock says which tokens are real
                ReplaceAttention(replaced),
                *consolidation.rewrites(recipe, plans),
                AddMemory(parallel),
                InsertMemory(inserted),
            ),
        ),
        Stage(
            "stateful",
            "STEP",
            (
                *consolidation.stateful(recipe, blocks),
                _sleeping(recipe, memories),
                ShareRings(),  # once it is known what each block writes, and evicts
            ),
        ),
    )


def rewritten(canonical: ProgramGraphs, recipe: Recipe) -> ProgramGraphs:
    """CANONICAL -> STEP: a new program, as the recipe says. Raises UsageError if that does not fit."""
    return run_stages(canonical, rewrite_stages(recipe, len(canonical.layout)))


def _bounded(recipe: Recipe, plans: tuple[LayerPlan, ...]) -> BoundAttention:
    consolidation = consolidations.find(recipe.consolidation)
    soft = consolidation.soft(recipe)
    return BoundAttention(
        rings(plans),
        recipe.sinks,
        every=recipe.window,
        slide=recipe.eviction == "sliding",
        renumber=recipe.last_position == "renumber",
        keep=consolidation.keep(recipe),
        keepers=may_keep(plans, recipe.window),
        marks=soft is None,  # of the tokens of a window: none has a slot of its own then
        ahead=soft.tokens if soft else 0,
    )


def _sleeping(recipe: Recipe, memories: Groups) -> AddSleep:
    score, soft = recipe.keep.score if recipe.keep else "", consolidations.find(recipe.consolidation).soft(recipe)
    ahead = soft.tokens if soft else 0
    return AddSleep(recipe.window, recipe.sinks, recipe.eviction, recipe.consolidation, memories, score, ahead)


def lower_stages(kernels: Collection[str] = LOWERED, *, masks: bool = False) -> tuple[Stage, ...]:
    """STEP -> LOWERED, for a target that has `kernels` of these operators, out of those that only this level has. With
    `masks` even masks that do not matter are kept.
    """
    fused = FuseMemory(tuple(name for name in FUSED if name in kernels))
    found = {"rms_norm": FindRmsNorm(), "rotary": FindRotary(), "linears": JoinLinears()}
    chosen = [each for name, each in found.items() if name in kernels]
    chosen = [*([fused] if fused.kernels else []), *chosen, *([] if masks else [DropIdleMasks()])]
    return (Stage("lower", "LOWERED", (*chosen, DropUnread())),)


def widened(program: ProgramGraphs) -> tuple[Stage, ...]:
    """What makes a program at level STEP one of float32, for targets that compute in that. Raises UsageError for
    float64.
    """
    if program.dtype == torch.float64:
        raise UsageError("a float64 program is not exported", fix="Convert it with --dtype float32.")
    return () if program.dtype == torch.float32 else (Stage("retype", "STEP", (Retype(torch.float32),)),)
