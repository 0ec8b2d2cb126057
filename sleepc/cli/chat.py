"""`sleepc chat ARTIFACT`: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sleepc.cli.display import Display, counted, err, number, size, sleeps, tell, visible
from sleepc.cli.ending import REQUESTS, Ended, stopping
from sleepc.cli.input_text import check_words
from sleepc.cli.option_groups import flag, with_options
from sleepc.cli.options import CartridgeOptions, Runnable, RunsOn, SamplingOptions, TemplateOptions, read_template_args
from sleepc.cli.terminal import Lines, SleepMarks, of_passes
from sleepc.cli.tuned import way_of
from sleepc.errors import SleepcError, UsageError
from sleepc.output_place import check_file_place

if TYPE_CHECKING:
    from sleepc.passes.analysis.kv_cache import KVCache
    from sleepc.runtime.chat import Conversation, Manner

HELP = """\
/undo             take the last turn back, in the model's state too
/state save FILE  keep the conversation in a file
/state load FILE  continue a conversation from a file
/pin next         read the next message as pinned: it is kept through all sleeps
/pin [TURN]       keep what is left of a turn (by default the last one) or of the system text (`system`)
/unpin [TURN]     let later text replace what was pinned
/drop [TURN]      take a turn out of window and slots: it is no longer seen
/spans            what is pinned
/stats            tokens, sleeps, speed, and what memory they take
/reset            begin again
/exit             leave (also Ctrl-D)
A line that ends with \\ continues on the next one, and lines that are pasted are one message;
a space before a / sends it to the model. Ctrl-C stops an answer."""


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How a conversation is led, and where it is kept."""

    system: str = flag("System prompt.", default="")
    state: Path | None = flag("Resume from this file if it exists, and save to it at the end.")
    begins: CartridgeOptions
    max_tokens: int = flag("Maximum number of tokens in an answer.", default=512, min=0)
    idle_sleep: int | None = flag(
        "Sleep while you type, once so many tokens were read since the last sleep (by default those of a full window).",
        min=1,
    )
    sampling: SamplingOptions
    template: TemplateOptions
    on: RunsOn


@with_options
def chat(artifact: Runnable, options: ChatOptions) -> None:
    """Chat with the model, which sleeps as you go. /help lists the commands."""
    from sleepc.runtime.chat import Manner
    from sleepc.runtime.text import StopStrings

    state, sampling = options.state, options.sampling
    check_words(options.system, "--system")
    for words in sampling.stop or ():
        check_words(words, "--stop")
    manner = Manner(options.max_tokens, **sampling.choosing(), stops=tuple(sampling.stop or ()))
    if options.system and options.begins.cartridge:
        what = "a system text comes before the document, and the cartridge has what comes before it already"
        raise UsageError(what, where="--system", fix="Leave --system out.")
    StopStrings(manner.stops)  # refuses empty ones, before anything is loaded
    if state is not None:
        check_file_place(state, "--state")  # checked now, not after the conversation
    arguments = read_template_args(options.template.template_arg)
    with Display(err).doing("loading"):
        talk = _talk(artifact, options, manner, arguments)
    if state is not None and state.is_file():
        talk.load(state)
        if options.system and options.system != talk.conversation.system:
            talk.tell("--system is ignored: the conversation in the file began with another one")
    talk.greet(artifact)
    try:
        talk.run()
    finally:  # also if the reader of the answers, or the terminal, has gone away
        with stopping():
            talk.end(state)


def _talk(artifact: Path, options: ChatOptions, manner: Manner, arguments: dict[str, Any]) -> Talk:
    """A conversation that has not begun. Raises UsageError if the artifact or the template is not there."""
    from sleepc.cli.opening import open_program
    from sleepc.hf.template import QUESTION
    from sleepc.runtime.chat import Conversation

    on = options.on
    program = open_program(artifact, way_of(artifact, on, tell))
    tokenizer = program.tokenizer()
    template = tokenizer.template(options.template.template, arguments)
    if template is not None:
        template(QUESTION)  # before all is loaded
    session = program.session(device=on.device, dtype=on.dtype, compile=on.compile, progress=tell)
    holds = options.begins.load(session, options.state)
    return Talk(
        Conversation(session, tokenizer, template, options.system, in_turn=holds),
        manner,
        program.kv_cache(on.dtype),
        _tokens_to_rest(options.idle_sleep, session.steps.window),
    )


def _tokens_to_rest(asked: int | None, window: int) -> int:
    """After how many tokens to sleep while nothing is asked."""
    if asked is not None and asked > window:
        what = f"--idle-sleep {asked} is more than the window, after whose {window} tokens the model sleeps anyway"
        raise UsageError(what, where="--idle-sleep", fix=f"Give fewer than {window}, or leave it out.")
    return asked or window


class Talk:
    """The conversation as a person sees it: answers on stdout, everything else on stderr. The model sleeps while the next
    message is written, after `rest` tokens.
    """

    def __init__(self, conversation: Conversation, manner: Manner, cache: KVCache | None, rest: int) -> None:
        self.conversation, self.manner, self.cache, self.rest = conversation, manner, cache, rest
        self.commands: dict[str, Callable[[str], None]] = {
            "/undo": self._undo,
            "/state": self._state,
            "/pin": self._pin,
            "/unpin": self._unpin,
            "/drop": lambda rest: self._mark(rest, self.conversation.session.drop),
            "/spans": self._spans,
            "/stats": self._stats,
            "/reset": self._reset,
            "/help": lambda rest: self.tell(HELP),
        }
        self.lines, self.marks = Lines(), SleepMarks()
        self.speed = ""  # of the last answer
        conversation.session.on_sleep = lambda rows: self.marks.add()
        conversation.session.defers = True

    def greet(self, artifact: Path) -> None:
        """One line on a terminal; on a pipe only what has to be known."""
        if self.conversation.template is None:
            self.tell("this model has no chat template: it continues your text as it stands")
        if self.lines.terminal:
            window = self.conversation.session.steps.window
            self.tell(f"{artifact} sleeps every {window} tokens · /help lists the commands, Ctrl-D leaves")

    def tell(self, text: str) -> None:
        """A remark on stderr, dim on a terminal."""
        err.print(Text(visible(text), style="dim"))

    def run(self) -> None:
        """Messages and commands until the end of the input, /exit, or Ctrl-C twice."""
        pressed = False
        while True:
            try:
                line = self.lines.read()
                if line is None or line.rstrip() in ("/exit", "/quit"):
                    return
                self._do(line)
                pressed = False
            except KeyboardInterrupt:
                if self.lines.terminal:
                    err.print()
                if pressed:
                    return
                pressed = True
                self.tell("Ctrl-C once more leaves; so does Ctrl-D. /help lists the commands")

    def end(self, state: Path | None) -> None:
        """Keep the conversation, if there is a file for it, and say which sleeps came after the last answer."""
        if state is not None:
            self.save(state)
        with suppress(UsageError):  # of a session that broke off, as was said then
            self.conversation.session.sleep([])  # none begins; that in the background comes to its end
        self.marks.tell()

    def _do(self, line: str) -> None:
        """One message or command, to the end of its step also if a signal comes. What fails is said, and the
        conversation continues.
        """
        try:
            with stopping() as stopped:
                check_words(line, "the message")
                if line.startswith("/") and "\n" not in line:  # lines that were pasted are a message
                    self._command(line)
                elif line.strip():
                    self._answer(line, stopped)
            if stopped() in REQUESTS:
                raise Ended(stopped(), "")
        except SleepcError as error:
            what, where, fix = error.on_command_line
            err.print(Text(visible(f"error: {what}{f' ({where})' if where else ''}")))
            for more in fix.splitlines():
                err.print(Text(visible(f"       {more}")))

    # -- answers ---------------------------------------------------------------------------------

    def _answer(self, text: str, stopped: Callable[[], int]) -> None:
        count, words = len(self.conversation.turns), self.conversation.say(text, self.manner)
        if self.conversation.note:
            self.tell(self.conversation.note)
        self.marks.begin()
        started = time.perf_counter()
        try:
            with closing(words):
                for piece in words:
                    self.marks.write(piece)
                    if stopped():
                        break
        except KeyboardInterrupt:  # the second one: in the middle of a step, it takes the turn back
            pass
        self.marks.end()
        if len(self.conversation.turns) == count:
            self.tell("stopped, and this turn was taken back: its answer had not begun, or a step was interrupted")
        else:
            self._tell_end(bool(stopped()), time.perf_counter() - started)
            if stopped() not in REQUESTS:
                self.conversation.rest(self.rest)

    def _tell_end(self, stopped: bool, seconds: float) -> None:
        turn = self.conversation.turns[-1]
        self.speed = f"last answer {turn.said} tokens, {len(turn.ids) / seconds:.1f} tokens/s including reading"
        ended = turn.ids[-1:] and turn.ids[-1] in self.conversation.ends
        if stopped:
            self.tell("stopped: what was said so far is kept (/undo takes the turn back)")
        elif turn.said == 1 and ended:
            self.tell("the model ended its answer at once, without any text")
        elif turn.said >= self.manner.max_tokens and not ended:
            self.tell(f"cut off after {turn.said} tokens (--max-tokens)")

    # -- commands --------------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        if name not in self.commands:
            near = get_close_matches(name, [*self.commands, "/exit"], 1, 0.0)[0]
            self.tell(f"there is no {name}; the nearest is {near} (/help lists them all)")
            return
        self.commands[name](rest.strip())

    def _undo(self, rest: str) -> None:
        turn = self.conversation.undo()
        shown = turn.user if len(turn.user) <= 40 else turn.user[:39] + "…"
        self.tell(f"taken back: {json.dumps(shown, ensure_ascii=False)} and its answer, {number(len(turn.ids))} tokens")

    def _state(self, rest: str) -> None:
        what, _, name = rest.partition(" ")
        if what not in ("save", "load") or not name.strip():
            raise UsageError("/state needs a subcommand", fix="/state save FILE or /state load FILE")
        path = Path(name.strip()).expanduser()
        (self.save if what == "save" else self.load)(path)

    def save(self, path: Path) -> None:
        """Keep the conversation in a file, and say so."""
        self.conversation.save(path)
        self.tell(f"kept {self._length()} in {path}")

    def load(self, path: Path) -> None:
        """Go on with the conversation of a file, and say so."""
        self.conversation.load(path)
        self.tell(f"continuing from {path}: {self._length()}")

    def _pin(self, rest: str) -> None:
        if rest == "next":
            return self._pin_next(pinned=True)
        self._mark(rest, self.conversation.session.keep)

    def _unpin(self, rest: str) -> None:
        if rest == "next":
            return self._pin_next(pinned=False)
        self._mark(rest, self.conversation.session.unpin)

    def _pin_next(self, *, pinned: bool) -> None:
        self.conversation.session.spans()  # raises if nothing can be pinned
        self.conversation.pin_next = pinned
        self.tell(f"the next message will {'' if pinned else 'not '}be pinned")

    def _mark(self, rest: str, mark: Callable[[tuple[int, int]], object]) -> None:
        """Pin, unpin or drop the turn of that number, the last one, or the system text."""
        talk = self.conversation
        if rest == "system":
            span = talk.span_of_system()
        elif not rest or rest.isdecimal():
            span = talk.span_of(int(rest or len(talk.turns)))
        else:
            raise UsageError(
                f"{rest!r} is not a turn", fix="The number of a turn, nothing for the last one, or system."
            )
        self.tell(str(mark(span)))

    def _spans(self, rest: str) -> None:
        spans = [span for span in self.conversation.session.spans() if span.pinned]
        for span in spans:
            place = "in the window" if span.place == "window" else f"in {counted(span.pairs, 'slot')}"
            self.tell(f"tokens {span.start} to {span.stop - 1} are pinned, {place}")
        if not spans:
            self.tell("nothing is pinned")

    def _reset(self, rest: str) -> None:
        self.conversation.reset()
        self.tell("a new conversation")

    def _stats(self, rest: str) -> None:
        talk, stats = self.conversation, self.conversation.session.stats
        slept = sleeps(talk.sleeps) + of_passes(stats.passes_per_sleep)
        self.tell(f"{self._length()}, {number(len(talk.ids))} tokens, {slept}")
        if self.speed:
            self.tell(self.speed)
        cache = ""
        if self.cache is not None:
            cache = f" · the original's KV cache of these tokens would be {size(self.cache.bytes(len(talk.ids)))}"
        self.tell(f"state {size(stats.state_bytes)} at any length{cache}")

    def _length(self) -> str:
        return counted(len(self.conversation.turns), "turn")
