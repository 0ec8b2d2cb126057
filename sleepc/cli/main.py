"""`sleepc`: the commands. Each imports what it uses when it runs."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
import warnings
from typing import Annotated, TextIO

import typer

from sleepc.cli.adapt import adapt
from sleepc.cli.bisect import bisect
from sleepc.cli.calibrate import calibrate
from sleepc.cli.cartridge import cartridge
from sleepc.cli.chat import chat
from sleepc.cli.convert import convert
from sleepc.cli.diff import diff
from sleepc.cli.display import forget_json, visible
from sleepc.cli.distil import distil
from sleepc.cli.doctor import doctor
from sleepc.cli.ending import Ended, endable
from sleepc.cli.eval import evaluate
from sleepc.cli.export import export_command
from sleepc.cli.failure import INTERRUPTED, keep_input, tell
from sleepc.cli.inspect import inspect
from sleepc.cli.push import push
from sleepc.cli.run import run
from sleepc.cli.tasks import tasks
from sleepc.cli.train import train
from sleepc.cli.tune import tune
from sleepc.cli.verify import verify
from sleepc.cli.why_not import why_not
from sleepc.errors import SleepcWarning
from sleepc.version import __version__

COMMANDS = (convert, inspect, verify, calibrate, cartridge, distil, train, tune, run, chat, diff, bisect, push, doctor)


def make_app() -> typer.Typer:
    """The commands, with the options of the backends and targets that there are now."""
    app = typer.Typer(
        name="sleepc",
        help="Convert language models to bounded memory and sleep.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(options)
    for command in COMMANDS:
        app.command()(command)
    app.command("eval")(evaluate)
    app.command()(tasks)
    app.command("why-not")(why_not)
    app.command()(adapt)
    app.command()(export_command())
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sleepc {__version__}")
        raise typer.Exit


def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error, and keep what a compiler failed on.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Convert language models to bounded memory and sleep."""
    del debug, version  # --debug is read by main(), which also meets errors of the parsing itself


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 for a failure, 2 for a usage error, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    end = arguments.index("--") if "--" in arguments else len(arguments)  # what follows is not an option
    options, rest = arguments[:end], arguments[end:]
    debug = "--debug" in options
    _settle_libraries()
    _settle_streams()
    warnings.showwarning = _show_warning
    # --debug may stand anywhere: a person adds it to the end of the line that failed.
    arguments = (["--debug"] if debug else []) + [a for a in options if a != "--debug"] + rest
    try:
        with endable():
            code = make_app()(arguments, standalone_mode=False)
            sys.stdout.flush()  # a reader that went away is met here, and not at Python's end
        if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code
            raise Ended(signal.SIGINT)
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            traceback.print_exc()
            keep_input(error)
        code = tell(error, as_json="--json" in options)
    sys.exit(code or 0)


def _settle_libraries() -> None:
    """Quiet progress bars of libraries, and threads that wait for each other without spinning; before they are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # docs/log.md: a busy neighbour makes spinning threads slow


def _settle_streams() -> None:
    """What a terminal or a file cannot spell is written as ? there, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    forget_json()


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
        print(visible(f"warning: {getattr(message, 'on_command_line', message)}"), file=sys.stderr)
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


if __name__ == "__main__":
    main()
