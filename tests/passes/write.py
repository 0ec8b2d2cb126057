"""Writes what passes make of the programs in texts/ into these files: `python -m tests.passes.write [PASS ...]`."""

from __future__ import annotations

import sys

from tests.passes.cases import cases, read


def main(names: list[str]) -> None:
    """All cases, or those of some passes."""
    for path in cases():
        if not names or path.parent.name in names:
            case = read(path)
            made = case.run()
            if made != case.result:
                print(path.parent.name, path.stem)
                path.write_text(case.head + made, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
