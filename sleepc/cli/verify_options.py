"""The options of `sleepc verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sleepc.cli.option_groups import flag, switch
from sleepc.cli.options import NATIVE_CODE

ACCEPT = "Accept a program whose perplexity beyond the window is more than 4 times the original's."


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What is read and compared."""

    against: str | None = flag("The original model, if it has moved.")
    text: Path | None = flag("A text file to read; Python's help topics by default.")
    tokens: Path | None = flag("A file of token ids to read instead of a text: 12 7 30 …", "--tokens")
    hashes: bool = switch("Also check every tensor's bytes.", "--hash")
    accept_quality: bool = switch(ACCEPT, "--accept-quality")
    native_code: bool = switch(NATIVE_CODE, "--native-code")
    as_json: bool = switch("Print one JSON object.", "--json")
