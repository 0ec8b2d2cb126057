"""`sleepc` and `python -m sleepc` are the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command. Ctrl-C ends it without a traceback from the beginning, when for a moment it only imports."""
    try:
        from sleepc.cli.main import main as run
    except KeyboardInterrupt:
        print("interrupted: nothing was begun", file=sys.stderr)
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
