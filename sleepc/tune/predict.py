"""How long steps would take on a device that is not here: a roofline over the operators of the program's graphs.

An operator takes what its operations or its bytes take, whichever is more, at the peaks of the device's profile, and
a launch. No kernel reaches both peaks, and caches are not looked at. All of it is `predicted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sleepc.backends.contract import TrainingBackend
from sleepc.backends.table import BACKENDS, TARGETS, find_backend, find_target, find_trainer
from sleepc.errors import SleepcError
from sleepc.ir.program import ProgramGraphs
from sleepc.ir.types import DTYPE_NAMES
from sleepc.tune.profile import Profile
from sleepc.tune.record import Figures
from sleepc.tune.space import Candidate
from sleepc.tune.work import Op, count


def candidates_for(profile: Profile) -> list[Candidate]:
    """What can be predicted on a device: every backend of PyTorch's that runs on its kind, and exports that would."""
    backends = [Candidate(runner=name) for name in BACKENDS if _runs_on(name, profile)]
    return backends + [
        Candidate(runner=name, options=dict(options))
        for name in TARGETS
        for options, _ in find_target(name).predicted(profile.runtime)
    ]


def _runs_on(name: str, profile: Profile) -> bool:
    backend = find_backend(name)
    return isinstance(backend, TrainingBackend) and profile.kind in backend.devices


def _counted_as(candidate: Candidate, profile: Profile) -> tuple[TrainingBackend, float | None]:
    """The backend whose operators stand for a candidate's, and the bits of its weights if it has its own."""
    if candidate.runner in BACKENDS:
        backend = find_backend(candidate.runner)
        assert isinstance(backend, TrainingBackend)
        return backend, None
    known = find_target(candidate.runner).predicted(profile.runtime)
    return find_trainer(), next(bits for options, bits in known if dict(options) == candidate.options)


@dataclass(frozen=True)
class Prediction:
    """Figures, none of them measured, and what they rest on: a line for each step, one for each compiled kernel.
    `rounded`: weights have fewer bits than a float32, which computes something else.
    """

    figures: Figures
    notes: tuple[str, ...]
    rounded: bool = False


def predict(program: ProgramGraphs, candidate: Candidate, profile: Profile) -> Prediction:
    """What a candidate of `candidates_for` takes for one row; a call is of a window's tokens.

    Raises SleepcError if the device has no room for weights and state, or if a kernel does not start there.
    """
    backend, bits = _counted_as(candidate, profile)
    work = count(program, backend, program.window, bits=bits)
    if work.memory > profile.memory.value:
        what = f"weights and state have {work.memory / 1e9:.1f} GB, and {profile.name} {profile.memory.value / 1e9:.0f}"
        raise SleepcError(what, where="memory", fix="Choose another device, or a smaller dtype.")
    takes = {"a token": work.decode, f"a call of {work.call} tokens": work.read, "a sleep": work.sleep}
    notes = [f"{what}: {_in_words(ops, profile)}" for what, ops in takes.items()]
    if bits is not None:
        notes.append(f"operators are those of PyTorch, with weights of {bits:g} bits; an export has fewer operators")
    elif profile.target and profile.shared is not None:
        notes += backend.taken_on(program, profile.target, int(profile.shared.value))
    decode, read, pause = (1e3 * seconds(ops, profile) for ops in takes.values())
    figures = Figures(
        decode_ms=decode,
        decode_p99_ms=decode,
        read_ms=read / work.call,
        pause_ms=pause,
        pause_p99_ms=pause,
        memory=work.memory,
        predicted=True,
    )
    return Prediction(figures, tuple(notes), rounded=bits is not None and bits < 32)


def seconds(ops: Sequence[Op], profile: Profile) -> float:
    """What operators take on a device, one after the other."""
    host, device = parts(ops, profile)
    return host + device if profile.waits else max(host, device)


def parts(ops: Sequence[Op], profile: Profile) -> tuple[float, float]:
    """Seconds of the host, which launches operators, and of the device, which runs them."""
    bandwidth = profile.bandwidth.value
    device = sum(max(op.flops / profile.flops_in(DTYPE_NAMES.get(op.dtype, "")), op.bytes / bandwidth) for op in ops)
    return len(ops) * profile.launch.value, device


def _in_words(ops: Sequence[Op], profile: Profile) -> str:
    host, device = parts(ops, profile)
    return (
        f"{len(ops)} operators, {sum(op.bytes for op in ops) / 1e6:.0f} MB, {sum(op.flops for op in ops) / 1e9:.1f} "
        f"Gflop: {1e3 * host:.2f} ms to launch, {1e3 * device:.2f} ms to run"
    )
