"""`sleepc`: the commands, and what a person is told when one fails. Commands import what they use when they run."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
import warnings
from typing import Annotated, TextIO

import typer

import sleepc
from sleepc.cli.adapt import adapt
from sleepc.cli.bisect import bisect
from sleepc.cli.calibrate import calibrate
from sleepc.cli.chat import chat
from sleepc.cli.convert import convert
from sleepc.cli.diff import diff
from sleepc.cli.distil import distil
from sleepc.cli.doctor import doctor
from sleepc.cli.ending import Ended, endable
from sleepc.cli.eval import evaluate
from sleepc.cli.export import export
from sleepc.cli.inspect import inspect
from sleepc.cli.run import run
from sleepc.cli.tasks import tasks
from sleepc.cli.train import train
from sleepc.cli.verify import verify
from sleepc.errors import SleepcError, SleepcWarning, UsageError

INTERRUPTED = 130
NEEDED = ("torch", "transformers", "networkx", "huggingface_hub")  # what an environment for exports only lacks

app = typer.Typer(
    name="sleepc",
    help="Convert language models to bounded memory and sleep.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(convert)
app.command()(inspect)
app.command()(verify)
app.command()(calibrate)
app.command()(distil)
app.command()(train)
app.command()(run)
app.command()(chat)
app.command()(diff)
app.command()(bisect)
app.command()(doctor)
app.command("eval")(evaluate)
app.command()(tasks)
app.command()(adapt)
app.command()(export)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sleepc {sleepc.__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole trace of a failure.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Convert language models to bounded memory and sleep."""
    del debug, version  # --debug is read by main(), which also meets errors of the parsing itself


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for a failure, 2 for a usage error, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    _settle_libraries()
    warnings.showwarning = _show_warning
    # --debug may stand anywhere: a person adds it to the end of the line that failed.
    arguments = (["--debug"] if debug else []) + [a for a in arguments if a != "--debug"]
    try:
        with endable():
            code = app(arguments, standalone_mode=False)
            sys.stdout.flush()  # a reader that went away is met here, and not at Python's end
        if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code
            raise Ended(signal.SIGINT)
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            traceback.print_exc()
        code = tell(error)
    sys.exit(code or 0)


def _settle_libraries() -> None:
    """Quiet progress bars of libraries, and threads that wait for each other without spinning; before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # docs/log.md: a busy neighbour makes spinning threads slow


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Ours in one line for people, others as Python shows them."""
    if issubclass(category, SleepcWarning):
        typer.echo(f"warning: {message}", err=True)
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


def tell(error: BaseException) -> int:
    """Say on stderr what happened, where, and what to do; the exit code."""
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):  # typer's own way out
        error = error.__context__
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        error = Ended(signal.SIGINT)
    if isinstance(error, Ended) and error.said:
        return _say(128 + error.signum, str(error))
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, typer.Exit):
        return error.exit_code
    usage = getattr(error, "format_message", None)  # of click's exceptions, which typer keeps to itself
    if usage is not None:
        return _say(UsageError.exit_code, f"error: {usage()}", "`sleepc --help` lists the commands.")
    if isinstance(error, SleepcError):
        place = f" ({error.where})" if error.where else ""
        return _say(error.exit_code, f"error: {error.what}{place}", error.fix)
    if isinstance(error, BrokenPipeError):
        # The reader went away: nothing is wrong. Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _say(
            1, f"error: the disk is full ({error.filename or 'while writing'})", "Free some space, or write elsewhere."
        )
    if isinstance(error, ModuleNotFoundError) and error.name in NEEDED:
        return _say(
            UsageError.exit_code,
            f"error: this needs {error.name}, which is not installed",
            "pip install sleepc brings it. Without it, run, chat and eval work with an export: --backend onnx",
        )
    if isinstance(error, MemoryError):
        return _say(1, "error: not enough memory", "Use a smaller window, batch or dtype.")
    kind = type(error).__name__
    return _say(
        1,
        f"error: internal: {kind}: {str(error).splitlines()[0] if str(error) else ''}",
        "Run with --debug for the trace.",
    )


def _say(code: int, line: str, remedy: str = "") -> int:
    print(line, file=sys.stderr)
    for more in remedy.splitlines():
        print(f"       {more}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
