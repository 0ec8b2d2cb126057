"""What a teacher asked itself and answered, kept in a file, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from sleepc.errors import SleepcError
from sleepc.json_file import json_text, parse_json
from sleepc.tasks.exchanges import Exchange

NAME = "self-study.jsonl"
Ask = Callable[[str, int, Random], list[Exchange]]


class StudyFile:
    """Turns about texts by what they are about, from `ask` or from the file if it has them. `teacher` says whose they
    are. They are written into the file as soon as they are there, if `writes`.
    """

    def __init__(self, path: Path, teacher: str, ask: Ask) -> None:
        self.path, self.teacher, self.ask, self.writes = path, teacher, ask, False
        self.known = _read(path)

    def __call__(self, text: str, count: int, number: int) -> list[Exchange]:
        """Up to `count` turns about a text, the same ones for the same number."""
        key = hashlib.sha256(json.dumps([self.teacher, text, count, number]).encode()).hexdigest()[:24]
        if key not in self.known:
            self.known[key] = self.ask(text, count, Random(number))
            if self.writes:
                turns = [[turn.request, turn.answer] for turn in self.known[key]]
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as file:
                    file.write(f"{json_text({'about': key, 'turns': turns})}\n".encode())
        return self.known[key]


def _read(path: Path) -> dict[str, list[Exchange]]:
    """What a file has. Its last line may have been cut off: it is removed then. Raises SleepcError if it is damaged."""
    found: dict[str, list[Exchange]] = {}
    data = path.read_bytes() if path.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    for number, line in enumerate(whole.splitlines(), 1):
        where, fix = f"{path}, line {number}", "Delete the file: the teacher is asked again."
        row = parse_json(line, what="this line of answers", where=where, fix=fix)
        try:
            found[row["about"]] = [Exchange(str(request), str(answer)) for request, answer in row["turns"]]
        except (TypeError, KeyError, ValueError) as error:
            raise SleepcError("this line of answers is damaged", where=where, fix=fix) from error
    return found
