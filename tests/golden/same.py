"""Do two commits compute the same, to the bit? `python -m tests.golden.same [BASE [NEW]]`, from the root of a checkout.

BASE is the last commit by default, NEW the working tree. Both convert the conformance suite's tiny models in processes
of their own, from the same weights. Compared are logits and states of two rows over several sleeps (eager, float64),
exports (files, and what ONNX Runtime computes), and what BASE has written (artifacts, exports, states) as NEW loads it.
A line a case, or one for each part of it that differs; the status is 1 if a difference is not named in meant.py.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.conformance.cases import CASES, FAMILIES
from tests.conformance.cases import RECIPES as CONFORMANCE
from tests.families import OTHERS
from tests.golden.meant import reason
from tests.golden.same_compare import Told, parts_differ

HERE = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("same_worker.py")
Case = dict[str, Any]
# Exports beside one in fp32 of each of these; random models are calmed until int4 passes the check of the export.
EXPORTED = [*((name, "parallel") for name in ("llama", "gemma2", "gpt2", "qwen3", "nanogpt", "bloom", "gpt-oss"))]
EXPORTED += [(name, recipe) for name, recipe in CASES if recipe not in ("parallel", "some-layers")]
RECIPES = {**CONFORMANCE, "keep": {"keep": {"slots": 3, "budgets": "equal"}}}
STYLES: list[tuple[str, str, dict[str, Any], float]] = [
    ("llama", "parallel", {"precision": "int4", "fast": True}, 0.3),
    ("gpt2", "insert", {"precision": "int8"}, 0.3),
    ("gemma2", "parallel", {"precision": "fp16"}, 1),
    ("llama", "recurrent-hard", {"ops": "portable"}, 1),
    ("gemma2", "replace", {"ops": "portable"}, 1),
    ("gpt2", "gated-channel", {"ops": "portable"}, 1),
    ("llama", "parallel", {"ep": "cuda", "precision": "fp16"}, 1),
    ("llama", "keep", {}, 1),
]
QUICK = (
    "llama parallel",
    "llama keep",
    "gpt2 recurrent-online",
    "gemma2 insert onnx",
    "llama parallel onnx precision=int4 fast=True",
)


def cases() -> list[Case]:
    """Every case, by name."""
    kept = [(name, "keep") for name in FAMILIES]
    eager = [*dict.fromkeys([*CASES, *((name, "parallel") for name in OTHERS), *kept])]
    found = [_case(name, recipe, None, 1) for name, recipe in eager]
    found += [_case(name, recipe, {}, 1) for name, recipe in dict.fromkeys(EXPORTED)]
    return [*found, *(_case(*style) for style in STYLES)]


def _case(family: str, recipe: str, export: Case | None, calm: float) -> Case:
    words = [family, recipe, *([] if export is None else ["onnx", *(f"{k}={v}" for k, v in export.items())])]
    case = {"name": " ".join(words), "folder": "-".join(words), "family": family, "recipe": RECIPES[recipe]}
    return {**case, "export": export, "calm": calm}


def main() -> int:
    """Run both commits over the cases; 1 if a difference was not meant, 2 if nothing was compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="HEAD", help="a commit (default: HEAD)")
    parser.add_argument("new", nargs="?", help="a commit (default: the working tree)")
    parser.add_argument("--only", metavar="PATTERN", help="cases of these names, as in 'gpt2 *'; --list has them")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--list", action="store_true", help="the names of the cases, and nothing else")
    options = parser.parse_args()
    chosen = [c for c in cases() if fnmatch(c["name"], options.only or "*")]
    chosen = [c for c in chosen if not options.quick or c["name"] in QUICK]
    if options.list:
        print(*(case["name"] for case in chosen), sep="\n")
        return 0
    if not chosen:
        print("no case has such a name", file=sys.stderr)
        return 2
    with TemporaryDirectory(prefix="sleepc-same-") as scratch:
        return compared(chosen, options.base, options.new, Path(scratch))


def compared(chosen: list[Case], base: str, new: str | None, scratch: Path) -> int:
    """Print how the two differ, case by case."""
    old, other = scratch / "base", scratch / "new"
    sources = [checkout(base, scratch / "base-source"), HERE if new is None else checkout(new, scratch / "source")]
    found: list[str] = []
    started = time.perf_counter()
    for i, name in enumerate(worker(sources[0], chosen, old, old)):
        if sys.stderr.isatty():
            print(f"\r{base}: {i + 1} of {len(chosen)}, {name}\033[K", end="\r", file=sys.stderr, flush=True)
    print(f"{base}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    by_name, commits = {case["name"]: case["folder"] for case in chosen}, between(base, new)
    for name in worker(sources[1], chosen, other, old):
        found.append(judged(name, parts_differ(old / by_name[name], other / by_name[name]), commits))
    print(f"{found.count('same')} of {len(chosen)} cases are the same", end="")
    print(f", {found.count('meant')} differ as was meant, {found.count('differs')} otherwise", end="")
    print(f"; {time.perf_counter() - started:.0f} s")
    return 1 if "differs" in found else 0


def judged(name: str, found: dict[str, Told], commits: set[str]) -> str:
    """Print what there is to say of a case; "same", "meant" or "differs"."""
    words = {"same": "", "meant": "", "differs": ""}
    for part, told in found.items():
        meant = reason(name, part, told, commits) if told.differs else None
        verdict = "meant" if meant else "differs" if told.differs else "same"
        because = f" [{meant.commit[:7]}: {meant.why}]" if meant else ""
        words[verdict] += f"\n{verdict:7}  {name}, {part}: {told.words}{because}"
    print("".join(words.values()).strip() or f"same     {name}", flush=True)
    return next((verdict for verdict in ("differs", "meant") if words[verdict]), "same")


def between(base: str, new: str | None) -> set[str]:
    """The commits that `new`, or the working tree, has and `base` has not."""
    listed = ["git", "rev-list", f"{base}..{new or 'HEAD'}"]
    return set(subprocess.run(listed, cwd=HERE, capture_output=True, text=True, check=True).stdout.split())


def checkout(commit: str, folder: Path) -> Path:
    """The files of a commit in a folder of their own."""
    packed = subprocess.run(["git", "archive", commit], cwd=HERE, capture_output=True)
    if packed.returncode:
        sys.exit(packed.stderr.decode())
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def worker(source: Path, chosen: list[Case], folder: Path, base: Path) -> Iterator[str]:
    """Let the sleepc of a checkout do all cases in a process of its own; the names of those that are done."""
    folder.mkdir()
    steady = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE", "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", str(WORKER), str(source), str(folder), str(base)],
        cwd=folder,
        env={**os.environ, **steady, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(json.dumps(chosen))
        process.stdin.close()
        known, done = {case["name"] for case in chosen}, 0
        for line in process.stdout:
            if line.rstrip("\n") in known:
                done += 1
                yield line.rstrip("\n")
    if process.returncode or done != len(chosen):
        sys.exit(f"the process of {source} ended with {process.returncode} after {done} of {len(chosen)} cases")


if __name__ == "__main__":
    sys.exit(main())
