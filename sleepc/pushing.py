"""An artifact or an export onto the Hugging Face hub, by huggingface-hub. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sleepc.backends.table import exporter_of
from sleepc.errors import SleepcError, UsageError
from sleepc.held_file import refuse_links_out
from sleepc.hf.papers import CARD, Card, card_text
from sleepc.manifest import MANIFEST, read_manifest
from sleepc.progress import Progress, silent
from sleepc.version import __version__


@dataclass(frozen=True)
class Upload:
    """What goes to `repo`: files by their paths there, and those that are `made` for it."""

    repo: str
    files: Mapping[str, Path]
    made: Mapping[str, bytes] = field(default_factory=dict)

    def sizes(self) -> dict[str, int]:
        """Bytes by path."""
        found = {name: path.stat().st_size for name, path in self.files.items()}
        return dict(sorted({**found, **{name: len(data) for name, data in self.made.items()}}.items()))


def plan_upload(folder: Path, repo: str) -> Upload:
    """Every file of an artifact or an export but hidden ones, with a model card if it has none; nothing is sent.

    Raises UsageError for a folder that is neither, an artifact that refers to weights outside it, and a name that the
    hub does not take; SleepcError for a damaged artifact, and for a link that leads out of the folder.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # imported there, and public

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        what = f"{repo!r} is no name of a repository: {str(error).strip().splitlines()[0]}"
        raise UsageError(what, where="REPO", fix="Give OWNER/NAME.") from error
    ours = (folder / MANIFEST).is_file()
    if not ours and exporter_of(folder) is None:
        raise UsageError(f"{folder} is neither an artifact nor an export", fix="`sleepc export` makes an export.")
    refuse_links_out(folder, "folder", "Nothing outside of it is sent: remove the link, or put a copy there.")
    made = {}
    if ours:
        manifest = read_manifest(folder)
        outside = [entry.path for entry in manifest.files if not entry.inside]
        if outside:
            raise UsageError(
                f"the artifact refers to weights that are elsewhere: {outside[0]}",
                where=str(folder),
                fix="Convert with --standalone, which copies them, or push an export (sleepc export --to hf).",
            )
        if not (folder / CARD).is_file():
            card = Card(manifest.source.name, "sleepc", manifest.recipe.given())
            made[CARD] = card_text(folder, card).encode()
    names = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    shown = {name.as_posix(): path for name, path in names.items() if not any(x.startswith(".") for x in name.parts)}
    return Upload(repo, shown, made)


def upload(planned: Upload, *, public: bool = False, progress: Progress = silent) -> str:
    """Make the repository if it is not there, and send the files in one commit; its address.

    Raises SleepcError with the hub's reason if it refuses, or is not reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(library_name="sleepc", library_version=__version__)
    operations = [CommitOperationAdd(name, path) for name, path in planned.files.items()]
    operations += [CommitOperationAdd(name, data) for name, data in planned.made.items()]
    progress(f"sending {len(operations)} files", None)
    try:
        api.create_repo(planned.repo, private=not public, exist_ok=True)
        made = api.create_commit(planned.repo, operations, commit_message="Upload by sleepc")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise SleepcError(
            f"the hub did not take {planned.repo}: {str(error).strip().splitlines()[0]}",
            fix="Check the name and the network, and log in with `hf auth login`.",
        ) from error
    return str(made.repo_url)
