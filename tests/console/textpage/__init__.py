"""The components of text in a page of their own, under the policy of ours: bundled by Node for tests and benches.

`entry.tsx` is that page's program. Path: bundle -> serve
"""

from __future__ import annotations

import mimetypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

from freehold.serve.http.console.page import POLICY

CONSOLE = Path(__file__).parents[3] / "console"
ORIGIN = "http://127.0.0.1:9"  # nothing listens there: every request is answered by `serve`
SHELL = (
    "<!doctype html><html lang=en><head><meta charset=utf-8><title>text</title>"
    "<link rel=stylesheet href=/entry.css><script type=module src=/entry.js></script></head>"
    "<body><div id=app></div></body></html>"
)
CONFIG = """
export default {
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "out", target: "es2022", modulePreload: false, chunkSizeWarningLimit: 1000,
    rolldownOptions: {
      input: "entry.tsx",
      output: { entryFileNames: "entry.js", assetFileNames: "entry[extname]", chunkFileNames: "[name].js" },
    },
  },
};
"""


def bundle(folder: Path) -> Path | None:
    """Build the page below `folder`; return where its files are, or None where Node or its packages are missing."""
    if shutil.which("npx") is None or not (CONSOLE / "node_modules").is_dir():
        return None
    shutil.copytree(CONSOLE / "src", folder / "src")
    for name in ("package.json", "tsconfig.json"):
        shutil.copy(CONSOLE / name, folder / name)
    shutil.copy(Path(__file__).with_name("entry.tsx"), folder / "entry.tsx")
    (folder / "node_modules").symlink_to((CONSOLE / "node_modules").resolve())
    (folder / "vite.config.mjs").write_text(CONFIG)
    subprocess.run(["npx", "vite", "build", "--logLevel", "warn"], cwd=folder, check=True)
    return folder / "out"


def serve(page: Any, files: Path, policy: str = POLICY) -> None:
    """Answer the page's requests from `files`, and open it."""

    def answer(route: Any) -> None:
        name = route.request.url.removeprefix(ORIGIN).lstrip("/")
        if not name:
            route.fulfill(body=SHELL, content_type="text/html", headers={"Content-Security-Policy": policy})
        elif (files / name).is_file():
            kind = mimetypes.guess_type(name)[0] or "text/plain"
            route.fulfill(body=(files / name).read_bytes(), content_type=kind)
        else:
            route.fulfill(status=404, body="")

    page.route(f"{ORIGIN}/**", answer)
    page.goto(ORIGIN + "/")
    page.wait_for_function("() => window.show !== undefined")
