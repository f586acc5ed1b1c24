"""The page's first load with a cold cache: until its box takes text, what is fetched before that and later.

`python benches/console/first.py [--rounds 10] [--busy 2]`, with Chromium. `--busy` processes compute meanwhile, as
many as the machine has cores. Prints each figure beside its limit, and ends in one JSON line; exit 1 where a limit is
missed. Sizes are gzip's at level 9, as a wheel's files are: the server sends them plain.
Path: first.main -> a `freehold serve` of the test's own -> the page
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freehold.serve.http.console import page as files
from tests.console.conftest import CHROMIUM, SCRIPTS, Served
from tests.console.scripted import write_scripted

ARGS = ["--no-sandbox", "--disable-dev-shm-usage"]
LIMITS = {"usable_s": 1.0, "first_js_kb": 150.0, "rich_js_kb": 250.0, "all_js_kb": 400.0, "files_kb": 600.0}
RICH = ("highlight", "math")  # beginnings of the files that math and code bring


def kilobytes(paths: list[Path]) -> float:
    """Return the size of files as gzip makes them."""
    return sum(len(gzip.compress(path.read_bytes(), 9)) for path in paths) / 1000


def load(browser: Any, url: str) -> tuple[float, set[str]]:
    """Open the page in a fresh context; return seconds until a key typed arrives, and the scripts fetched."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url, wait_until="commit")
    box = page.get_by_role("textbox", name="Message")
    box.press_sequentially("a")
    seconds = page.evaluate(
        "performance.now() / 1000"  # since the navigation began
    )
    assert box.input_value() == "a"
    context.close()
    return seconds, {each.rpartition("/")[2] for each in asked if each.endswith(".js")}


def main() -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--busy", type=int, default=0)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    scripts = sorted(files.STATIC.rglob("*.js"))
    all_files = [path for path in files.STATIC.rglob("*") if path.is_file()]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "config.toml").write_text("adopt = false\n")
        server = Served(home, (str(write_scripted(Path(folder) / "scripted.gguf", SCRIPTS)),))
        server.start()
        spin = "while True: pass"
        busy = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(args.busy)]
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            rounds = [load(browser, server.url) for _ in range(args.rounds + 1)][1:]
            browser.close()
        finally:
            for each in busy:
                each.kill()
            server.stop()
    first = rounds[0][1]
    rich = [path for path in scripts if path.name in first or path.name.startswith(RICH)]
    found = {
        "usable_s": statistics.median(seconds for seconds, _ in rounds),
        "usable_worst_s": max(seconds for seconds, _ in rounds),
        "first_js_kb": kilobytes([path for path in scripts if path.name in first]),
        "rich_js_kb": kilobytes(rich),
        "all_js_kb": kilobytes(scripts),
        "files_kb": kilobytes(all_files),
        "files_plain_kb": sum(path.stat().st_size for path in all_files) / 1000,
        "scripts": float(len(first)),
    }
    for name, value in found.items():
        limit = f"limit {LIMITS[name]:,.0f}" if name in LIMITS else ""
        print(f"{name:<16}{value:9,.2f}  {limit}".rstrip())
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))
    return int(any(found[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
