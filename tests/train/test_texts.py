"""Documents: whole, in bounded memory, and an error that names the place for whatever is no text."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sleepc.errors import UsageError
from sleepc.train.texts import MOST, PART, Document, _blocks, _parts, dataset_documents, documents


def whole(found: Iterator[Document]) -> list[str]:
    return ["".join(document) for document in found]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name in ("socket.getaddrinfo", "socket.socket.connect"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("something asked for the network"))


def test_files_are_documents_and_so_are_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('\n{"text": "three", "id": 1}\n"four"\n{"text": ""}\n')
    (tmp_path / "c.py").write_bytes(b"\xef\xbb\xbfpass\r\n")
    (tmp_path / "empty.md").touch()
    assert whole(documents([tmp_path / "c.py", tmp_path / "a.txt"])) == ["pass\n", "one\ntwo\n"]
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.md").write_text("five")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "e.txt").write_text("six")
    assert whole(documents([tmp_path])) == ["one\ntwo\n", "three", "four", "pass\n", "five"]


def test_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text('{"text": "no", "body": "yes"}\n')
    assert whole(documents([tmp_path / "a.ndjson"], field="body")) == ["yes"]


def test_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n'))
    assert whole(documents([tmp_path])) == ["one\n", "two"]


@given(st.lists(st.text("a \n\té", max_size=40)))
def test_parts_join_to_the_text(blocks: list[str]) -> None:
    parts = list(_parts(blocks))
    assert "".join(parts) == "".join(blocks)
    assert all(part.endswith("\n") for part in parts[:-1])
    assert not any(part[0].isspace() for part in parts[1:])


def test_a_large_file_is_read_as_it_is_asked_for() -> None:
    taken = 0

    def blocks() -> Iterator[str]:
        nonlocal taken
        while True:  # no reader of all of it would come back
            taken += 1
            yield "many words in a line\n" * (PART // 21)

    parts = _parts(blocks())
    for number in range(1, 40):
        assert len(next(parts)) <= 2 * PART
        assert taken <= number + 1


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_a_large_file_never_lies_in_memory(tmp_path: Path, name: str) -> None:
    line, count = '{"text": "' + "many words in a line " * 40 + '"}\n', 20_000
    with gzip.open(tmp_path / name, "wt", 1) if name.endswith("gz") else (tmp_path / name).open("w") as file:
        for _ in range(count // 100):
            file.write(line * 100)
    tracemalloc.start()
    try:
        read = sum(len(part) for document in documents([tmp_path / name]) for part in document)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == count * (len(json.loads(line)["text"]) if name == "a.jsonl" else len(line))
    assert peak < 4 << 20 < read


@pytest.mark.parametrize("word", ["", "word "])
def test_a_file_without_lines_is_cut_all_the_same(word: str) -> None:
    text = (word or "x") * (5 * MOST // len(word or "x"))
    parts = list(_parts(text[at : at + PART] for at in range(0, len(text), PART)))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= MOST + PART
    assert not word or all(part.startswith(" ") for part in parts[1:])


def test_letters_across_blocks(tmp_path: Path) -> None:
    text = "x" + "é€😀" * PART
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert "".join(_blocks(tmp_path / "a.txt")) == text


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("before", "wrong"), [(0, b"\xff"), (5, b"\xff"), (PART + 7, b"\xff"), (PART - 1, b"\xe2\x82x"), (9, b"\xe2\x82")]
)
def test_undecodable_bytes_are_named(tmp_path: Path, before: int, wrong: bytes, zipped: bool) -> None:
    data = b"a" * before + wrong
    path = tmp_path / ("a.txt.gz" if zipped else "a.txt")
    path.write_bytes(gzip.compress(data) if zipped else data)
    with pytest.raises(UsageError, match=f"byte {before} is not UTF-8") as caught:
        whole(documents([path]))
    assert caught.value.where == str(path)


def test_undecodable_bytes_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n{"text": "b"}\n')
    with pytest.raises(UsageError, match="byte 24 is not UTF-8"):
        whole(documents([tmp_path / "a.jsonl"]))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"body": "x", "id": 3}', "field 'text' of this row holds nothing.*line 2(.|\n)*body, id"),
        ('{"text": null}', "holds nothing"),
        ('{"text": 3}', "holds int, not text"),
        ("[1, 2]", "neither an object nor a text"),
        ('{"text": "x"', "this row is not JSON.*line 2"),
        ("[" * 100_000, "this row is nested too deep.*line 2"),
    ],
)
def test_a_row_without_a_text(tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + row + "\n")
    found = documents([tmp_path / "a.jsonl"])
    assert "".join(next(found)) == "fine"
    with pytest.raises(UsageError, match=said):
        next(found)


def test_what_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        documents([tmp_path / "missing.txt"])
    with pytest.raises(UsageError, match="holds no files"):
        documents([tmp_path])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_no_text_at_all(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith(".gz") else b"")
    with pytest.raises(UsageError, match="there is no text to train on"):
        whole(documents([tmp_path / name]))


@pytest.mark.parametrize(
    "damage", [lambda data: b"no gzip", lambda data: data[:-9], lambda data: data[:10] + b"\7" * 9]
)
def test_a_damaged_compressed_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a.txt.gz").write_bytes(damage(gzip.compress(b"a text\n" * 50)))
    with pytest.raises(UsageError, match=r"cannot read .*a\.txt\.gz"):
        whole(documents([tmp_path]))


# -- data sets -------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder of two splits."""
    for split, texts in (("train", ["one", "two\n", ""]), ("test", ["three"])):
        lines = [json.dumps({"text": text, "id": i}) for i, text in enumerate(texts)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_a_data_set_in_a_folder(rows: Path) -> None:
    assert whole(dataset_documents(str(rows))) == ["one", "two\n"]
    assert whole(dataset_documents(f"{rows}:test")) == ["three"]
    assert whole(dataset_documents(f"{rows}:default:test")) == ["three"]


@pytest.mark.parametrize(
    ("name", "field", "said"),
    [
        ("{rows}", "body", "field 'body' of this row holds nothing.*row 1(.|\n)*text, id"),
        ("{rows}", "id", "holds int, not text"),
        ("{rows}:validation", "text", "cannot read the dataset: .*validation"),
        ("{rows}:other:train", "text", "cannot read the dataset: .*other"),
        ("{rows}/missing", "text", "cannot read the dataset"),
        ("nobody/nothing", "text", "cannot read the dataset: .*nobody/nothing"),
        ("{rows}:", "text", "as a dataset"),
        ("a:b:c:d", "text", "as a dataset"),
    ],
)
def test_a_data_set_that_cannot_be_read(rows: Path, name: str, field: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        whole(dataset_documents(name.format(rows=rows), field))


def test_a_damaged_data_set(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text"')
    with pytest.raises(UsageError, match="cannot read the dataset"):
        whole(dataset_documents(str(tmp_path)))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"need the package `datasets`(.|\n)*pip install 'sleepc\[data\]'"):
        dataset_documents("anything")
