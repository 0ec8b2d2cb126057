"""`python -m sleepc` is the command line."""

from __future__ import annotations

from sleepc.cli.main import main

main()
