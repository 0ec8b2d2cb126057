"""The systems of the literature that this project stands on or beside, and what became of each here: what to type, or
why there is nothing. docs/systems.md is this table.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from difflib import get_close_matches

from sleepc.errors import UsageError


@dataclass(frozen=True)
class System:
    """`source` is its arXiv number, or where else it was published. `here` is empty where nothing became of it, and
    `why` then says why; else `why` says what differs.
    """

    name: str
    source: str
    does: str
    here: str
    why: str = ""

    def to_json(self) -> dict[str, str]:
        """Its fields."""
        return asdict(self)


SYSTEMS = (
    System(
        "Do Language Models Need Sleep?",
        "2605.26099",
        "recurrent passes over the window write fast weights before it is evicted",
        "`--consolidation recurrent`, `--passes`, `--loop`; tasks rule110, depo, gsm-symbolic",
        "its runs at full size (5 billion tokens) were not repeated: docs/paper.md",
    ),
    System(
        "Fast weights",
        "1610.06258",
        "a decaying sum of outer products, read several times until it settles",
        "`--rule ba2016`; task associative",
        "the number of settling steps is fixed",
    ),
    System(
        "Linear transformers as fast weight programmers",
        "2102.11174",
        "linear attention as fast weights, the delta rule, feature maps",
        "`--rule linear` and `delta`, `--features elu` and `dpfp1` to `dpfp3`, `--read before`",
        "features have unit length, not unit sum (sleepc/memory/features.py)",
    ),
    System(
        "Fast weight programming, a primer",
        "2508.08435",
        "one frame for linear transformers, gated recurrent nets and state-space models",
        "the form of a memory rule: states, gates, step, read (docs/rules.md)",
        "it has no algorithm of its own",
    ),
    System(
        "Gated linear attention",
        "2312.06635",
        "a sum with a decay per key channel",
        "`--rule gated`, `--decay channel`",
    ),
    System("Gated DeltaNet", "2412.06464", "the delta rule with a decay", "`--rule gated_delta`, the default"),
    System(
        "Titans",
        "2501.00663",
        "gradient descent with momentum and forgetting on a memory",
        "`--rule titans`, of a matrix, and `titans_mlp`, of two layers whose beginning is learned",
        "gradients go token by token, not by chunks; steps of the MLP are bounded, and it forgets towards its "
        "beginning (sleepc/memory/rules/titans_mlp.py)",
    ),
    System(
        "TRELLIS",
        "2512.23852",
        "two banks of slots, one for keys and one for values, written by gradient steps",
        "`--rule trellis`, and `trellis_silu` with SiLU in its writes",
        "gradients go token by token, not by chunks; what the paper leaves open is chosen in sleepc/memory/slots.py",
    ),
    System(
        "Recurrent depth",
        "2502.05171",
        "a core of blocks runs several times",
        "the loop of recurrent sleeps, `--loop`; models that loop themselves (HRM, Dory) are converted as they are",
        "its random numbers of passes in training are `--passes 1:4` of `sleepc train`",
    ),
    System(
        "Loop, think, generalise",
        "2604.07822",
        "loops learn to follow several facts",
        "task khop",
        "it teaches facts to the weights; here they are in the context",
    ),
    System(
        "In-context autoencoder (ICAE)",
        "2307.06945",
        "an encoder with LoRA turns a context into soft tokens",
        "`--consolidation tokens`, `--soft-tokens`, `--soft-windows`",
        "LoRA changes places behind the window, not the reading of the window, and they begin as its tokens "
        "(docs/decisions/0033)",
    ),
    System(
        "ComprExIT",
        "2602.03784",
        "soft tokens from all layers by gates and optimal transport",
        "`--consolidation tokens --soft-encoder comprexit`",
        "soft tokens begin as tokens of their window, to which what it moves is added (docs/decisions/0033)",
    ),
    System(
        "Cartridges",
        "2506.06266",
        "keys and values of a document, trained by gradient on the model's own questions",
        "`sleepc cartridge`, `run --cartridge`; its self-study as training data, too: `--studied` of `sleepc distil`",
        "they fill slots of kept pairs, in float, and begin with what a score keeps (docs/cartridges.md)",
    ),
    System(
        "Repeat after me",
        "2402.01032",
        "copying shows what a state holds",
        "tasks ngram, copy",
    ),
    System(
        "TTT-E2E",
        "2512.23675",
        "gradient steps of next-token loss on MLPs while reading",
        "`--consolidation gradient`, `--gradient-weights prime`, `--mlps`, `--gradient-steps`; task bigrams",
        "the added MLPs stand behind their blocks, without a norm behind them; by default the blocks' own MLPs learn",
    ),
    System(
        "qTTT",
        "2512.13898",
        "gradient steps on query projections, keys and values frozen",
        "`--consolidation gradient --gradient-weights query --gradient-loss span`",
        "a sleep's steps have the window, not the whole KV cache, which is what is to go; and what is learned stays",
    ),
    System(
        "LaCT",
        "2505.23884",
        "a SwiGLU memory, written once per large chunk with orthogonalised gradients",
        "`--rule lact`, with `parallel`, or `insert` and `--write sleep`",
        "a chunk is a window; without its momentum, with the queries and keys of the layer's other memories",
    ),
    System(
        "In-Place TTT",
        "2604.06169",
        "down-projections take outer products of activations and a convolved target",
        "`--consolidation in_place`, `--mlps`",
    ),
    System(
        "HeadKV",
        "2410.19258",
        "heads that retrieve get more of the KV cache",
        "budgets of kept pairs: `--keep`, `sleepc calibrate --only budgets`",
        "heads are ranked by a second reading, not by needles (docs/keep.md)",
    ),
    System(
        "Beyond RAG, FINCH",
        "2503.04973",
        "a corpus's KV cache compressed for a task, window by window",
        "kept pairs are chosen sleep by sleep, with positions numbered anew: `--keep`",
        "there is no task to choose by: score `probe` is fitted to questions about other texts",
    ),
    System(
        "KVzip",
        "2505.23416",
        "pairs that a repetition of the context looks at are kept",
        "how budgets are measured",
        "as a score of each sleep it costs a second reading (docs/decisions/0022)",
    ),
    System(
        "SideQuest",
        "2602.22603",
        "an agent's model says which tool results may go",
        "`session.keep`, `drop`, `unpin`, `spans`; `/pin` and `/drop` in a chat",
        "who decides is outside: nothing here asks a model",
    ),
    System(
        "Recursive language models",
        "2512.24601",
        "a model writes code that looks at its prompt, and calls itself on parts",
        "",
        "a scaffold around models, not a change of one: it runs with whatever model it is given",
    ),
    System(
        "MiA-Signature",
        "2605.06416",
        "a retrieval agent is told which summaries a query touches",
        "",
        "it chooses texts for a prompt and changes no model; there is no graph to transform",
    ),
    System(
        "Replay, a review",
        "2104.04132",
        "replay in brains and in networks",
        "the words: consolidation, replay, sleep",
        "it has no algorithm",
    ),
    System(
        "Sleep replay (SRC)",
        "Nature Communications 13:7742",
        "noise and a Hebbian rule move weights, without data",
        "`--consolidation hebbian`, a baseline",
        "it moves fast weights, by graded activity in place of spikes; slow weights of MLPs stay as they are",
    ),
    System(
        "RULER",
        "2404.06654",
        "needles and variable tracking",
        "tasks needle, multikey, multivalue, multiquery, tracking, ruler-*",
    ),
    System(
        "BABILong",
        "2406.10149",
        "facts hidden in text",
        "task babilong",
        "in words of a small vocabulary, not in books",
    ),
    System(
        "GSM-Infinite",
        "2502.05252",
        "sums of any depth among noise",
        "tasks gsm-symbolic, gsm-worded",
        "what differs is in docs/tasks.md",
    ),
)


def find_systems(name: str | None) -> tuple[System, ...]:
    """All of them, or those whose name or source has `name` in it, in any case. Raises UsageError if none has."""
    if name is None:
        return SYSTEMS
    found = tuple(s for s in SYSTEMS if name.casefold() in f"{s.name} {s.source}".casefold())
    if not found:
        names = [s.name for s in SYSTEMS]
        near = get_close_matches(name, names, 3, 0.3)
        said = f"Perhaps {' or '.join(near)}." if near else "Run sleepc why-not for the list."
        raise UsageError(f"no system is called {name!r}", where="NAME", fix=said)
    return found


def as_markdown() -> str:
    """The table of docs/systems.md."""
    rows = [f"| {s.name} ({_linked(s.source)}) | {s.does} | {s.here or '–'} | {s.why} |" for s in SYSTEMS]
    return "\n".join(
        ["| system | what it does | here | what differs, or why not |", "| --- | --- | --- | --- |", *rows]
    )


def _linked(source: str) -> str:
    return f"[{source}](https://arxiv.org/abs/{source})" if source[0].isdigit() else source
