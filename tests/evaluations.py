"""What is measured by. Nothing may have been trained, calibrated or chosen by it, but choices by `choosing.jsonl`."""

from __future__ import annotations

from pathlib import Path

from sleepc.tasks.question_file import Document, own_questions, parse_questions

ROOT = Path(__file__).parents[1]
FILES = ("apart.jsonl", "choosing.jsonl")


def documents() -> list[Document]:
    """The texts with questions: the package's, and those of the benchmarks."""
    found = list(own_questions())
    for name in FILES:
        read, notes = parse_questions((ROOT / "benchmarks" / "questions" / name).read_text(encoding="utf-8"), name)
        assert not notes
        found += read
    return found


def texts() -> list[str]:
    """All texts and questions, and the demo's."""
    parts = [part for each in documents() for part in (each.text, *(question.question for question in each.questions))]
    return [*parts, (ROOT / "examples" / "demo_text.txt").read_text(encoding="utf-8")]
