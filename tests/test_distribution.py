"""What is uploaded: metadata that is true, a README that an index can show, and an sdist that has all or nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from email import message_from_bytes
from email.message import Message
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
    code = (
        "from setuptools.build_meta import build_sdist, prepare_metadata_for_build_wheel as wheel; import sys; "
        "folder = sys.argv[1]; wheel(folder); print(build_sdist(folder))"  # it changes argv
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(copy.parent)], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return tarfile.open(copy.parent / done.stdout.splitlines()[-1])


def test_it_has_what_a_checkout_has(sdist: tarfile.TarFile) -> None:
    names = {name.partition("/")[2] for name in sdist.getnames()}
    for folder in ("tests", "docs", "examples", "benchmarks", "passes", "backends"):
        kept = (p for p in (ROOT / folder).rglob("*") if p.is_file() and "node_modules" not in p.parts)
        files = [p for p in kept if p.suffix in (".py", ".md", ".svg", ".json")]
        assert files
        missing = {str(p.relative_to(ROOT)) for p in files} - names
        assert not missing, sorted(missing)[:5]
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "mkdocs.yml"} <= names
    assert {"sleepc/passes/pipeline.py", "sleepc/backends/onnx/cuda_kernels.json", "sleepc/py.typed"} <= names


def test_metadata_is_complete_and_nothing_is_invented(sdist: tarfile.TarFile) -> None:
    facts = _facts(sdist)
    assert facts["Summary"]
    assert facts["Keywords"]
    assert facts["Requires-Python"] == ">=3.11"
    assert "Programming Language :: Python :: 3.11" in facts.get_all("Classifier", [])
    assert not {"Author", "Author-email", "Home-page", "Project-URL", "Maintainer"} & set(facts.keys())


def test_an_index_shows_all_of_the_readme(sdist: tarfile.TarFile) -> None:
    """It has no files of the repository: pictures are drawn in characters, as the wheel and the sdist say."""
    facts = _facts(sdist)
    text = str(facts.get_payload())
    wheel = next(Path(str(sdist.name)).parent.glob("*.dist-info/METADATA"))
    assert message_from_bytes(wheel.read_bytes()).get_payload() == facts.get_payload()
    assert facts["Description-Content-Type"] == "text/markdown"
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", text)
    assert "![" not in text
    assert "<img" not in text
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", (ROOT / "README.md").read_text())
    assert pictures
    for picture in pictures:
        drawing = (ROOT / picture).with_suffix(".txt").read_text()
        assert f"```text\n{drawing.rstrip()}\n```" in text
        assert max(map(len, drawing.splitlines())) <= 80, "an index has no room for more"


@pytest.mark.parametrize("picture", ["sleep", "pictures/smollm2"])
def test_a_drawing_says_what_the_picture_says(picture: str) -> None:
    """Every number of its sentences."""
    drawn = (ROOT / "docs" / f"{picture}.txt").read_text().replace(",", "")
    texts = re.findall(r">([^<]*)</text>", (ROOT / "docs" / f"{picture}.svg").read_text())
    sentences = " ".join(text for text in texts if not re.fullmatch(r"[\d\s]*", text))
    numbers = set(re.findall(r"\d[\d.]+", re.sub(r"(?<=\d)[\s\u202f](?=\d{3})", "", sentences)))
    assert not {number for number in numbers if number not in drawn}


def _facts(sdist: tarfile.TarFile) -> Message:
    (name,) = (n for n in sdist.getnames() if n.count("/") == 1 and n.endswith("/PKG-INFO"))
    file = sdist.extractfile(name)
    assert file is not None
    return message_from_bytes(file.read())
