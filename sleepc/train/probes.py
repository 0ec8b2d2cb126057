"""What the probes of a score are: as near as they come to what questions about a text look at.

Texts are read with full attention, and after each the questions about it, with answers, as one conversation. A pair is
looked at as much as the greatest weight that any token of the questions and answers gives it, in any query head of its
KV head. With a the logarithm of that (plus `LEAST`), s what the score says without a probe, and x = k/|k| before
positions, a head's probe w makes the sum over all pairs of (a - s - w x - c)^2 plus `RIDGE` |w|^2 least, with a
constant c for each text, since only differences decide what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from sleepc.backends.table import find_trainer
from sleepc.hf.tokenizer import Tokenizer
from sleepc.ir.graph import Graph
from sleepc.ir.parameters import materialise
from sleepc.ir.program import ProgramGraphs
from sleepc.ops.functional import attention_weights
from sleepc.ops.functional.heads import group
from sleepc.passes.analysis.find_sites import Site, find_site
from sleepc.passes.keep.contract import HeadPairs, Score
from sleepc.progress import Progress
from sleepc.recipe import Recipe
from sleepc.tasks.exchanges import Exchange, spelled
from sleepc.tasks.keywords import last_end
from sleepc.tasks.question_file import Document, parse_questions
from sleepc.tasks.question_prompt import make_prompts
from sleepc.train.local import only_block, only_embed
from sleepc.verify.rounding import widened

OWN = Path(__file__).with_name("asked.jsonl")
LONGEST = 3072  # tokens of a text with its questions; longer ones are cut
LEAST = 0.01  # weights far below say nothing
RIDGE = 1.0
SHOWN = "shown."  # begins the names of what blocks give in addition: no port's name does


@dataclass(frozen=True)
class AskedText:
    """Tokens of a text and of so many questions with answers after it; the first `read` are the text's."""

    tokens: tuple[int, ...]
    read: int
    questions: int


def asked_texts(tokenizer: Tokenizer, positions: int | None) -> list[AskedText]:
    """The project's texts for this, none of them in an evaluation, as far as a model with so many positions can read
    them.
    """
    longest = LONGEST if positions is None else min(LONGEST, positions)
    documents, _ = parse_questions(OWN.read_text(encoding="utf-8"), OWN.name)
    return [found for each in documents if (found := _asked(tokenizer, each, longest)) is not None]


def _asked(tokenizer: Tokenizer, document: Document, longest: int) -> AskedText | None:
    """A text, or its beginning, with the questions that are answered there; None if two of them do not fit."""
    text = document.text
    while True:
        asked = tuple(q for q in document.questions if last_end(q.answers, text) is not None)
        if len(asked) < 2:
            return None
        tokens = spelled(tokenizer, text, [Exchange(each.question, each.answers[0]) for each in asked])
        if len(tokens) <= longest:
            return AskedText(tuple(tokens), len(make_prompts(tokenizer, Document(text, asked)).read), len(asked))
        text = text[: int(len(text) * min(0.9, longest / len(tokens)))]


@torch.no_grad()
def measured_probes(
    canonical: ProgramGraphs,
    texts: Sequence[AskedText],
    recipe: Recipe,
    score: Score,
    heads: Sequence[int],
    progress: Progress,
) -> dict[int, Tensor]:
    """The probes [Hkv,d_k] of the layers that keep pairs, in float32; `heads`: how many KV heads of each layer do. The
    program is at level CANONICAL; weights of one block are read at a time.
    """
    program = widened(canonical, "CANONICAL", torch.float32)
    run = find_trainer().runner
    known = materialise(only_embed(program), "cpu")
    read = [torch.tensor([each.tokens]) for each in texts]
    given = [run(program.embed)({**known, "tokens": t, "positions": torch.arange(t.shape[1])[None]}) for t in read]
    found = {}
    for i, block in enumerate(program.layout):
        progress("measuring probes", i / len(program.layout))
        wake = program.classes[block.cls].wake
        own = materialise(only_block(program, i), "cpu")
        bound = {port: own[key] for port, key in block.params.items()}
        shown = run(_showing(wake) if heads[i] else wake)
        sums = _Sums(find_site(wake), recipe, score) if heads[i] else None
        for text, values in zip(texts, given, strict=True):
            seen = shown({**values, **bound})
            values["h"] = seen["h"]
            if sums is not None:
                sums.add(seen, text.read)
        if sums is not None:
            found[i] = sums.probes()
    progress("measuring probes", 1.0)
    return found


def _showing(wake: Graph) -> Graph:
    """The graph with what its attention gets as further results."""
    graph = wake.clone()
    site = find_site(graph)
    q, k, v, _, sink_logits = site.node.args
    shown = {"q": q, "k": k, "plain": site.k, "v": v, "sink_logits": sink_logits}
    nodes = {SHOWN + name: node for name, node in shown.items() if isinstance(node, fx.Node)}
    graph.set_returns({**graph.results(), **nodes})
    return graph


class _Sums:
    """The normal equations of one layer's probes, over texts."""

    def __init__(self, site: Site, recipe: Recipe, score: Score) -> None:
        self.site, self.window, self.sinks, self.score = site, recipe.window, recipe.sinks, score
        self.squares = RIDGE * torch.eye(site.d_k, dtype=torch.float64).expand(site.kv_heads, -1, -1)
        self.products = torch.zeros(site.kv_heads, site.d_k, 1, dtype=torch.float64)

    def add(self, seen: dict[str, Tensor], read: int) -> None:
        """A text: what its block has shown, and how many of its tokens the questions come after."""
        plain, v = (seen[SHOWN + name][0, :, :read].double() for name in ("plain", "v"))
        wanted = (self._looked_at(seen, read).double() + LEAST).log() - self._without_probe(plain, v)
        x, y = (each[:, self.sinks :] for each in (torch.nn.functional.normalize(plain, dim=-1), wanted[..., None]))
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        self.squares = self.squares + x.mT @ x
        self.products = self.products + x.mT @ y

    def _looked_at(self, seen: dict[str, Tensor], read: int) -> Tensor:
        """The greatest weight of each of the text's pairs [Hkv,read]."""
        q, k = seen[SHOWN + "q"][:, :, read:], seen[SHOWN + "k"]
        token = torch.arange(k.shape[2])
        mask = self.site.mask.sees(token[read:, None], token)[None, None]
        p = attention_weights(
            q, k, mask, seen.get(SHOWN + "sink_logits"), scale=self.site.scale, softcap=self.site.softcap
        )
        return group(p[..., :read].amax(2), k.shape[1])[0].amax(1)

    def _without_probe(self, k: Tensor, v: Tensor) -> Tensor:
        """What the score says of each window's pairs if probes are zero [Hkv,read]."""
        none, tokens = torch.zeros(k.shape[2], dtype=k.dtype), range(k.shape[1])
        of_heads = []
        for head, (keys, values) in enumerate(zip(k, v, strict=True)):
            windows = (tokens[start : start + self.window] for start in range(0, len(tokens), self.window))
            parts = (HeadPairs(keys[w.start : w.stop], values[w.start : w.stop], w, head, none) for w in windows)
            of_heads.append(torch.cat([self.score.naive(each) for each in parts]))
        return torch.stack(of_heads)

    def probes(self) -> Tensor:
        """The solution, [Hkv,d_k]."""
        found: Tensor = torch.linalg.solve(self.squares, self.products)
        return found[..., 0].float()
