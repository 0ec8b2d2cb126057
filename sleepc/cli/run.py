"""`sleepc run ARTIFACT [PROMPT]`: read, answer, and sleep while doing so."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sleepc.cli.display import err, number, print_json, size
from sleepc.cli.options import Artifact, Backend, Device, Dtype, Seed, Stop, Temperature, TopK, TopP
from sleepc.cli.terminal import of_passes
from sleepc.cli.verify import read_text
from sleepc.errors import UsageError

if TYPE_CHECKING:
    from sleepc.hf.tokenizer import Tokenizer
    from sleepc.runtime.session import Session

PIECE = 2048  # tokens read between two updates of the display


def run(
    artifact: Artifact,
    prompt: Annotated[
        str | None, typer.Argument(help="What to continue or answer; after the text of -f, if both are given.")
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A text file to read first.")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Resume from this file if it exists, and save to it at the end.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="Tokens to generate at most.")] = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    seed: Seed = None,
    stop: Stop = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print tokens, sleeps, speed and state size at the end.")
    ] = False,
    device: Device = "cpu",
    dtype: Dtype = None,
    backend: Backend = "eager",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end, and no stream.")] = False,
) -> None:
    """Read a prompt, a file or standard input, and stream what the model makes of it."""
    from sleepc.cli.opening import open_program

    program = open_program(artifact, backend)
    tokenizer = program.tokenizer()
    ids = _tokens(tokenizer, _prompt(prompt, file, resumes=state is not None and state.is_file()), chat)
    session = program.session(device=device, dtype=dtype)
    if state is not None and state.is_file():
        session.load_state(state)
    answer = Answer(tokenizer, stop or [], quiet=as_json)
    interrupted = False
    try:
        answer.read(session, ids)
        answer.write(session, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    except KeyboardInterrupt:
        interrupted = True
    if state is not None:
        answer.save(session, state)
    if as_json:
        print_json(
            {"text": answer.text, "tokens": answer.tokens, "interrupted": interrupted, **answer.figures(session)}
        )
    elif stats:
        answer.tell(session)
    if interrupted:
        kept = (
            f"the state up to here is in {state}"
            if state is not None
            else "nothing was saved (--state FILE keeps the state)"
        )
        err.print(f"interrupted: {kept}")
        sys.exit(130)


def _prompt(prompt: str | None, file: Path | None, *, resumes: bool) -> str:
    parts = [part for part in (read_text(file), prompt) if part is not None]
    if not parts and not sys.stdin.isatty():
        parts = [sys.stdin.read()]
    text = "\n".join(parts)
    if not text and not resumes:
        raise UsageError(
            "there is nothing to read", fix='Give a prompt: sleepc run ARTIFACT "…", -f FILE, or standard input.'
        )
    return text


def _tokens(tokenizer: Tokenizer, text: str, chat: bool) -> list[int]:
    if not text:
        return []
    return tokenizer.chat([{"role": "user", "content": text}]) if chat else tokenizer.encode(text)


@dataclass
class Answer:
    """Reads a prompt and streams the answer to stdout, with marks and progress on stderr."""

    tokenizer: Tokenizer
    stops: list[str]
    quiet: bool
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    reading: float = 0.0
    sleeps_answering: int = 0

    def read(self, session: Session, ids: list[int]) -> None:
        """Feed the prompt in pieces, so that a long one shows how far it is, and Ctrl-C leaves whole pieces."""
        started = time.perf_counter()
        pieces = [ids[i : i + PIECE] for i in range(0, len(ids), PIECE)]
        shown = err.is_terminal and len(pieces) > 1 and not self.quiet
        for i, piece in enumerate(pieces):
            session.feed(piece, logits="last" if i == len(pieces) - 1 else "none")
            if shown:
                done = min((i + 1) * PIECE, len(ids))
                rate = done / (time.perf_counter() - started)
                err.print(
                    f"\rreading {number(done)}/{number(len(ids))} tokens · {session.stats.sleeps} sleeps · {rate:.0f} tok/s"
                    f" · state {size(session.stats.state_bytes)}",
                    end="",
                )
        if shown:
            err.print()
        self.reading = time.perf_counter() - started

    def write(
        self, session: Session, count: int, *, temperature: float, top_k: int, top_p: float, seed: int | None
    ) -> None:
        """Generate until the end of the answer, a stop text, or `count` tokens."""
        from sleepc.runtime.text import TextStream

        stream = TextStream(self.tokenizer, self.stops)
        before = session.stats.sleeps
        if err.is_terminal and not self.quiet:
            session.on_sleep = lambda rows: err.print("[dim]·[/]", end="")
        eos = self.tokenizer.eos_ids
        last = time.perf_counter()
        for step in session.generate(count, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop_ids=eos):
            now = time.perf_counter()
            self.gaps.append(now - last)
            last = now
            token = int(step[0])
            if token in eos:
                break
            self.tokens.append(token)
            self._emit(stream.push(token))
            if stream.stopped is not None:
                break
        self._emit(stream.finish())
        self.sleeps_answering = session.stats.sleeps - before
        if not self.quiet:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def _emit(self, piece: str) -> None:
        self.text += piece
        if piece and not self.quiet:
            sys.stdout.write(piece)
            sys.stdout.flush()

    def save(self, session: Session, path: Path) -> None:
        """Save the state, atomically. Raises UsageError where an interruption came in the middle of a step."""
        session.save_state(path)

    def figures(self, session: Session) -> dict[str, float | int]:
        """What `--stats` tells, as data."""
        gaps = sorted(self.gaps) or [0.0]
        passes = session.stats.passes_per_sleep
        return {
            "tokens_read": session.stats.tokens_read,
            "tokens_generated": len(self.tokens),
            "sleeps": session.stats.sleeps,
            **({} if passes is None else {"passes_per_sleep": passes}),
            "sleeps_while_answering": self.sleeps_answering,
            "ms_per_token": 1e3 * gaps[len(gaps) // 2],
            "ms_per_token_p99": 1e3 * gaps[min(len(gaps) - 1, int(0.99 * len(gaps)))],
            "reading_seconds": self.reading,
            "state_bytes": session.stats.state_bytes,
        }

    def tell(self, session: Session) -> None:
        """The figures in two lines, on stderr."""
        f = self.figures(session)
        passes = of_passes(f.get("passes_per_sleep"))
        err.print(
            f"{f['tokens_read']} tokens read in {f['reading_seconds']:.1f} s · {f['sleeps']} sleeps{passes} · "
            f"state {size(f['state_bytes'])}"
        )
        err.print(
            f"{f['tokens_generated']} tokens · {f['ms_per_token']:.0f} ms/token (p99 {f['ms_per_token_p99']:.0f} ms) · "
            f"{f['sleeps_while_answering']} sleeps while answering"
        )
