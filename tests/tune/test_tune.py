"""`sleepc tune` on a tiny model: measured, kept, used, and not measured again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch._inductor import config

import sleepc
from sleepc import quantities
from sleepc import tuning as tuning_module
from sleepc.backends.contract import Target
from sleepc.backends.table import DEFAULT, DEFAULT_TARGET, find_runner, runners
from sleepc.backends.tunable import Tunable
from sleepc.cli import tune as command
from sleepc.cli.tuned import _said_before, options_by_tuning
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.tune import measure, space
from sleepc.tune.record import Entry, Figures, Limits, WrongLogits, keep, read_record
from sleepc.tune.space import Candidate
from sleepc.tuning import Tuning
from tests.cli.models import run_here, save_model

PROMPT = " ".join(f"w{i}" for i in range(1, 20))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact, its export beside it in the artifact, and nothing measured."""
    model = save_model(tmp_path_factory.mktemp("tune") / "model")
    program = sleepc.convert(model, {"window": 8, "sinks": 2})
    place = program.save(model.parent / "artifact")
    program.export()
    return place


@pytest.fixture
def artifact(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, with a space of few candidates, each of which takes few rounds."""
    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path / "cache"))
    for each in (measure.figures, measure.finals):
        monkeypatch.setattr(each, "__defaults__", (1,))
    for name in runners():
        runner = find_runner(name)
        few = (Tunable("threads", (2, 1), "threads"),) if runner.tunables() else ()
        monkeypatch.setattr(type(runner), "tunables", lambda self, device="cpu", few=few: few)
    monkeypatch.setattr(tuning_module, "SLOW", 1e9)
    monkeypatch.setattr(space, "TRIED", "no key")  # of options: the default form alone
    shutil.copytree(made, tmp_path / "artifact")
    return tmp_path / "artifact"


def words(found: dict[str, Any]) -> list[str]:
    return [Candidate.model_validate(each["candidate"]).words() for each in found["candidates"]]


def test_tuning_and_using_it(artifact: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wanted = run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 5)
    code, said, told = run_here(capsys, "tune", artifact, "--json", "--report", tmp_path / "r.html")
    assert code == 0, told
    first = json.loads(said)
    assert first["measured"] == len(first["candidates"]) == 4
    assert all(each["figures"] for each in first["candidates"])
    assert all(each["figures"]["error"] < 1e-3 for each in first["candidates"])
    assert (tmp_path / "r.html").read_text().count("<circle") == 4
    again = json.loads(run_here(capsys, "tune", artifact, "--json")[1])
    assert (again["measured"], again["chosen"]) == (0, first["chosen"])
    assert sorted(words(again)) == sorted(words(first))
    code, text, told = run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 5)
    assert (code, text) == wanted[:2]
    chosen = Candidate.model_validate(first["chosen"]).words()
    assert (f"tuned: {chosen} (" in told) == (chosen != DEFAULT)
    for options in (("--no-tuned",), ("--dtype", "float32")):
        assert run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 5, *options) == wanted
    code, shown, _ = run_here(capsys, "tune", artifact, "--explain")
    assert (code, "measured before" in shown, f"chosen       {chosen}" in shown) == (0, True, True)


@pytest.mark.parametrize("fast", runners())
def test_each_way_is_used(artifact: Path, fast: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 5)
    tuning = Tuning(sleepc.load(artifact), 0, lambda *_: None, print)
    forms = {form.runner: form for form in tuning.space.forms}
    if fast not in forms:
        pytest.skip("it does not run here")
    for name, form in forms.items():
        key, ms = tuning._key(name), 1 if name == fast else 2
        figures = of_ms(ms, ms)
        keep(tuning.paths, [Entry(key=key, candidate=form.candidate({"threads": 1}), figures=figures)], None, print)
    chosen, asked = (forms[name].candidate({"threads": 1}).words() for name in (fast, DEFAULT))
    for options, words in (((), chosen), (("--backend", DEFAULT), asked), (("--backend", fast), chosen)):
        code, said, told = run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 5, *options)
        assert (code, said, f"tuned: {words} (" in told) == (0, wanted[1], True), told
    evaluated = ("eval", artifact, "--task", "perplexity", "--samples", 1, "--distances", "1", "--json")
    rows = [json.loads(run_here(capsys, *evaluated, *more)[1])["rows"] for more in ((), ("--no-tuned",))]
    assert rows[0] == rows[1]  # threads change nothing of so small a model


def test_exports_are_written_as_the_record_says(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuning = Tuning(sleepc.load(artifact), 0, lambda *_: None, print)
    (target,) = (each for each in tuning.space.forms if each.options)
    options = {**target.options, "ops": "portable"}
    figures = of_ms(1)
    key, candidate = tuning._key(target.runner), Candidate(runner=target.runner, options=options)
    keep(tuning.paths, [Entry(key=key, candidate=candidate, figures=figures)], None, print)
    runner, said = find_runner(target.runner), []
    assert isinstance(runner, Target)
    for given in ({}, {"ops": "ort"}, {"precision": "int8"}):
        said.append(options_by_tuning(artifact, runner, given, lambda words: None))
    assert said == [{"ops": "portable"}, {}, {}]
    starts = [run_here(capsys, "run", artifact, PROMPT, "--max-tokens", 5)[2] for _ in range(2)]
    words = f"export {artifact} --to {target.runner}"
    assert [words in each for each in starts] == [True, False]  # what is faster is not there: that is said once
    code, _, told = run_here(capsys, "export", artifact, "--to", target.runner, "--force")
    manifest = json.loads((artifact / target.runner / f"{target.runner}.json").read_text())
    assert (code, manifest["ops"], "tuned: --ops portable (" in told) == (0, "portable", True)
    flag = Candidate(runner=target.runner, options={**target.options, "packed": True})
    keep(tuning.paths, [Entry(key=key, candidate=flag, figures=of_ms(0.5), at=1)], None, print)
    heard: list[str] = []
    assert options_by_tuning(artifact, runner, {"ops": "ort"}, heard.append) == {"packed": True}
    assert heard == ["tuned: --packed (--no-tuned leaves it out)"]


def test_what_was_said_is_noted_for_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **options: Any) -> bool:
        raise PermissionError(path)

    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path))
    odd = tmp_path / os.fsdecode(b"caf\xe9")  # no UTF-8
    assert [_said_before(odd, "words") for _ in range(2)] == [False, True]
    monkeypatch.setattr(Path, "exists", refused)
    assert not _said_before(odd, "words")


@pytest.mark.parametrize(("version", "spins"), [("1.25.1", ("long", "none")), ("1.32.0", ("long", "short", "none"))])
def test_a_short_spin_is_offered_where_it_works(
    version: str, spins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = find_runner(DEFAULT_TARGET)
    monkeypatch.setattr(f"{installed_of(target)}.version_of", lambda name: version)
    assert [each.values for each in target.tunables() if each.name == "spin"] == [spins]


def installed_of(target: Any) -> str:
    """The module that says what is installed."""
    return f"{type(target).__module__.rpartition('.')[0]}.installed"


def test_what_is_wrong_is_left_out_with_its_reason(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Tuning._open

    def wrong(tuning: Tuning, candidate: Candidate) -> measure.Runs:
        found = right(tuning, candidate)
        found.logits = found.logits + (candidate.settings.get("threads") == 1)
        return found

    monkeypatch.setattr(Tuning, "_open", wrong)
    tuned = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print).run(Limits())
    failed = {each.candidate.settings.get("threads") for each in tuned.entries if each.figures is None}
    assert failed == {1}
    assert all("logits differ by" in each.reason for each in tuned.entries if each.figures is None)
    assert tuned.choice.entry is not None
    assert tuned.choice.entry.candidate.settings == {}


def test_what_is_wrong_of_a_rounded_export_is_found_later_too(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its defaults are in the record, and nothing else of it: they are opened again, to compare with."""
    rounded, right = [2.0], Tuning._open

    def shifted(tuning: Tuning, candidate: Candidate) -> measure.Runs:
        plain = candidate.runner == DEFAULT
        found = right(tuning, Candidate(runner=DEFAULT))
        found.logits = found.logits + (0.0 if plain else rounded[candidate.settings.get("threads") == 1])
        return found

    monkeypatch.setattr(Tuning, "_open", shifted)
    monkeypatch.setattr(tuning_module, "_rounded", lambda runner, form: form.runner != DEFAULT)
    first = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print)
    defaults = [form.candidate() for form in first.space.forms]
    for each in defaults:
        first._add(each, Limits())
    rounded.append(3.0)  # with one thread
    tuned = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print).run(Limits())
    wrong = [each.candidate for each in tuned.entries if each.figures is None]
    assert wrong == [
        Candidate(runner=each.runner, options=each.options, settings={"threads": 1}) for each in defaults[1:]
    ]


def test_exports_of_tunings_that_were_killed_are_removed(artifact: Path, tmp_path: Path) -> None:
    """Those that a living process holds stay, and what is written here goes in the end."""
    cache = tmp_path / "cache"
    tuning = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print)
    (form,) = (form for form in tuning.space.forms if form.options)
    tuning.existing.clear()
    with ended_by_force(cache, "big") as left, ended_by_force(cache, "alive", end=False) as alive:
        with pytest.warns(SleepcWarning, match="killed had left"):
            tuning.__enter__()
        assert (left.exists(), (alive / "alive").exists()) == (False, True)
        tuning.runs(form.candidate())
        assert len(list(cache.glob(".tuning-export.*"))) == 2
        tuning.__exit__()
        assert list(cache.glob(".tuning-export.*")) == [alive]


@contextmanager
def ended_by_force(cache: Path, name: str, *, end: bool = True) -> Iterator[Path]:
    """The folder of another process's export, which is killed now or after the block."""
    body = (
        "import sys\nfrom pathlib import Path\nfrom sleepc.whole_folder import draft_beside\n"
        "with draft_beside(Path(sys.argv[1]) / 'tuning-export') as folder:\n"
        "    (folder / sys.argv[2]).touch()\n    print(folder, flush=True)\n    sys.stdin.read()\n"
    )
    cache.mkdir(exist_ok=True)
    command = [sys.executable, "-c", body, str(cache), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        if end:
            other.kill()
            other.wait()
        assert (folder / name).exists()
        try:
            yield folder
        finally:
            other.kill()


def test_changes_of_what_is_slow_are_not_tried(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_module, "SLOW", 4.0)
    tuning = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print)
    taken = {form.candidate().words(): 4.5 ** (form.runner == DEFAULT) for form in tuning.space.forms}

    def figures_of(candidate: Candidate) -> Figures:
        ms = taken.get(candidate.words(), 1.0)
        return of_ms(ms)

    monkeypatch.setattr(tuning, "_figures", figures_of)
    monkeypatch.setattr(tuning, "_measure_anew", lambda found: False)
    tuned = tuning.run(Limits())
    tried = [each.candidate for each in tuned.entries]
    assert [each.words() for each in tried if each.runner == DEFAULT] == [DEFAULT]
    assert len(tried) == 3
    assert (Candidate(runner=DEFAULT), tuning_module.SLOWER) in tuned.left_out


def of_ms(ms: float, pause: float = 1.0) -> Figures:
    return Figures(decode_ms=ms, decode_p99_ms=ms, read_ms=ms, pause_ms=pause, pause_p99_ms=pause, memory=1)


def test_the_best_are_measured_anew(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By noise the second was slower than the fourth, and the third is far; a second run has nothing to do."""
    times, anew = [1.1, 1.0, 2.0, 0.9], [1.1, 0.85, 0.88]
    taken: dict[str, float] = {}

    def figures_of(tuning: Tuning, candidate: Candidate) -> Figures:
        return of_ms(taken.setdefault(candidate.words(), times[len(taken)]))

    def finals(every: list[measure.Runs], level: Figures, seconds: float) -> list[Figures]:
        assert level == of_ms(1.1)
        return [of_ms(anew[0]), of_ms(anew[2]), of_ms(anew[1])][: len(every)]  # the defaults, the fourth, the second

    monkeypatch.setattr(Tuning, "_figures", figures_of)
    monkeypatch.setattr(tuning_module, "finals", finals)
    tunings = [Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print) for _ in range(2)]
    found = tunings[0].run(Limits())
    names = list(taken)
    assert found.choice.entry is not None
    assert found.choice.entry.candidate.words() == names[1]
    assert found.choice.entry.figures == of_ms(0.85)
    assert found.choice.entry.beside == (names[0], names[3])
    assert [each.candidate.words() for each in found.entries if not each.beside] == [names[2]]
    assert len(found.measured) == 4
    assert not tunings[1].run(Limits()).measured


def test_what_does_not_open_again_is_left_out(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def figures_of(tuning: Tuning, candidate: Candidate) -> Figures:
        taken.append(candidate.words())
        return of_ms(1.0 / len(taken))

    def refused(tuning: Tuning, candidate: Candidate) -> measure.Runs:
        if candidate.words() == taken[-1]:
            raise MemoryError("no room")
        return right(tuning, candidate)

    right = Tuning._open
    monkeypatch.setattr(Tuning, "_figures", figures_of)
    monkeypatch.setattr(Tuning, "_open", refused)
    found = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print).run(Limits())
    assert found.choice.entry is not None
    assert found.choice.entry.candidate.words() != taken[-1]
    assert [each.reason for each in found.entries if each.figures is None] == ["MemoryError: no room"]


def test_a_choice_is_replayed_and_dropped_if_it_breaks_a_limit(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def figures_of(tuning: Tuning, candidate: Candidate) -> Figures:
        order.append(candidate.words())
        return of_ms(float(len(order)))

    replays = iter([([0.009, 0.2], 5), ([0.003, 0.005], 7)])
    monkeypatch.setattr(Tuning, "_figures", figures_of)
    monkeypatch.setattr(Tuning, "_measure_anew", lambda tuning, found: False)
    monkeypatch.setattr(measure.Runs, "replay", lambda runs: next(replays))
    program = sleepc.load(artifact)
    tuned = Tuning(program, time.monotonic() + 99, lambda *_: None, print).run(Limits(pause_ms=10))
    known = {each.candidate.words(): each.figures for each in tuned.entries}
    first, second = known[order[0]], known[order[1]]
    assert first is not None
    assert second is not None
    assert (first.sleeps, second.sleeps) == (2, 2)
    assert second.pause_p99_ms == pytest.approx(4.98)
    assert first.pause_p99_ms > 10
    assert tuned.choice.entry is not None
    assert tuned.choice.entry.candidate.words() == order[1]
    again = Tuning(program, time.monotonic() + 99, lambda *_: None, print).run(Limits(pause_ms=10))
    assert (again.measured, again.choice.entry) == ([], tuned.choice.entry)


def test_a_choice_that_cannot_be_replayed_is_left_out(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And after the time none is begun."""
    taken: list[str] = []

    def figures_of(tuning: Tuning, candidate: Candidate) -> Figures:
        taken.append(candidate.words())
        return of_ms(float(len(taken)))

    def replay(runs: measure.Runs) -> tuple[list[float], int]:
        tuning.deadline = 0
        raise MemoryError("no room")

    monkeypatch.setattr(Tuning, "_figures", figures_of)
    monkeypatch.setattr(Tuning, "_measure_anew", lambda tuning, found: False)
    monkeypatch.setattr(measure.Runs, "replay", replay)
    tuning = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print)
    tuned = tuning.run(Limits(pause_ms=10))
    assert [each.reason for each in tuned.entries if each.figures is None] == ["MemoryError: no room"]
    assert tuned.choice.entry is not None
    assert tuned.choice.entry.candidate.words() == taken[1]
    assert f"{taken[1]} is not replayed" in capsys.readouterr().out


def test_a_replay_has_the_bytes_that_were_budgeted(artifact: Path) -> None:
    program = sleepc.load(artifact)
    tuning = Tuning(program, time.monotonic() + 99, lambda *_: None, print)
    for form in tuning.space.forms:
        assert tuning.runs(form.candidate()).replay(2)[1] == program.graphs.state_bytes()


def test_what_was_measured_is_kept(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print)
    add = tuning._add

    def interrupted(candidate: Candidate, limits: Limits) -> None:
        if len(tuning.measured) == 2:
            raise KeyboardInterrupt
        add(candidate, limits)

    monkeypatch.setattr(tuning, "_add", interrupted)
    monkeypatch.setattr(Tuning, "_measure_anew", lambda tuning, found: False)
    with pytest.raises(KeyboardInterrupt):
        tuning.run(Limits())
    assert len(read_record(tuning.paths[0]).entries) == 2
    tuned = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print).run(Limits())
    assert (len(tuned.measured), len(tuned.entries)) == (2, 4)
    late = Tuning(sleepc.load(artifact), time.monotonic() - 1, lambda *_: None, print).run(Limits(), again=True)
    assert (len(late.measured), late.not_tried) == (0, 4)


def test_records_of_equal_machines(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "record.json"
    code, _, told = run_here(capsys, "tune", artifact, "--export", file)
    assert code == 0, told
    shutil.rmtree(artifact / "tuning")
    code, said, told = run_here(capsys, "tune", artifact, "--import", file, "--json")
    assert (code, json.loads(said)["measured"]) == (0, 0)
    assert "4 figures taken over, 0 of another" in told
    file.write_text(file.read_text().replace('"decode_ms": ', '"decode_ms": 1'))
    assert run_here(capsys, "tune", artifact, "--import", file)[0] == 1  # which was edited


def test_no_time_is_not_all_there_is(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = run_here(capsys, "tune", artifact, "--time", "1ms")
    assert (code, "--time 1ms had passed" in said) == (2, True)
    assert "measured     0 candidates: it has to have more --time" in said


def test_failures_may_pass_but_wrong_logits_do_not(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(28, "No space left on device"), WrongLogits("its logits differ")]
    with monkeypatch.context() as patch:
        patch.setattr(Tuning, "_figures", lambda tuning, candidate: (_ for _ in ()).throw(failures[0]))
        first = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print)
        default = first.space.forms[0].candidate()
        first._add(default, Limits())
        failures.pop(0)
        second = Tuning(sleepc.load(artifact), time.monotonic() + 99, lambda *_: None, print)
        second._add(other := second.space.forms[-1].candidate(), Limits())
    third = Tuning(sleepc.load(artifact), 0, lambda *_: None, print)
    known = {each.candidate.words(): each.reason for each in third.run(Limits()).entries}
    assert known == {other.words(): "WrongLogits: its logits differ"}
    assert default.words() not in known


def recorded(artifact: Path, settings: dict[str, bool | int | str]) -> None:
    """Have a record of one entry, by the default backend."""
    tuning = Tuning(sleepc.load(artifact), 0, lambda *_: None, print)
    figures = of_ms(1)
    candidate = Candidate(runner=DEFAULT, settings=settings)
    keep(tuning.paths, [Entry(key=tuning._key(DEFAULT), candidate=candidate, figures=figures)], None, print)


RUNS = ("run", PROMPT, "--max-tokens", 5)
EVALUATES = ("eval", "--task", "perplexity", "--samples", 1, "--distances", "1", "--json")


def answered(said: str) -> Any:
    """A text, or an evaluation's rows without what it took."""
    return json.loads(said)["rows"] if said.startswith("{") else said


@pytest.mark.parametrize("command", [RUNS, EVALUATES])
def test_a_record_has_nothing_compiled(
    made: Path, tmp_path: Path, command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It may be of a machine with a compiler, or of a cache that was emptied: nobody asked for code."""
    monkeypatch.setenv("SLEEPC_CACHE", str(tmp_path / "cache"))
    artifact = shutil.copytree(made, tmp_path / "artifact")
    (name, *options), run = command, partial(run_here, capsys)
    wanted = run(name, artifact, *options)[1]
    recorded(artifact, {"compile": True})
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        code, said, told = run(name, artifact, *options)
        assert run(name, artifact, *options, "--compile")[0] == 2
    assert (code, answered(said)) == (0, answered(wanted))
    for words in ("tuned: eager compile=true", "it is not in the cache. --compile makes it"):
        assert words in " ".join(told.split())


@pytest.mark.parametrize("command", [RUNS, EVALUATES])
def test_a_record_that_does_not_run_is_left_out(
    artifact: Path, command: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (name, *options), run = command, partial(run_here, capsys)
    wanted = run(name, artifact, *options)[1]
    recorded(artifact, {"threads": 1})

    def refused(*given: Any, **options: Any) -> None:
        raise SleepcError("it has no room")

    monkeypatch.setattr(type(find_runner(DEFAULT)), "tuned_steps", refused)
    code, said, told = run(name, artifact, *options)
    assert (code, answered(said)) == (0, answered(wanted))
    assert "the tuning is left out: it has no room" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--target", "toaster"), "This machine is auto or cpu"),
        (("--budget-memory", "much"), "2GiB"),
        (("--max-pause", "5"), "5m (ms"),
        (("--time", "0s"), "5m (ms"),
        (("--report", "nowhere/r.html"), "not a folder"),
        (("--budget-memory", "1kB"), "comes nearest, with"),
    ],
)
def test_what_does_not_fit(
    artifact: Path, options: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, told = run_here(capsys, "tune", artifact, *options)
    assert (code, said in told) == (2, True), told


@pytest.mark.parametrize(("text", "value"), [("2GiB", 1 << 31), ("1.5 kB", 1500), ("7", 7), ("500MB", 500_000_000)])
def test_sizes(text: str, value: int) -> None:
    assert quantities.bytes_of(text, "") == value


@pytest.mark.parametrize(("text", "value"), [("50ms", 0.05), ("90s", 90), ("5m", 300), ("0.5h", 1800)])
def test_times(text: str, value: float) -> None:
    assert np.isclose(command.seconds(text, ""), value)


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 weeks", "1e9s", "٣s", "nan s"])
def test_other_texts_are_refused(text: str) -> None:
    for read in (command.seconds, quantities.bytes_of):
        with pytest.raises(UsageError, match="cannot read"):
            read(text, "--time")


def test_logits_that_are_not_finite(artifact: Path) -> None:
    runs = measure.Runs(sleepc.load(artifact).steps(), [1, 2, 3], 0)
    assert measure.difference(runs, runs) == 0
    other = measure.Runs(sleepc.load(artifact).steps(), [1, 2, 3], 0)
    other.logits = other.logits * np.nan
    with pytest.raises(SleepcError, match="not finite"):
        measure.difference(other, runs)
