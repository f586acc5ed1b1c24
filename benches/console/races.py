"""Twelve tasks of a person at a chat page, on llama.cpp's page and on ours, in turns.

`python -m benches.console.races --llama-server PROGRAM [--rounds 3]`
Done or not, seconds, steps, bytes. Both servers run the same scripted model, so that an answer is the same text at
about the same speed and what differs is the page. A step is a click, a key that stands for one, or a text typed at
once. A task that a page has no control for is not done, and why stands below the table. The pull fetches from a
stand-in for the hub on loopback. Prints a table of Markdown and ends in one JSON line.
Path: races.py -> chatpages.py -> Chromium
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benches.console.chatpages import (
    HUB_MODEL,
    LONG_MS,
    MESSAGES,
    OLD,
    ChatPage,
    LlamaPage,
    NotThere,
    OursPage,
)
from benches.lib.machine import describe, say
from tests.console.conftest import Served
from tests.console.owner import one_time_code
from tests.console.scripted import write_scripted
from tests.store.standin import Standin
from tests.store.standin import serving as hub

LINES = 1500
LAST = "The end of it."
STILL_S = 0.5  # an answer that did not change for so long has stopped
SCRIPTS = {
    "hello": "Hello! What shall I say?",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |\n\nThat was a table.",
    "long": "".join(f"Line {i} of a long answer.\n\n" for i in range(LINES)) + LAST,
}
PASTED = "\n".join(f"pasted line {i} with some words in it" for i in range(20_000))


@dataclass
class Row:
    """What came of one task on one page."""

    task: str
    page: str
    done: bool
    seconds: float
    steps: int
    bytes: int
    why: str = ""


_DELETE = """model => fetch('/api/delete', {method: 'DELETE',
  headers: {'content-type': 'application/json'}, body: JSON.stringify({model})})"""
_PASTE = """text => {
  const clipboardData = new DataTransfer(); clipboardData.setData('text/plain', text);
  document.activeElement.dispatchEvent(new ClipboardEvent('paste', {clipboardData, bubbles: true, cancelable: true}));
}"""

# --- the tasks ------------------------------------------------------------------------------------------

Task = Callable[[ChatPage], float | None]  # seconds that are not the whole task's, where those say more


def first_answer(page: ChatPage) -> None:
    page.fresh()
    page.send("hello")
    page.said("Hello! What shall I say?")


def stop(page: ChatPage) -> float:
    """Stop an answer; the seconds are those from the click to the text's last change."""
    page.send("a long one")
    page.said("Line 1 ")
    began = time.monotonic()
    page.click("Stop")
    changed, grown = began, ""
    while time.monotonic() - changed < STILL_S:
        if (now := page.last_answer()) != grown:
            changed, grown = time.monotonic(), now
    assert LAST not in grown, "the answer ended before it was stopped"
    return changed - began


def edit(page: ChatPage) -> None:
    page.new_chat()
    page.send("hello")
    page.said("Hello!")
    page.edit_last("a table please")
    page.said("That was a table.")


def branch(page: ChatPage) -> None:
    page.click("Previous version")
    page.said("Hello!")


def long_chat(page: ChatPage) -> float:
    """Open it and type a letter."""
    address = page.fill_chat()
    page.page.goto("about:blank")
    page.steps, page.bytes, began = 1, 0, time.monotonic()
    page.page.goto(address)
    page.page.get_by_text(f"Message {MESSAGES - 1}:").first.wait_for(timeout=LONG_MS)
    page.box().fill("x")
    took = time.monotonic() - began
    page.box().fill("")
    return took


def find_old(page: ChatPage) -> float:
    page.new_chat()
    page.steps, began = 0, time.monotonic()
    page.find(OLD)
    return time.monotonic() - began


def reload(page: ChatPage) -> None:
    page.fresh()
    page.send("a long one")
    page.said("Line 5 ")
    page.page.reload()
    page.said(LAST)
    text = page.last_answer()
    missing = [i for i in range(LINES) if f"Line {i} of" not in text]
    assert not missing, f"{len(missing)} lines are missing"


def paste(page: ChatPage) -> float:
    page.new_chat()
    page.box().focus()
    began = time.monotonic()
    page.page.evaluate(_PASTE, PASTED)
    page.step()
    page.box().press("a")
    page.page.evaluate("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    return time.monotonic() - began


def pull(page: ChatPage) -> float:
    began = time.monotonic()
    page.pull()
    took = time.monotonic() - began
    page.page.evaluate(_DELETE, HUB_MODEL)  # for the next round
    return took


def compare(page: ChatPage) -> None:
    page.compare()


def phone(page: ChatPage) -> None:
    page.fresh(width=390)
    page.tap("a table please")
    page.said("That was a table.")
    wide = page.page.evaluate("document.scrollingElement.scrollWidth")
    assert wide <= 390, f"the page is {wide} px wide"


def keyboard(page: ChatPage) -> None:
    """From the loaded page to a changed question, without a pointer."""
    page.fresh()
    keys = page.page.keyboard
    for _ in range(60):
        if page.page.evaluate("document.activeElement.matches('textarea, input, [contenteditable=true]')"):
            break
        keys.press("Tab")
        page.step()
    keys.type("hello")
    keys.press("Enter")
    page.step(2)
    page.said("Hello!")
    page.edit_by_keys("a table please")
    page.said("That was a table.")


TASKS: dict[str, Task] = {
    "first answer": first_answer,
    "stop": stop,
    "edit": edit,
    "branch": branch,
    "long chat": long_chat,
    "find an old message": find_old,
    "reload in mid-stream": reload,
    "paste 20,000 lines": paste,
    "pull": pull,
    "compare": compare,
    "phone": phone,
    "keyboard": keyboard,
}


def attempted(task: str, page: ChatPage) -> Row:
    """Do a task; whatever stops it is its result."""
    page.steps, page.bytes, began = 0, 0, time.monotonic()
    try:
        took = TASKS[task](page)
    except NotThere as e:
        return Row(task, page.name, False, 0.0, 0, 0, str(e))
    except Exception as e:  # a selector that never came, or a claim that failed
        row = Row(task, page.name, False, 0.0, page.steps, page.bytes, str(e).splitlines()[0][:200])
        page.fresh()  # the next task begins on a page that works
        return row
    return Row(task, page.name, True, round(took or time.monotonic() - began, 3), page.steps, page.bytes)


# --- the servers ----------------------------------------------------------------------------------------


@contextmanager
def llama_server(program: Path, model: Path) -> Iterator[str]:
    """Run llama-server on a free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [str(program), "-m", str(model), "--port", str(port), "-c", "32768", "-ngl", "0"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=beside(program), stdout=quiet, stderr=quiet) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(300):
                time.sleep(0.1)
                try:
                    with urllib.request.urlopen(f"{url}/health"):
                        break
                except OSError:
                    continue
            yield url
        finally:
            process.kill()


def beside(program: Path) -> dict[str, str]:
    """Return an environment in which a program finds the libraries of its own folder."""
    return {**os.environ, "LD_LIBRARY_PATH": str(program.parent)}


def version(program: Path) -> str:
    """Return what llama-server calls itself."""
    said = subprocess.run([str(program), "--version"], env=beside(program), capture_output=True, text=True)
    return (said.stdout + said.stderr).splitlines()[0].removeprefix("version: ")


@contextmanager
def freehold_server(models: list[Path], home: Path) -> Iterator[Served]:
    """Run ours, with the first of the models where its hub would be."""
    home.mkdir()
    with hub(Standin({"race.Q8_0.gguf": models[0].read_bytes()})) as standin:
        (home / "config.toml").write_text(f'adopt = false\nhub_endpoint = "{standin.url}"\n')
        server = Served(home, tuple(map(str, models)))
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGKILL)


def raced(chromium: str, program: Path, rounds: int, tasks: list[str]) -> tuple[list[Row], str]:
    """Do all tasks on both pages; return the rows and the browser's version."""
    from playwright.sync_api import sync_playwright

    rows: list[Row] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, sync_playwright() as started:
        model = write_scripted(Path(folder) / "race.gguf", SCRIPTS)
        other = write_scripted(Path(folder) / "zother.gguf", {"hello": "Hello! I say something else."})
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with (
            llama_server(program, model) as theirs,
            freehold_server([model, other], Path(folder) / "home") as ours,
        ):
            for round in range(rounds):
                pages = [LlamaPage(browser, theirs), OursPage(browser, ours.url, lambda: one_time_code(ours))]
                for task in tasks:
                    for page in pages if round % 2 else pages[::-1]:
                        rows.append(attempted(task, page))
                        say(f"{rows[-1]}")
                for page in pages:
                    page.context.close()
        found = browser.version
        browser.close()
    return rows, found


def main() -> None:
    """Race."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-server", type=Path, required=True)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", action="append", choices=list(TASKS))
    args = parser.parse_args()
    result = {"bench": "races", "cores": os.cpu_count(), **describe(Path("scripted"))}
    rows, chromium = raced(args.chromium, args.llama_server, args.rounds, args.task or list(TASKS))
    result |= {"chromium": chromium, "llama.cpp": version(args.llama_server), "rounds": args.rounds}
    print(table(rows))
    print(json.dumps(result | {"rows": [asdict(row) for row in rows]}))


def table(rows: list[Row]) -> str:
    """Write the medians as a table of Markdown, and below it why a task was not done."""
    names = sorted({row.page for row in rows})
    lines = [f"| task | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    why: list[str] = []
    for task in dict.fromkeys(row.task for row in rows):
        cells = [_cell([row for row in rows if (row.task, row.page) == (task, name)]) for name in names]
        lines.append(f"| {task} | {' | '.join(cells)} |")
    for row in rows:
        said = f"- {row.page}, {row.task}: {row.why}"
        if not row.done and said not in why:
            why.append(said)
    return "\n".join([*lines, "", *why])


def _cell(rows: list[Row]) -> str:
    good = [row for row in rows if row.done]
    if not good:
        return "no"
    seconds = statistics.median(row.seconds for row in good)
    size = statistics.median(row.bytes for row in good)
    of = "" if len(good) == len(rows) else f", {len(good)} of {len(rows)}"
    steps = f"{good[0].steps} step{'s' if good[0].steps > 1 else ''}"
    return f"{seconds:.2f} s, {steps}, {size / 1000:,.0f} kB{of}"


if __name__ == "__main__":
    main()
