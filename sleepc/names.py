"""Names by which recipes, options and files call what can be added: rules, consolidations, scores, kinds of mask,
backends and targets.
"""

from __future__ import annotations

import re
from collections.abc import Container

from sleepc.errors import UsageError

NAME = "[a-z][a-z0-9_]{0,40}"


def check_new(kind: str, name: str, known: Container[str]) -> None:
    """Raise UsageError if something has that name already, or it cannot be the name of a `kind` ("rule")."""
    if name in known:
        raise UsageError(f"there is a {kind} named {name!r} already", fix="Choose another name.")
    if not re.fullmatch(NAME, name):
        what = f"{name!r} cannot name a {kind}"
        raise UsageError(what, fix="Use lower-case letters, digits and _, a letter first, at most 41 in all.")
