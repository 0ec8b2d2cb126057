"""`sleepc push FOLDER REPO`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sleepc.cli.display import Display, err, out, print_json, size


def push(
    folder: Annotated[Path, typer.Argument(help="An artifact that holds its weights (--standalone), or an export.")],
    repo: Annotated[str, typer.Argument(help="A repository of the Hugging Face hub: OWNER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Make the repository public if it is a new one.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Upload an artifact or an export to the Hugging Face hub, with its model card and licence."""
    from sleepc.pushing import plan_upload, upload

    planned = plan_upload(folder, repo)
    sizes = planned.sizes()
    display = Display(err if as_json else out)
    address = None
    if not dry_run:
        with display.doing("push"):
            address = upload(planned, public=public, progress=display)
    if as_json:
        print_json({"repo": repo, "files": sizes, "address": address})
        return
    for name, count in sizes.items():
        out.print(f"{size(count):>10}  {name}", markup=False, highlight=False)
    whole = f"{len(sizes)} files, {size(sum(sizes.values()))}"
    display.leave("would send" if address is None else "sent", f"{whole} → {address or repo}")
