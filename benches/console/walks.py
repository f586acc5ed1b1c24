"""What Chat looks like after random walks over the other pages: `python -m benches.console.walks [--walks 400]`.

Each walk loads the page anew at a random page, visits some more, and ends in Chat, whose computed styles (all
properties of all elements) are compared with those of a first visit. Half the walks are dark, half of each on a phone.
Prints each walk that changed Chat, then one JSON line; exit 1 where one did. Path: walks.py -> Walker.walk -> Chromium
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.console.conftest import CHROMIUM, SCRIPTS, Served
from tests.console.scripted import write_scripted
from tests.console.talking import Talker
from tests.console.walking import STEPS, Walker

LOOKS = [(look, width) for look in ("light", "dark") for width in (1200, 390)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--walks", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        model = write_scripted(Path(folder) / "scripted.gguf", SCRIPTS)
        (home := Path(folder) / "home").mkdir()
        (home / "config.toml").write_text("adopt = false\n")
        server = Served(home, (str(model),))
        server.start()
        try:
            browser = started.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            changed = sum(
                walks(browser, server.url, look, given.walks // len(LOOKS), random.Random(given.seed + i))
                for i, look in enumerate(LOOKS)
            )
        finally:
            server.stop(signal.SIGKILL)
    print(json.dumps({"walks": given.walks // len(LOOKS) * len(LOOKS), "steps": STEPS, "changed": changed}))
    return bool(changed)


def walks(browser, url: str, look: tuple[str, int], count: int, dice: random.Random) -> int:
    """Walk `count` times in one look of the page; return how many walks changed Chat."""
    scheme, width = look
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    talker = Talker(url)
    chat = talker.chat("scripted")
    talker.follow(talker.run(chat, "a table")["run"])
    walker, changed = Walker(context.new_page(), url, chat, dice), 0
    for _ in range(count):
        names, changes = walker.walk()
        if changes:
            changed += 1
            print(f"{scheme} {width}: {' '.join(names)}: {changes[:3]}", flush=True)
    context.close()
    talker.http.close()
    return changed


if __name__ == "__main__":
    raise SystemExit(main())
