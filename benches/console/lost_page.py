"""What a person at the page loses at random moments of a stream: `python -m benches.console.lost_page [--rounds 30]`.

Each round begins an answer in Chromium, writes a draft, and at a random moment: reloads three times; closes the tab;
takes the network away for 20 s; kills the engine or the server (-9); terminates the server; fills the disk (as root, on
a small file system for the chats); or has a second tab and the terminal write into the same chat. Then text, messages
and draft are compared, and the seconds until the page says what happened (2 allowed). Exit 1 where a round is not good.
Ends in one JSON line. Path: lost_page.py -> Served, Chromium
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.console.serving import engine_of
from freehold.serve.chats.folder import ChatFolder
from tests.console.conftest import CHROMIUM, Served
from tests.console.scripted import write_scripted

LINES = 700
TEXT = "".join(f"Line {i}: {i * 7919 % 10007} and {i * 104729 % 1000003}.\n\n" for i in range(LINES))
SCRIPTS = {"hello": "Hello! What shall I say?", "long": TEXT}
SAID_S = 2.0
AWAY_S = 20.0
DRAFT = "a draft that must stay"
WAIT_MS = 60_000
_IN_ANSWERS = (  # the numbers of lines that are shown, in order
    "[...document.querySelectorAll('article:not(.user) .said')].flatMap(e => "
    r"[...e.textContent.matchAll(/Line (\d+): /g)].map(m => +m[1]))"
)
SHOWN = f"Math.max(-1, ...{_IN_ANSWERS})"
LISTED = f"{_IN_ANSWERS}.join()"


class Moments:
    """A server, a browser, and the answers that are disturbed in it."""

    def __init__(self, server: Served, dice: random.Random) -> None:
        self.server, self.dice = server, dice
        self.said: dict[str, list[float]] = {}
        self.why = ""

    def begin(self, context: Any) -> Any:
        """Ask for the long answer, wait for a random line of it, and write a draft."""
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(self.server.url)
        page.get_by_role("button", name=re.compile("^Model: scripted")).wait_for()
        self.send(page, "something long")
        page.get_by_text("Line 0:").first.wait_for()
        self.box(page).fill(DRAFT)
        page.wait_for_function(f"(least) => {SHOWN} >= least", arg=self.dice.randrange(1, LINES // 2))
        return page

    def box(self, page: Any) -> Any:
        return page.get_by_role("textbox", name="Message", exact=True)

    def send(self, page: Any, text: str) -> None:
        self.box(page).fill(text)
        page.get_by_role("button", name="Send", exact=True).click()

    def hears(self, kind: str, page: Any, words: str) -> None:
        """Time until the page says what happened."""
        began = time.monotonic()
        page.get_by_text(words).first.wait_for()
        self.said.setdefault(kind, []).append(time.monotonic() - began)

    def ends(self, page: Any, state: str = "whole", messages: int = 2) -> bool:
        """Wait for the answer's end; compare the page and the file with what was sent and said."""
        page.get_by_role("button", name="Send", exact=True).wait_for()
        page.locator("article:not(.user):not([aria-busy])").first.wait_for()
        all = self.saved(page)
        asked = [m for m in all if m.content == "something long"]
        made = [m for m in all if m.parent == asked[0].id and m.role == "assistant"]
        text = made[0].content if made else ""
        wanted = len(re.findall(r"Line \d+: ", text))
        try:  # it reads the chat again after a server's return
            page.wait_for_function(f"(wanted) => {LISTED} === wanted", arg=",".join(map(str, range(wanted))))
            same = True
        except Exception:
            same = False
        facts = {
            "messages": len(all) == messages and len(asked) == len(made) == 1,
            "state": bool(made) and made[0].state in (state, "whole"),
            "file": text == TEXT or (state == "lost" and TEXT.startswith(text)),
            "page": same,
            "draft": self.box(page).input_value() == DRAFT,
        }
        wrong = [name for name, good in facts.items() if not good]
        if wrong:
            self.why = (
                f"{wrong}: {len(all)} messages, state {made and made[0].state}, {wanted} lines in the file"
            )
        return not wrong

    def reload(self, context: Any) -> bool:
        page = self.begin(context)
        for _ in range(3):
            page.reload()
            page.locator("article:not(.user)").first.wait_for()
            page.wait_for_timeout(self.dice.randrange(400))
        return self.ends(page)

    def closed(self, context: Any) -> bool:
        page = self.begin(context)
        url = page.url
        page.close()
        time.sleep(self.dice.random() * 2)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(url)
        page.locator("article:not(.user)").first.wait_for()
        return self.ends(page)

    def offline(self, context: Any) -> bool:
        page = self.begin(context)
        context.set_offline(True)
        self.hears("offline", page, "The server does not answer.")
        page.wait_for_timeout(AWAY_S * 1000)
        context.set_offline(False)
        page.get_by_text("The server does not answer.").wait_for(state="detached")
        return self.ends(page)

    def engine(self, context: Any) -> bool:
        page = self.begin(context)
        engine_of(self.server).kill()
        self.hears("engine", page, "The engine is being started again")
        return self.ends(page)

    def killed(self, context: Any) -> bool:
        page = self.begin(context)
        self.server.stop(signal.SIGKILL)
        self.hears("killed", page, "The server does not answer.")
        self.server.again()
        page.get_by_text("The server ended while it wrote this answer.").wait_for()
        return self.ends(page, "lost")

    def terminated(self, context: Any) -> bool:
        page = self.begin(context)
        self.server.stop(signal.SIGTERM)
        self.hears("terminated", page, "The server does not answer.")
        self.server.again()
        page.get_by_text("The server does not answer.").wait_for(state="detached")
        return self.ends(page)

    def full(self, context: Any) -> bool:
        page = self.begin(context)
        filler = self.server.home / "sessions" / "filler"
        with filler.open("wb", 0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            if not self.unsaved(page):  # what was left of the answer found room
                filler.unlink()
                return self.full(context)
        finally:
            filler.unlink(missing_ok=True)
        page.get_by_text("The answer is saved again.").wait_for()
        return self.ends(page)

    def unsaved(self, page: Any) -> bool:
        """Time until the page says that the disk is full; False if the answer ends and is saved all the same."""
        began = time.monotonic()
        while time.monotonic() - began < WAIT_MS / 1000:
            if page.get_by_text("the disk is full").count():
                self.said.setdefault("full", []).append(time.monotonic() - began)
                return True
            if self.saved(page)[1].state == "whole":
                return False
            page.wait_for_timeout(20)
        raise TimeoutError("neither saved nor said not to be")

    def saved(self, page: Any) -> list[Any]:
        """The messages of the chat that is open, as its file has them."""
        id = page.url.rpartition("/")[2].split("?")[0]
        return list(ChatFolder.of(self.server.home).read(id).messages.values())

    def writers(self, context: Any) -> bool:
        """A second tab asks under the answer that is being written, and the terminal continues the chat."""
        page = self.begin(context)
        other = context.new_page()
        other.set_default_timeout(WAIT_MS)
        other.goto(page.url)
        good = self.ends(page)
        self.send(other, "hello tab")
        code = "from freehold.cli.main import main; main()"
        env = {**os.environ, "FREEHOLD_HOME": str(self.server.home)}
        command = [sys.executable, "-c", code, "run", "scripted", "hello terminal", "--continue"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        texts = [m.content for m in self.saved(page)]
        counts = [texts.count("hello tab"), texts.count("hello terminal"), texts.count(TEXT)]
        if done.returncode or counts != [1, 1, 1]:
            self.why = f"{counts} {done.stderr[-200:]}"
        return good and not done.returncode and counts == [1, 1, 1]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 8 MB at `folder`, which root alone can make."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def tried(moments: Moments, kind: str, context: Any) -> bool:
    """One round; what goes wrong on the way counts as lost, and is said."""
    moments.why = ""
    try:
        good = getattr(moments, kind)(context)
    except Exception as e:
        good, moments.why = False, f"{type(e).__name__}: {str(e)[:300]}"
    if not good:
        print(f"{kind}: {moments.why}", file=sys.stderr)
    return good


KINDS = ["reload", "closed", "engine", "killed", "terminated", "full", "writers", "offline"]


def main() -> int:
    """Disturb `rounds` answers of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=KINDS)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    good: dict[str, int] = {}
    heard: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="freehold-lost-") as folder, sync_playwright() as started:
        model = write_scripted(Path(folder) / "scripted.gguf", SCRIPTS)
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        for kind in args.only or KINDS:
            home = Path(folder) / kind
            home.mkdir()
            (home / "config.toml").write_text("adopt = false\n")
            with small_disk(home / "sessions") if kind == "full" else nullcontext():
                server = Served(home, (str(model),))
                server.start()
                moments = Moments(server, random.Random(f"{args.seed} {kind}"))
                good[kind] = 0
                for _ in range(args.rounds):
                    context = browser.new_context(viewport={"width": 1200, "height": 800})
                    good[kind] += tried(moments, kind, context)
                    context.close()
                    if server.process is None or server.process.poll() is not None:
                        server.again()
                server.stop(signal.SIGKILL)
            if words := moments.said.get(kind):
                heard[kind] = {"median": round(statistics.median(words), 2), "most": round(max(words), 2)}
            print(f"{kind:11} {good[kind]}/{args.rounds} {heard.get(kind, '')}", file=sys.stderr, flush=True)
    result = {
        "bench": "console/lost_page",
        "rounds": args.rounds,
        "nothing_lost": good,
        "said_s": heard,
        "ceiling_s": SAID_S,
    }
    print(json.dumps(result))
    late = [each for each in heard.values() if each["most"] > SAID_S]
    return int(bool(late) or any(count != args.rounds for count in good.values()))


if __name__ == "__main__":
    sys.exit(main())
