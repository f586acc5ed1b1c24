"""Long things in the page: a chat of 2,000 messages, a list of 10,000 chats, 20,000 pasted lines.

`python benches/console/long.py [--messages 2000] [--chats 10000] [--lines 20000]`, with Chromium. Prints each
figure beside its limit, and ends in one JSON line; exit 1 where a limit is missed. Frames are the times between two
animation frames while the log scrolls from its end to its start, one seen page in two frames; beside them the main
thread's CPU a frame, which other programs of the machine change less.
Path: long.main -> a `freehold serve` of the test's own -> the page
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import ChatChange, ChatLine
from tests.console.conftest import CHROMIUM, SCRIPTS, Served
from tests.console.scripted import write_scripted

ARGS = ["--no-sandbox", "--disable-dev-shm-usage"]
LIMITS = {
    "open_ms": 500.0,
    "frame_p95_ms": 25.0,
    "key_ms": 10.0,
    "elements": 5000.0,
    "find_oldest_ms": 1000.0,
    "list_ms": 300.0,
    "search_ms": 300.0,
    "paste_ms": 500.0,
}
ANSWER = """Point {i}: the **first** thing is `value_{i}`, then a list:

1. Read the file.
2. Count its lines, {i} of them.

```python
def step_{i}(x: int) -> int:
    return x + {i}
```

| name | value |
|---|---|
| step | {i} |

That is all there is to say about it, apart from a longer sentence that wraps once or twice on a page of usual width.
"""
SCROLL = """
async () => {
  const log = document.querySelector('[role=log]');
  const frames = [];
  let before = performance.now();
  while (log.scrollTop > 0) {
    log.scrollTop -= log.clientHeight / 2;
    const now = await new Promise(requestAnimationFrame);
    frames.push(now - before);
    before = now;
  }
  return frames;
}
"""
TYPE = """
async () => {
  const box = document.querySelector('textarea');
  const times = [];
  for (let i = 0; i < 60; i++) {
    const start = performance.now();
    box.setRangeText('a', box.value.length, box.value.length, 'end');
    box.dispatchEvent(new InputEvent('input', {bubbles: true, data: 'a', inputType: 'insertText'}));
    document.body.offsetHeight;
    times.push(performance.now() - start);
    await new Promise(requestAnimationFrame);
  }
  return times;
}
"""
PASTE = """
async (lines) => {
  const data = new DataTransfer();
  const all = Array.from({length: lines}, (_, i) => `line ${i} of a log that somebody pastes here`);
  data.setData('text/plain', all.join('\\n'));
  const box = document.querySelector('textarea');
  const start = performance.now();
  box.dispatchEvent(new ClipboardEvent('paste', {bubbles: true, cancelable: true, clipboardData: data}));
  await new Promise(requestAnimationFrame);
  await new Promise((done) => setTimeout(done));
  return performance.now() - start;
}
"""


def write_long_chat(home: Path, messages: int) -> str:
    """Write a chat of so many messages; the oldest has a word that no other has."""
    lines = []
    for i in range(messages):
        mine = i % 2 == 0
        text = f"Question {i}: what comes next?" if mine else ANSWER.format(i=i)
        lines.append(
            ChatLine(
                id=f"m{i}",
                parent=f"m{i - 1}" if i else None,
                role="user" if mine else "assistant",
                content=text + (" The oldest word is xylograph." if i == 0 else ""),
                at=time.time() - messages + i,
                model="" if mine else "scripted",
            )
        )
    lines.append(ChatLine(set=ChatChange(title="A long one", leaf=f"m{messages - 1}")))
    return ChatFolder.of(home).write("", "scripted", lines).id


def write_many_chats(home: Path, count: int) -> None:
    """Write so many short chats, a few an hour."""
    folder = ChatFolder.of(home)
    fsync, os.fsync = os.fsync, lambda _: None  # making them is not what is measured
    for i in range(count):
        at = time.time() - 1200 * i
        lines = [
            ChatLine(id="a", parent=None, role="user", content=f"Question {i} about topic {i % 97}", at=at),
            ChatLine(id="b", parent="a", role="assistant", content=f"Answer {i}.", at=at, model="scripted"),
        ]
        folder.write(f"chat-{i:05}", "scripted", lines)
    os.fsync = fsync


def milliseconds(start: float) -> float:
    """Return the time since `start`."""
    return 1000 * (time.perf_counter() - start)


def p95(values: list[float]) -> float:
    """Return the value that 95 % do not exceed."""
    return sorted(values)[int(0.95 * (len(values) - 1))]


def cpu(session: Any) -> Counter[str]:
    """Return milliseconds of the main thread's CPU, all of it and by kind."""
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    kinds = {"all": "Task", "script": "Script", "layout": "Layout", "style": "RecalcStyle"}
    return Counter({name: 1000 * metrics[f"{kind}Duration"] for name, kind in kinds.items()})


def long_chat(page: Any, url: str, chat: str) -> dict[str, float]:
    """Open the chat in a page that is already there, scroll through it, type, find its oldest message."""
    page.goto(url)
    page.get_by_role("textbox", name="Message").wait_for()
    page.get_by_role("link", name="A long one").wait_for()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    opened = page.evaluate(
        """async (id) => {
          const start = performance.now();
          location.hash = '#/chat/' + id;
          const drawn = () => [...document.querySelectorAll('[role=log] article')];
          const seen = () => drawn().some((each) => each.innerText.includes('Point'));
          while (!seen()) await new Promise(requestAnimationFrame);
          await new Promise(requestAnimationFrame);
          return performance.now() - start;
        }""",
        chat,
    )
    page.wait_for_timeout(500)
    at_end = page.evaluate("document.querySelectorAll('*').length")
    typed = page.evaluate(TYPE)
    before = cpu(session)
    frames = page.evaluate(SCROLL)
    spent = {name: ms / len(frames) for name, ms in (cpu(session) - before).items()}
    page.wait_for_timeout(300)
    first = page.get_by_text("xylograph").count()
    page.keyboard.press("End")
    page.evaluate("document.querySelector('[role=log]').scrollTop = 1e9")
    page.wait_for_timeout(300)
    start = time.perf_counter()
    page.keyboard.press("Control+f")
    page.keyboard.type("xylograph")
    page.get_by_text("1 message", exact=True).wait_for()
    page.keyboard.press("Enter")
    page.locator("[role=log]").get_by_text("xylograph").wait_for()
    found = milliseconds(start)
    elements = max(at_end, page.evaluate("document.querySelectorAll('*').length"))
    return {
        "open_ms": opened,
        "frame_p95_ms": p95(frames),
        "frames": float(len(frames)),
        **{f"frame_{name}_cpu_ms": ms for name, ms in spent.items()},
        "reached_the_first": float(first),
        "key_ms": p95(typed),
        "elements": float(elements),
        "find_oldest_ms": found,
    }


def many_chats(page: Any, url: str, search: str) -> dict[str, float]:
    """Open the list and search in it; both from the second time on, as an index is warm then."""
    out = {}
    for _ in range(2):
        page.goto("about:blank")
        page.goto(url)
        page.get_by_role("navigation", name="Chats").get_by_role("link").first.wait_for()
        listing = "performance.getEntriesByType('resource').find((e) => e.name.includes('/console/api/chats?limit='))"
        out["list_ms"] = page.evaluate(f"{listing}.responseEnd - {listing}.startTime")
    for text in ("topic", search):
        start = time.perf_counter()
        page.get_by_role("searchbox", name="Search chats").fill(text)
        page.locator(".rows.found a").first.wait_for()
        page.get_by_text(search.split()[0]).first.wait_for()
        out["search_ms"] = milliseconds(start)
        page.get_by_role("searchbox", name="Search chats").fill("")
        page.locator(".rows.found").wait_for(state="detached")
    return out


def main() -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=2000)
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--lines", type=int, default=20_000)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "config.toml").write_text("adopt = false\n")
        model = write_scripted(Path(folder) / "scripted.gguf", SCRIPTS)
        chat = write_long_chat(home, args.messages)
        server = Served(home, (str(model),))
        server.start()
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            page = browser.new_page(viewport={"width": 1200, "height": 800})
            page.goto(server.url)  # once, so that the machine's caches are warm
            found = long_chat(page, server.url, chat)
            found["paste_ms"] = page.evaluate(PASTE, args.lines)
            page.get_by_text("pasted text 1.txt").wait_for()
            if args.chats:
                write_many_chats(home, args.chats)
                found |= many_chats(page, server.url, f"Question {args.chats - 1} about")
            browser.close()
        finally:
            server.stop()
    for name, value in found.items():
        limit = f"limit {LIMITS[name]:,.0f}" if name in LIMITS else ""
        print(f"{name:<20}{value:10,.1f}  {limit}".rstrip())
    print(json.dumps({name: round(value, 1) for name, value in found.items()}))
    return int(any(found[name] > limit for name, limit in LIMITS.items() if name in found))


if __name__ == "__main__":
    sys.exit(main())
