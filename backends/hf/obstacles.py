"""What keeps a program from being a checkpoint of transformers' own classes, layer by layer. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sleepc.errors import UsageError
from sleepc.recipe import LayerPlan


@dataclass(frozen=True)
class Host:
    """What the layers of a model may be in the class that takes them. `normed`: does its attention have the norms of q
    and k that the class has? `windows`: how many tokens attention sees in each layer of the original, 0 for all (so all
    do if there are none).
    """

    name: str
    normed: bool
    windows: tuple[int, ...] = ()

    def window(self, i: int) -> int:
        """That of a layer."""
        return self.windows[i] if self.windows else 0


def of_layers(plans: Sequence[LayerPlan], host: Host) -> dict[str, list[int]]:
    """What is in the way, and in which layers."""
    found: dict[str, list[int]] = {}
    for i, plan in enumerate(plans):
        reason = _reason(plan, host, host.window(i))
        if reason:
            found.setdefault(reason, []).append(i)
    return found


def _reason(plan: LayerPlan, host: Host, own: int) -> str:
    if plan.strategy in ("parallel", "insert"):
        where = "beside attention" if plan.strategy == "parallel" else "behind the block"
        return f"it has a memory {where} (strategy {plan.strategy}), for which the class has no place"
    if plan.strategy == "replace":
        if plan.layout == "native":
            return ""
        return "it keeps biases, q/k norms and their factors in front of its memory (layout graph)"
    if own:
        return f"its attention has a window of its own of {own} tokens, and the class sees all of them"
    if plan.window is not None:
        return f"its attention has a window of {plan.window} tokens, and the class sees all of them"
    if not host.normed:
        return "it kept its attention, without the norms of q and k that the class always computes"
    return ""


def refusal(
    host: Host,
    layers: dict[str, list[int]],
    whole: Sequence[str],
    plans: Sequence[LayerPlan],
    to: str = "hf",
    original: Sequence[str] = (),
) -> UsageError:
    """What is in the way of the target `to`, and the recipe that would make it possible: none if the `original` has
    what the class has not.
    """
    lines = [f"layers {ranges(which)}: {reason}" for reason, which in layers.items()]
    lines += [f"the whole model: {reason}" for reason in (*whole, *original)]
    text = "\n  ".join((f"this program is no checkpoint of {host.name}:", *lines))
    none = "No recipe makes it possible. Other targets write this program as it is: --to onnx."
    return UsageError(text, where=f"--to {to}", fix=none if original else possible(host, plans))


def possible(host: Host, plans: Sequence[LayerPlan]) -> str:
    """A recipe with which the same model can be written."""
    left = [i for i, plan in enumerate(plans) if plan.strategy == "leave" and not host.window(i)] if host.normed else []
    if not left or len(left) == len(plans):
        narrow = " --own-windows narrow" if any(host.windows) else ""  # else layers with windows keep their attention
        return f"Possible with: sleepc convert MODEL -o OUT --strategy replace --layout native --passes 1{narrow}"
    replaced = ranges([i for i in range(len(plans)) if i not in left])
    kept = f'overrides: [{{layers: "{ranges(left)}", strategy: leave, window: none}}]'
    return f'Possible with the recipe {{strategy: replace, layout: native, layers: "{replaced}", {kept}}}.'


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as a recipe writes layers.

    >>> ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
