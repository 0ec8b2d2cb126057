"""The shape of the repository: the two linked packages, imports that only look down, nothing tied to one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import sleepc
import sleepc.backends
import sleepc.passes
from sleepc.backends import table

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("passes", "backends")

# What each part of the package may import of the package, besides itself and ANYWHERE. The session and the command line
# see models only through `runtime.steps` and `api`.
MAY_IMPORT: dict[str, set[str]] = {
    "progress": set(),
    "version": set(),
    "systems": set(),
    "errors": {"wording"},
    "names": set(),
    "wording": set(),
    "quantities": set(),
    "output_place": {"owned"},
    "folder_lock": set(),
    "owned": set(),
    "held_file": set(),
    "json_file": {"held_file"},
    "sealed_json": {"json_file"},
    "whole_file": {"owned", "output_place"},
    "whole_folder": {"owned", "output_place"},
    "recipe": set(),
    "recipe_file": {"recipe", "held_file", "json_file"},
    "room": {"ir"},
    "manifest": {"ir", "recipe", "sealed_json", "whole_folder"},
    "digests": {"ir", "manifest"},
    "ir": {"held_file", "json_file", "masks"},
    "masks": set(),
    "memory": {"ir"},
    "ops": {"masks", "memory"},
    "capture": {"ir", "ops"},
    "passes": {"masks", "ir", "memory", "ops", "capture", "recipe"},
    "runtime": {"ir", "whole_file", "held_file", "json_file"},
    "backends": {
        "masks",
        "ir",
        "memory",
        "ops",
        "passes",
        "runtime",
        "hf",
        "manifest",
        "recipe",
        "quantities",
        "held_file",
        "sealed_json",
        "whole_file",
        "whole_folder",
    },
    "hf": {"ir", "ops", "capture", "held_file", "json_file", "manifest", "whole_folder"},
    "verify": {"masks", "ir", "memory", "ops", "capture", "passes", "backends", "runtime", "recipe", "manifest"},
    "tasks": {"ir", "memory", "ops", "passes", "runtime", "hf", "recipe", "verify", "output_place", "json_file"},
    "train": {
        *("ir", "memory", "ops", "passes", "backends", "runtime", "verify", "tasks", "hf"),
        *("recipe", "manifest", "digests", "artifact", "whole_file", "whole_folder", "json_file", "sealed_json"),
        "folder_lock",
    },
    "tune": {"ir", "ops", "backends", "runtime", "hf", "owned", "sealed_json", "json_file", "whole_file"},
    "artifact": {
        *("ir", "ops", "passes", "backends", "hf", "recipe", "manifest", "digests"),
        *("held_file", "whole_folder"),
    },
    "capturing": {"ir", "capture", "hf", "passes", "recipe"},
    "inspection": {"masks", "ir", "ops", "passes", "recipe"},
    "diffing": {"ir"},
    "doctor": {"backends", "hf"},
    "models": {"backends", "hf"},
    "pushing": {"backends", "hf", "manifest", "held_file"},
}
ANYWHERE = {"errors", "names", "progress", "version"}  # may be imported by all
ABOVE = (
    "exporting",
    "tuning",
    "scheduling",
    "api",
    "converting",
    "causal_lm",
    "bisecting",
    "__init__",
    "cli",
    "__main__",
)  # each may import all before it, and the table
# The rooms of passes/, in order: each may import those before it. `runner` and `pipeline` stand above all.
PASS_ROOMS = (
    *("facts", "base", "plan", "lib", "analysis", "front", "blocks", "rewrite"),
    *("consolidation", "keep", "stateful", "adapt", "lower"),
    *("effects", "runner", "pipeline"),
)
# Folders and files of what runs an export where there is no torch, and what that loads.
NO_TORCH = (
    *("sleepc/__init__.py", "sleepc/errors.py", "sleepc/manifest.py", "sleepc/names.py", "sleepc/progress.py"),
    *("sleepc/recipe.py", "sleepc/version.py", "sleepc/whole_file.py"),
    *("sleepc/ir/roles.py", "sleepc/held_file.py", "sleepc/json_file.py", "sleepc/owned.py", "sleepc/whole_folder.py"),
    *("sleepc/tune/here.py", "sleepc/tune/profile.py", "sleepc/tune/record.py", "sleepc/tune/space.py"),
    *("sleepc/runtime", "sleepc/verify/surprise.py", "sleepc/verify/texts.py"),
    *("backends/onnx/cuda.py", "backends/onnx/denormals.py", "backends/onnx/installed.py", "backends/onnx/load.py"),
    *("backends/onnx/manifest.py", "backends/onnx/pages.py"),
    *("backends/onnx/state.py", "backends/onnx/steps.py", "backends/table.py", "backends/export.py"),
    *(
        "backends/export_files.py",
        "backends/packages.py",
        "backends/processor.py",
        "backends/report.py",
        "backends/tunable.py",
    ),
    *("backends/check/in_place.py", "backends/check/measure.py"),
    *("backends/triton/devices.py", "backends/triton/files.py", "backends/triton/launcher.py"),
    *("backends/triton/manifest.py", "backends/triton/target.py"),
    *("backends/mlir/devices.py", "backends/mlir/installed.py", "backends/mlir/load.py", "backends/mlir/manifest.py"),
    *("backends/mlir/steps.py", "backends/mlir/target.py"),
    *(
        "backends/gguf/manifest.py",
        "backends/gguf/target.py",
        "backends/hf/engines.py",
        "backends/hf/manifest.py",
        "backends/hf/obstacles.py",
        "backends/hf/target.py",
    ),
)
NO_TORCH_LOADED = (
    *("sleepc", "sleepc.cli.main", "sleepc.errors", "sleepc.manifest", "sleepc.recipe", "sleepc.runtime.session"),
    *("sleepc.runtime.chat", "sleepc.tasks.task", "sleepc.tasks.source", "sleepc.hf.tokenizer"),
    *("sleepc.backends.table", "sleepc.backends.export", "sleepc.backends.eager.backend"),
    *("sleepc.backends.onnx.target", "sleepc.backends.onnx.cuda", "sleepc.backends.onnx.load"),
    *("sleepc.backends.mlir.target", "sleepc.backends.mlir.load", "sleepc.backends.mlir.steps"),
    *("sleepc.backends.triton.target", "sleepc.backends.hf.target", "sleepc.backends.gguf.target", "sleepc.pushing"),
    *("sleepc.backends.onnx.steps", "sleepc.cli.opening", "sleepc.cli.subjects", "sleepc.cli.evaluation_task"),
    "sleepc.tune.record",
    *("sleepc.cli.tasks", "sleepc.tasks.puzzles", "sleepc.tasks.solving", "sleepc.tasks.spelling"),
)
HEAVY = {"torch", "transformers", "huggingface_hub", "networkx"}
TEXTS = {".py", ".md", ".toml", ".txt", ".json", ".yaml", ".yml", ".cfg", ".sh", ".typed", ""}
# A path that exists on one machine only.
MACHINE_PATH = re.compile(r"(?<![\w./~-])/(?:home|root|work|Users|tmp|opt|mnt)/[\w.-]+")


def sources() -> Iterator[tuple[str, Path]]:
    """(part, file) for every module of the package, each once."""
    for top in ("sleepc", *LINKED):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if top == "sleepc" and parts[1] in LINKED:
                continue
            yield (parts[1] if top == "sleepc" else top), path


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tracked() -> list[Path]:
    """The repository's files, as git lists them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("name", LINKED)
def test_links_are_relative_and_resolve(name: str) -> None:
    link = ROOT / "sleepc" / name
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: an sdist has copies")
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == ROOT / name


def test_imports_come_from_this_checkout() -> None:
    for module in (sleepc, sleepc.passes, sleepc.backends):
        assert module.__file__ is not None
        assert ROOT in Path(module.__file__).resolve().parents


def test_every_part_has_its_place_in_the_table() -> None:
    assert {part for part, _ in sources()} <= set(MAY_IMPORT) | set(ABOVE)


def allowed(part: str) -> set[str]:
    """What a part may import besides itself."""
    if part in MAY_IMPORT:
        return MAY_IMPORT[part] | ANYWHERE
    return {*MAY_IMPORT, *ABOVE[: ABOVE.index(part)]}


@pytest.mark.parametrize("part", [*MAY_IMPORT, *ABOVE])
def test_imports_only_look_down(part: str) -> None:
    not_allowed = {*MAY_IMPORT, *ABOVE} - allowed(part) - {part}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for found, path in sources()
        if found == part
        for name in imported(path)
        if name.startswith("sleepc.") and name.split(".")[1] in not_allowed
    ]
    assert not wrong


def test_the_rooms_of_passes_only_look_back() -> None:
    passes = [path for found, path in sources() if found == "passes" and path.parent.name != "passes"]
    passes += [path for path in (ROOT / "passes").glob("*.py") if path.stem != "__init__"]
    wrong = []
    for path in passes:
        place = PASS_ROOMS.index(path.relative_to(ROOT / "passes").parts[0].removesuffix(".py"))
        names = [name.split(".")[2] for name in imported(path) if name.startswith("sleepc.passes.")]
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in names if PASS_ROOMS.index(name) > place]
    assert passes
    assert not wrong


def test_the_table_has_no_circle() -> None:
    table = nx.DiGraph((part, needed) for part, needs in MAY_IMPORT.items() for needed in needs)
    assert nx.is_directed_acyclic_graph(table)
    assert {*table} <= {*MAY_IMPORT}


def modules() -> dict[str, Path]:
    """The file of every module of the package, by its dotted name."""
    found = {}
    for _, path in sources():
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "sleepc" else ("sleepc", *parts))
        found[name.removesuffix(".__init__")] = path
    return found


def importers(files: dict[str, Path]) -> nx.DiGraph[str]:
    """Which module imports which, inside functions and for types alone too."""
    graph = nx.DiGraph()
    for module, path in files.items():
        for name in imported(path):
            while name and name not in files:
                name = name.rpartition(".")[0]
            if name and name != module:
                graph.add_edge(module, name)
    return graph


def test_no_modules_import_each_other() -> None:
    graph = importers(modules())
    circles = [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]
    assert len(graph) > 200
    assert not circles


def test_circles_of_types_are_found(tmp_path: Path) -> None:
    texts = {"sleepc.a": "def f():\n    from sleepc.b import B", "sleepc.b": "if TYPE_CHECKING:\n    import sleepc.a"}
    files = {name: tmp_path / name for name in texts}
    for name, path in files.items():
        path.write_text(texts[name])
    assert nx.find_cycle(importers(files)) == [("sleepc.a", "sleepc.b"), ("sleepc.b", "sleepc.a")]


def test_what_runs_without_torch_does_not_name_it() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for _, path in sources()
        if {str(path.relative_to(ROOT)), *map(str, path.relative_to(ROOT).parents)} & set(NO_TORCH)
        for name in imported(path)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_what_runs_without_torch_is_there() -> None:
    assert [name for name in NO_TORCH if not (ROOT / name).exists()] == []


def test_what_runs_without_torch_does_not_load_it() -> None:
    """One module after another, in one process: the first that loads what is heavy is named."""
    code = (
        "import sys; from importlib import import_module\n"
        "for name in sys.argv[1:]:\n"
        "    import_module(name)\n"
        f"    if found := {HEAVY!r} & set(sys.modules): sys.exit(f'{{name}} loads {{found}}')\n"
    )
    command = [sys.executable, "-c", code, *NO_TORCH_LOADED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What a backend's name means elsewhere: (file, the words around it).
OTHER_MEANINGS = (
    ("sleepc/hf/load.py", '"eager"'),  # how transformers calls attention that is written out
    ("sleepc/cli/main.py", "is_eager="),  # typer: an option that is read before the others
)


def names_of_backends(source: str) -> list[int]:
    """Lines of code, texts and comments with a backend's or a target's name, as a word or a part of a name."""
    word = re.compile(rf"(?i)(?<![a-z])({'|'.join(table.runners())})(?![a-z])")
    return [number for number, line in enumerate(source.splitlines(), 1) if word.search(line)]


def without_other_meanings(path: Path) -> str:
    source = path.read_text(encoding="utf-8")
    for file, words in OTHER_MEANINGS:
        if path == ROOT / file:
            source = source.replace(words, "")
    return source


def test_no_backend_is_named_outside_its_room() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}"
        for part, path in sources()
        if part != "backends"
        for number in names_of_backends(without_other_meanings(path))
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('if backend == "onnx":', True),
        ("from sleepc.backends.onnx.load import load", True),
        ("load_eager(program)", True),
        ("# what the ONNX files are", True),
        ("class Onnxious: eagerly = 1", False),
    ],
)
def test_the_search_for_names_of_backends_can_find(line: str, found: bool) -> None:
    assert bool(names_of_backends(line)) is found


LOADERS = {"from_pretrained", "from_config"}  # of transformers: they run a checkpoint's own code, or ask whether to


def untrusting(source: str) -> list[int]:
    """Lines where a loader of transformers is used in another way than with trust_remote_code=False."""
    nodes = list(ast.walk(ast.parse(source)))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    safe = {
        id(call.func)
        for call in calls
        for word in call.keywords
        if word.arg == "trust_remote_code" and isinstance(word.value, ast.Constant) and word.value.value is False
    }
    named = [
        node
        for node in nodes
        if (isinstance(node, ast.Attribute) and node.attr in LOADERS)
        or (isinstance(node, ast.Name) and node.id in LOADERS)
        or (isinstance(node, ast.Call) and any(isinstance(a, ast.Constant) and a.value in LOADERS for a in node.args))
    ]
    return [node.lineno for node in named if id(node) not in safe]


def test_no_code_of_a_checkpoint_is_run_anywhere() -> None:
    sources = [path for path in tracked() if path.suffix == ".py"]
    assert len(sources) > 100
    wrong = [f"{p.relative_to(ROOT)}:{n}" for p in sources for n in untrusting(p.read_text(encoding="utf-8"))]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("Auto.from_pretrained(folder, trust_remote_code=False)", False),
        ("Auto.from_pretrained(folder)", True),
        ("Auto.from_config(config, trust_remote_code=True)", True),
        ("Auto.from_config(config, trust_remote_code=trusted)", True),
        ("Auto.from_config(config, **options)", True),
        ("load = Auto.from_pretrained", True),
        ("getattr(Auto, 'from_pretrained')(folder)", True),
    ],
)
def test_the_search_for_trust_can_find(source: str, found: bool) -> None:
    assert bool(untrusting(source)) is found


def test_no_file_names_a_path_of_one_machine() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        if path.suffix in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("open('{}home/ann/model')", True),
        ("see {}root/x.txt", True),
        ("sleepc/passes -> ../passes", False),
        ("docs/home/page.md", False),
        ("https://host/home/page", False),
    ],
)
def test_the_search_for_paths_can_find(line: str, found: bool) -> None:
    # The slash comes in here, so that this file has no such path.
    assert bool(MACHINE_PATH.search(line.format("/"))) is found
