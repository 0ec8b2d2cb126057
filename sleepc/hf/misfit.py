"""What is said of weights that do not fit: which are missing, not used, of another shape, and why that may be."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleepc.errors import UsageError
from sleepc.hf.weight_files import some

# What wrappers put before or into names, and who they are.
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "DataParallel",
    "base_model.model.": "peft",
    "base_layer.": "peft",
}
FIRST = 3  # names that a message shows


@dataclass
class Misfit:
    """What does not fit: names of the model's weights, and of tensors in the files."""

    missing: list[str]
    unused: list[str]
    unlike: list[str]  # with what the file and the model have
    dropped: list[str]  # whose weight another tensor stands for

    def __bool__(self) -> bool:
        return bool(self.missing or self.unused or self.unlike or self.dropped)


def misfit_error(misfit: Misfit, skeleton: Any, folder: Path) -> UsageError:
    """The error of weights in `folder` that do not fit `skeleton`, a model of transformers."""
    kind = type(skeleton).__name__
    prefix = _prefix(misfit)
    kinds = {
        "missing": misfit.missing,
        "not used": misfit.unused,
        "of another shape or kind": misfit.unlike,
        "of a weight that is already there": misfit.dropped,
    }
    parts = [f"{len(names)} {what} ({some(names, FIRST)})" for what, names in kinds.items() if names]
    fix = "The checkpoint is incomplete, or of another model than config.json says: fetch it again."
    if prefix:
        maker = next((who for wrapper, who in WRAPPERS.items() if f".{wrapper}" in f".{prefix}"), "a wrapper")
        parts.insert(0, f"names have {prefix!r} in them, as {maker} leaves it")
        fix = "Save the model that is inside the wrapper (with peft after merge_and_unload), and convert that."
    elif misfit.missing and _head_only(misfit.missing, skeleton):
        fix = "If the head is the embedding, config.json has to say so: tie_word_embeddings: true. Else fetch it again."
    return UsageError(f"the weights are not those of {kind}: {'; '.join(parts)}", where=str(folder), fix=fix)


def _head_only(missing: list[str], skeleton: Any) -> bool:
    head = skeleton.get_output_embeddings()
    name = next((name for name, module in skeleton.named_modules() if module is head), None)
    return missing == [f"{name}.weight"]


def _prefix(misfit: Misfit) -> str:
    """What a wrapper has put before, or into, the names of the unused tensors: "" if it is nothing."""
    inside = [wrapper for wrapper in WRAPPERS if any(f".{wrapper}" in f".{name}" for name in misfit.unused)]
    if inside:
        return inside[0]
    missing = set(misfit.missing)
    found: Counter[str] = Counter()
    for name in misfit.unused:
        ends = [place.end() for place in re.finditer(r"\.", name)]
        found.update([name[:end] for end in ends if name[end:] in missing][:1])
    prefix, times = found.most_common(1)[0] if found else ("", 0)
    return prefix if times > len(misfit.unused) // 2 else ""


def odd_ones(state: dict[str, Any]) -> str:
    """Which tensors of one kind, alike but for numbers in their names (an expert's in a layer), are not like others."""
    kinds: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in state.items():
        if len(re.findall(r"\.\d+(?=\.)", name)) > 1:
            kinds.setdefault(re.sub(r"\.\d+(?=\.)", ".*", name), {})[name] = tuple(tensor.shape)
    most = max((len(shapes) for shapes in kinds.values()), default=0)
    odd = []
    for kind, shapes in kinds.items():
        usual = Counter(shapes.values()).most_common(1)[0][0]
        odd += [f"{kind} is there {len(shapes)} times of {most}"] if len(shapes) < most else []
        odd += [f"{name} is {list(shape)}, others {list(usual)}" for name, shape in shapes.items() if shape != usual]
    return some(odd, FIRST) or "some are missing, or differ"
