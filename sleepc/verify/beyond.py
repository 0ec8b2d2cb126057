"""Is the program still of use beyond its window? Perplexity there against the original's, which attends to everything,
and if it is much higher, why, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from sleepc.passes.consolidation.registry import find as find_consolidation
from sleepc.passes.rewrite.key_positions import on_tokens
from sleepc.verify.report import Beyond, PerplexityRow, Verdict
from sleepc.verify.subject import Subject

ENOUGH = 64  # tokens that a range must have for its perplexity to say something
WORSE, RUINED = 1.5, 4.0  # times full attention's perplexity
TELLS = 2.0  # the original's perplexity is of that share of the vocabulary at most, or it only guesses
OWN = 1.25  # times that of the window alone: then memories are what makes it worse


def judge(subject: Subject, rows: Sequence[PerplexityRow], length: int, *, accept: bool) -> Beyond:
    """The worst range beyond the window decides. More than RUINED times full attention's perplexity fails, unless the
    user said to `accept` it, or the options ask for what needs training by design.
    """
    window, vocab = subject.recipe.window, subject.step.vocab
    known = [row for row in rows if row.tokens_from >= window and row.read >= ENOUGH and row.ratio is not None]
    if not known:
        return Beyond("not measured", f"beyond the window: not measured: {_why_not(subject, length)}")
    telling = [row for row in known if row.full is not None and row.full < vocab / TELLS]
    if not telling:
        best = min(row.full for row in known if row.full is not None)
        text = f"the original only guesses at these tokens (perplexity {best:.4g} of {vocab} tokens)"
        return Beyond("not measured", f"beyond the window: not judged: {text}; give a text that it knows (--text)")
    worst = max(telling, key=lambda row: row.ratio or 0.0)
    ratio = worst.ratio or 0.0
    figures = f"{ratio:.2f} times that of full attention ({worst.converted:.4g} / {worst.full:.4g}, tokens "
    text = f"perplexity beyond the window: at most {figures}{worst.tokens_from}–{worst.tokens_to})"
    if ratio <= WORSE:
        return Beyond("holds", text, ratio, worst)
    cause, fix = _cause(subject, worst)
    return Beyond(_verdict(subject, ratio, accept), text, ratio, worst, cause, fix)


def _verdict(subject: Subject, ratio: float, accept: bool) -> Verdict:
    if ratio <= RUINED:
        return "worse"
    if accept:
        return "accepted"
    recipe = subject.recipe
    untrained = find_consolidation(recipe.consolidation).untrained(recipe) is not None
    by_design = "replace" in subject.strategies or untrained or recipe.eviction == "hard"
    return "expected" if by_design or subject.other_weights else "ruined"


def _why_not(subject: Subject, length: int) -> str:
    needed = subject.recipe.window + ENOUGH
    if subject.original is None:
        return "the original was not given"
    if subject.known < needed:
        return f"the original has {subject.known} positions, and what is beyond the window takes {needed}"
    if len(subject.tokens) < needed:
        return f"the text has {len(subject.tokens)} tokens, and {needed} are needed (--text)"
    return f"{length} tokens were read; `sleepc eval --task perplexity` reads as many as you like"


def _cause(subject: Subject, worst: PerplexityRow) -> tuple[str, str]:
    """The likely cause, and what to do about it."""
    recipe, limit = subject.recipe, subject.step.max_positions
    if subject.other_weights:
        return "the model's own weights have been trained", "compare it on texts of what it was trained for (--text)"
    if "replace" in subject.strategies:
        return "layers without attention answer from their memories alone, which needs training", "sleepc distil"
    untrained = find_consolidation(recipe.consolidation).untrained(recipe)
    if untrained is not None:
        return untrained.cause, untrained.fix
    if worst.converted > OWN * worst.sliding:
        fix = "sleepc calibrate or sleepc distil, or fewer --layers"
        return f"the memories: with the window alone it is {worst.sliding:.4g}", fix
    narrowed = subject.narrowed()
    if narrowed:
        return _narrowed(subject, narrowed)
    if recipe.eviction == "hard":
        return "hard eviction empties the window at every sleep", "--eviction sliding"
    if limit is not None and worst.tokens_to + recipe.window > limit:
        added = subject.canonical is not None and on_tokens(subject.canonical.embed)
        fix = f"texts of up to {limit} tokens" if added else "--last-position renumber, or a smaller --window"
        return f"the window is emptied at the last of the model's {limit} positions", fix
    if not recipe.sinks:
        return "no sinks are kept, and attention relies on the first tokens", "--sinks 4"
    return f"a window of {recipe.window} tokens is too small for this text", f"--window {2 * recipe.window}"


def _narrowed(subject: Subject, narrowed: dict[int, int]) -> tuple[str, str]:
    """Layers whose own window is longer than what they keep; all of them cannot be left."""
    plans = subject.recipe.plan(len(subject.step.layout))
    own = ", ".join(map(str, sorted(set(narrowed.values()))))
    kept = ", ".join(map(str, sorted({plans[i].window or 0 for i in narrowed})))
    fix = f"--window {max(narrowed.values())}"
    if len(narrowed) < len(plans) and subject.recipe.own_windows != "leave":
        fix = f"--own-windows leave, or {fix}"
    return f"layers {ranges(narrowed)} see {own} tokens in the original and keep {kept} here", fix


def ranges(numbers: Iterable[int]) -> str:
    """Numbers for people.

    >>> ranges([0, 1, 2, 5])
    '0-2, 5'
    """
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
