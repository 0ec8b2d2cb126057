"""Serve the page and an export on this machine: open the address that it prints.

sleepc export ARTIFACT --to onnx --ops portable
npm install --prefix examples/web
python examples/web/serve.py ARTIFACT/onnx
"""

from __future__ import annotations

import argparse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Handler(SimpleHTTPRequestHandler):
    """The page's files; the export's below /export/, and packages below /node_modules/."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def __init__(self, *arguments: Any, folders: dict[str, Path], **more: Any) -> None:
        self.folders = folders
        super().__init__(*arguments, **more)

    def translate_path(self, path: str) -> str:
        """The file of an address; parts like .. have been taken out by then."""
        inside = Path(super().translate_path(path)).relative_to(HERE)
        first, *rest = inside.parts or ("",)
        return str(self.folders[first].joinpath(*rest) if first in self.folders else HERE / inside)

    def list_directory(self, path: Any) -> None:
        """What is in a folder is nobody's business."""
        self.send_error(404)

    def end_headers(self) -> None:
        """A page that is isolated may compute in threads."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()


def serve(export: Path, modules: Path, port: int) -> ThreadingHTTPServer:
    """A server, on a port that is free if it is 0."""
    handler = partial(
        Handler, directory=str(HERE), folders={"export": export.resolve(), "node_modules": modules.resolve()}
    )
    return ThreadingHTTPServer(("127.0.0.1", port), handler)


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path, help="the folder with onnx.json")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--modules", type=Path, default=HERE / "node_modules", help="where npm has installed packages")
    options = parser.parse_args()
    for folder, what, fix in (
        (options.export / "onnx.json", "an export", "sleepc export ARTIFACT --to onnx --ops portable"),
        (options.modules / "onnxruntime-web", "the packages of package.json", f"npm install --prefix {HERE}"),
    ):
        if not folder.exists():
            parser.error(f"{folder.parent} is not {what}. {fix}")
    server = serve(options.export, options.modules, options.port)
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
