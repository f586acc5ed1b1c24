"""Pictures of the page for the docs: chat, models, engine and compare, in both schemes, of real models.

`python benches/console/shots.py --home HOME --models A,B [--out docs/pictures]`, with Chromium. HOME holds the models;
nothing in it is changed: the server runs on a copy made of hard links. Writes console-PAGE-SCHEME.png, each below
LIMIT bytes, and ends in one JSON line. Path: shots.main -> `freehold serve` -> page -> PNG
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.console.conftest import CHROMIUM, Served
from tests.console.owner import as_owner

LIMIT = 150_000  # bytes a picture
SIZE = {"width": 1200, "height": 760}
KEPT = ("models", "files", "machine.json", "runs.jsonl")  # what the copy of a home needs
QUESTION = "Write a short Python function that tells whether a number is prime. No explanation."


def copied(home: Path, to: Path) -> Path:
    """Copy a home's models by hard links."""
    for name in KEPT:
        if (home / name).is_dir():
            shutil.copytree(home / name, to / name, copy_function=os.link)
        elif (home / name).exists():
            shutil.copy(home / name, to / name)
    (to / "config.toml").write_text('adopt = false\n[company]\npurpose = "commercial"\n')
    return to


def ask(page: Any, text: str, button: str = "Send") -> None:
    """Write a message and send it once the page can."""
    page.get_by_role("textbox", name="Message").fill(text)
    page.get_by_role("button", name=button, exact=True).click()


def finished(page: Any) -> None:
    """Wait until no answer is being written."""
    page.get_by_role("button", name="Stop").wait_for(timeout=60_000)
    page.get_by_role("button", name="Stop").wait_for(state="detached", timeout=240_000)


def chat(page: Any, url: str) -> None:
    """A conversation of one question, with code."""
    page.goto(f"{url}/#/chat")
    page.locator(".picker-button", has_text=":").wait_for()
    ask(page, QUESTION)
    finished(page)


def models(page: Any, url: str) -> None:
    """The catalogue, with what fits."""
    page.goto(f"{url}/#/models?tab=catalogue")
    page.locator("table.table tbody tr").first.wait_for(timeout=120_000)
    page.get_by_role("searchbox", name="Search models").fill("qwen")
    page.mouse.move(0, 0)


def engine(page: Any, url: str) -> None:
    """The engine while it writes."""
    page.goto(f"{url}/#/chat")
    page.locator(".picker-button", has_text=":").wait_for()
    ask(page, "Tell a long story about a lighthouse keeper.")
    page.get_by_role("button", name="Stop").wait_for(timeout=60_000)
    page.goto(f"{url}/#/engine")
    page.locator(".plot canvas").first.wait_for(timeout=30_000)
    page.wait_for_timeout(12_000)  # for curves that can be seen


def compare(page: Any, url: str) -> None:
    """Two models with one question."""
    page.goto(f"{url}/#/compare")
    page.get_by_role("textbox", name="Message").wait_for()
    ask(page, "What is the capital of France? Answer with one word.", "Compare")
    page.locator(".verdict").first.wait_for(timeout=120_000)


PAGES: dict[str, Callable[[Any, str], None]] = {
    "chat": chat,
    "models": models,
    "engine": engine,
    "compare": compare,
}


def taken(browser: Any, server: Served, name: str, scheme: str, out: Path) -> int:
    """Take one picture; return its bytes."""
    context = browser.new_context(viewport=SIZE, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    as_owner(server, page)
    page.wait_for_load_state("networkidle")
    PAGES[name](page, server.url)
    page.wait_for_timeout(700)
    path = out / f"console-{name}-{scheme}.png"
    page.screenshot(path=path)
    context.close()
    return path.stat().st_size


def main() -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--models", required=True, help="names, comma between them")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--only", default=",".join(PAGES))
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    args.out.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=args.home.parent) as folder, sync_playwright() as started:
        server = Served(copied(args.home, Path(folder)), tuple(args.models.split(",")))
        server.start()
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            for name in args.only.split(","):
                for scheme in ("light", "dark"):
                    sizes[f"{name}-{scheme}"] = taken(browser, server, name, scheme, args.out)
                    print(f"{name} {scheme}: {sizes[f'{name}-{scheme}']:,} bytes of {LIMIT:,}")
        finally:
            browser.close()
            server.stop(signal.SIGTERM)
    print(json.dumps({"limit": LIMIT, "bytes": sizes}))
    return int(any(size > LIMIT for size in sizes.values()))


if __name__ == "__main__":
    sys.exit(main())
