"""What is sent to a hub is what lies in the folder, and papers are those of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from sleepc.backends.table import find_exporter
from sleepc.errors import SleepcError, SleepcWarning, UsageError
from sleepc.hf.papers import copy_papers
from sleepc.pushing import plan_upload


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder with the mark of an export, and a file elsewhere."""
    folder = tmp_path / "export"
    (folder / "templates").mkdir(parents=True)
    (folder / find_exporter("hf").mark).write_text("{}")
    (folder / "templates" / "a.jinja").write_text("a")
    (tmp_path / "elsewhere").write_text("of somebody else")
    return folder


def test_hidden_files_stay_here(export: Path) -> None:
    (export / ".git").mkdir()
    (export / ".git" / "config").write_text("")
    (export / ".env").write_text("")
    assert set(plan_upload(export, "me/model").files) == {find_exporter("hf").mark, "templates/a.jinja"}


@pytest.mark.parametrize("name", ["config.json", "templates/b.jinja"])
def test_a_link_out_is_not_followed(export: Path, name: str) -> None:
    (export / name).symlink_to(export.parent / "elsewhere")
    with pytest.raises(SleepcError, match=f"{name} leads out of the folder"):
        plan_upload(export, "me/model")


def test_a_licence_that_is_a_link_out_is_not_copied(export: Path, tmp_path: Path) -> None:
    (export / "LICENSE").symlink_to(export.parent / "elsewhere")
    (export / "NOTICE").write_text("mine")
    (export / "README.md").symlink_to("NOTICE")
    target = tmp_path / "made"
    target.mkdir()
    with pytest.warns(SleepcWarning, match="LICENSE is a link to a file outside of"):
        copy_papers(export, target)
    assert sorted(path.name for path in target.iterdir()) == ["NOTICE", "README.original.md"]


@pytest.mark.parametrize("repo", ["", "a/b/c", "a b", "me/model.git", "me/a--b", "me/a..b", "../x", "me/model."])
def test_names_that_the_hub_does_not_take_are_refused_before_anything_is_sent(export: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="is no name of a repository"):
        plan_upload(export, repo)
