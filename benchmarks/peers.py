"""Environments of the systems that sleepc is measured beside, each with its packages and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from common import console


class CannotBuild(Exception):
    """The environment of a system could not be made; says why in a line."""


def environment(folder: Path, *packages: str, settings: Mapping[str, str] | None = None) -> Path:
    """The environment's Python; where there is none of these `packages`, pip makes it, with `settings` of the process.

    Raises CannotBuild.
    """
    python, mark = folder / "bin" / "python", folder / "ready"
    if not mark.is_file() or mark.read_text().splitlines() != list(packages):
        console.log(f"installing {packages[0]} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)], check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-input", *packages]
        done = subprocess.run(pip, env=os.environ | dict(settings or {}), capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["pip failed"]
            raise CannotBuild(next((line for line in lines if line.startswith("ERROR")), lines[-1]))
        mark.write_text("\n".join(packages))
    return python
