"""Options that several commands have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sleepc.backends.table import BACKENDS, DEFAULT, TARGETS, by_export
from sleepc.cli.display import tell
from sleepc.cli.option_groups import flag, several, switch
from sleepc.errors import SleepcError, UsageError
from sleepc.json_file import KeyTwice, parse_json

if TYPE_CHECKING:
    from sleepc.runtime.session import Session

TEXTS = "A text file, a .jsonl file, or a folder of them"
SETTING = "A setting of the task, such as width=8 or steps=1,2,4"
COMPILE = "Compile what reads a token, once for this machine (some seconds, said; needs a C++ compiler, on a GPU none); with --native-code run what `sleepc export --to inductor` compiled."
TUNED = "Run as `sleepc tune` found to be fastest on this machine, where no other option says how."
BACKEND = f"{', '.join(BACKENDS)}, or {', '.join(TARGETS)}: its export, which needs no PyTorch."
NATIVE_CODE = "Let native code in an export run: only if you trust where the folder comes from."
Artifact = Annotated[Path, typer.Argument(help="An artifact directory.")]
Runnable = Annotated[Path, typer.Argument(help=f"An artifact directory; with {by_export()} also an export.")]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen, and where an answer stops."""

    temperature: float = flag("Sampling temperature; 0 is greedy.", default=0.0, min=0.0)
    top_p: float = flag(
        "Sample from the most likely tokens with this total probability.", default=1.0, min=0.0, max=1.0
    )
    top_k: int = flag("Sample from this number of most likely tokens; 0: all.", default=0, min=0)
    seed: int | None = flag("Sampling seed.")
    stop: list[str] | None = several("Stop before this text", each="<str>")

    def choosing(self) -> dict[str, Any]:
        """How a token is chosen, by the names of Session.generate."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "seed")}


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """How a conversation is spelled."""

    template: str | None = flag("Name of the chat template to use, if the model has several.", "--template")
    template_arg: list[str] | None = several("A variable of the chat template", "--template-arg", each="NAME=VALUE")


@dataclass(frozen=True, kw_only=True)
class CartridgeOptions:
    """What a session begins with."""

    cartridge: list[Path] | None = several(
        "Begin as if the document of this cartridge (`sleepc cartridge`) had been read", "--cartridge", each="<path>"
    )

    def load(self, session: Session, state: Path | None) -> bool:
        """Put cartridges into a session's slots; not if it goes on from a state. Were there some?"""
        if not self.cartridge:
            return False
        if state is not None and state.is_file():
            tell(f"--cartridge is ignored: {state} goes on with what it has")
            return False
        session.load_cartridges(self.cartridge)
        return True


@dataclass(frozen=True, kw_only=True)
class RunsOn:
    """What runs a program."""

    device: str = flag("cpu or cuda.", default="cpu")
    dtype: str | None = flag(f"Run in this dtype: the artifact's own or a wider one (not with {by_export()}).")
    backend: str | None = flag(BACKEND, shown=f"{DEFAULT}, or the fastest by the tuning record")
    compile: bool = switch(COMPILE, "--compile")
    tuned: bool = flag(TUNED, "--tuned/--no-tuned", default=True)
    native_code: bool = switch(NATIVE_CODE, "--native-code")


SPELLED = {"True": True, "False": False, "None": None}


def read_template_args(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE -> values: JSON if they are JSON (true, 3, "3"), also as Python spells it (True, None), else texts.
    Raises UsageError.
    """
    found: dict[str, Any] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise UsageError(
                f"cannot read {each!r}", where="--template-arg", fix="Give NAME=VALUE: enable_thinking=false."
            )
        if name in found:
            raise UsageError(f"{name} is given twice", where="--template-arg", fix="Give each variable once.")
        found[name] = SPELLED[value] if value in SPELLED else _json_or_text(value)
    return found


def _json_or_text(value: str) -> Any:
    where, fix = "--template-arg", "Give each key once."
    try:
        return parse_json(value.encode(errors="surrogateescape"), what="the value", where=where, fix=fix)
    except SleepcError as error:
        if isinstance(error.__cause__, KeyTwice):
            raise UsageError(error.what, where=where, fix=fix) from error
        return value
