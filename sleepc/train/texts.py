"""Documents to train on: text files, rows of .jsonl files, rows of data sets. None is held in memory as a whole."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from sleepc.errors import SleepcError, UsageError
from sleepc.json_file import parse_json

Document: TypeAlias = Iterator[str]
"""The text of one document in parts that end where lines do; joined, they are the whole text."""

PART = 1 << 16  # characters of a part, about
MOST = 4 * PART  # of a part in which no line ends
ROWS = (".jsonl", ".ndjson")
LINE_END = re.compile(r"\n(?=\S)")  # no tokenizer makes one token of what stands before and after


def documents(paths: Sequence[Path], field: str = "text") -> Iterator[Document]:
    """Each text file is a document, and each row of a .jsonl file: its `field`, or the row if it is a text itself.

    A folder stands for all files in it and below, by name, hidden ones left out; a name that ends in .gz for what is
    compressed in it. Empty documents are left out. Raises UsageError: at once for a path that is not there; later for
    what is not UTF-8 text, a row without a text, and if there is no text at all.
    """
    files = [file for path in paths for file in _files(path)]
    every = chain.from_iterable(_documents_of(file, field) for file in files)
    return _some(every, ", ".join(map(str, paths)))


def dataset_documents(name: str, field: str = "text") -> Iterator[Document]:
    """Each row's `field` of a data set of the Hugging Face hub, or of a local folder, as it streams in.

    `name` is NAME, NAME:SPLIT ("train" if it is not given) or NAME:CONFIGURATION:SPLIT. No code of a data set is
    run. Raises UsageError if the package is missing, the dataset cannot be read, or a row has no text.
    """
    if find_spec("datasets") is None:
        raise UsageError("datasets need the package `datasets`", where=name, fix="pip install 'sleepc[data]'")
    return _some((_in_parts(text) for text in _rows_of_dataset(name, field)), name)


@dataclass(frozen=True)
class Texts:
    """Documents that are read again and again. `names` are for people, `content` is a hash of what is read: the bytes
    of all files in order, decompressed, and the field; of a data set that streams in what is known of it, its name.
    """

    documents: Callable[[], Iterator[Document]]
    names: list[str] | str
    content: str


def texts(paths: Sequence[Path], dataset: str | None, field: str = "text") -> Texts:
    """Those of files and folders, or of a data set. Raises UsageError, at once, for what is not there."""
    if dataset is None:
        documents(paths, field)
        return Texts(lambda: documents(paths, field), [path.name for path in paths], _content(paths, field))
    content = _content([Path(dataset)] if Path(dataset).is_dir() else [], f"{field} of {dataset}")
    return Texts(lambda: dataset_documents(dataset, field), dataset, content)


def _content(paths: Sequence[Path], field: str) -> str:
    found = hashlib.sha256(field.encode())
    for file in (file for path in paths for file in _files(path)):
        with _opened(file) as stream:
            found.update(hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:16]


def _some(every: Iterator[Document], where: str) -> Iterator[Document]:
    """The documents that are not empty. Raises UsageError at the end if there was none."""
    found = False
    for document in every:
        first = next(document, None)
        if first is not None:
            found = True
            yield chain([first], document)
    if not found:
        raise UsageError("there is no text to train on", where=where, fix="Give files that hold text.")


# -- files -----------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"there is no file {path}", fix="Give text files, .jsonl files, or folders of them.")
    below = [file for file in path.rglob("*") if file.is_file()]
    files = sorted(f for f in below if not any(part.startswith(".") for part in f.relative_to(path).parts))
    if not files:
        raise UsageError("this folder holds no files", where=str(path), fix="Give a folder of text or .jsonl files.")
    return files


def _documents_of(file: Path, field: str) -> Iterator[Document]:
    name = file.with_suffix("") if file.suffix == ".gz" else file
    if name.suffix in ROWS:
        return (_in_parts(text) for text in _rows_of_file(file, field))
    return iter([_parts(_blocks(file))])


def _blocks(file: Path) -> Iterator[str]:
    """The text of a file, in blocks that end anywhere."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    with _opened(file) as stream:
        while block := stream.read(PART):
            yield decoder.decode(block)
        yield decoder.decode(b"", final=True)


def _rows_of_file(file: Path, field: str) -> Iterator[str]:
    """The texts of a .jsonl file. A row lies in memory."""
    with _opened(file) as stream:
        for number, line in enumerate(stream, 1):
            text, where = line.decode("utf-8-sig"), f"{file}, line {number}"
            if text.strip():
                yield _text_of(_parsed(text, where), field, where)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A file of bytes, decompressed. Raises UsageError for whatever then keeps it from being read as text."""
    opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as stream:
            try:
                yield stream
            except UnicodeDecodeError as error:  # its object ends where the stream stands
                at = stream.tell() - len(error.object) + error.start
                raise UsageError(
                    f"byte {at} is not UTF-8 text", where=str(file), fix="Give text files in UTF-8, and no others."
                ) from error
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {file}: {why}", fix="Give a text file that can be read.") from error


# -- rows ------------------------------------------------------------------------------------------


def _parsed(line: str, where: str) -> object:
    fix = "Give one JSON value per line."
    try:
        found: object = parse_json(line.encode(), what="this row", where=where, fix=fix)
    except SleepcError as error:
        raise UsageError(error.what, where=where, fix=fix) from error
    return found


def _text_of(row: object, field: str, where: str) -> str:
    text = row.get(field) if isinstance(row, Mapping) else row
    if isinstance(text, str):
        return text
    if not isinstance(row, Mapping):
        raise UsageError("this row is neither an object nor a text", where=where, fix=f'Write {{"{field}": "…"}}.')
    held = f"{type(text).__name__}, not text" if text is not None else "nothing"
    fields = ", ".join(map(str, row)) or "none"
    raise UsageError(
        f"field {field!r} of this row holds {held}",
        where=where,
        fix=f"Name the field that holds the text in every row. Fields of this row: {fields}.",
    )


def _rows_of_dataset(name: str, field: str) -> Iterator[str]:
    """The texts of a data set."""
    import datasets

    datasets.disable_progress_bars()
    path, configuration, split = _parsed_name(name)
    try:
        rows = datasets.load_dataset(path, configuration, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield _text_of(row, field, f"{name}, row {number}")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UsageError(
            f"cannot read the dataset: {lines[0]}",
            where=name,
            fix="Give NAME, NAME:SPLIT, NAME:CONFIGURATION:SPLIT, or a folder of data files.",
        ) from error


def _parsed_name(name: str) -> tuple[str, str | None, str]:
    """Path, configuration and split."""
    if Path(name).is_dir():
        return name, None, "train"
    path, *rest = name.split(":")
    if len(rest) > 2 or "" in (path, *rest):
        raise UsageError(f"cannot read {name!r} as a dataset", fix="Give NAME, NAME:SPLIT or NAME:CONFIGURATION:SPLIT.")
    return path, rest[0] if len(rest) == 2 else None, rest[-1] if rest else "train"


# -- parts -----------------------------------------------------------------------------------------


def _in_parts(text: str) -> Document:
    return _parts(text[at : at + PART] for at in range(0, len(text), PART))


def _parts(blocks: Iterable[str]) -> Document:
    """Blocks that end anywhere -> the same text in parts that end where a line does, or a word in a long line."""
    held = ""
    for block in blocks:
        held += block
        at = max((found.end() for found in LINE_END.finditer(held)), default=0)
        if not at and len(held) >= MOST:
            at = max(held.rfind(" "), 0) or len(held)
        if at:
            yield held[:at]
        held = held[at:]
    if held:
        yield held
