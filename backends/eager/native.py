"""Functions as native code: traced by torch.export, compiled ahead of time by PyTorch's inductor, kept in the user's
own cache under the hash of all that the code depends on. An artifact holds none of it.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sleepc.backends.eager.executor import Executor
from sleepc.backends.processor import processor_features
from sleepc.errors import SleepcError, UsageError
from sleepc.hf.gguf import cache_folder, writing_to_cache
from sleepc.whole_file import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.export import ExportedProgram

LEAVE = "Leave --compile out."
# In this process, and with no headers compiled first for a folder that is used once.
SETTINGS = {"compile_threads": 1, "aot_inductor.precompile_headers": False}


class Function(nn.Module):
    """A graph as what torch.export traces: its ports, in order, to its results but for `in_place`, which it writes into
    its arguments. `free` names the dimensions of ports whose size is free: then it is two or more in `inputs`.
    """

    def __init__(
        self,
        executor: Executor,
        inputs: Mapping[str, Any],
        free: Mapping[str, Mapping[int, str]],
        in_place: Sequence[str],
    ) -> None:
        super().__init__()
        self.executor, self.in_place = executor, in_place
        self.ports = list(executor.ports)
        self.results = [name for name in executor.results if name not in in_place]
        self.inputs = tuple(inputs[name] for name in self.ports)
        self.free = [free.get(name, {}) for name in self.ports]

    def forward(self, *args: Any) -> tuple[Any, ...]:
        """The results by their order in `results`."""
        found = self.executor(dict(zip(self.ports, args, strict=True)))
        return tuple(found[name] for name in self.results)

    def shapes(self) -> str:
        """Dtypes and sizes of the arguments, as text, with the names of those that are free."""
        texts = []
        for value, free in zip(self.inputs, self.free, strict=True):
            sizes = [free.get(at, str(size)) for at, size in enumerate(value.shape)]
            texts.append(f"{value.dtype}[{','.join(sizes)}]")
        return " ".join(texts)

    def traced(self) -> ExportedProgram:
        """The function as PyTorch's own operators."""
        dims = {name: torch.export.Dim(name, min=2) for each in self.free for name in each.values()}
        free = tuple({at: dims[name] for at, name in each.items()} for each in self.free)
        inputs = tuple(value.contiguous() for value in self.inputs)
        with _quiet():
            return torch.export.export(self, inputs, dynamic_shapes=(free,))


@dataclass(eq=False)
class Native:
    """Loaded code. `new` if it was compiled for this call."""

    run: Callable[[list[Tensor]], list[Tensor]]
    function: Function
    new: bool

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Values by port -> results by name; those that are written in place are the tensors given."""
        args = {name: inputs[name].contiguous() for name in self.function.ports}
        results = dict(zip(self.function.results, self.run([*args.values()]), strict=True))
        return results | {name: args[name] for name in self.function.in_place}


def load_native(function: Function, name: str, *, compiles: bool = True) -> Native:
    """The code of a function called `name`, compiled if it is not in the cache. Raises UsageError if there is no C++
    compiler, SleepcError if the function cannot be compiled or the cache not be written; or if it is not in the cache
    and nothing `compiles`.
    """
    if not compiles and not any(_folder().glob("*.pt2")):  # before a function is traced, which takes a second
        raise _not_there()
    traced = traced_as(name, function)
    place = _folder() / f"{digest(traced, function.shapes())}.pt2"
    new = not place.is_file()
    if new and not compiles:
        raise _not_there()
    if new:
        code = compiled(traced, name)
        with writing_to_cache(place.parent):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, code)
    return opened(place, function, new)


def opened(place: Path, function: Function, new: bool) -> Native:
    """The code in a file. Raises SleepcError if it cannot be loaded."""
    try:
        # What torch._inductor.aoti_load_package gives reads its own description at every call, and asks a compiler what
        # this CPU can do: the file's name says that already.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(place), "model", False, 1, -1)
    except RuntimeError as error:
        raise SleepcError(
            f"compiled code cannot be loaded: {_first_line(error)}", where=str(place), fix="Remove the file."
        ) from error
    return Native(loader.boxed_run, function, new)


def traced_as(name: str, function: Function) -> ExportedProgram:
    """A function as PyTorch's operators. Raises SleepcError, with its name, if it cannot be traced."""
    try:
        return function.traced()
    except Exception as error:  # whatever an operator of a rule or a model of one's own raises while it is traced
        raise _refused(name, error) from error


@contextmanager
def kept_in_cache() -> Iterator[None]:
    """Within it torch.compile keeps what it compiles in the user's own cache, by its hash."""
    folder = cache_folder() / "compiled" / "inductor"
    with writing_to_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _working_in(str(folder)), _quiet():
        yield


def _folder() -> Path:
    return cache_folder() / "compiled"


def digest(traced: ExportedProgram, shapes: str) -> str:
    """What the code depends on: operators and constants, sizes, the versions and settings of what compiles it, this
    CPU.
    """
    facts = [str(traced.graph), str(traced.graph_signature), shapes, torch.__version__, str(torch.get_num_threads())]
    facts += [
        platform.platform(),
        platform.machine(),
        *sorted(processor_features()),
        os.environ.get("CXX", ""),
        str(SETTINGS),
    ]
    found = sha256("\0".join(facts).encode())
    for key, value in sorted(traced.constants.items()):
        found.update(f"{key} {value!r}".encode())
        if isinstance(value, Tensor):
            found.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:32]


def compiled(traced: ExportedProgram, name: str, settings: Mapping[str, Any] = SETTINGS) -> bytes:
    """A package of native code. Raises UsageError if there is no C++ compiler, SleepcError for what is refused."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        fix = "Install g++ (on Debian and Ubuntu: apt-get install g++), or name a compiler in CXX."
        raise UsageError("there is no C++ compiler", where="--compile", fix=fix) from error
    with TemporaryDirectory(prefix="sleepc-compile-") as scratch, _working_in(scratch), _quiet():
        path = Path(scratch) / "code.pt2"
        try:
            torch._inductor.aoti_compile_and_package(traced, package_path=str(path), inductor_configs={**settings})
        except Exception as error:  # of the compiler, whatever it cannot do
            raise _refused(name, error) from error
        return path.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it torch may use what it calls deprecated itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextmanager
def _working_in(folder: str) -> Iterator[None]:
    """Within it inductor keeps what it writes in `folder`."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
        if before is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def _not_there() -> SleepcError:
    return SleepcError("it is not in the cache", where="--compile", fix="--compile makes it, once for this machine.")


def _refused(name: str, error: Exception) -> SleepcError:
    return SleepcError(f"{name} cannot be compiled: {_first_line(error)}", where="--compile", fix=LEAVE)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
