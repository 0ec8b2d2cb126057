"""Artifacts: a converted program as a directory of text, JSON and safetensors. Nothing in it is executed when it is
loaded.
"""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from sleepc import whole_folder
from sleepc.digests import dtype_name
from sleepc.errors import SleepcError
from sleepc.held_file import HeldFile, is_inside, load_whole, refuse_links_out
from sleepc.ir.graph import Graph
from sleepc.ir.older import aged, renewed
from sleepc.ir.packed import StoredPacked, packed_in
from sleepc.ir.program import Block, BlockClass, Encode, Learn, Loop, ProgramGraphs
from sleepc.ir.states import StateSpec
from sleepc.ir.tensorfile import TensorFile, write_tensors
from sleepc.ir.text import parse_graph, print_graph
from sleepc.ir.types import DTYPES
from sleepc.ir.weights import FileTensor, HeldTensor, Param, packed_of
from sleepc.manifest import (
    MANIFEST,
    RESTORE,
    BlockEntry,
    ClassEntry,
    EncodeEntry,
    GraphFile,
    LearnEntry,
    LoopEntry,
    Manifest,
    ParamEntry,
    Source,
    StateEntry,
    WeightFile,
    read_manifest,
)
from sleepc.passes.runner import check_program
from sleepc.recipe import Recipe
from sleepc.version import __version__

NEW, HELD = "new.safetensors", "weights.safetensors"
MAX_GRAPH = 64 << 20  # bytes


# ---------------------------------------------------------------------------------------------- writing


def check_free(target: Path, *, force: bool) -> None:
    """Refuse an output directory that exists, unless `force`; never replace what is not empty and not an artifact."""
    whole_folder.check_free(target, force=force, mark=MANIFEST)


@dataclass(frozen=True)
class About:
    """What an artifact says of its program besides its graphs: how it was made, of what, and what was measured."""

    recipe: Recipe
    source: Source
    report: dict[str, Any] = field(default_factory=dict)


def save_artifact(
    target: Path,
    program: ProgramGraphs,
    about: About,
    *,
    standalone: bool = False,
    force: bool = False,
    tokenizer: Path | None = None,
) -> Manifest:
    """Write `program` (level STEP) to `target`, all or nothing; its manifest. `standalone` copies the source's weight
    files into it.
    """
    with whole_folder.written_beside(target, force=force, mark=MANIFEST) as draft:
        (draft / "program").mkdir()
        params, files = _write_params(draft, program, standalone)
        manifest = Manifest(
            sleepc=__version__,
            recipe=about.recipe,
            source=about.source,
            dtype=dtype_name(program.dtype),
            vocab=program.vocab,
            hidden=program.hidden,
            max_positions=program.max_positions,
            upto=program.upto,
            beyond=program.beyond,
            embed=_write_graph(draft, program.embed),
            head=_write_graph(draft, program.head),
            clock=_write_graph(draft, _present(program.clock)),
            **_write_more(draft, program),
            window=program.window,
            classes={name: _write_class(draft, cls) for name, cls in program.classes.items()},
            layout=[BlockEntry(cls=b.cls, params=b.params, ring=b.ring) for b in program.layout],
            states=[_state_entry(s) for s in program.states],
            files=files,
            params=params,
            report=about.report,
        ).sealed()
        (draft / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
        if tokenizer is not None:
            from sleepc.hf.papers import copy_papers
            from sleepc.hf.tokenizer import copy_tokenizer

            copy_tokenizer(tokenizer, draft)
            copy_papers(tokenizer, draft)
        return read_manifest(draft)  # as it stands in the file: what identities are made of


def _present(graph: Graph | None) -> Graph:
    if graph is None:
        raise SleepcError("only a converted program can be saved", fix="Run sleepc.convert first.")
    return graph


def _write_class(draft: Path, cls: BlockClass) -> ClassEntry:
    return ClassEntry(
        wake=_write_graph(draft, cls.wake),
        sleep=_write_graph(draft, _present(cls.sleep)),
        again=_write_graph(draft, cls.again) if cls.again else None,
        states=[_state_entry(s) for s in cls.states],
    )


def _write_more(draft: Path, program: ProgramGraphs) -> dict[str, Any]:
    """What only some programs have: what sleeps do besides their blocks' graphs, and KV windows that blocks share."""
    return {
        "format": 2 if all(block.ring is None for block in program.layout) else 3,
        "loop": _write_loop(draft, program.loop) if program.loop else None,
        "learn": _write_learn(draft, program.learn) if program.learn else None,
        "encode": EncodeEntry(step=_write_graph(draft, program.encode.step)) if program.encode else None,
    }


def _write_loop(draft: Path, loop: Loop) -> LoopEntry:
    given = _write_graph(draft, loop.given)
    return LoopEntry(start=loop.start, end=loop.end, passes=loop.passes, given=given, settle=loop.settle)


def _write_learn(draft: Path, learn: Learn) -> LearnEntry:
    step = _write_graph(draft, learn.step)
    how = {"start": learn.start, "steps": learn.steps, "lr": learn.lr, "clip": learn.clip}
    return LearnEntry.model_validate({**how, "step": step, "loss": learn.loss, "span": learn.span})


def _write_graph(draft: Path, graph: Graph) -> GraphFile:
    text = print_graph(graph)
    file = f"program/{graph.name}.txt"
    (draft / file).write_text(text)
    hashes = {"sha256": text, **({} if (old := aged(text)) == text else {"before": old})}
    return GraphFile(file=file, **{name: hashlib.sha256(each.encode()).hexdigest() for name, each in hashes.items()})


def _state_entry(spec: StateSpec) -> StateEntry:
    return StateEntry(
        name=spec.name,
        role=spec.role,
        part=spec.part,
        dims=cast(Any, list(spec.dims)),
        dtype=dtype_name(spec.dtype),
        update=spec.update,
        initial=spec.initial,
    )


def _write_params(
    draft: Path, program: ProgramGraphs, standalone: bool
) -> tuple[dict[str, ParamEntry], list[WeightFile]]:
    """Save held tensors, refer to (or copy) the source's files, and say where every parameter is."""
    files: dict[TensorFile | str, WeightFile] = {}
    entries: dict[str, ParamEntry] = {}
    own = {key: param for key, param in program.params.items() if _belongs_to_artifact(param)}
    for name, new in ((NEW, True), (HELD, False)):
        held = {key: param for key, param in own.items() if param.new is new}
        if held:
            # Clones, since safetensors refuses tensors that share memory (a tied head).
            write_tensors({k: p.materialise().cpu().contiguous().clone() for k, p in held.items()}, draft / name)
            written = TensorFile(draft / name)
            hashes = written.hashes()
            entries |= {k: _entry(len(files), k, p, hashes[k]) for k, p in held.items()}
            files[name] = _weight_file(written, name)
    for key, param in program.params.items():
        if isinstance(param, FileTensor) and key not in own:
            if param.source not in files:
                files[param.source] = _source_file(draft, param.source, standalone, len(files))
            entries[key] = _entry(list(files).index(param.source), param.tensor, param, param.sha256)
    for packed in filter(None, map(packed_of, program.params.values())):
        if packed.file not in files:
            inside = standalone or (packed.file.path.parent / MANIFEST).is_file()
            entry = _source_file(draft, packed.file, inside, len(files))
            files[packed.file] = entry.model_copy(update={"packed": True})
    return {key: entries[key] for key in program.params}, list(files.values())


def _belongs_to_artifact(param: Param) -> bool:
    """Is it in memory, or in the files of an artifact that was loaded, rather than in the source's?"""
    return isinstance(param, HeldTensor) or (param.file.parent / MANIFEST).is_file()


def _entry(file: int, tensor: str, param: Param, sha256: str) -> ParamEntry:
    return ParamEntry(
        file=file, tensor=tensor, dtype=dtype_name(param.dtype), shape=list(param.shape), sha256=sha256, new=param.new
    )


def _source_file(draft: Path, file: TensorFile, standalone: bool, number: int) -> WeightFile:
    if not standalone:
        file.held.require_in_place()  # the artifact will refer to what stands there
        return _weight_file(file, None)
    file.held.require_unchanged()
    name = f"source-{number:05d}.safetensors"
    file.held.copy_to(draft / name)
    return _weight_file(TensorFile(draft / name), name)


def _weight_file(file: TensorFile, name: str | None) -> WeightFile:
    path, inside = name or str(file.path.resolve()), name is not None
    return WeightFile(path=path, inside=inside, size=file.size, header_sha256=file.header_sha256)


# ---------------------------------------------------------------------------------------------- reading


def load_artifact(folder: Path) -> tuple[ProgramGraphs, Manifest]:
    """The program of an artifact; weights stay in their files, which are held open, until a backend asks for them.

    Checked here: versions, manifest, graph texts, sizes and headers of weight files, types of all graphs. Tensor hashes
    are checked before the first use. If the folder is replaced meanwhile, the new one is loaded, whole.
    """
    return load_whole(folder, _load)


def _load(folder: Path) -> tuple[ProgramGraphs, Manifest]:
    manifest = read_manifest(folder)
    refuse_links_out(folder, "artifact", RESTORE)
    files = [_checked_file(folder, entry) for entry in manifest.files]
    packed = [packed_in(file) for entry, file in zip(manifest.files, files, strict=True) if entry.packed]
    program = ProgramGraphs(
        embed=_read_graph(folder, manifest.embed),
        head=_read_graph(folder, manifest.head),
        clock=_read_graph(folder, manifest.clock),
        loop=_read_loop(folder, manifest) if manifest.loop else None,
        learn=_read_learn(folder, manifest) if manifest.learn else None,
        encode=Encode(_read_graph(folder, manifest.encode.step)) if manifest.encode else None,
        window=manifest.window,
        classes={name: _read_class(folder, entry) for name, entry in manifest.classes.items()},
        layout=[Block(entry.cls, entry.params, entry.ring) for entry in manifest.layout],
        states=tuple(_state_spec(s) for s in manifest.states),
        params={key: _param(entry, files, ChainMap(*packed)) for key, entry in manifest.params.items()},
        level=manifest.level,
        dtype=DTYPES[manifest.dtype],
        max_positions=manifest.max_positions,
        upto=manifest.upto,
        beyond=manifest.beyond,
        vocab=manifest.vocab,
        hidden=manifest.hidden,
    )
    try:
        _check_layout(program)
        check_program(program, full=True)
    except SleepcError as error:
        where = ", ".join(part for part in (str(folder), error.where) if part)
        raise SleepcError(error.what, where=where, fix=error.fix or RESTORE) from error
    return program, manifest


def _read_graph(folder: Path, entry: GraphFile) -> Graph:
    path = folder / entry.file
    if not is_inside(folder, path):
        raise SleepcError(f"{entry.file} leads out of the artifact", where=str(path), fix=RESTORE)
    file = HeldFile(path)
    if file.size > MAX_GRAPH:
        raise SleepcError(f"{entry.file} is too large to be a graph", where=str(path), fix=RESTORE)
    data = file.read(0, file.size)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise SleepcError(f"{entry.file} was changed after it was written", where=str(path), fix=RESTORE)
    try:
        return parse_graph(renewed(data.decode()), "STEP")
    except UnicodeDecodeError as error:
        raise SleepcError(f"{entry.file} is not UTF-8 text: {error}", where=str(path), fix=RESTORE) from error
    except SleepcError as error:
        raise SleepcError(error.what, where=f"{path}, {error.where}", fix=error.fix) from error


def _read_class(folder: Path, entry: ClassEntry) -> BlockClass:
    states = tuple(_state_spec(s) for s in entry.states)
    again = _read_graph(folder, entry.again) if entry.again else None
    return BlockClass(_read_graph(folder, entry.wake), _read_graph(folder, entry.sleep), again, states)


def _read_loop(folder: Path, manifest: Manifest) -> Loop | None:
    entry, blocks = manifest.loop, manifest.layout
    if entry is None:
        return None
    can = all(b.cls in manifest.classes and manifest.classes[b.cls].again for b in blocks[entry.start :])
    counted = any(state.role_and_part()[0] == "count" for state in manifest.states)
    if not entry.start < entry.end <= len(blocks) or not can or counted != bool(entry.settle):
        raise SleepcError(f"the loop over blocks {entry.start} to {entry.end} does not fit", fix=RESTORE)
    return Loop(entry.start, entry.end, entry.passes, _read_graph(folder, entry.given), entry.settle)


def _read_learn(folder: Path, manifest: Manifest) -> Learn | None:
    entry = manifest.learn
    if entry is None:
        return None
    if entry.start >= len(manifest.layout):
        raise SleepcError(f"blocks from {entry.start} on learn, and there are {len(manifest.layout)}", fix=RESTORE)
    step = _read_graph(folder, entry.step)
    return Learn(entry.start, entry.steps, entry.lr, entry.clip, step, entry.loss, entry.span)


def _state_spec(entry: StateEntry) -> StateSpec:
    role, part = entry.role_and_part()
    return StateSpec(role, part, tuple(entry.dims), DTYPES[entry.dtype], entry.update, entry.initial)


def _checked_file(folder: Path, entry: WeightFile) -> TensorFile:
    path = folder / entry.path if entry.inside else Path(entry.path)
    if entry.inside and (Path(entry.path).name != entry.path or not is_inside(folder, path)):
        raise SleepcError(f"{entry.path} leads out of the artifact", where=str(folder / MANIFEST), fix=RESTORE)
    if not path.is_file():
        raise SleepcError(
            f"the weights that this artifact refers to are gone: {path}",
            where=str(folder / MANIFEST),
            fix="Put the original model back there, or convert it again (--standalone copies the weights).",
        )
    file = TensorFile(path)
    if file.size != entry.size:
        raise SleepcError(f"{path} has {file.size} bytes instead of {entry.size}", where=str(path), fix=RESTORE)
    if file.header_sha256 != entry.header_sha256:
        raise SleepcError(f"the header of {path} was changed after the conversion", where=str(path), fix=RESTORE)
    return file


def _param(entry: ParamEntry, files: list[TensorFile], packed: Mapping[str, StoredPacked]) -> FileTensor:
    if entry.file >= len(files):
        raise SleepcError(f"parameter {entry.tensor} is in file {entry.file} of {len(files)}", fix=RESTORE)
    file = files[entry.file]
    found = file.tensors.get(entry.tensor)
    shape = tuple(entry.shape)
    if found is None or found.dtype != DTYPES[entry.dtype] or found.shape != shape:
        raise SleepcError(
            f"tensor {entry.tensor} is not in the file as the manifest says", where=str(file.path), fix=RESTORE
        )
    return FileTensor(file, entry.tensor, found.dtype, shape, entry.sha256, entry.new, packed.get(entry.sha256))


def _check_layout(program: ProgramGraphs) -> None:
    """Every block's ports have parameters of the declared types, and every class and state is there."""
    for i, block in enumerate(program.layout):
        cls = program.classes.get(block.cls)
        if cls is None:
            raise SleepcError(f"block {i} is of class {block.cls}, which is not there", fix=RESTORE)
        ports = cls.parameters()
        if set(ports) != set(block.params) or any(key not in program.params for key in block.params.values()):
            raise SleepcError(f"block {i} has other parameters than its class {block.cls}", fix=RESTORE)
        _check_shapes(program, {key: ports[port].meta["type"].dims for port, key in block.params.items()})
        named = {s.name for s in cls.states}
        if any(set(graph.ports("state")) - named for graph in cls.graphs()):
            raise SleepcError(f"class {block.cls} reads a state that it does not declare", fix=RESTORE)
    more = [program.loop.given] if program.loop else []
    more += [program.learn.step] if program.learn else []
    more += [program.encode.step] if program.encode else []
    for graph in (program.embed, program.head, *more):
        _check_own(program, graph)


def _check_shapes(program: ProgramGraphs, declared: dict[str, tuple[int | str, ...]]) -> None:
    """A block's parameters have the shapes that their ports declare; a size with a name is the same everywhere."""
    sizes: dict[str, int] = {}
    for key, dims in declared.items():
        shape = program.params[key].shape
        named = {dim: size for dim, size in zip(dims, shape, strict=False) if isinstance(dim, str)}
        sizes = {**named, **sizes}
        if tuple(sizes.get(dim, dim) for dim in dims) != shape:  # type: ignore[arg-type]
            raise SleepcError(f"parameter {key} has shape {shape} instead of {dims}", fix=RESTORE)


def _check_own(program: ProgramGraphs, graph: Graph) -> None:
    """The parameters that a graph besides the blocks names itself are there, with its types."""
    for key, node in {**graph.ports("param"), **graph.ports("const")}.items():
        if key not in program.params:
            raise SleepcError(f"{graph.name} reads a parameter {key} that is not there", fix=RESTORE)
        if tuple(node.meta["type"].dims) != program.params[key].shape:
            raise SleepcError(f"{graph.name} reads parameter {key} in another shape", fix=RESTORE)


def verify_hashes(program: ProgramGraphs, *, packed: bool = False) -> Iterator[tuple[str, bool]]:
    """(parameter, are its bytes those that the manifest names) for every parameter in a file, and with `packed` also
    those that a quantised source has it as. Two threads.
    """

    def intact(param: FileTensor) -> bool:
        beside = param.packed if packed else None
        return param.is_intact() and (beside is None or beside.is_intact())

    stored = {key: param for key, param in program.params.items() if isinstance(param, FileTensor)}
    with ThreadPoolExecutor(2) as pool:
        yield from zip(stored, pool.map(intact, stored.values()), strict=True)
