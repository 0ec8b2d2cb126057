"""`sleepc run ARTIFACT [PROMPT]`: read, answer, and sleep while doing so."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleepc.cli.display import counted, err, number, print_json, size, sleeps, tell, write_words
from sleepc.cli.ending import ENDS, Ended, signal_of, stopping
from sleepc.cli.input_text import check_words, read_input, read_text
from sleepc.cli.option_groups import argument, flag, switch, with_options
from sleepc.cli.options import CartridgeOptions, Runnable, RunsOn, SamplingOptions, TemplateOptions, read_template_args
from sleepc.cli.terminal import of_passes
from sleepc.cli.tuned import way_of
from sleepc.errors import UsageError
from sleepc.output_place import check_file_place

if TYPE_CHECKING:
    from sleepc.cli.reading import PromptReading
    from sleepc.hf.template import Template
    from sleepc.hf.tokenizer import Tokenizer
    from sleepc.runtime.session import Session

PIECE, MOST = 256, 1024  # tokens, about and at most: what is read between two looks at whether to stop


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What is read, and how it is answered."""

    prompt: str | None = argument("What to continue or answer; after the text of -f, if both are given.")
    file: Path | None = flag("A text file to read first.", "--file", "-f")
    state: Path | None = flag("Resume from this file if it exists, and save to it at the end.")
    begins: CartridgeOptions
    max_tokens: int = flag("Maximum number of tokens to generate.", default=128, min=0)
    sampling: SamplingOptions
    chat: bool | None = flag(
        "Ask through the model's chat template, or give it the plain text; by default a template is used if the model has one."
    )
    template: TemplateOptions
    stats: bool = switch("Print tokens, sleeps, speed and state size at the end.", "--stats")
    on: RunsOn
    as_json: bool = switch("Print one JSON object at the end instead of streaming text.", "--json")


@with_options
def run(artifact: Runnable, options: RunOptions) -> None:
    """Read a prompt, a file or standard input, and stream the model's answer."""
    from sleepc.cli.opening import open_program
    from sleepc.cli.reading import reading_of

    state, on, sampling = options.state, options.on, options.sampling
    for word in sampling.stop or ():
        check_words(word, "--stop")
    if state is not None:
        check_file_place(state, "--state")  # before any work
    program = open_program(artifact, way_of(artifact, on, tell))
    tokenizer = program.tokenizer()
    template = _template(tokenizer, options)
    text = _prompt(options.prompt, options.file, resumes=state is not None and state.is_file())
    session = program.session(device=on.device, dtype=on.dtype, compile=on.compile, progress=tell)
    holds = options.begins.load(session, state)
    reading = reading_of(session, tokenizer, template, in_turn=holds)
    if state is not None and state.is_file():
        _tell(reading.resume(state))
    answer = AnswerPrinter(tokenizer, sampling.stop or [], reading.ends, reading.never, quiet=options.as_json)
    stopped = _answer(answer, session, reading, reading.news(text), options)
    if not answer.text and options.max_tokens and not stopped:
        _tell(_why_nothing(answer, tokenizer, template))
    if options.as_json:
        facts = {"text": answer.text, "tokens": answer.tokens, "interrupted": bool(stopped)}
        print_json({**facts, **answer.figures(session)})
    elif options.stats:
        answer.tell(session)
    if stopped:
        raise Ended(stopped, _stopped(answer, state))


def _answer(
    answer: AnswerPrinter, session: Session, reading: PromptReading, ids: list[int], options: RunOptions
) -> int:
    """Read, answer, and save the state: the signal that stopped it, 0 for none."""
    state = options.state
    with stopping() as stopped:  # a token comes to its end, and the state is written
        try:
            answer.read(session, ids, stopped)
            if not stopped():
                answer.write(session, options.max_tokens, options.sampling.choosing(), stopped)
        except ENDS as end:
            raise Ended(signal_of(end), _given_up(state)) from None
        except OSError:  # the reader of the answer has gone away, between two tokens
            _save(reading, ids, answer, state)
            raise
        _save(reading, ids, answer, state)
    return stopped()


def _template(tokenizer: Tokenizer, options: RunOptions) -> Template | None:
    """The template that is asked through. Raises UsageError for options that do not fit each other or the model."""
    name, arguments = options.template.template, read_template_args(options.template.template_arg)
    if options.chat is False:
        if name is not None or arguments:
            raise UsageError(
                "a text has no chat template", where="--no-chat", fix="Leave --no-chat out, or --template."
            )
        return None
    found = tokenizer.template(name, arguments)
    if found is None and options.chat:
        raise UsageError("this model has no chat template", where="--chat", fix="Leave --chat out.")
    return found


def _tell(remark: str) -> None:
    """A line on stderr, if there is something to say."""
    if remark:
        tell(remark)


def _why_nothing(answer: AnswerPrinter, tokenizer: Tokenizer, template: Template | None) -> str:
    """What there is to say of an answer without a word."""
    if answer.stopped_by is not None:
        return f"the answer began with the stop text {answer.stopped_by!r}"
    if answer.end is None:
        return f"{counted(len(answer.tokens), 'token')}, and no text in them"
    other = ""
    if template is not None:
        other = "; --no-chat lets it continue the text as it stands"
    elif tokenizer.has_template():
        other = "; it is made for conversations: leave --no-chat out"
    return f"the model ended its answer at once, with {tokenizer.name_of(answer.end)}{other}"


def _save(reading: PromptReading, ids: list[int], answer: AnswerPrinter, state: Path | None) -> None:
    if state is not None:
        said = [*answer.tokens, *([] if answer.end is None else [answer.end])]
        reading.keep(ids[: answer.read_of[0]], said, answer.text)
        reading.save(state)


def _stopped(answer: AnswerPrinter, state: Path | None) -> str:
    """What was read and said when a person stopped it, and where that is."""
    read, of = answer.read_of
    where = f"after {counted(len(answer.tokens), 'token')}" if read == of else f"after {read} of {of} tokens read"
    kept = "the state is not kept (--state FILE keeps it)" if state is None else f"the state up to here is in {state}"
    return f"{where}; {kept}"


def _given_up(state: Path | None) -> str:
    return f"in the middle of a token; {'no state is kept' if state is None else f'{state} is as it was before'}"


def _prompt(prompt: str | None, file: Path | None, *, resumes: bool) -> str:
    given = None if prompt is None else check_words(prompt, "the prompt")
    parts = [part for part in (read_text(file), given) if part is not None]
    if not parts and sys.stdin is not None and not sys.stdin.isatty():
        parts = [read_input()]
    text = "\n".join(parts)
    if not text and not resumes:
        raise UsageError(
            "there is nothing to read", fix='Give a prompt: sleepc run ARTIFACT "…", -f FILE, or standard input.'
        )
    return text


@dataclass
class AnswerPrinter:
    """Reads a prompt and streams the answer to stdout, with marks and progress on stderr."""

    tokenizer: Tokenizer
    stops: list[str]
    ends: Collection[int]
    never: Collection[int]
    quiet: bool
    text: str = ""
    end: int | None = None  # the token that ended it, which is none of `tokens`
    stopped_by: str | None = None  # the stop text that did
    tokens: list[int] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    reading: float = 0.0
    sleeps_answering: int = 0
    read_of: tuple[int, int] = (0, 0)  # tokens of the prompt: how many were read, and how many it has

    def read(self, session: Session, ids: list[int], stopped: Callable[[], int]) -> None:
        """Feed the prompt in pieces of whole windows, so that a long one shows how far it is, until it is `stopped`.
        After every piece the answer can begin.
        """
        started, length = time.perf_counter(), len(ids)
        self.read_of = (0, length)
        window = session.steps.window
        piece = min(window * max(1, PIECE // window), MOST)
        shown = err.is_terminal and length > piece and not self.quiet
        for start in range(0, length, piece):
            if stopped():
                break
            session.feed(ids[start : start + piece])
            done = min(start + piece, length)
            self.read_of = (done, length)
            if shown:
                rate = done / (time.perf_counter() - started)
                err.print(
                    f"\rreading {number(done)}/{number(length)} tokens · {sleeps(session.stats.sleeps)} · {rate:.0f} tok/s"
                    f" · state {size(session.stats.state_bytes)}",
                    end="",
                )
        if shown:
            err.print()
        self.reading = time.perf_counter() - started

    def write(self, session: Session, count: int, choosing: dict[str, Any], stopped: Callable[[], int]) -> None:
        """Generate until the end of the answer, a stop text, or `count` tokens, or until it is `stopped`."""
        from sleepc.runtime.text import TextStream

        stream = TextStream(self.tokenizer, self.stops)
        before = slept = session.stats.sleeps
        marked = err.is_terminal and not self.quiet
        last = time.perf_counter()
        for step in session.generate(count, stop_ids=self.ends, never=self.never, **choosing):
            now = time.perf_counter()
            self.gaps.append(now - last)
            last = now
            token = int(step[0])
            if token in self.ends:
                self.end = token
                break
            self.tokens.append(token)
            if marked and session.stats.sleeps > slept:  # not in the session's step: a terminal may be gone
                slept = session.stats.sleeps
                err.print("[dim]·[/]", end="")
            self._emit(stream.push(token))
            if stream.stopped is not None or stopped():
                break
        self._emit(stream.finish())
        self.stopped_by = stream.stopped
        self.sleeps_answering = session.stats.sleeps - before
        if not self.quiet:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def _emit(self, piece: str) -> None:
        self.text += piece
        if not self.quiet:
            write_words(piece)

    def figures(self, session: Session) -> dict[str, float | int]:
        """What `--stats` tells, as data."""
        gaps = sorted(self.gaps) or [0.0]
        passes, cost = session.stats.passes_per_sleep, session.stats.sleep_in_tokens
        return {
            "tokens_read": session.stats.tokens_read,
            "tokens_generated": len(self.tokens),
            "sleeps": session.stats.sleeps,
            "windows_emptied": session.stats.emptied,
            **({"steps_skipped": session.stats.skipped} if session.stats.skipped else {}),
            **({} if passes is None else {"passes_per_sleep": passes}),
            **({} if cost is None else {"sleep_in_tokens": cost}),
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
        cost = f", each as long as {f['sleep_in_tokens']:.1f} tokens" if "sleep_in_tokens" in f else ""
        err.print(
            f"{counted(int(f['tokens_read']), 'token')} read in {f['reading_seconds']:.1f} s · {sleeps(int(f['sleeps']))}{passes}{cost} · "
            f"state {size(f['state_bytes'])}"
        )
        if f["windows_emptied"]:
            err.print(
                f"the window was emptied at {number(int(f['windows_emptied']))} of these sleeps, and positions began again "
                "(docs/recipes.md: eviction, last_position)"
            )
        if "steps_skipped" in f:
            steps = counted(int(f["steps_skipped"]), "step")
            err.print(f"{steps} of gradient descent left out: the gradient was not finite")
        err.print(
            f"{counted(int(f['tokens_generated']), 'token')} · {f['ms_per_token']:.0f} ms/token (p99 {f['ms_per_token_p99']:.0f} ms) · "
            f"{sleeps(int(f['sleeps_while_answering']))} while answering"
        )
