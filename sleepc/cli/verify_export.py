"""`sleepc verify EXPORT`: needs no PyTorch, and compares with it if it and the artifact are there."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from sleepc.backends.contract import HostTarget, Target
from sleepc.cli.display import Display, err, out, print_json
from sleepc.errors import SleepcWarning, UsageError
from sleepc.runtime.batch import checked_tokens

if TYPE_CHECKING:
    from sleepc.backends.contract import Exporter
    from sleepc.backends.export import Export
    from sleepc.backends.report import Report
    from sleepc.cli.verify_options import VerifyOptions
    from sleepc.runtime.steps import Steps


def verify_an_export(
    target: Exporter, path: Path, options: VerifyOptions, text: str | None, tokens: list[int] | None
) -> None:
    """Print what was found; exit 1 if a check fails."""
    if options.against is not None:
        raise UsageError(
            "an export is compared with the artifact that it lies in", where="--against", fix="Leave it out."
        )
    from sleepc.cli.export import table

    with (display := Display(err)).doing("verify"):
        report, at_export = _report(target, path, options, text, tokens, display)
    if options.as_json:
        print_json({**report.to_json(), "at_export": at_export})
    else:
        out.print(table(report.to_json()["checks"]))
        verdict = "the export is whole" if report.ok else "[red]the export does not compute what it should[/]"
        out.print(f"{verdict}   {report.seconds:.1f} s")
    if not report.ok:
        raise typer.Exit(1)


def _report(
    target: Exporter,
    path: Path,
    options: VerifyOptions,
    text: str | None,
    tokens: list[int] | None,
    display: Display,
) -> tuple[Report, dict[str, Any] | None]:
    """What is found now, and what was when it was made, if it was run then."""
    if isinstance(target, Target):
        program = target.open(path)
        program.native_code = options.native_code
        found = target.verify(program, _tokens(program, text, tokens), display, _artifact(program))
        return found, program.manifest.report
    assert isinstance(target, HostTarget)
    if text is not None or tokens is not None:
        where = "--text" if tokens is None else "--tokens"
        raise UsageError(f"{path} is for {target.runtime}: no tokens are read here", where=where, fix="Leave it out.")
    return target.verify(path), None


def _tokens(program: Export, text: str | None, tokens: list[int] | None) -> list[int]:
    """Those given, or of a text; random ones, with a warning, if the model can read none."""
    from sleepc.hf.tokenizer import NoTokenizer
    from sleepc.verify.texts import default_text, says_something

    vocab = program.manifest.vocab
    if tokens is not None:
        return checked_tokens(tokens, vocab)
    known: Sequence[int] = range(vocab)
    try:
        tokenizer = program.tokenizer()
        found = tokenizer.encode(default_text() if text is None else text)
        if found and (text is not None or says_something(found)):
            return found
        known = sorted(set(known).difference(tokenizer.holes(vocab)))
    except NoTokenizer as error:
        if text is not None:
            raise
        warnings.warn(f"{error.what}: reading random tokens instead", SleepcWarning, stacklevel=2)
    if text is not None:
        raise UsageError("the text has no token", where="--text", fix="Give a longer one.")
    return [int(token) for token in np.random.default_rng(0).choice(known, 512)]


def _artifact(program: Export) -> Steps | None:
    """The artifact around the export, by the default backend, if both are there."""
    from sleepc.manifest import MANIFEST

    around = program.folder.resolve().parent
    if find_spec("torch") is None or not (around / MANIFEST).is_file():
        return None
    from sleepc import api

    found = api.load(around)
    return found.steps() if found.identity == program.identity else None
