"""Writes the golden texts anew: `python -m tests.golden.write [--by CHANGE]`, from the root of a checkout.

With `--by 0001_some_words` the script of that name in changes/ first derives the new texts from those that are kept:
nothing is written unless this checkout makes just what it derived (docs/decisions/0012-golden-texts.md).
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from tests.golden.texts import FOLDER, MODELS, differences, made, written


def main() -> int:
    """Write what has changed; 1 where a script derived something else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by", metavar="CHANGE", help="a script of tests/golden/changes, without .py")
    change = parser.parse_args().by
    kept = written()
    new = {path: text for model in MODELS for path, text in made(model).items()}
    if change is not None:
        derived: dict[str, str] = import_module(f"tests.golden.changes.{change}").derive(dict(kept))
        wrong = differences(derived, new)
        if wrong:
            print(wrong, "", f"nothing is written: {change} derives other texts ('kept') than are made", sep="\n")
            return 1
    for path in kept.keys() - new.keys():
        (FOLDER / path).unlink()
    for path, text in new.items():
        if kept.get(path) != text:
            print(path)
            (FOLDER / path).parent.mkdir(exist_ok=True)
            (FOLDER / path).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
