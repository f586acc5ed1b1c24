"""From the first token's arrival in the page to its paint: `python benches/console/paint.py [MODEL --home H]`.

A model answers in Chromium, each time in a new chat: MODEL of a home, or a scripted one, whose first token comes with
the answer's beginning, so that the page draws both at once. The clock begins when the bytes of the first `text` event
come out of the network in the page, and ends in the first task after the frame that shows them. `--busy` processes
compute meanwhile. Prints median and worst beside the limit of 50 ms, and ends in one JSON line; exit 1 where the median
is above it. Path: paint.main -> a `freehold serve` of its own -> the page
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.console.first import ARGS
from benches.console.serving import started
from tests.console.conftest import CHROMIUM

LIMIT_MS = 50.0
# Runs before the page's own scripts. A MutationObserver sees the text as soon as it is in the document, so the frame
# that is asked for then is the one that paints it; a message to oneself comes after that frame.
WATCH = r"""
window.arrived = 0;
window.painted = new Promise((done) => (window.done = done));
const real = window.fetch;
window.fetch = async (path, init) => {
  const response = await real(path, init);
  if (!String(path).includes("/events?")) return response;
  const decoder = new TextDecoder();
  const noted = new TransformStream({
    transform(chunk, to) {
      if (!window.arrived && decoder.decode(chunk, {stream: true}).includes("event: text")) {
        window.arrived = performance.now();
      }
      to.enqueue(chunk);
    },
  });
  return new Response(response.body.pipeThrough(noted), response);
};
new MutationObserver((_, self) => {
  if (!document.querySelector("article:not(.user) .said")?.textContent) return;
  self.disconnect();
  requestAnimationFrame(() => {
    const {port1, port2} = new MessageChannel();
    port1.onmessage = () => window.done(performance.now() - window.arrived);
    port2.postMessage(0);
  });
}).observe(document, {childList: true, subtree: true, characterData: true});
"""


def painted(browser: Any, url: str) -> float:
    """Ask once in a fresh context; return the milliseconds."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.add_init_script(WATCH)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("textbox", name="Message", exact=True).fill("hello")
    page.get_by_role("button", name="Send", exact=True).click()
    spent = page.evaluate("window.painted")
    assert page.evaluate("window.arrived") > 0
    context.close()
    return spent


def main() -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--busy", type=int, default=0)
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with started(args.home, args.model) as (server, _, _), sync_playwright() as playwright:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
            times = [painted(browser, server.url) for _ in range(args.rounds + 1)][1:]
            browser.close()
        finally:
            for each in busy:
                each.kill()
    median, worst = statistics.median(times), max(times)
    print(f"first token to paint: median {median:.1f} ms, worst {worst:.1f} ms, limit {LIMIT_MS:.0f} ms")
    found = {"median_ms": round(median, 1), "worst_ms": round(worst, 1), "limit_ms": LIMIT_MS}
    print(
        json.dumps(
            {"bench": "console/paint", "model": args.model, "rounds": args.rounds, "busy": args.busy, **found}
        )
    )
    return int(median > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
