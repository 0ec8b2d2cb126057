"""`sleepc chat ARTIFACT`: a conversation in the terminal, or over a pipe."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from sleepc.cli.display import Display, err, number, out, size
from sleepc.errors import SleepcError, UsageError

if TYPE_CHECKING:
    from sleepc.ir.program import ProgramGraphs
    from sleepc.manifest import Manifest
    from sleepc.runtime.chat import Conversation, Manner

HELP = """\
/undo             take the last turn back, in the model's state too
/state save FILE  keep the conversation in a file
/state load FILE  go on with a conversation from a file
/stats            tokens, sleeps, speed, and what memory they take
/reset            begin again
/exit             leave (also Ctrl-D)
A line that ends with \\ goes on in the next one; a space before a / sends it to the model. Ctrl-C stops an answer."""


def chat(
    artifact: Annotated[Path, typer.Argument(help="An artifact directory.")],
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.")] = "",
    state: Annotated[
        Path | None, typer.Option(help="Go on from this file if it exists, and save to it at the end.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="Tokens of an answer at most.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Sample from the most likely tokens of this mass.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from so many most likely tokens; 0 is all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End an answer before this text; may be given several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="Run in this dtype: the artifact's own or a wider one.")] = None,
    backend: Annotated[str, typer.Option(help="eager.")] = "eager",
) -> None:
    """Talk with the model; it sleeps while you do. /help lists the commands."""
    from sleepc.runtime.chat import Manner
    from sleepc.runtime.text import StopStrings

    manner = Manner(max_tokens, temperature, top_k, top_p, seed, tuple(stop or ()))
    StopStrings(manner.stops)  # refuses empty ones, before anything is loaded
    if state is not None and not state.parent.is_dir():
        raise UsageError(f"there is no folder {state.parent}", where="--state", fix="Name a file in one that exists.")
    with Display(err).doing("loading"):
        conversation, per_token = _open(artifact, system, backend=backend, device=device, dtype=dtype)
    talk = Talk(conversation, manner, per_token)
    if state is not None and state.is_file():
        talk.load(state)
        if system and system != conversation.system:
            talk.tell("--system is left aside: the conversation in the file has begun with another")
    talk.greet(artifact)
    talk.run()
    if state is not None:
        talk.save(state)


def _open(artifact: Path, system: str, *, backend: str, device: str, dtype: str | None) -> tuple[Conversation, int]:
    """A conversation with the artifact's model, and the bytes of a KV cache per token."""
    from sleepc import api
    from sleepc.artifact import read_manifest
    from sleepc.runtime.chat import Conversation
    from sleepc.runtime.session import Session

    program = api.load(artifact)
    tokenizer = program.tokenizer()
    template = tokenizer.template()
    steps = program.steps(backend=backend, device=device, dtype=dtype)
    session = Session(steps, identity=identity(read_manifest(artifact)))
    if dtype is not None:
        per_token = kv_bytes(program.graphs, api.DTYPES[dtype].itemsize)
    else:
        per_token = kv_bytes(program.graphs, program.graphs.dtype.itemsize)
    return Conversation(session, tokenizer, template, system), per_token


def identity(manifest: Manifest) -> str:
    """A hash of what the model computes, graphs and weights; not of where its files are or what was measured."""
    graphs = [manifest.embed, manifest.head, manifest.clock]
    graphs += [graph for cls in manifest.classes.values() for graph in (cls.wake, cls.sleep)]
    blocks = [[block.cls, sorted(block.params.items())] for block in manifest.layout]
    weights = sorted((key, param.sha256) for key, param in manifest.params.items())
    return hashlib.sha256(json.dumps([[g.sha256 for g in graphs], blocks, weights]).encode()).hexdigest()


def kv_bytes(program: ProgramGraphs, itemsize: int) -> int:
    """The bytes that one token takes in a KV cache, from what the blocks' attention reads: k and v [B, H, T, D]."""
    import torch
    from torch import fx

    from sleepc.ir.graph import is_call

    total = 0
    for block in program.layout:
        for node in program.classes[block.cls].wake.calls():
            if is_call(node, torch.ops.sleepc.window_attention.default):
                for source in node.args[1:3]:
                    assert isinstance(source, fx.Node)
                    dims = source.meta["type"].dims
                    total += int(dims[1]) * int(dims[3]) * itemsize
    return total


class Talk:
    """The conversation as a person sees it: answers on stdout, everything else on stderr."""

    def __init__(self, conversation: Conversation, manner: Manner, kv_per_token: int) -> None:
        self.conversation, self.manner, self.kv_per_token = conversation, manner, kv_per_token
        self.commands: dict[str, Callable[[str], None]] = {
            "/undo": self._undo,
            "/state": self._state,
            "/stats": self._stats,
            "/reset": self._reset,
            "/help": lambda rest: self.tell(HELP),
        }
        self.lines, self.marks = Lines(), Marks()
        self.speed = ""  # of the last answer
        conversation.session.on_sleep = lambda rows: self.marks.add()

    def greet(self, artifact: Path) -> None:
        """One line on a terminal; on a pipe only what has to be known."""
        if self.conversation.template is None:
            self.tell("this model has no chat template: it goes on with your text as it stands")
        if self.lines.terminal:
            window = self.conversation.session.steps.window
            self.tell(f"{artifact} sleeps every {window} tokens · /help lists the commands, Ctrl-D leaves")

    def tell(self, text: str) -> None:
        """A remark on stderr, dim on a terminal."""
        err.print(Text(text, style="dim"))

    def run(self) -> None:
        """Messages and commands until the end of the input, /exit, or Ctrl-C twice."""
        pressed = False
        while True:
            try:
                line = self.lines.read()
                if line is None:
                    return
                if line.split()[:1] in (["/exit"], ["/quit"]) and line.startswith("/"):
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

    def _do(self, line: str) -> None:
        """One message or command. What fails is told, and the conversation goes on."""
        try:
            if line.startswith("/"):
                self._command(line)
            elif line.strip():
                self._answer(line)
        except SleepcError as error:
            place = f" ({error.where})" if error.where else ""
            err.print(Text(f"error: {error.what}{place}"))
            for more in error.fix.splitlines():
                err.print(Text(f"       {more}"))

    # -- answers ---------------------------------------------------------------------------------

    def _answer(self, text: str) -> None:
        count, words = len(self.conversation.turns), self.conversation.say(text, self.manner)
        if self.conversation.note:
            self.tell(self.conversation.note)
        self.marks.begin()
        started = time.perf_counter()
        try:
            with stopping() as stopped, closing(words):
                for piece in words:
                    self.marks.write(piece)
                    if stopped():
                        break
        except KeyboardInterrupt:  # the second one, in the middle of a step
            self.marks.end()
            self.tell("broken off: this turn was taken back")
            return
        self.marks.end()
        if len(self.conversation.turns) == count:
            self.tell("stopped before the answer began: this turn was taken back")
            return
        self._tell_end(stopped(), time.perf_counter() - started)

    def _tell_end(self, stopped: bool, seconds: float) -> None:
        turn = self.conversation.turns[-1]
        self.speed = f"last answer {turn.said} tokens, {len(turn.ids) / seconds:.1f} tokens/s with reading"
        ended = turn.ids[-1:] and turn.ids[-1] in self.conversation.tokenizer.eos_ids
        if stopped:
            self.tell("stopped: what was said so far is kept (/undo takes the turn back)")
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
            raise UsageError("/state needs to know what to do", fix="/state save FILE or /state load FILE")
        path = Path(name.strip()).expanduser()
        (self.save if what == "save" else self.load)(path)

    def save(self, path: Path) -> None:
        """Keep the conversation in a file, and say so."""
        self.conversation.save(path)
        self.tell(f"{self._length()} in {path}")

    def load(self, path: Path) -> None:
        """Go on with the conversation of a file, and say so."""
        self.conversation.load(path)
        self.tell(f"going on from {path}: {self._length()}")

    def _reset(self, rest: str) -> None:
        self.conversation.reset()
        self.tell("a new conversation")

    def _stats(self, rest: str) -> None:
        talk, stats = self.conversation, self.conversation.session.stats
        self.tell(f"{self._length()}, {number(len(talk.ids))} tokens, {_sleeps(talk.sleeps)}")
        if self.speed:
            self.tell(self.speed)
        cache = size(self.kv_per_token * len(talk.ids))
        self.tell(f"state {size(stats.state_bytes)} at any length · a KV cache of these tokens would be {cache}")

    def _length(self) -> str:
        turns = len(self.conversation.turns)
        return f"{turns} turn{'' if turns == 1 else 's'}"


def _sleeps(count: int) -> str:
    return f"{number(count)} sleep{'' if count == 1 else 's'}"


class Marks:
    """An answer's words on stdout, with a dim mark where the model slept: between words, and on a terminal only."""

    def __init__(self) -> None:
        self.waiting = self.all = 0
        self.begun = False

    def add(self) -> None:
        """The model has slept."""
        self.waiting += 1
        self.all += 1

    def begin(self) -> None:
        """An answer begins."""
        self.waiting, self.all, self.begun = 0, 0, False

    def write(self, piece: str) -> None:
        """Write a piece of text; a mark goes before its first space, or before the answer."""
        if self.waiting and out.is_terminal:
            at = 0 if not self.begun else next((i for i, c in enumerate(piece) if c.isspace()), -1)
            if at >= 0:
                self._put(piece[:at])
                self._mark()
                piece = piece[at:]
        self._put(piece)

    def end(self) -> None:
        """The answer has ended."""
        if self.waiting and out.is_terminal:
            self._mark()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if self.all and not out.is_terminal:
            err.print(Text(f"· {_sleeps(self.all)}", style="dim"))

    def _put(self, text: str) -> None:
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self.begun = True

    def _mark(self) -> None:
        text = "· sleep" if self.waiting == 1 else f"· {_sleeps(self.waiting)}"
        out.print(Text(f" {text}" if self.begun else f"{text} ", style="dim"), end="")
        self.waiting = 0


class Lines:
    """Messages from stdin: with a prompt and a history on a terminal, silently from a pipe."""

    def __init__(self) -> None:
        self.terminal = sys.stdin.isatty()
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # bytes that are no text do not end a conversation
        if self.terminal:
            try:
                import readline  # noqa: F401  # gives input() its history and keys
            except ImportError:  # not on every system; input() works without
                return

    def read(self) -> str | None:
        """The next message, lines that end with a backslash joined with the next; None at the end of the input."""
        lines: list[str] = []
        while True:
            line = self._line("… " if lines else "> ")
            if line is None:
                return "\n".join(lines) if lines else None
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _line(self, prompt: str) -> str | None:
        if not self.terminal:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        if not sys.stdout.isatty():  # input() would write the prompt among the answers
            sys.stderr.write(prompt)
            sys.stderr.flush()
            prompt = ""
        try:
            return input(prompt)
        except EOFError:
            err.print()
            return None


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Within it Ctrl-C only leaves word, so that a step comes to its end; a second one interrupts as ever.

    Yields a function: was it pressed?
    """
    pressed = False

    def press(signum: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
