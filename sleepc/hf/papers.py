"""The papers of a model: its licence, its authors' words, a card of what was made of it. Imports no torch."""

from __future__ import annotations

import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sleepc.errors import SleepcWarning
from sleepc.held_file import is_inside

LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")  # beginnings of names
TERMS = "TERMS"  # in a name
CARD, ORIGINAL = "README.md", "README.original.md"
MOST = 1 << 20  # bytes of a paper
FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
KEPT = ("license", "license_name", "license_link", "language")  # of the original's card
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Card:
    """What a model card says: the model's name, what the files are for, how they are used, and how they were made."""

    name: str
    runtime: str
    recipe: dict[str, Any]
    library: str | None = None


def papers(folder: Path) -> list[Path]:
    """Licences, notices and terms in a model's folder."""
    found = (path for path in sorted(folder.iterdir()) if path.is_file() and path.stat().st_size <= MOST)
    return [path for path in found if path.name.upper().startswith(LICENCES) or TERMS in path.name.upper()]


def copy_papers(source: Path, target: Path) -> None:
    """Copy them, and the original's card as README.original.md. Warns of links out of the folder, which are left: what
    is copied is meant to be passed on.
    """
    card = next((path for path in (source / ORIGINAL, source / CARD) if path.is_file()), None)
    copies = {path: path.name for path in papers(source)}
    if card is not None and card.stat().st_size <= MOST:
        copies[card] = ORIGINAL
    for path, name in copies.items():
        if is_inside(source, path):
            shutil.copyfile(path, target / name)
        else:
            text = f"{path.name} is a link to a file outside of {source}: it is not copied"
            warnings.warn(text, SleepcWarning, stacklevel=2)


def write_card(folder: Path, card: Card) -> None:
    """README.md of what is written in a folder."""
    (folder / CARD).write_text(card_text(folder, card), encoding="utf-8")


def card_text(folder: Path, card: Card) -> str:
    """A model card as the hub reads it, with the licence that the original's card names. A model that was a folder here
    goes by that folder's name.
    """
    on_hub = HUB_ID.fullmatch(card.name) and not Path(card.name).exists()
    name = card.name if on_hub else Path(card.name).name
    front = {name: value for name, value in _front(folder / ORIGINAL).items() if name in KEPT}
    if on_hub:
        front["base_model"] = name
    if card.library is not None:
        front |= {"library_name": card.library, "pipeline_tag": "text-generation"}
    front["tags"] = ["sleepc"]
    licences = [path.name for path in papers(folder)]
    said = f"Its licence: {', '.join(licences)}." if licences else "The licence is that of the original."
    recipe = yaml.safe_dump(card.recipe, sort_keys=False).rstrip()
    return f"""---
{yaml.safe_dump(front, sort_keys=False).rstrip()}
---

# {Path(name).name}, converted by sleepc

Made of {name}. These files are for {card.runtime}. {said}

How it was converted:

```yaml
{recipe}
```
"""


def _front(path: Path) -> dict[str, Any]:
    """What stands between the first two lines of ---; nothing if that is not what it should be."""
    if not path.is_file():
        return {}
    found = FRONT.match(path.read_text(encoding="utf-8", errors="replace"))
    try:
        said = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        return {}
    return said if isinstance(said, dict) else {}
