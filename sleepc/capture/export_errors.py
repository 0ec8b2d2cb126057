"""What torch.export says of a model that it cannot follow, for people."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from sleepc.capture.call import VALUES
from sleepc.capture.length_queries import asks_for_length
from sleepc.errors import Refusal, SleepcError

TORCH = Path(torch.__file__).parent
FLEX = TORCH / "nn" / "attention" / "flex_attention.py"


def explain(error: Exception, call: nn.Module) -> SleepcError:
    """The error to raise of a model that was called as `call.model`: Refusal(POSITIONS) if its code goes other ways
    for longer calls, OPERATOR if it does so for other values or computes with lengths.
    """
    causes = list(_causes(error))
    where = type(call.model).__name__
    if any(Path(frame.filename) == FLEX for cause in causes for frame in traceback.extract_tb(cause.__traceback__)):
        return Refusal(
            "OPERATOR",
            "the model calls flex_attention, whose masks and scores are compiled by torch and cannot be read",
            where=where,
            fix="Call torch.nn.functional.scaled_dot_product_attention with a mask (a bool tensor, or is_causal=True).",
        )
    branches = any(isinstance(cause, VALUES) for cause in causes)
    if branches and asks_for_length(call):
        return _by_length(place_of(causes[-1]), _rope_types(call.model), where)
    if branches:
        return Refusal(
            "OPERATOR",
            f"the model has data-dependent control flow ({place_of(causes[-1])})",
            where=where,
            fix="sleepc converts models whose control flow does not depend on tensor values: not experts that "
            "run only for the tokens routed to them.",
        )
    if any(isinstance(cause, ConstraintViolationError) for cause in causes):
        return Refusal(
            "OPERATOR",
            "the model's code computes with the number of tokens: its graph would be valid for one length only",
            where=where,
            fix="sleepc converts models that compute the same for any number of tokens.",
        )
    first = str(error).splitlines()[0] if str(error) else repr(error)
    return SleepcError(
        f"torch.export cannot trace the model: {first}", where=where, fix="Run with --debug for the full traceback."
    )


def _by_length(place: str, ropes: set[str], where: str) -> Refusal:
    """The refusal of a model with ropes of these types whose code asks at `place` how long its call is."""
    fix = "A choice between two sets of factors is read if the code computes both and selects; one by an `if` is not."
    if not ropes or "dynamic" in ropes:
        fix = (
            "A model with rope_type dynamic scales nothing within the length that it was trained on: for such texts, "
            "write rope_type default into its config.json."
        )
    said = f"; rope_type {', '.join(sorted(ropes))}" if ropes else ""
    return Refusal(
        "POSITIONS",
        "what positions mean is decided in Python, by how long the call is, in the model's own code "
        f"({place}{said}), and a stream has no length",
        where=where,
        fix=fix,
    )


def _rope_types(model: object) -> set[str]:
    """What the model's configuration says of its positions: one rope, or one for each kind of layer."""
    ropes = getattr(getattr(model, "config", None), "rope_parameters", None)
    found = [ropes, *ropes.values()] if isinstance(ropes, dict) else []
    return {str(rope["rope_type"]) for rope in found if isinstance(rope, dict) and rope.get("rope_type")}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it comes from, in turn."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def place_of(error: BaseException) -> str:
    """The last line of code outside of torch that the error has passed: file:line."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if TORCH not in Path(f.filename).parents]
    return f"{Path(outside[-1].filename).name}:{outside[-1].lineno}" if outside else "in torch"
