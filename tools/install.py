"""Install with pip and say every few seconds how far it is: `python tools/install.py ARGUMENTS OF PIP INSTALL`.

Compiling the C++ takes minutes, in which pip prints nothing that helps. Where no package index can be reached, pip
retries for a dozen seconds; this ends at once and says what helps. Knows pip's output; installs nothing itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections import deque

EVERY_S = 4.0
# pip says so at each failed connection; one may be chance.
UNREACHABLE = re.compile(
    r"Retrying \(.*(Name or service not known|failure in name resolution|unreachable|refused)"
)
GIVE_UP = 2
STEPS = (
    (re.compile(r"^\s*\[(\d+)/(\d+)\] Building"), "compiling C++ file {0} of {1}"),
    (re.compile(r"^\s*Collecting (\S+)"), "looking for {0}"),
    (re.compile(r"^\s*(?:Downloading|Using cached) (\S+)"), "fetching {0}"),
    (re.compile(r"Installing build dependencies"), "fetching what the build needs"),
    (re.compile(r"Installing collected packages"), "unpacking"),
)
HINT = """error: no package index can be reached: {reason}
hint: with a mirror, pip config set global.index-url URL, or PIP_INDEX_URL=URL;
      without a network, PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER of wheels"""


class Progress:
    """What the installation is at, shown on one line in a terminal and on lines elsewhere."""

    def __init__(self) -> None:
        self.at, self._started = "starting", time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def _show(self) -> None:
        while not self._over.wait(EVERY_S):
            self.say(f"installing, {time.monotonic() - self._started:.0f} s: {self.at}", moving=True)

    def say(self, text: str, *, moving: bool = False) -> None:
        """Print a line, or move the one that there is."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="" if moving else "\n", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> float:
        """Stop; return the seconds it took."""
        self._over.set()
        self._thread.join()
        return time.monotonic() - self._started


def main(arguments: list[str]) -> int:
    """Run pip; return its exit status."""
    command = [sys.executable, "-m", "pip", "install", "-v", "--disable-pip-version-check", "--no-input"]
    progress, last, failures = Progress(), deque[str](maxlen=40), 0
    pip = subprocess.Popen(
        [*command, "--progress-bar", "off", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert pip.stdout is not None
    try:
        for line in pip.stdout:
            last.append(line.rstrip())
            failures = failures + 1 if UNREACHABLE.search(line) else failures
            if failures >= GIVE_UP:
                pip.kill()
                progress.close()
                progress.say(HINT.format(reason=UNREACHABLE.search(line)[1]))  # type: ignore[index]
                return 1
            progress.at = next(
                (say.format(*m.groups()) for r, say in STEPS if (m := r.search(line))), progress.at
            )
        status = pip.wait()
    except KeyboardInterrupt:
        pip.wait()
        progress.close()
        progress.say("interrupted; the same command goes on")
        return 130
    seconds = progress.close()
    if status:
        print("\n".join(last), file=sys.stderr)
    progress.say(
        f"installed in {seconds:.0f} s"
        if not status
        else f"pip failed after {seconds:.0f} s; its last lines are above"
    )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
