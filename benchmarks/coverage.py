"""Which families of transformers' registry of causal language models can be converted, each tried with a small model.

Every model type gets a configuration made small (shrink.py) and random weights, is saved, converted from its files with
a window of 8, and verified: the capture against the model at two shapes, the converted program against another instance
of it with eager attention inside the window, and all that `sleepc verify` measures over several sleeps. The status is

    verified   all of that holds
    refused    sleepc says why it does not convert it, with a code of the closed list
    failed     anything else
    no model   transformers cannot build or run such a model by itself

Each family has a process of its own. What was found is kept in the work folder, so that a run that was interrupted goes
on; the tables docs/coverage.md and docs/coverage.json are written when every family has been tried. The exit status is
1 where one of the families that sleepc promises is not verified.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sleepc.errors import Refusal
    from sleepc.verify.report import Check

ROOT = Path(__file__).resolve().parents[1]
_PROMISED = (
    "llama mistral qwen2 qwen3 gemma2 gemma3 phi3 gpt2 gpt_neox gptj opt olmo2 granite stablelm smollm3 gpt_oss "
    "llama4_text mixtral qwen3_moe bloom falcon qwen3_5_text"
)
PROMISED = frozenset(_PROMISED.split())
STATUSES = ("verified", "refused", "failed", "no model")
RECIPE = {"window": 8, "sinks": 2}
# Of the scale of what is compared. Many float64 models compute scores or norms in float32 (GPT-Neo is off by 1.8e-6
# from itself in float64 throughout); tests/conformance/test_families.py holds the promised families to 1e-6. Recurrent
# layers compute in float32 always: Qwen3.5-MoE is off by 5.6e-5 from itself, and its capture by 1.1e-7 from that.
TOLERANCES = {"torch.float64": 5e-6, "torch.float32": 1e-4}
SHAPES = ((2, 7), (1, 24))  # batch, tokens: neither is what the export saw
MEMORY = 12 << 30  # bytes of address space
TIMEOUT = 240  # seconds
CONTEXT = multiprocessing.get_context("forkserver")
Row = dict[str, Any]


def main() -> int:
    """Run the benchmark."""
    options = _parser().parse_args()
    known = registry()
    chosen = options.families.split(",") if options.families else known
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        sys.exit(f"transformers' registry of causal language models does not have: {', '.join(unknown)}")
    options.work.mkdir(parents=True, exist_ok=True)
    results = Results(options.work / "results.jsonl")
    results.forget(chosen if options.fresh else [f for f in chosen if options.again and results.unverified(f)])
    run_all([family for family in chosen if family not in results.rows], results, options.jobs, options.timeout)
    rows = [results.rows[family] for family in known if family in results.rows]
    print(summary(rows))
    if options.out or len(rows) == len(known):
        write_tables(options.out or ROOT / "docs", rows)
    else:
        print(f"{len(known) - len(rows)} families have not been tried: docs/coverage.md is as it was")
    return int(any(results.unverified(family) for family in PROMISED if family in chosen))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", metavar="A,B", help="only these model types")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds for a family")
    parser.add_argument("--work", type=Path, default=_cache(), help="where results are kept between runs")
    parser.add_argument("--fresh", action="store_true", help="try all that are chosen, whatever was found before")
    parser.add_argument("--again", action="store_true", help="try again what was not verified")
    parser.add_argument("--out", type=Path, help="write the tables here, even if families are missing")
    return parser


def _cache() -> Path:
    from sleepc.hf.gguf import cache_folder

    return cache_folder() / "coverage"


def registry() -> list[str]:
    """All model types that transformers has a causal language model for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


# One family, in a child.


def try_family(family: str) -> Row:
    """What becomes of a family: its row."""
    import torch
    import transformers

    from sleepc.errors import Refusal

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with TemporaryDirectory(prefix="sleepc-coverage-") as scratch:
        try:
            save_model(family, Path(scratch))
        except Exception as error:  # whatever transformers raises: it is the result
            return _row(family, "no model", _first_line(error))
        try:
            fault = find_fault(Path(scratch))
        except Refusal as error:
            return _row(family, "refused", error.what, error.code, softmax=_attends(error, Path(scratch)))
        except Exception as error:  # the same: a fault of any kind is what is looked for
            return _row(family, "failed", _first_line(error))
    return _row(family, "failed" if fault else "verified", fault)


def _attends(refusal: Refusal, folder: Path) -> bool:
    """Has a model that was refused softmax attention? Recurrent ones may or may not have some."""
    import torch

    from sleepc.capture.attention_free import has_attention
    from sleepc.capture.call import TokensToLogits
    from sleepc.hf.load import load_module
    from sleepc.hf.resolve import resolve

    if refusal.code != "RECURRENT":
        return refusal.code != "NO_ATTENTION"
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    return has_attention(TokensToLogits(load_module(resolve(folder, _silent), attention="eager")), tokens, tokens)


def _row(family: str, status: str, reason: str, code: str | None = None, *, softmax: bool = True) -> Row:
    softmax = softmax and status != "no model"
    return {"family": family, "status": status, "code": code, "reason": reason, "softmax": softmax}


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def save_model(family: str, folder: Path) -> None:
    """A small model with random weights, as a checkpoint: in float64 if it runs in that, else in float32.

    Raises what transformers raises if there is no such model.
    """
    import torch
    from shrink import small_config
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    made: Any = AutoModelForCausalLM
    config = small_config(family)
    module = made.from_config(config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False).eval()
    _scatter(module)
    _run_everywhere(module)
    for dtype in (torch.float64, torch.float32):
        module.to(dtype).save_pretrained(folder)
        if module.config.model_type != config.model_type:  # the text model of a larger one, whose checkpoints say so
            config.dtype = dtype
            config.save_pretrained(folder)
        try:
            _run_everywhere(made.from_pretrained(folder, attn_implementation="eager", trust_remote_code=False))
        except RuntimeError:  # casts to float32 on its way
            if dtype == torch.float32:
                raise
        else:
            return


def _scatter(module: nn.Module) -> None:
    """Give parameters values for which attention is uneven and errors show."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = 0.2 * torch.randn(parameter.shape, generator=generator)
            # Vectors are gains and biases: around what they were.
            parameter.copy_(parameter + noise if parameter.dim() < 2 else noise)


def _run_everywhere(module: nn.Module) -> None:
    """Raises if the model cannot run, or says nothing that can be compared."""
    import torch

    from sleepc.capture.call import TokensToLogits

    if hasattr(module, "set_experts_implementation"):
        module.set_experts_implementation("eager")
    call = TokensToLogits(module)
    for batch, length in SHAPES:
        with torch.no_grad():
            logits = call(_tokens(batch, length), torch.arange(length).expand(batch, length))
        if not logits.isfinite().all():
            raise RuntimeError("the logits of the small model are not finite")


def _tokens(batch: int, length: int) -> Tensor:
    """Random ids, but for the first ones: some models take them for padding, which they do not count as tokens."""
    import torch
    from shrink import VOCAB

    return torch.randint(4, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))


def find_fault(folder: Path) -> str:
    """Convert and verify the model in `folder`: what does not hold, or nothing. Raises what the conversion raises."""
    import sleepc
    from sleepc.hf.load import load_module
    from sleepc.hf.resolve import resolve
    from sleepc.ir.states import with_role
    from sleepc.verify.original import Original
    from sleepc.verify.verify import Measuring, verify_program

    program = sleepc.convert(folder, RECIPE)
    original = Original(load_module(resolve(folder, _silent), attention="eager"))
    assert program.canonical is not None
    # Inside the window the original is compared below: eager attention computes softmax in float32, in float64 too.
    tokens, how = _tokens(1, 32)[0].tolist(), Measuring(perplexity=False)
    report = verify_program(program.graphs, program.canonical, program.recipe, tokens, measuring=how)
    tolerance = TOLERANCES[str(program.graphs.dtype)]
    in_float32 = with_role(program.graphs.all_states(), "own")
    wide = TOLERANCES["torch.float32"] if in_float32 else tolerance
    faults = [_capture_fault(program, original, wide), _window_fault(program, original, wide)]
    faults += [_check_fault(check, tolerance) for check in report.checks]
    return "; ".join(fault for fault in faults if fault)


def _check_fault(check: Check, tolerance: float) -> str:
    """What an invariant says. Rounding may be as large as `tolerance`: models in float64 compute parts in float32."""
    if check.ok or (check.value is not None and check.tolerance and check.value <= tolerance):
        return ""
    return f"{check.name}: {check.detail if check.value is None else format(check.value, '.2g')}"


def _silent(what: str, share: float | None) -> None:
    del what, share


def _capture_fault(program: Any, original: Any, tolerance: float) -> str:
    """The program before rewriting against the original, at shapes that the export did not see."""
    import torch

    from sleepc.recipe import Override, Recipe
    from sleepc.verify.oracle import Oracle, parameters_of

    attention = Override(layers="all", strategy="leave")  # as it is, whatever the conversion made of a layer
    whole = Recipe(window=2 * max(length for _, length in SHAPES), sinks=0, overrides=(attention,))
    oracle = Oracle(program.canonical, whole, parameters_of(program.canonical, program.graphs))
    for batch, length in SHAPES:
        tokens = _tokens(batch, length)[:, : program.canonical.picked]  # of more the model picks some
        with torch.no_grad():
            found = oracle(tokens).logits()
        error = _relative(found, original(tokens))
        if not error <= tolerance and not _equal_in_double(program, whole, original, tokens):
            return f"the capture differs from the model by {error:.2g} at {batch} x {tokens.shape[1]} tokens"
    return ""


def _window_fault(program: Any, original: Any, tolerance: float) -> str:
    """The converted program against the original, inside the window."""
    import torch

    tokens = _tokens(1, RECIPE["window"])
    found = torch.from_numpy(program.session().feed(tokens.numpy(), logits="all"))
    error = _relative(found, original(tokens))
    close = error <= tolerance or error <= _relative(original(tokens), _in_double(original, tokens))
    return "" if close else f"inside the window it differs from the model by {error:.2g}"


def _equal_in_double(program: Any, recipe: Any, original: Any, tokens: Tensor) -> bool:
    """Are the program before rewriting and the original the same with float64 throughout? Of models that make large
    differences of small ones (Dory adds unit vectors in float32) both are far from themselves otherwise.
    """
    import torch

    from sleepc.verify.oracle import Oracle, parameters_of

    parameters = parameters_of(program.canonical, program.graphs)
    with torch.no_grad():
        found = Oracle(program.canonical, recipe, parameters, double=True)(tokens).logits()
    return _relative(found, _in_double(original, tokens)) <= TOLERANCES["torch.float64"]


def _in_double(original: Any, tokens: Tensor) -> Tensor:
    """The original's logits with float64 also where its code asks for float32."""
    import copy

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from sleepc.verify.original import Original

    class Wide(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
            return func(*args, **kwargs)

    double = Original(copy.deepcopy(original.module).double())
    with Wide():
        return double(tokens)


def _relative(found: Tensor, wanted: Tensor) -> float:
    """The largest error, of the scale of what is wanted."""
    wanted = wanted.double()
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))


# All families.


class Results:
    """The rows found so far, one JSON line each in a file, by family."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: dict[str, Row] = {row["family"]: row for row in map(json.loads, lines)}

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.rows[row["family"]] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def forget(self, families: Sequence[str]) -> None:
        """Drop the rows of `families`."""
        self.rows = {name: row for name, row in self.rows.items() if name not in families}
        text = "".join(json.dumps(row) + "\n" for row in self.rows.values())
        self.path.write_text(text, encoding="utf-8")

    def unverified(self, family: str) -> bool:
        """Has it not been verified?"""
        return family not in self.rows or self.rows[family]["status"] != "verified"


def run_all(families: Sequence[str], results: Results, jobs: int, timeout: int) -> None:
    """Try `families`, `jobs` at a time, and keep and print what becomes of them."""
    start_server()
    with ThreadPoolExecutor(max(jobs, 1)) as pool:
        started = [pool.submit(run_child, family, timeout) for family in families]
        try:
            for count, done in enumerate(as_completed(started), 1):
                row = done.result()
                results.add(row)
                code = f" {row['code']}" if row["code"] else ""
                what = f"{row['family']}: {row['status']}{code} {row['reason']} ({row['seconds']} s)"
                print(f"{count}/{len(started)} {what}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            sys.exit("interrupted: the same command continues from here")


def start_server() -> None:
    """Let children be forked from a process that has imported the large packages, which takes longer than a family."""
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    CONTEXT.set_forkserver_preload(["torch", "transformers", "sleepc.api", "sleepc.verify.verify"])


def run_child(family: str, timeout: float) -> Row:
    """The row of a family, found by a process of its own."""
    began = time.monotonic()
    answers, answer = CONTEXT.Pipe(duplex=False)
    child = CONTEXT.Process(target=_child, args=(family, answer))
    child.start()
    answer.close()
    try:
        heard = answers.poll(timeout)
        row = json.loads(answers.recv_bytes()) if heard else _row(family, "failed", f"no result after {timeout} s")
        child.kill()
        child.join()
    except EOFError:
        child.join()
        row = _row(family, "failed", f"its process ended with status {child.exitcode}")
    return row | {"seconds": round(time.monotonic() - began, 1)}


def _child(family: str, answer: Any) -> None:
    """Send the row of `family`; what is printed meanwhile is discarded."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    answer.send_bytes(json.dumps(try_family(family)).encode())


# The tables.


def summary(rows: Sequence[Row]) -> str:
    """Counts and the share, in two lines."""
    counts = Counter(row["status"] for row in rows)
    softmax = [row for row in rows if row["softmax"]]
    verified = counts["verified"]
    share = f"{verified / len(softmax):.0%}" if softmax else "none"
    missing = [row["family"] for row in rows if row["family"] in PROMISED and row["status"] != "verified"]
    return (
        f"{len(rows)} families: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES) + ".\n"
        f"{verified} of {len(softmax)} families with softmax attention are verified ({share}). "
        f"Promised and not verified: {', '.join(missing) or 'none'}."
    )


OF_QUERIES = (
    "sink logits made of the query, attention over what layers gave, and convolutions whose weights are made of tokens"
)
CALLED = "a recurrence that is called through a function of its own, as those of other models are, and not written out"
CHANGES = {
    "blt": "patches, as many as values say, read on a clock of their own beside that of the tokens",
    "cpmant": "a prompt of the model's own before each text, which a stream reads once",
    "deepseek_v4": "KV windows whose slots hold several tokens each, since its keys are compressed",
    "inkling2_loop_text": OF_QUERIES + ", in layers that run several times",
    "inkling2_text": OF_QUERIES,
    "minimax": CALLED + " (a decay for each head: rule gated)",
    "prophetnet": "attention of a second stream of queries, which sees its own keys beside those of the first",
    "recurrent_gemma": CALLED + " (a head for each channel: rule gated)",
    "xlnet": "numbers by distance without a last one (sines of it times the query), for the slots of a window",
}


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """Write coverage.json and coverage.md."""
    keys = ("family", "status", "code", "reason", "softmax")
    rows = sorted(rows, key=lambda row: (STATUSES.index(row["status"]), row["code"] or "", row["family"]))
    folder.mkdir(parents=True, exist_ok=True)
    plain = [{key: row[key] for key in keys} for row in rows]
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in plain)
    (folder / "coverage.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    apart = [row for row in rows if row["status"] == "refused" and not row["softmax"]]
    table = _table([row for row in rows if row not in apart])
    versions = {name: version(name) for name in ("sleepc", "torch", "transformers")}
    text = INTRODUCTION.format(summary=summary(rows), table=table, apart=_table(apart), **versions)
    (folder / "coverage.md").write_text(text, encoding="utf-8")


def _table(rows: Sequence[Row]) -> str:
    cells = ((_name(r), r["status"], r["code"] or "", _cell(r["reason"]), CHANGES.get(r["family"], "")) for r in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


INTRODUCTION = """# Coverage

What becomes of every causal language model in transformers, each as a small random model with every kind of
its layers, and windows of 5. Made by `python benchmarks/coverage.py` (which documents how) with sleepc {sleepc}, torch
{torch} and transformers {transformers}; coverage.json holds the same. **Bold** families are promised: the command
fails if one of them is not verified.

- *verified*: converted with a window of 8; the capture equals the model, the program equals it inside the window, and
  all invariants hold over several sleeps. Where a model picks its keys, the capture is compared up to as many tokens
  as it picks keys.
- *refused*: sleepc does not convert it and says why, with a code. Hybrids count as families with softmax attention,
  models without any do not.
- *failed*: anything else. *no model*: transformers itself cannot build or run a small one; not counted.

{summary}

| family | status | code | reason | what would change that |
| --- | --- | --- | --- | --- |
{table}

Without softmax attention, and so with nothing to convert:

| family | status | code | reason | what would change that |
| --- | --- | --- | --- | --- |
{apart}
"""


def _name(row: Row) -> str:
    return f"**{row['family']}**" if row["family"] in PROMISED else str(row["family"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
