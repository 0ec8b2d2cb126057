"""The tokens that a program shares with a teacher whose embedding table may be wider than the tokenizer."""

from __future__ import annotations

from pathlib import Path

from sleepc.errors import UsageError
from sleepc.hf.tokenizer import NoTokenizer, Tokenizer, load_tokenizer
from sleepc.ir.program import ProgramGraphs
from sleepc.train.program import Trainable


def shared_tokens(program: Trainable, teacher: ProgramGraphs, folder: Path | None) -> int:
    """How many ids mean the same to both: all of the narrower table. `folder` is the teacher's, None for a module.

    Raises UsageError if the teacher's tokenizer has another vocabulary, if it lacks some of the program's, and if the
    tables differ in width and no tokenizer can tell.
    """
    own, other = _of_program(program), _of_folder(folder)
    wide, narrow = teacher.vocab, min(teacher.vocab, program.graphs.vocab)
    if own is None or other is None:
        if wide == program.graphs.vocab:
            return wide
        raise _unfit(f"the teacher's vocabulary size is {wide} and the program's {program.graphs.vocab}")
    if not own.same_vocabulary(other):
        raise _unfit("the teacher's tokenizer has another vocabulary than the program's")
    most = max(own.inner.get_vocab().values())
    if most >= wide:
        raise _unfit(f"the teacher's vocabulary size is {wide}, and the program's tokenizer has {most + 1} tokens")
    return narrow


def _of_program(program: Trainable) -> Tokenizer | None:
    try:
        return program.tokenizer()
    except NoTokenizer:
        return None


def _of_folder(folder: Path | None) -> Tokenizer | None:
    try:
        return load_tokenizer(folder)
    except NoTokenizer:
        return None


def _unfit(what: str) -> UsageError:
    return UsageError(what, where="--teacher", fix="A teacher must have the program's own tokenizer.")
