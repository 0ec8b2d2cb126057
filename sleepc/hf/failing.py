"""What the tokenizers library does with a tokenizer that it could load, and cannot use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sleepc.errors import SleepcError

PANIC = "PanicException"  # of its Rust code: a class that cannot be imported, and no Exception


@contextmanager
def failing() -> Iterator[None]:
    """Within it a failure of the library is a SleepcError."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != PANIC:  # its errors are of this very class
            raise
        raise SleepcError(
            f"the tokenizer failed: {error}", where="tokenizer.json", fix="Take it from the original model."
        ) from error
