"""What may be chosen is what backends declare; records are believed for what they are of, and survive each other."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest

from sleepc.backends.contract import Backend, Target
from sleepc.backends.table import find_runner, runners
from sleepc.backends.tunable import TRIED
from sleepc.errors import SleepcError, UsageError
from sleepc.tune.here import source_digest, this_cpu
from sleepc.tune.record import (
    Entry,
    Figures,
    Limits,
    TuningRecord,
    current,
    given_away,
    keep,
    key_of,
    places,
    read_record,
    read_records,
    taken_over,
)
from sleepc.tune.space import Candidate, not_tuned, space_of

RUNNER = find_runner(runners()[0])
FIGURES = Figures(decode_ms=1, decode_p99_ms=2, read_ms=0.1, pause_ms=3, pause_p99_ms=4, memory=5)


def entry(at: float = 1.0, figures: Figures | None = FIGURES, **settings: int | str | bool) -> Entry:
    key = key_of(RUNNER, "f" * 64, this_cpu())
    return Entry(key=key, candidate=Candidate(runner=RUNNER.name, settings=settings), figures=figures, at=at)


def test_the_space_is_what_is_declared() -> None:
    every = [find_runner(name) for name in runners()]
    space = space_of(every, "cpu")
    for form in space.forms:
        default = form.candidate()
        changed = list(form.changes(default))
        assert default in space
        assert default.settings == {}
        assert len(changed) == sum(len(each.values) - 1 for each in form.tunables)
        assert all(each in space and len(each.settings) == 1 for each in changed)
        assert all(default in form.changes(each) for each in changed)
        assert form.candidate({each.name: each.values[0] for each in form.tunables}) == default
    assert Candidate(runner="car") not in space
    assert Candidate(runner=space.forms[0].runner, settings={"wheels": 4}) not in space
    reached = {form.runner for form in space.forms} | {each.runner for each, _ in space.left_out}
    assert reached == set(runners())
    assert all(reason for _, reason in space.left_out)


def test_options_that_are_fixed_are_not_tried() -> None:
    target = next(each for each in map(find_runner, runners()) if not isinstance(each, Backend))
    free = space_of([target], "cpu")
    fixed = space_of([target], "cpu", {target.name: {"precision": "int4"}})
    assert {form.options["precision"] for form in free.forms} == {"fp32"}
    assert {form.options["precision"] for form in fixed.forms} == {"int4"}
    reasons = {each.words(): reason for each, reason in fixed.left_out if not each.options["packed"]}
    assert [word for words in reasons for word in words.split() if "ops=" in word] == ["ops=portable", "sleep_ops=same"]
    assert ["portable files have none" in reason for reason in reasons.values()] == [True]  # no kernels for it


def test_settings_keep_their_types(tmp_path: Path) -> None:
    given = entry(one=1, yes=True, word="ort", no=False)
    keep([tmp_path / "a.json"], [given], Limits(pause_ms=5), print)
    found = read_record(tmp_path / "a.json")
    assert found.entries == (given,)
    assert [type(value) for value in found.entries[0].candidate.settings.values()] == [int, bool, str, bool]
    assert found.limits == Limits(pause_ms=5)


def test_only_what_is_declared_is_believed() -> None:
    threads = next(each for each in RUNNER.tunables() if each.name == "threads").values[0]
    good = [entry(), entry(threads=threads)]
    bad = [entry(threads=10**9), entry(threads=True), entry(wheels=4)]
    other = entry().model_copy(update={"key": key_of(RUNNER, "0" * 64, this_cpu())})
    unknown = entry().model_copy(update={"candidate": Candidate(runner="car")})
    assert current([*bad, *good, other, unknown], "f" * 64, this_cpu()) == good


def test_a_target_is_believed_with_all_its_options_and_without_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in (each for each in map(find_runner, runners()) if isinstance(each, Target)):
        monkeypatch.setattr(type(target), "missing_runtime", lambda self: None)
        monkeypatch.setattr(type(target), "about", lambda self: "1")
        key = key_of(target, "f" * 64, this_cpu())
        every = dict(vars(target.options()))
        tried = {each.name: "x" for each in fields(target.options) if each.metadata.get(TRIED)}
        given = [every, {}, {**every, "wheels": 4}, dict(list(every.items())[1:]), {**every, **tried}]
        found = [Entry(key=key, candidate=Candidate(runner=target.name, options=o), figures=FIGURES) for o in given]
        right = [] if target.native or not target.tunables() else found[:1]
        assert current(found, "f" * 64, this_cpu()) == right
        assert (not_tuned(target, "cpu") is None) == bool(right)
        monkeypatch.setattr(type(target), "native", True)
        assert current(found, "f" * 64, this_cpu()) == []
    assert find_runner("mlir").native  # type: ignore[union-attr]


def test_failures_that_may_pass_are_not_believed() -> None:
    passing, wrong = entry(figures=None), entry(figures=None).model_copy(update={"wrong": True})
    assert current([passing, wrong], "f" * 64, this_cpu()) == [wrong]


def test_failures_are_not_taken_over(tmp_path: Path) -> None:
    wrong = entry(figures=None, threads=1).model_copy(update={"wrong": True})
    given_away(tmp_path / "given.json", [entry(), wrong], Limits())
    place = tmp_path / "a.json"
    assert taken_over(tmp_path / "given.json", [place], "f" * 64, this_cpu(), print) == (1, 1)
    assert read_record(place).entries == (entry(),)


def test_what_is_measured_now_is_newer_than_the_future(tmp_path: Path) -> None:
    place, other = tmp_path / "a.json", tmp_path / "b.json"
    for each in (place, other):
        keep([each], [entry(1e12)], None, print)
    new = entry(time.time(), FIGURES.model_copy(update={"decode_ms": 7}))
    keep([place], [new], None, print)
    assert read_records([place, other], print).entries == (new,)


def test_the_later_entry_of_one_candidate_stays() -> None:
    old, new, other = entry(1), entry(2, None), entry(1, threads=1)
    for order in ([old, new, other], [new, other, old]):
        assert set(map(repr, TuningRecord().merged(order).entries)) == {repr(new), repr(other)}


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    place = tmp_path / "tuning" / "a.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: keep([place], [entry(i, threads=i)], None, print), range(16)))
    assert {each.candidate.settings["threads"] for each in read_record(place).entries} == set(range(16))
    assert [path.name for path in place.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("text", ["", "{", '{"format": 2}', '{"format": 1, "sha256": "0"}', '{"format": 1, "more": 1}'])
def test_what_cannot_be_read_is_ignored_in_one_line(tmp_path: Path, text: str) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    keep([good], [entry()], None, print)
    bad.write_text(text)
    said: list[str] = []
    assert len(read_records([bad, good], said.append).entries) == 1
    assert len(said) == 1
    assert str(bad) in said[0]
    with pytest.raises(SleepcError):
        read_record(bad)
    keep([bad], [entry()], None, said.append)  # which makes it good again
    assert len(read_record(bad).entries) == 1


def test_an_edited_record_is_ignored(tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    keep([place], [entry()], None, print)
    data = json.loads(place.read_text())
    data["entries"][0]["figures"]["decode_ms"] = 0.001
    place.write_text(json.dumps(data))
    with pytest.raises(SleepcError, match="changed after it was written"):
        read_record(place)


def test_a_read_only_artifact_has_its_record_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path / "cache"))
    first, second = places(tmp_path / "artifact", "f" * 64, this_cpu())
    assert keep([first, second], [entry()], None, print) == first
    (tmp_path / "file").write_text("")
    refused = tmp_path / "file" / "tuning" / "a.json"  # a folder that nobody can make, root neither
    assert keep([refused, second], [entry(threads=1)], None, print) == second
    assert second.is_relative_to(tmp_path / "cache")
    assert len(read_records([first, second], print).entries) == 2
    with pytest.raises(SleepcError, match="cannot be written"):
        keep([refused], [entry()], None, print)


def test_a_record_that_is_not_there(tmp_path: Path) -> None:
    assert read_records([tmp_path / "none.json"], print) == TuningRecord()
    with pytest.raises(UsageError, match="no such tuning record"):
        read_record(tmp_path / "none.json")


def test_the_key_is_of_the_code() -> None:
    digests = {source_digest(find_runner(name)) for name in runners()}
    assert len(digests) == len(runners())
    assert all(len(each) == 16 for each in digests)
