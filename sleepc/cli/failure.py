"""What is said when a command fails: a line and what to do on stderr, and with --json an object on stdout."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass

import typer

from sleepc.backends.table import by_export
from sleepc.cli import display
from sleepc.cli.ending import Ended
from sleepc.errors import SleepcError, UsageError

INTERRUPTED = 130
NEEDED = ("torch", "transformers", "networkx", "huggingface_hub")  # what an environment for exports only lacks


@dataclass(frozen=True)
class Failure:
    """`code` names the kind: a refusal's or a broken rule's own, or USAGE, FAILED, INTERRUPTED, INTERNAL."""

    code: str
    what: str
    where: str = ""
    fix: str = ""


def tell(error: BaseException, *, as_json: bool = False) -> int:
    """Say what happened, where, and what to do; the exit code. Nothing is said of a command that has said it all."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):  # typer's own way out
        error = error.__context__
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        error = Ended(signal.SIGINT)
    if isinstance(error, SystemExit) and not (isinstance(error, Ended) and error.said):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader went away: nothing is wrong. Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    exit_code, failure = _failure(error)
    _say(failure, mark="" if isinstance(error, Ended) else "error: ")
    if as_json and not display.printed_json():
        display.print_json({"ok": False, "error": asdict(failure)})
    return exit_code


def keep_input(error: BaseException) -> None:
    """What another program failed on is put into a file of its own, whose place is told."""
    if isinstance(error, SleepcError) and error.input:
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="sleepc-", suffix=".txt", delete=False) as file:
            file.write(error.input)
        print(f"what it was given is kept in {file.name}", file=sys.stderr)


def _failure(error: BaseException) -> tuple[int, Failure]:
    """The exit code, and what is said."""
    if isinstance(error, Ended):
        return 128 + error.signum, Failure("INTERRUPTED", str(error))
    usage = getattr(error, "format_message", None)  # of click's exceptions, which typer keeps to itself
    if usage is not None:
        context = getattr(error, "ctx", None)  # of the command whose options were read
        command = f" {context.info_name}" if context is not None and context.parent is not None else ""
        what = "its options" if command else "the commands"
        return UsageError.exit_code, Failure("USAGE", usage(), fix=f"`sleepc{command} --help` lists {what}.")
    if isinstance(error, SleepcError):
        code = getattr(error, "code", "USAGE" if isinstance(error, UsageError) else "FAILED")
        return error.exit_code, Failure(code, *error.on_command_line)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        place = str(error.filename or "while writing")
        return 1, Failure("FAILED", "the disk is full", place, "Free some space, or write elsewhere.")
    if isinstance(error, ModuleNotFoundError) and error.name in NEEDED:
        fix = f"pip install sleepc brings it. Without it, run, chat and eval work with an export: {by_export()}"
        return UsageError.exit_code, Failure("USAGE", f"this needs {error.name}, which is not installed", fix=fix)
    if isinstance(error, MemoryError):
        return 1, Failure("FAILED", "not enough memory", fix="Use a smaller window, batch or dtype.")
    first = next(iter(str(error).splitlines()), "")
    return 1, Failure(
        "INTERNAL", f"internal: {type(error).__name__}: {first}", fix="Run with --debug for the full traceback."
    )


def _say(failure: Failure, mark: str) -> None:
    place = f" ({failure.where})" if failure.where else ""
    print(display.visible(f"{mark}{failure.what}{place}"), file=sys.stderr)
    for more in failure.fix.splitlines():
        print(f"       {display.visible(more)}", file=sys.stderr)
