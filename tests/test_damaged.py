"""Damaged files: every load ends in a SleepcError with its place, or works. Nothing of a file is run, nothing hangs."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import sleepc
from sleepc.backends.onnx.load import load as load_export
from sleepc.errors import SleepcError
from sleepc.hf.tokenizer import load_tokenizer
from sleepc.ir.tensorfile import TensorFile
from sleepc.recipe_file import read_recipe
from sleepc.runtime.steps import Steps
from sleepc.sealed_json import digest
from sleepc.train.adapter import read_adapter, write_adapter
from sleepc.train.checkpoint import Standing, read_standing, write_checkpoint
from tests.cli.models import save_model
from tests.mutations import DEEP, changed_bytes, changed_json, dumped
from tests.runtime.test_state_file import edit

Damage = Callable[[Path], object]
IDS = list(range(20))
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"
ROUNDS = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact and its export, a state, an adapter, a checkpoint and a recipe."""
    folder = tmp_path_factory.mktemp("made")
    model = save_model(folder / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE)
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w58", "bos_token": {"content": "w57"}}))
    (model / "generation_config.json").write_text('{"eos_token_id": [58, 59]}')
    program = sleepc.convert(model, {"window": 8, "sinks": 2})
    program.save(folder / "artifact", standalone=True)
    program.export()
    loop = {"window": 8, "sinks": 2, "consolidation": "recurrent", "passes": 2, "loop": "0:1"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nobody has trained it
        sleepc.convert(model, loop).save(folder / "looped", standalone=True)
    session = program.session()
    session.feed(IDS)
    session.save_state(folder / "state", {"chat": "x"})
    write_adapter(folder / "adapter", program, [], {})
    new = {key: param.materialise() for key, param in program.graphs.params.items() if param.new}
    write_checkpoint(folder / "work", Standing(step=3, tokens=9, run={"lr": 0.1, "stages": "distil"}), new, [])
    (folder / "recipe.yaml").write_text("window: 8\nsinks: 2\noverrides:\n- layers: '0'\n  window: 4\n")
    return folder


def run_artifact(place: Path) -> None:
    program = sleepc.load(place / "artifact")
    tokenizer = program.tokenizer()
    program.session(2).feed([IDS, tokenizer.encode("w1 w2 w3")])
    assert all(type(i) is int for i in tokenizer.eos_ids)
    if tokenizer.template() is not None:
        tokenizer.chat([{"role": "user", "content": "w1"}])


def run_looped(place: Path) -> None:
    sleepc.load(place / "looped").session().feed(IDS)


def run_tokenizer(place: Path) -> None:
    """Only what reads it: the rest is slower."""
    tokenizer = load_tokenizer(place / "artifact")
    tokenizer.decode(tokenizer.encode("w1 w2 w3"))
    assert all(type(i) is int for i in tokenizer.eos_ids)
    if tokenizer.template() is not None:
        tokenizer.chat([{"role": "user", "content": "w1"}])


def run_export(place: Path) -> None:
    load_export(place / "artifact" / "onnx").session().feed(IDS)


def run_state(place: Path) -> None:
    from sleepc.runtime.session import Session
    from sleepc.runtime.state_file import read_note

    session = Session(steps_of(place), identity=json.loads((place / "identity").read_text()))
    read_note(place / "state", "chat")
    session.load_state(place / "state")
    session.feed(IDS)


STEPS: dict[Path, Steps] = {}


def steps_of(place: Path) -> Steps:
    """Loaded once: only the state is damaged."""
    if place not in STEPS:
        program = sleepc.load(place / "artifact")
        STEPS[place] = program.steps()
        (place / "identity").write_text(json.dumps(program.identity))
    return STEPS[place]


def run_checkpoint(place: Path) -> None:
    path = place / "work" / "step-00000003"
    read_standing(path)
    file = TensorFile(path / "state.safetensors")
    for name in file.tensors:
        file.map(name).sum()


TARGETS: dict[str, Callable[[Path], Any]] = {
    "artifact/sleepc.json": run_artifact,
    "artifact/program/head.txt": run_artifact,
    "artifact/program/clock.txt": run_artifact,
    "artifact/program/embed.txt": run_artifact,
    "artifact/program/block.0.txt": run_artifact,
    "artifact/program/block.0.sleep.txt": run_artifact,
    "looped/sleepc.json": run_looped,
    "looped/program/again.txt": run_looped,
    "artifact/new.safetensors": run_artifact,
    "artifact/source-00002.safetensors": run_artifact,
    "artifact/tokenizer.json": run_tokenizer,
    "artifact/tokenizer_config.json": run_tokenizer,
    "artifact/generation_config.json": run_tokenizer,
    "artifact/config.json": run_tokenizer,
    "artifact/chat_template.jinja": run_tokenizer,
    "artifact/onnx/onnx.json": run_export,
    "artifact/onnx/wake.onnx": run_export,
    "artifact/onnx/weights.bin": run_export,
    "state": run_state,
    "adapter": lambda place: read_adapter(place / "adapter"),
    "recipe.yaml": lambda place: read_recipe(place / "recipe.yaml"),
    "work/step-00000003/state.json": run_checkpoint,
    "work/step-00000003/state.safetensors": run_checkpoint,
}
WITH_HASHES = [
    *("state", "artifact/onnx/onnx.json", "artifact/new.safetensors"),
    *(name for name in TARGETS if "program/" in name or name.endswith("sleepc.json")),
]
AS_JSON = [name for name in TARGETS if name.endswith(".json")]


def seal(place: Path, name: str) -> None:
    """Make all hashes right again, as who damages on purpose would."""
    path = place / name
    if path.name in ("sleepc.json", "onnx.json"):
        seal_json(path, lambda data: None)
    elif "/program/" in name:
        sha256, manifest = hashlib.sha256(path.read_bytes()).hexdigest(), path.parents[1] / "sleepc.json"
        seal_json(manifest, lambda data: [graph.update(sha256=sha256) for graph in graphs_of(data, path.name)])
    elif path.suffix == ".safetensors":
        seal_json(path.parent / "sleepc.json", lambda data: seal_weights(path, data))
    elif name == "state":
        edit(path, lambda header: None)


def graphs_of(data: Any, name: str) -> Iterator[dict[str, Any]]:
    """The entries of a manifest for a graph's file."""
    if isinstance(data, dict):
        if data.get("file") == f"program/{name}":
            yield data
        for value in data.values():
            yield from graphs_of(value, name)


def seal_weights(path: Path, data: dict[str, Any]) -> None:
    file = TensorFile(path)
    number = next(i for i, entry in enumerate(data["files"]) if entry["path"] == path.name)
    data["files"][number] |= {"size": file.size, "header_sha256": file.header_sha256}
    for entry in data["params"].values():
        if entry["file"] == number and entry["tensor"] in file.tensors:
            entry["sha256"] = file.sha256(entry["tensor"])


def seal_json(path: Path, change: Callable[[Any], object]) -> None:
    data = json.loads(path.read_bytes())
    change(data)
    path.write_bytes(dumped({**data, "sha256": digest(data)}))


def survives(place: Path, name: str, run: Callable[[Path], Any]) -> bool:
    """Run it: does it work? Any error that is not ours comes out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            run(place)
        except SleepcError:
            return False
    return True


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact alone."""
    folder = tmp_path_factory.mktemp("small")
    sleepc.convert(save_model(folder / "model"), {"window": 8, "sinks": 2}).save(folder / "artifact", standalone=True)
    return folder


def bytes_of(name: str, data: bytes) -> Damage:
    return lambda place: (place / "artifact" / name).write_bytes(data)


def put_graph(name: str, old: bytes, new: bytes) -> Damage:
    """Other text in a graph, its hash made right."""

    def damage(place: Path) -> None:
        path = place / "artifact" / "program" / f"{name}.txt"
        text = path.read_bytes()
        assert old in text
        path.write_bytes(text.replace(old, new))
        seal(place, f"artifact/program/{name}.txt")

    return damage


def put_manifest(change: Callable[[Any], object]) -> Damage:
    """Another manifest, its hash made right."""
    return lambda place: seal_json(place / "artifact" / "sleepc.json", change)


def states(data: Any) -> list[Any]:
    return data["states"]  # type: ignore[no-any-return]


def block_states(data: Any) -> list[Any]:
    return data["classes"]["block.0"]["states"]  # type: ignore[no-any-return]


DAMAGES: dict[str, tuple[Damage, str]] = {
    "deep lists": (bytes_of("sleepc.json", DEEP.encode()), r"sleepc\.json is nested too deep"),
    "deep objects": (
        bytes_of("sleepc.json", b'{"report":' * 9000 + b"1" + b"}" * 9000),
        r"sleepc\.json is nested too deep",
    ),
    "half a surrogate": (bytes_of("sleepc.json", b'{"x": "\\ud800"}'), r"sleepc\.json is not JSON"),
    "no UTF-8": (bytes_of("sleepc.json", b'{"\xff": 1}'), r"sleepc\.json is not JSON"),
    "a text of a graph that is no UTF-8": (put_graph("head", b"logits", b"log\xffits"), r"head\.txt is not UTF-8"),
    "an input that nothing gives": (put_graph("block.0", b'input "live"', b'input "alive"'), "V30: alive is read"),
    "a state that is not declared": (put_graph("clock", b'state "since"', b'state "hence"'), "V30: hence is read"),
    "a result that is missing": (put_graph("head", b'"logits"=', b'"loggits"='), "V30: the graph gives no logits"),
    "a result that is not a state": (
        put_graph("block.0.sleep", b'"S"=', b'"SS"='),
        "V31: SS is given, and is not a state",
    ),
    "a parameter that is not there": (put_graph("head", b'param "', b'param "x'), "reads a parameter x"),
    "a state twice": (put_manifest(lambda d: states(d).append(states(d)[0])), "V31: two states have one name"),
    "a state without rows": (
        put_manifest(lambda d: block_states(d)[0].update(dims=[2, 10, 8])),
        "V31.*B, then numbers",
    ),
    "a state of two kinds of rows": (
        put_manifest(lambda d: block_states(d)[0].update(dims=["B", "B", 8])),
        "V31.*B, then numbers",
    ),
    "a state of another size": (
        put_manifest(lambda d: block_states(d)[0].update(dims=["B", 2, 11, 8])),
        "V30: k is read",
    ),
    "a state of another dtype": (put_manifest(lambda d: states(d)[0].update(dtype="f32")), "V30: position is read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_that_hashes_do_not_show(small: Path, tmp_path: Path, name: str) -> None:
    """Each is refused when it is loaded, with the file or the graph."""
    place = shutil.copytree(small, tmp_path / "place")
    damage, words = DAMAGES[name]
    damage(place)
    with pytest.raises(SleepcError, match=f"(?s){words}") as caught:
        sleepc.load(place / "artifact")
    assert str(place) in caught.value.where
    assert caught.value.fix


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "sealed"), [*((name, False) for name in TARGETS), *((name, True) for name in WITH_HASHES)]
)
def test_random_damage(made: Path, tmp_path: Path, name: str, sealed: bool) -> None:
    place = shutil.copytree(made, tmp_path / "place")
    run, rng = TARGETS[name], random.Random(f"{name} {sealed}")
    assert survives(place, name, run), "undamaged"
    before = {path: (place / path).read_bytes() for path in (name, "artifact/sleepc.json", "looped/sleepc.json")}
    original = json.loads(before[name]) if name in AS_JSON else None
    worked = 0
    for _ in range(ROUNDS):
        by_value = name in AS_JSON and (sealed or rng.random() < 0.5)
        damaged = dumped(changed_json(original, rng)) if by_value else changed_bytes(before[name], rng)
        (place / name).write_bytes(damaged)
        if sealed:
            with suppress(Exception):  # or it is as it is
                seal(place, name)
        worked += survives(place, name, run)
        for path, data in before.items():
            (place / path).write_bytes(data)
    assert worked < ROUNDS
