"""What of ONNX is installed here, and what is missing, in words. Imports neither torch nor what it looks for."""

from __future__ import annotations

from sleepc.backends.packages import numbers, version_of

RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
OLDEST = (1, 25, 1)  # the first with com.microsoft::LinearAttention
SHORT_SPIN = (1, 32, 0)  # where session.intra_op.spin_duration_us was seen to work; 1.25.1 ignores it silently
EXPORTERS = ("onnx", "onnx-ir")


def missing_runtime() -> str | None:
    """Why exported programs cannot run here, with what to install; None if they can."""
    found = [name for name in RUNTIMES if version_of(name)]
    if len(found) > 1:
        return (
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites the other's files: uninstall both "
            "(pip uninstall -y onnxruntime onnxruntime-gpu), then install one"
        )
    if not found:
        return "ONNX Runtime is not installed: pip install 'sleepc[onnx]', or 'sleepc[onnx-gpu]' for CUDA"
    version = version_of(found[0]) or ""
    if numbers(version) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return f"{found[0]} {version} is older than {oldest}: pip install -U '{found[0]}>={oldest}'"
    return None


def has_short_spin() -> bool:
    """Can threads be told how long they look for work?"""
    return any(numbers(version_of(name) or "") >= SHORT_SPIN for name in RUNTIMES)


def missing_exporter() -> str | None:
    """Why programs cannot be exported and checked here, with what to install; None if they can."""
    absent = [name for name in EXPORTERS if version_of(name) is None]
    if absent:
        return f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} not installed: pip install 'sleepc[onnx]'"
    return missing_runtime()


def about() -> str:
    """The runtime's name, version and execution providers."""
    import onnxruntime

    (name,) = (name for name in RUNTIMES if version_of(name))
    return f"{name} {onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"
