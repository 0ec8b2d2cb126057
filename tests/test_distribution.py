"""What is uploaded: metadata that is true, a README that an index can show, and an sdist that has all or nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> tarfile.TarFile:
    """Of the files that git lists, made offline by the build backend itself."""
    pytest.importorskip("setuptools.build_meta")
    listed = subprocess.run(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("sdist") / "sleepc"
    for name in filter(None, listed.stdout.split("\0")):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name, follow_symlinks=False)
    code = "from setuptools.build_meta import build_sdist; import sys; print(build_sdist(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(copy.parent)], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return tarfile.open(copy.parent / done.stdout.splitlines()[-1])


def test_it_has_what_a_checkout_has(sdist: tarfile.TarFile) -> None:
    names = {name.partition("/")[2] for name in sdist.getnames()}
    for folder in ("tests", "docs", "examples", "benchmarks", "passes", "backends"):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix in (".py", ".md", ".svg", ".json")]
        assert files
        missing = {str(p.relative_to(ROOT)) for p in files} - names
        assert not missing, sorted(missing)[:5]
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "mkdocs.yml"} <= names
    assert {"sleepc/passes/pipeline.py", "sleepc/backends/onnx/cuda_kernels.json", "sleepc/py.typed"} <= names


def test_metadata_is_complete_and_nothing_is_invented(sdist: tarfile.TarFile) -> None:
    (name,) = (n for n in sdist.getnames() if n.count("/") == 1 and n.endswith("/PKG-INFO"))
    file = sdist.extractfile(name)
    assert file is not None
    facts = message_from_bytes(file.read())
    assert facts["Summary"]
    assert facts["Keywords"]
    assert facts["Requires-Python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in facts.get_all("Classifier", [])
    assert not {"Author", "Author-email", "Home-page", "Project-URL", "Maintainer"} & set(facts.keys())
    text = str(facts.get_payload())
    assert facts["Description-Content-Type"] == "text/markdown"
    assert "wake and sleep" in text
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", text), "an index has no files of the repository"
