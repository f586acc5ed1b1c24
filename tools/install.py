"""Install with pip and say every few seconds how far it is: `python tools/install.py ARGUMENTS OF PIP INSTALL`.

Compiling the C++ takes minutes, in which pip prints nothing that helps. Where no package index can be reached, pip
retries for a dozen seconds; this ends at once and says what helps. With `--run` instead of arguments, what `make run`
needs: a wheel of WHEELS, or of dist where it is newer than the sources, and a build of the checkout where none fits.
With `--locked LOCK MORE`, what the tests need: the lock's packages by uv while the C++ compiles, then MORE by pip.
Knows both programs' output and wheels' names; installs nothing itself.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERY_S = 4.0
# pip says so at each failed connection; one may be chance.
UNREACHABLE = re.compile(
    r"Retrying \(.*(Name or service not known|failure in name resolution|unreachable|refused)"
)
GIVE_UP = 2
# pip's settings, under the names that uv reads.
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
    "no-index": "UV_NO_INDEX",
}
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
        self.at: dict[str, str] = {}
        self._started = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def _show(self) -> None:
        while not self._over.wait(EVERY_S):
            steps = "; ".join(list(self.at.values())) or "starting"
            self.say(f"installing, {time.monotonic() - self._started:.0f} s: {steps}", moving=True)

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


class Installer:
    """One program that installs; what it is at stands in the shared line of progress under its name."""

    def __init__(self, name: str, command: list[str], progress: Progress, env: dict[str, str]) -> None:
        self.name, self._progress = name, progress
        self._last, self._failures = deque[str](maxlen=40), 0
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
        )

    def wait(self) -> str | None:
        """Read it to its end; return why it failed, or None."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last.append(line.rstrip())
            unreachable = UNREACHABLE.search(line)
            self._failures += unreachable is not None
            if unreachable and self._failures >= GIVE_UP:
                self._process.kill()
                return HINT.format(reason=unreachable[1])
            step = next((say.format(*m.groups()) for r, say in STEPS if (m := r.search(line))), None)
            if step:
                self._progress.at[self.name] = step
        self._progress.at.pop(self.name, None)
        if not self._process.wait():
            return None
        return "\n".join([*self._last, f"{self.name} failed; its last lines are above"])

    def end(self) -> None:
        """Wait for its end after Ctrl-C, which it was sent too."""
        self._process.wait()


def pip(*arguments: str) -> list[str]:
    """Return the command that installs with pip."""
    command = [sys.executable, "-m", "pip", "install", "-v", "--disable-pip-version-check", "--no-input"]
    return [*command, "--progress-bar", "off", *arguments]


def uv(*arguments: str) -> list[str]:
    """Return the command that installs with uv, which fetches in parallel: 199 packages in 25 s where pip takes 150."""
    return [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, *arguments]


def uv_environment() -> dict[str, str]:
    """Return the environment of uv with what pip is configured to: its index, folders of wheels and certificates."""
    env = dict(os.environ)
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        if name := UV_NAMES.get(key.rpartition(".")[2]):
            env.setdefault(name, " ".join(value.strip("'\"").split()))
    return env


def install(env: dict[str, str], **commands: list[str]) -> int:
    """Run installers, by name, at the same time; print why one failed; return the exit status."""
    progress = Progress()
    running = [Installer(name, command, progress, env) for name, command in commands.items()]
    try:
        with ThreadPoolExecutor(len(running)) as pool:
            reasons = [reason for reason in pool.map(Installer.wait, running) if reason]
    except KeyboardInterrupt:
        for each in running:
            each.end()
        progress.close()
        progress.say("interrupted; the same command goes on")
        return 130
    seconds = progress.close()
    progress.say(reasons[0] if reasons else f"installed in {seconds:.0f} s")
    return int(bool(reasons))


def main(arguments: list[str]) -> int:
    """Run the installers; return the exit status."""
    if arguments == ["--run"]:
        arguments = chosen(os.environ.get("WHEELS"))
    if {"--editable", "--locked"} & set(arguments) and not shutil.which(os.environ.get("CXX") or "c++"):
        print(NO_COMPILER, file=sys.stderr)
        return 1
    if arguments[:1] != ["--locked"]:
        return install(dict(os.environ), pip=pip(*arguments))
    env = uv_environment()
    lock, *more = arguments[1:]
    # What builds comes first, in the lock's versions; then compiling and fetching do not wait for each other. pip is
    # among it: the lock has one, and uv would replace it under a pip that runs.
    builders = uv("pip", "--requirement", str(ROOT / "requirements" / "build.in"), "--constraint", lock)
    freehold = pip("--no-build-isolation", "--no-deps", "--editable", str(ROOT))
    return (
        install(env, pip=pip("uv>=0.9"))
        or install(env, uv=builders)
        or install(env, uv=uv("--require-hashes", "--no-deps", "--requirement", lock), pip=freehold)
        or install(env, pip=pip("--no-deps", *more))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
