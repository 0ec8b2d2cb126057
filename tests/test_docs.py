"""Pages that code and other pages name are there, with the sections and items that are named."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("sleepc", "passes", "backends", "benchmarks", "examples", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
CODE = sorted({path.resolve() for room in ROOMS for path in (ROOT / room).rglob("*.py")} - {Path(__file__).resolve()})
# Files of other projects, which code here reads or warns of.
OF_OTHERS = {"NOTICE.md", "README.upstream.md", "README.original.md"}

PAGE = re.compile(r"(?<![\w./<-])((?:[\w-]+/)*[\w.-]+\.md)\b")
DECISION = re.compile(r"\bdecisions?[ /](\d+)\b")
# semantics.md, sections 3 to 5 · semantics.md, section 2 and 4 · conversion.md 2 C · conversion.md 3.4, items 52 and 54
PLACE = re.compile(
    r"(semantics|conversion)\.md(?:\)?,? (?:sections? )?(\d(?:\.\d)?(?: [A-D]\b)?)(?: (?:to|and) (\d))?"
    r"(?:, items? (\d+)(?: and (\d+))?)?)?"
)


def unbroken(path: Path) -> str:
    """The text with lines that were wrapped put together."""
    return re.sub(r"\n\s*(?:# ?)?", " ", path.read_text(encoding="utf-8"))


def missing(path: Path) -> Iterator[str]:
    """Pages, sections and decisions that a file names and that are not there."""
    text = unbroken(path)
    for name in PAGE.findall(text):
        places = (path.parent, ROOT, ROOT / "docs", ROOT / "benchmarks")
        if Path(name).name not in OF_OTHERS and not any((place / name).is_file() for place in places):
            yield name
    for number in DECISION.findall(text):
        if not list(ROOT.glob(f"docs/decisions/{int(number):04}-*.md")):
            yield f"decision {number}"
    for page, section, upto, *items in PLACE.findall(text):
        contents = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        wanted = [headed(part) for part in (section, upto) if part] + [rf"^{item}\. " for item in items if item]
        yield from (f"{page}.md: {each}" for each in wanted if not re.search(each, contents, re.MULTILINE))


def headed(section: str) -> str:
    """The line that begins a section: "2" and "3.4" are headings, "2 C" a paragraph below the heading of 2."""
    number, _, letter = section.partition(" ")
    found = rf"^##+ {re.escape(number)}\.? "
    return found if not letter else rf"{found}(?:(?!^## )[\s\S])*?^\*\*{letter}\. "


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_name_what_is_there(path: Path) -> None:
    assert not list(missing(path))


def test_code_names_pages_that_are_there() -> None:
    found = {str(path.relative_to(ROOT)): list(missing(path)) for path in CODE if "tests" not in path.parts}
    assert not {name: names for name, names in found.items() if names}


def test_tests_name_sections_that_are_there() -> None:
    """Tests also name pages that they make."""
    tests = [path for path in CODE if "tests" in path.parts]
    assert not [each for path in tests for each in missing(path) if re.match("semantics|conversion|decision", each)]


def test_what_is_not_there_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "See gone.md and docs/ir.md (semantics.md,\n  section 9; semantics.md, sections 3 to 8; conversion.md 2 C and\n"
        "conversion.md 1 C), conversion.md 3.4, items 52 and 99, decisions/0777, decision 11."
    )
    assert len(list(missing(page))) == 6


DECISIONS = sorted(ROOT.glob("docs/decisions/0*.md"))


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_decisions_have_one_form_and_are_listed(page: Path) -> None:
    number, text = page.name[:4], page.read_text(encoding="utf-8")
    headed = re.match(rf"# {number}: (\S.*)\n\n(\d{{4}}-\d\d-\d\d) · (?:proposed|accepted|superseded)\b.*\n\n\S", text)
    assert headed, f"begins otherwise than docs/decisions/README.md says: {text[:100]!r}"
    listed = (page.parent / "README.md").read_text(encoding="utf-8")
    assert f"| [{number}]({page.name}) | {headed[1]} ({headed[2]}) |" in listed


def test_decisions_have_a_number_each() -> None:
    assert [page.name[:4] for page in DECISIONS] == [f"{n:04}" for n in range(1, len(DECISIONS) + 1)]


def test_the_log_is_in_order_of_dates() -> None:
    dates = re.findall(r"^## (\d{4}-\d\d-\d\d): ", (ROOT / "docs" / "log.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert dates == sorted(dates, reverse=True)
    assert len(dates) == (ROOT / "docs" / "log.md").read_text(encoding="utf-8").count("\n## ")


def pages_of(nav: list[Any]) -> Iterator[str]:
    """Every page of mkdocs' navigation."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for below in entry.values():
                yield from pages_of(below if isinstance(below, list) else [below])


def test_the_site_shows_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = [str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/**/*.md") if page not in DECISIONS]
    assert sorted(pages_of(nav)) == sorted([*pages, "index.md", "benchmarks.md"])  # docs/site_hooks.py makes these


def test_the_site_documents_what_there_is() -> None:
    """`::: a.b.C` names a module's attribute, with a docstring."""
    for name in re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute).__doc__, name


def test_the_pass_that_is_written_prints_what_stands_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "writing-a-pass.md").read_text(encoding="utf-8")
    script = tmp_path / "written.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    runpy.run_path(str(script), run_name="__main__")
    (printed,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert capsys.readouterr().out.strip() == printed.strip()
