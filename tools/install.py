"""Install with pip and say every few seconds how far it is: `python tools/install.py ARGUMENTS OF PIP INSTALL`.

Compiling the C++ takes minutes, in which pip prints nothing that helps. Where no package index can be reached, pip
retries for a dozen seconds; this ends at once and says what helps. With `--run` instead of arguments, what `make run`
needs: a wheel of WHEELS, or of dist where it is newer than the sources, and a build of the checkout where none fits.
Knows pip's output and wheels' names; installs nothing itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
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

NO_COMPILER = """error: no C++ compiler on the PATH (g++ 12 or clang 16)
hint: install one; where a folder has a wheel of Freehold for this Python: make run WHEELS=FOLDER"""


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


def fitting(folder: Path) -> Path | None:
    """Return the newest of a folder's wheels that this Python can install."""
    from pip._vendor.packaging.tags import sys_tags
    from pip._vendor.packaging.utils import InvalidWheelFilename, parse_wheel_filename

    ours, fits = set(sys_tags()), []
    for wheel in folder.glob("freehold-*.whl"):
        try:
            _, version, build, tags = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename:
            continue
        if tags & ours:
            fits.append((version, build, wheel.stat().st_mtime_ns, wheel))
    return max(fits)[-1] if fits else None


def sources() -> Iterator[Path]:
    """Yield what a wheel is made of."""
    yield from (ROOT / "pyproject.toml", ROOT / "CMakeLists.txt")
    for folder in ("csrc", "src"):
        yield from (p for p in (ROOT / folder).rglob("*") if p.suffix not in (".so", ".pyc") and p.is_file())


def chosen(named: str | None) -> list[str]:
    """Return pip's arguments for `make run`; `named` is WHEELS, whose wheel is used whatever its age."""
    folder = Path(named) if named else ROOT / "dist"
    wheel = fitting(folder)
    if named and not wheel:
        print(f"no wheel in {folder} fits this Python and system: building", file=sys.stderr)
    if wheel and not named and max(p.stat().st_mtime for p in sources()) > wheel.stat().st_mtime:
        print(f"{wheel.name} is older than the sources: building", file=sys.stderr)
        wheel = None
    if wheel:
        print(f"installing {wheel}", file=sys.stderr)
        return [str(wheel)]
    return ["--editable", str(ROOT)]


def main(arguments: list[str]) -> int:
    """Run pip; return its exit status."""
    if arguments == ["--run"]:
        arguments = chosen(os.environ.get("WHEELS"))
    if "--editable" in arguments and not shutil.which(os.environ.get("CXX") or "c++"):
        print(NO_COMPILER, file=sys.stderr)
        return 1
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
