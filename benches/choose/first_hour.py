"""The first hour in a terminal of 80x24: every pause over a second in which the screen does not change.

A tmux pane with a home of its own: this checkout cloned, bare `freehold` asks for a model and fetches it, a right chat
answer, a persona saved, a second model pulled, the persona used, a document of 3,500 words summarised, the page opened.
Installing the clone is left out: it compiles for minutes, and `freehold` is the one beside this Python. Knows keys and
screens; needs tmux, git, curl and the package index.
Usage: python benches/choose/first_hour.py [--words 3500] [--models HOME]; HOME's models are linked, not fetched
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

SILENT_S = 1.0  # of an unchanged screen
LOOK_S = 0.05
LIMIT_S = 1800.0  # of one step
PROMPT = r">>> *$"


@dataclass
class Step:
    """Keys to type, what the screen shows at the end, and what it showed on the way."""

    name: str
    keys: str
    until: str  # a pattern on the screen
    right: str = ""  # a pattern that has to have been seen
    seconds: float = 0.0
    pauses: list[tuple[float, str]] = field(default_factory=list)  # seconds, and the screen's last line then
    seen: bool = False


class Pane:
    """A tmux pane of 80 columns and 24 lines on a server of its own."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(folder / "tmux.sock")]
        self._env = env
        shell = ["bash", "--norc", "--noprofile"]
        self._call("new-session", "-d", "-x", "80", "-y", "24", "-c", str(folder), *shell)

    def _call(self, *words: str) -> str:
        command = [*self._tmux, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=self._env).stdout

    def type(self, keys: str) -> None:
        """Type a line."""
        self._call("send-keys", "-l", keys)
        self._call("send-keys", "Enter")

    def screen(self) -> str:
        """Return what is visible."""
        return self._call("capture-pane", "-p").rstrip()

    def close(self) -> None:
        """End the pane and what runs in it."""
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)


def take(pane: Pane, step: Step) -> None:
    """Type a step's keys and watch the screen until its end; raise TimeoutError with the screen."""
    begun = changed = time.monotonic()
    pane.type(step.keys)
    last = pane.screen()
    while True:
        time.sleep(LOOK_S)
        now, screen = time.monotonic(), pane.screen()
        step.seen = step.seen or bool(step.right and re.search(step.right, screen))
        ended = re.search(step.until, screen, re.MULTILINE) is not None
        if screen != last or ended:
            if now - changed > SILENT_S:
                step.pauses.append((round(now - changed, 2), last.rpartition("\n")[2][:70]))
            last, changed = screen, now
        if ended:
            step.seconds = round(now - begun, 1)
            return
        if now - begun > LIMIT_S:
            raise TimeoutError(f"{step.name}: after {LIMIT_S:.0f} s the screen is\n{screen}")


def steps(document: Path) -> list[Step]:
    """Return the hour; a shell's step ends in a mark that its own line does not contain."""

    def shell(name: str, command: str, right: str = "") -> Step:
        return Step(name, f"clear; {command}; echo EN''D {name}", rf"^END {name}$", right)

    checkout = Path(__file__).resolve().parents[2]
    curl = "curl -sf http://127.0.0.1:18435/ -H 'Accept: text/html' -o page.html"
    page = f"until {curl}; do sleep 0.2; done; echo pages: $(grep -ci '<html' page.html)"
    return [
        shell(
            "the checkout cloned",
            f"git clone --progress file://{checkout} freehold; wc -w freehold/README.md",
            r"freehold/README\.md",
        ),
        Step("three models offered", "freehold", r"Which one", "models that run well"),
        Step("the first one fetched, the chat open", "", PROMPT),
        Step(
            "a right answer",
            "What is the capital of France? One word.",
            rf"(?s)\? One word\..*Paris.*{PROMPT}",
            "Paris",
        ),
        Step("a system prompt", "/system Answer in one short sentence, as a pirate.", r"system: Answer"),
        Step("a persona saved", "/save pirate", r"created pirate"),
        Step("left", "/exit", r"saved: freehold run"),
        shell("a second model", "freehold pull smollm2:135m", "smollm2"),
        shell("the persona answers", "freehold run pirate 'Who are you?' --max-tokens 40 --seed 1"),
        shell(
            "a document summarised",
            f"cat {document} | freehold run 'Summarise this in two sentences.' --max-tokens 80",
            "reading the prompt: ",
        ),
        shell("the page opened", f"freehold serve --port 18435 & {page}; freehold stop; wait", "pages: 1"),
    ]


def main() -> None:
    """Take the steps and print pauses, then one JSON line; exit 1 where a pause is left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--words", type=int, default=3500, help="words of the document")
    parser.add_argument("--models", type=Path, help="a home whose models are linked into the fresh one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = Path(made)
        home = folder / "data"
        if args.models:
            shutil.copytree(args.models / "models", home / "models", copy_function=os.link)
        document = folder / "document.txt"
        sentence = "The harbour council met on day {} and agreed to mend pier {} before the winter storms. "
        document.write_text("".join(sentence.format(i, i % 9) for i in range(args.words // 16)))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_", "LANG", "LC_"))}
        pane = Pane(folder, {**kept, "HOME": made, "FREEHOLD_HOME": str(home), "PATH": path, "PS1": "$ "})
        done: list[Step] = []
        try:
            for step in steps(document):
                take(pane, step)
                done.append(step)
                right = "" if step.seen or not step.right else f"; {step.right!r} was not seen"
                print(f"{step.seconds:7.1f} s  {step.name}{right}", flush=True)
                for seconds, line in step.pauses:
                    print(f"           {seconds:.1f} s without a change: {line}", flush=True)
        finally:
            pane.close()
    pauses = [p for step in done for p in step.pauses]
    load = round(os.getloadavg()[0], 1)
    rows = {step.name: step.seconds for step in done}
    print(json.dumps({"bench": "first_hour", "load": load, "pauses": len(pauses), "seconds": rows}))
    sys.exit(bool(pauses))


if __name__ == "__main__":
    main()
