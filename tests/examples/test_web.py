"""The page answers what `sleepc run` answers, over sleeps, with a state that stays as large as it is."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

import sleepc as package
from examples.web.serve import serve
from sleepc.backends.onnx.call import Style
from sleepc.hf.tokenizer import copy_tokenizer
from sleepc.verify.memory_values import shaken
from tests.backends.onnx.exports import lower
from tests.cli.models import run_here, save_model
from tests.families import VOCAB

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "examples" / "web"
PROMPT = " ".join(f"w{i * 7 % 61}" for i in range(21))
COUNT, WINDOW = 12, 8
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture(scope="module")
def modules() -> Path:
    """The page's packages, installed once."""
    folder = ROOT / "build" / "web"
    if not shutil.which("npm") or not CHROMIUM:
        pytest.skip("npm and chromium are not both installed: apt-get install npm chromium")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = (PAGE / "package.json").read_text(encoding="utf-8")
    if not (folder / "ready").is_file() or (folder / "ready").read_text() != wanted:
        (folder / "package.json").write_text(wanted)
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock"]
        subprocess.run(npm, cwd=folder, check=True, capture_output=True)
        (folder / "ready").write_text(wanted)
    return folder / "node_modules"


@pytest.fixture(scope="module", params=["portable", "ort"])
def export(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a tiny model, with a tokenizer of a kind that both sides have."""
    model, folder = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("export")
    save_model(model)
    tokenizer = Tokenizer(WordPiece({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))
    graphs = shaken(package.convert(model, {"window": WINDOW, "sinks": 2, "passes": 3}).graphs)
    style = Style(ops=request.param, columns=request.param == "ort")
    (folder / "onnx.json").write_text(lower(graphs, folder, style).model_dump_json())
    copy_tokenizer(model, folder)
    return folder


@pytest.fixture
def address(export: Path, modules: Path) -> Iterator[str]:
    """Where the page is served."""
    server = serve(export, modules, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


def shown(address: str, profile: Path) -> dict[str, str]:
    """What the page shows at the end, by the ids of its parts."""
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=120000", "--dump-dom")
    command = [CHROMIUM, *options, f"--user-data-dir={profile}", address]
    text = subprocess.run(command, capture_output=True, text=True, timeout=240).stdout
    parts = re.findall(r'<(\w+) id="(\w+)"[^>]*>(.*?)</\1>', text, re.DOTALL)
    return {name: html.unescape(inside) for _, name, inside in parts}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sleepc.errors.SleepcWarning")  # of files without hashes
def test_the_page_says_what_sleepc_says(
    export: Path, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, wanted, said = run_here(capsys, "run", export, PROMPT, "--max-tokens", COUNT, "--backend", "onnx")
    assert code == 0, said
    found = shown(f"{address}?text&count={COUNT}&prompt={PROMPT.replace(' ', '+')}", tmp_path)
    assert found["status"] == "ready"
    words = re.sub(r'<i class="sleep">asleep</i>', "", found["said"])
    answer = re.search(r"<span>(.*?)</span>", words, re.DOTALL)
    assert answer is not None
    assert answer[1].split() == wanted.split()
    assert len(answer[1].split()) == COUNT
    read = 21 + COUNT
    assert int(found["tokens"]) == read
    assert int(found["sleeps"]) == read // WINDOW == found["said"].count("asleep")
    assert found["since"] == f"{read % WINDOW} of {WINDOW} tokens"
    assert found["state"].endswith("MB, at any length")


@pytest.mark.slow
def test_only_its_own_folders_are_served(address: str) -> None:
    from urllib.error import HTTPError
    from urllib.request import urlopen

    with urlopen(f"{address}export/onnx.json") as response:
        assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    for path in ("../../README.md", "export/../../../README.md", "export/%2e%2e/%2e%2e/README.md"):
        with pytest.raises(HTTPError, match="404"):
            urlopen(address + path)
