"""Scaled rotary positions as a GGUF file has them -> transformers' `rope_parameters`.

Sources: llama.cpp's metadata `rope.scaling.*` (linear, YaRN), the tensors `rope_factors_short|long.weight` (LongRoPE,
arXiv 2402.13753), and `rope_freqs.weight`: what each inverse frequency is divided by, which is how Llama 3.1's scaling
is stored. Its parameters are not in the file: they are recovered from the divisors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from sleepc.errors import UsageError
from sleepc.hf.gguf_file import GgufFile

FREQS, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
TABLES = (FREQS, SHORT, LONG)  # tensors that become parameters of a configuration
TOLERANCE = 1e-5  # relative: the divisors are stored in float32
KEY = "rope.scaling."
# What must have this value if it is there: transformers has nothing of the kind.
NEUTRAL = {"yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0, "yarn_log_multiplier": 0.0, "alpha": 0.0}
UNDERSTOOD = ("type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast", "yarn_beta_slow")


def scaled_positions(file: GgufFile, metadata: dict[str, Any], theta: float, context: int) -> dict[str, Any]:
    """`rope_type` and its parameters; {"rope_type": "default"} if positions are not scaled.

    Raises UsageError by name for what cannot be carried over.
    """
    said = {key.removeprefix(KEY): value for key, value in metadata.items() if key.startswith(KEY)}
    if "factor" not in said and "rope.scale_linear" in metadata:
        said["factor"] = metadata["rope.scale_linear"]  # how the first GGUF files had it
    for key, neutral in NEUTRAL.items():
        if said.get(key, neutral) != neutral:
            raise _refused(file, f"{KEY}{key} = {said[key]}")
    kind, factor = str(said.get("type", "linear")), float(said.get("factor") or 1.0)
    original = int(said.get("original_context_length") or context)
    short, long, freqs = (_factors(file, name, metadata) for name in (SHORT, LONG, FREQS))
    if short or long:
        return _longrope(file, short, long, original, said.get("attn_factor"))
    if freqs and any(abs(value - 1) > TOLERANCE for value in freqs):
        if factor != 1.0:
            raise _refused(file, f"{FREQS} next to {KEY}factor = {factor}")
        return _llama3(file, freqs, theta)
    if kind == "none" or (kind in ("linear", "yarn") and factor == 1.0):
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(said, factor, original)
    raise _refused(file, f"{KEY}type = {kind}" + ("" if kind != "longrope" else f" without {LONG}"))


def _factors(file: GgufFile, name: str, metadata: dict[str, Any]) -> list[float]:
    """The numbers of the tensor, one for each frequency; an empty list if there is none of that name."""
    width = metadata.get("rope.dimension_count") or metadata.get("attention.key_length")
    width = width or int(metadata["embedding_length"]) // int(metadata["attention.head_count"])
    found = file.values(name)
    if found and (len(found) != int(width) // 2 or not all(0 < value < math.inf for value in found)):
        raise _refused(file, f"{name} is not one positive factor for each of {int(width) // 2} frequencies")
    return found


def _refused(file: GgufFile, what: str) -> UsageError:
    return UsageError(
        f"the GGUF file scales its positions in a way that cannot be carried over: {what}",
        where=str(file.path),
        fix="Convert the model's own checkpoint (config.json and safetensors).",
    )


def _yarn(said: dict[str, Any], factor: float, original: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    for key in ("beta_fast", "beta_slow"):
        if f"yarn_{key}" in said:
            found[key] = float(said[f"yarn_{key}"])
    if said.get("attn_factor", 1.0) != 1.0:
        found["attention_factor"] = float(said["attn_factor"]) * (1 + 0.1 * math.log(factor))
    return found


def _longrope(
    file: GgufFile, short: list[float], long: list[float], original: int, attention: float | None
) -> dict[str, Any]:
    if len(short) != len(long):
        raise _refused(file, f"{SHORT} has {len(short)} factors, {LONG} {len(long)}")
    found: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": original,
    }
    if attention is not None:
        found["attention_factor"] = float(attention)
    return found


def _llama3(file: GgufFile, divisors: list[float], theta: float) -> dict[str, Any]:
    """Parameters that give exactly these divisors: with Llama 3.1's own numbers, or any that do the same."""
    turns = [theta ** (-i / len(divisors)) / (2 * math.pi) for i in range(len(divisors))]  # per token
    factor = _rounded(max(divisors))
    if max(divisors) - min(divisors) < TOLERANCE:
        return {"rope_type": "linear", "factor": factor}
    for original, low, high in _candidates(turns, divisors, factor):
        again = llama3_divisors(turns, factor, original, low, high)
        if all(math.isclose(a, b, rel_tol=TOLERANCE) for a, b in zip(again, divisors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise _refused(file, f"{FREQS} is not a scaling of Llama 3's kind")


def llama3_divisors(turns: list[float], factor: float, original: int, low: float, high: float) -> list[float]:
    """By what Llama 3.1's scaling divides each frequency. `turns`: of each, per token."""
    smooth = [min(max((original * turn - low) / (high - low), 0.0), 1.0) for turn in turns]
    return [1 / ((1 - part) / factor + part) for part in smooth]


def _candidates(turns: list[float], divisors: list[float], factor: float) -> Iterator[tuple[int, float, float]]:
    """(original length, low, high) that may be meant, the likeliest first.

    Between both ends the smooth share of a frequency is linear in its turns per token; two frequencies there give the
    line, one gives it with a slope that is steep enough or Llama's own (high = 4 low), and none leaves the gap.
    """
    yield 8192, 1.0, 4.0
    share = [(1 / value - 1 / factor) / (1 - 1 / factor) for value in divisors]
    points = list(zip(turns, share, strict=True))
    between = [(x, s) for x, s in points if TOLERANCE < s < 1 - TOLERANCE]
    ends = [x for x, s in points if s <= TOLERANCE], [x for x, s in points if s >= 1 - TOLERANCE]
    below, above = max(ends[0], default=0.0), min(ends[1], default=2 * max(turns))
    if len(between) >= 2:
        (x1, s1), (x0, s0) = between[0], between[-1]
        slope = (s1 - s0) / (x1 - x0)
        yield from _line(x0 - s0 / slope, x0 + (1 - s0) / slope)
    elif between:
        ((x0, s0),) = between
        start = x0 / (1 + 3 * s0)
        yield from _line(start, 4 * start)
        slope = 2 * max((1 - s0) / (above - x0), s0 / (x0 - below))
        yield from _line(x0 - s0 / slope, x0 + (1 - s0) / slope)
    else:
        yield from _line(below + (above - below) / 3, above - (above - below) / 3)


def _line(start: float, end: float) -> Iterator[tuple[int, float, float]]:
    """The share is 0 up to `start` turns per token, and 1 from `end` on."""
    if 0 < start < end:
        whole = round(1 / start)
        if math.isclose(whole * start, 1, rel_tol=1e-4):  # low_freq_factor is 1 in every model there is
            yield whole, 1.0, _rounded(whole * end)
        yield 1 << 20, start * (1 << 20), end * (1 << 20)


def _rounded(value: float) -> float:
    """The whole number that float32 made of it, if it is one."""
    return float(round(value)) if math.isclose(value, round(value), rel_tol=1e-4) else value
