"""Pictures of the page for the docs, of real models, each in the state that its guide describes.

`python -m benches.console.shots --home HOME --models A,B [--only chat,tool] [--out docs/pictures]`, with Chromium.
HOME holds the models, the last of which writes the conversations; nothing in it is changed: the server runs on a copy
made of hard links. The rows of the usage page are written here, from a fixed seed. Writes console-NAME.png, each below
LIMIT bytes, and ends in one JSON line. Path: shots.main -> `freehold serve` -> page -> PNG
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.console.conftest import CHROMIUM, Served
from tests.console.owner import as_owner

LIMIT = 150_000  # bytes a picture
WRITING_MS = 400_000  # for an answer of a small model on a busy machine
KEPT = ("models", "packs", "files", "machine.json", "runs.jsonl")  # what the copy of a home needs
QUESTION = (
    "Answer in three short parts. 1. A Markdown table of linear search and binary search: worst time and extra memory, "
    "as LaTeX in dollar signs. 2. The sum of the numbers from 1 to n as LaTeX in $$. 3. A Python function that returns "
    "this sum by the formula."
)  # which the 1.5b answers right
FILESERVER = Path(__file__).resolve().parents[2] / "tests" / "tools" / "fileserver.py"
GATEWAY = """[providers.openai]
kind = "openai"
key = "env:OPENAI_API_KEY"
[models.large]
provider = "openai"
model = "gpt-x"
price = { input = 2.0, output = 10.0 }
[models.small]
provider = "openai"
model = "gpt-x-mini"
price = { input = 0.2, output = 1.0 }
[models.coder]
local = "qwen2.5-coder:1.5b"
[routes.chat]
targets = ["coder", "small", "large"]
"""
_CHAT = """async settings => {
    const headers = {"content-type": "application/json"};
    const post = (path, body) => fetch(path, {method: "POST", headers, body: JSON.stringify(body)}).then(r => r.json());
    const {content, model, ...rest} = settings;
    const chat = await post("/console/api/chats", {model, settings: rest});
    if (content) await post(`/console/api/chats/${chat.id}/runs`, {parent: null, message: {content}});
    return chat.id;
}"""
_TO_TOP = "found => found.scrollIntoView({block: 'start'})"


@dataclass(frozen=True)
class Scene:
    """A server with its models, the last of which writes; and the page in front of it."""

    server: Served
    models: tuple[str, ...]
    page: Any

    def go(self, place: str) -> None:
        self.page.goto(f"{self.server.url}/#/{place}")

    def chat(self, **settings: Any) -> str:
        """Make a chat of the last model, with the same answers each time; with `content` it is answered at once."""
        given = {"model": self.models[-1], "sampling": {"temperature": 0, "seed": 7}, **settings}
        return self.page.evaluate(_CHAT, given)

    def ask(self, text: str, button: str = "Send") -> None:
        """Write a message and send it."""
        self.page.get_by_role("textbox", name="Message", exact=True).fill(text)
        self.page.get_by_role("button", name=button, exact=True).click()

    def answered(self) -> None:
        """Wait until an answer is whole."""
        self.page.locator("article:not(.user):not([aria-busy])").last.wait_for(timeout=WRITING_MS)


def chat(scene: Scene) -> None:
    """A conversation with a table, a formula and code, from the answer's begin."""
    scene.go(f"chat/{scene.chat(max_tokens=400)}")
    scene.ask(QUESTION)
    scene.answered()
    scene.page.locator("article").last.evaluate(_TO_TOP)


def phone(scene: Scene) -> None:
    """A short conversation."""
    scene.go(f"chat/{scene.chat(max_tokens=200)}")
    scene.ask("Show a Python loop over the lines of a file. Be short.")
    scene.answered()


def receipt(scene: Scene) -> None:
    """The same, computed again."""
    scene.go(f"chat/{scene.chat(max_tokens=400)}")
    scene.ask("What is the difference between a list and a tuple in Python? Two sentences.")
    scene.answered()
    scene.page.get_by_role("button", name="Receipt", exact=True).click()
    scene.page.get_by_role("button", name="Same bits again").click()
    scene.page.get_by_text("Equal: all").wait_for(timeout=WRITING_MS)
    scene.page.mouse.move(0, 0)


def tool(scene: Scene) -> None:
    """A model wants to read a file."""
    scene.go(f"chat/{scene.chat(tools=['files'])}")
    scene.ask("When is the meeting? Look into notes.txt.")
    scene.page.get_by_role("alertdialog").wait_for(timeout=WRITING_MS)


def models(scene: Scene) -> None:
    """The catalogue, with what fits."""
    scene.go("models?tab=catalogue")
    scene.page.locator("table.table tbody tr").first.wait_for(timeout=120_000)
    scene.page.get_by_role("searchbox", name="Search models").fill("qwen")
    scene.page.mouse.move(0, 0)


def engine(scene: Scene) -> None:
    """The engine while it writes six stories."""
    for keeper in ("lighthouse", "goal", "book", "zoo", "bee", "gate"):
        scene.chat(content=f"Tell a long story about a {keeper} keeper.", sampling={}, max_tokens=2000)
    scene.go("engine")
    scene.page.locator(".plot canvas").first.wait_for(timeout=30_000)
    scene.page.wait_for_timeout(15_000)  # for curves that can be seen
    scene.page.get_by_role("region", name=scene.models[-1]).evaluate(_TO_TOP)


def compare(scene: Scene) -> None:
    """Two models with one question."""
    scene.go("compare")
    scene.page.get_by_role("textbox", name="Message").wait_for()
    scene.ask("What is the capital of France? Answer in one sentence.", "Compare")
    scene.page.locator(".verdict").first.wait_for(timeout=WRITING_MS)


def usage(scene: Scene) -> None:
    """A month of the ledger."""
    scene.go("usage")
    scene.page.locator(".tile").first.wait_for(timeout=60_000)


@dataclass(frozen=True)
class Shot:
    """A picture: the state of the page, and how it is looked at."""

    state: Callable[[Scene], None]
    width: int = 1280
    height: int = 760
    scheme: str = "light"


SHOTS = {
    "chat": Shot(chat, height=900),
    "dark": Shot(receipt, scheme="dark"),
    "compare": Shot(compare),
    "models": Shot(models),
    "usage": Shot(usage, height=900),
    "tool": Shot(tool),
    "phone": Shot(phone, width=390, height=844),
    "engine": Shot(engine, height=900),  # last: what it asks for is written to its end
}


def copied(home: Path, to: Path) -> Path:
    """Copy a home's models by hard links, and add a server of tools and a month of a ledger."""
    for name in KEPT:
        if (home / name).is_dir():
            shutil.copytree(home / name, to / name, copy_function=os.link)
        elif (home / name).exists():
            shutil.copy(home / name, to / name)
    (to / "notes").mkdir()
    (to / "notes" / "notes.txt").write_text("The meeting is on Thursday at ten.\n")
    command = json.dumps([sys.executable, str(FILESERVER), str(to / "notes")])
    (to / "gateway.toml").write_text(GATEWAY)
    (to / "config.toml").write_text(
        f'adopt = false\ngateway = "{to / "gateway.toml"}"\n'
        f'[company]\npurpose = "commercial"\n[mcp.files]\ncommand = {command}\n'
    )
    asyncio.run(_book(to / "ledger.sqlite"))
    return to


async def _book(path: Path) -> None:
    """Write a month of requests of a household: most answered by its own machine, the rest rented."""
    from freehold.base.types import Usage
    from freehold.route.router.ledger.rows import LedgerRow
    from freehold.route.router.ledger.store import Ledger
    from tests.router.ledger.rows import row

    drawn, now, book = random.Random(22), time.time(), Ledger.open(path)
    for day in range(30):
        for _ in range(drawn.randint(8, 30)):
            name, place, cost = drawn.choice(
                [("coder", "house", (0, 0))] * 5
                + [("small", "openai", (200, 1000)), ("large", "openai", (2000, 10_000))]
            )
            asked, said = drawn.randint(200, 6000), drawn.randint(40, 900)
            whole: LedgerRow = row(
                at=now - 86400 * day - drawn.uniform(0, 80_000),
                target=name,
                place=place,
                owned=place == "house",
                left_house=place != "house",
                key=drawn.choice(("ann", "ben", "carla")),
                nano=asked * cost[0] + said * cost[1],
                usage=Usage(asked, said, asked // drawn.randint(2, 9)),
                first_s=drawn.uniform(0.1, 0.6),
                whole_s=drawn.uniform(1, 12),
                attempts=(),
                candidates=(),
                labels=(),
                task="",
            )
            await book.book(whole)
    await book.close()


def taken(browser: Any, server: Served, models: tuple[str, ...], name: str, out: Path) -> int:
    """Take one picture; return its bytes."""
    shot = SHOTS[name]
    context = browser.new_context(
        viewport={"width": shot.width, "height": shot.height},
        color_scheme=shot.scheme,
        reduced_motion="reduce",
    )
    page = context.new_page()
    as_owner(server, page)
    page.wait_for_load_state("networkidle")
    shot.state(Scene(server, models, page))
    page.wait_for_timeout(700)
    path = out / f"console-{name}.png"
    page.screenshot(path=path)
    context.close()
    return quantised(path)


def quantised(path: Path) -> int:
    """Keep 256 colours of a picture, which a page of few colours does not miss; return its bytes."""
    from PIL import Image

    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path.stat().st_size


def main() -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--models", required=True, help="names, comma between them")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--only", default=",".join(SHOTS))
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    args.out.mkdir(parents=True, exist_ok=True)
    held, sizes = tuple(args.models.split(",")), dict[str, int]()
    os.environ["OPENAI_API_KEY"] = "none"  # named by GATEWAY, never used
    with tempfile.TemporaryDirectory(dir=args.home.parent) as folder:
        server = Served(copied(args.home, Path(folder)), held)
        server.start()  # before Playwright, whose loop runs in this thread
        try:
            with sync_playwright() as started:
                browser = started.chromium.launch(
                    executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
                )
                for name in args.only.split(","):
                    sizes[name] = taken(browser, server, held, name, args.out)
                    print(f"{name}: {sizes[name]:,} bytes of {LIMIT:,}", file=sys.stderr, flush=True)
                browser.close()
        finally:
            server.stop(signal.SIGTERM)
    print(json.dumps({"bench": "shots", "limit": LIMIT, "bytes": sizes}))
    return int(any(size > LIMIT for size in sizes.values()))


if __name__ == "__main__":
    sys.exit(main())
