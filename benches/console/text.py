"""Text in the page: 200 kB of tables, code and math at 2,000 tokens a second, and hostile texts of up to 1 MB.

CPU is the main thread's, beyond that of a page which receives the same stream and draws nothing. A task is measured by
the browser's trace: its CPU, and its wall time, which holds what other programs of the machine took. Ceilings:
1,000 ms and 100 ms for the stream, 200 ms for hostile texts.
`--rate` makes the stream faster than real. Path: main -> stream, hostile -> tests.console.textpage.serve
"""

from __future__ import annotations

import argparse
import bisect
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from playwright.sync_api import sync_playwright

from tests.console import textpage
from tests.console.conftest import CHROMIUM
from tests.console.payloads import LARGE

BYTES, TOKENS_S, CHARS_A_TOKEN = 200_000, 2000, 4
SECTION = """## Part {i}: how *blocks* are counted

Each sequence holds **{i} blocks** of 16 tokens, so a prompt of `n` tokens takes $\\lceil n/16 \\rceil$ of them, see
[the design](https://example.org/design/{i}). A step reads $b_{i} = \\sum_j w_{{ij}} x_j$ and writes once.

| name | blocks | bytes | share |
|:-----|-------:|------:|:-----:|
| prompt {i} | 12 | 1,572,864 | **31 %** |
| answer {i} | 7 | 917,504 | 18 % |
| `cache` | 20 | 2,621,440 | 51 % |
| sum | 39 | 5,111,808 | 100 % |

```python
def take(self, n: int) -> list[int]:
    \"\"\"Take n blocks off the free list; raise when there are fewer.\"\"\"
    if n > len(self.free):
        raise OutOfBlocks(f"asked for {{n}}, {{len(self.free)}} are free")  # part {i}
    taken = [self.free.pop() for _ in range(n)]
    for block in taken:
        self.refs[block] += 1
    return taken
```

1. first, count what is free
   - in blocks, not in bytes
   - before the step begins
2. then take them
3. at the end give back

$$
\\text{{attention}}(Q, K, V) = \\operatorname{{softmax}}\\left(\\frac{{QK^T}}{{\\sqrt{{d_{i}}}}}\\right) V
$$

> A block is shared until a sequence writes to it; its count says how many share it.

"""
WATCH = """() => {
  const root = document.getElementById("app");
  root.style.setProperty("display", "block");
  root.style.setProperty("height", "760px");
  root.style.setProperty("overflow-y", "auto");
  root.style.setProperty("padding", "1rem");
}"""
FEED = """async ([text, charsPerMs, draw]) => {
  const root = document.getElementById("app");
  if (draw) new ResizeObserver(() => root.scrollTo(0, 1e9)).observe((show("", true), root.firstElementChild));
  const since = performance.now();
  for (let n = 0; n < text.length; ) {
    await new Promise((go) => setTimeout(go, 16));
    n = Math.min(text.length, Math.floor((performance.now() - since) * charsPerMs));
    if (draw) show(text.slice(0, n), n < text.length);
  }
  return performance.now() - since;
}"""


def _cpu(session: Any) -> dict[str, float]:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return {m["name"]: m["value"] * 1000 for m in metrics if m["name"].endswith("Duration")}


def _open(browser: Any, files: Path) -> tuple[Any, Any]:
    page = browser.new_context(viewport={"width": 1200, "height": 800}).new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    textpage.serve(page, files)
    page.evaluate(WATCH)
    return page, session


def _tasks(trace: bytes) -> list[tuple[float, float, str]]:
    """Return CPU ms, wall ms and the last mark of each task of the page's main thread."""
    events = json.loads(trace)["traceEvents"]
    marks = sorted(
        (e["ts"], e["name"]) for e in events if e.get("cat") == "blink.user_timing" and e["ph"] in "IR"
    )
    thread = next((e["pid"], e["tid"]) for e in events if e.get("cat") == "blink.user_timing")
    tasks = [
        e for e in events if (e["pid"], e["tid"]) == thread and e["name"].endswith("RunTask") and "tdur" in e
    ]
    found = []
    for task in tasks:
        at = bisect.bisect(marks, (task["ts"] + task["dur"], "~")) - 1
        found.append((task["tdur"] / 1000, task["dur"] / 1000, marks[at][1] if at >= 0 else ""))
    return found


def _traced(browser: Any, page: Any, work: Callable[[], None]) -> list[tuple[float, float, str]]:
    browser.start_tracing(page=page, categories=["toplevel", "blink.user_timing"])
    page.evaluate("performance.mark('begin')")
    work()
    return _tasks(browser.stop_tracing())


def stream(browser: Any, files: Path, rate: float) -> dict[str, Any]:
    """Feed the text twice, drawn and not, and compare the main thread's CPU; then once more for its tasks."""
    text = "".join(SECTION.format(i=i) for i in range(1 + BYTES // len(SECTION)))[:BYTES]
    feed = [text, TOKENS_S * CHARS_A_TOKEN / 1000 * rate]
    used: list[float] = []
    seconds, elements = 0.0, 0
    for drawn in (False, True):
        page, session = _open(browser, files)
        before = _cpu(session)
        seconds = page.evaluate(FEED, [*feed, drawn]) / 1000
        page.wait_for_timeout(1500)
        used.append(_cpu(session)["TaskDuration"] - before["TaskDuration"])
        elements = page.evaluate("document.querySelectorAll('#app *').length")
        page.context.close()
    page, _ = _open(browser, files)
    tasks = _traced(browser, page, lambda: page.evaluate(FEED, [*feed, True]))
    page.context.close()
    cpu, wall, _ = max(tasks)
    return {
        "seconds": round(seconds, 1),
        "cpu_ms": round(used[1] - used[0]),
        "own_ms": round(used[0]),
        "longest_task_cpu_ms": round(cpu),
        "its_wall_ms": round(wall),
        "elements": elements,
    }


def hostile(browser: Any, files: Path) -> dict[str, Any]:
    """Draw each large text at once, as a chat that is opened does; return the longest task."""
    page, _ = _open(browser, files)
    page.evaluate("() => show('# warm *up* $x$\\n\\n```py\\nx = 1\\n```')")
    page.wait_for_timeout(1500)

    def draw() -> None:
        for name, text in LARGE.items():
            page.evaluate("([name, text]) => { performance.mark(name); show(text); }", [name, text])
            before, quiet, since = -1, 0, time.monotonic()
            while quiet < 2 and time.monotonic() - since < 20:
                page.wait_for_timeout(100)
                now = page.evaluate("document.getElementById('app').textContent.length")
                quiet = quiet + 1 if now == before else 0
                before = now

    tasks = _traced(browser, page, draw)
    longest: dict[str, tuple[float, float]] = {}
    for cpu, wall, name in sorted(tasks):
        longest[name] = (cpu, wall)
    worst = sorted(longest.items(), key=lambda item: -item[1][0])
    for name, (cpu, wall) in worst[:10]:
        print(f"  {cpu:5.0f} ms CPU {wall:6.0f} ms wall  {name}", file=sys.stderr)
    name, (cpu, wall) = worst[0]
    return {"texts": len(LARGE), "longest_task_cpu_ms": round(cpu), "its_wall_ms": round(wall), "text": name}


def main() -> None:
    """Run both, and print one JSON line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rate", type=float, default=1.0)
    options.add_argument("--only", choices=["stream", "hostile"])
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        files = textpage.bundle(Path(folder))
        if files is None or CHROMIUM is None:
            sys.exit("needs Node, the packages of console/ and Chromium")
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        said: dict[str, Any] = {"bench": "console text"}
        if args.only != "hostile":
            said["stream"] = {
                **stream(browser, files, args.rate),
                "ceiling": {"cpu_ms": 1000, "task_ms": 100},
            }
        if args.only != "stream":
            said["hostile"] = {**hostile(browser, files), "ceiling": {"task_ms": 200}}
        browser.close()
    print(json.dumps(said))


if __name__ == "__main__":
    main()
