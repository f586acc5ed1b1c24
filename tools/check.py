"""Lint, types and tests of a checkout, as `make test` runs them: `python tools/check.py ARGUMENTS OF PYTEST`.

Types are checked while the tests run: a test's servers wait often. Tests that fail beside others run once more, alone:
one that passes then depends on its neighbours or on the clock. It is named as unsteady, and no reason to stop; more
than UNSTEADY of them are. Prints what each stage took.
Knows the programs' exit statuses; knows no test.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
TYPES = [str(BIN / "pyright"), "--threads", "1", "--pythonplatform", "Linux"]
PYTEST = [sys.executable, "-m", "pytest"]
TESTS_FAILED = 1  # pytest's exit status; others are of a run that did not reach its end
UNSTEADY = 5


class Stages:
    """What ran, and how long."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, command: list[str]) -> int:
        """Run a command; return its exit status."""
        started = time.monotonic()
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        self.seconds[name] = time.monotonic() - started
        return status

    def __str__(self) -> str:
        return ", ".join(f"{name} {s // 60:.0f} min {s % 60:02.0f} s" for name, s in self.seconds.items())


def failed_tests() -> list[str]:
    """Return what failed in the last run: ids of tests, and paths of files that could not be collected."""
    listed = ROOT / ".pytest_cache" / "v" / "cache" / "lastfailed"
    return list(json.loads(listed.read_text(encoding="utf-8"))) if listed.is_file() else []


def tested(stages: Stages, arguments: list[str]) -> int:
    """Run the tests, and those that failed once more; return the exit status."""
    status = stages.run("tests", [*PYTEST, "--cache-clear", *arguments])  # of an earlier run's failures
    failed = failed_tests() if status == TESTS_FAILED else []
    if not 0 < len(failed) <= UNSTEADY:
        return status
    print(f"{len(failed)} failed beside others; again, alone:", flush=True)
    status = stages.run("again", [*PYTEST, "-m", "big or not big", *failed])
    if status == 0:
        print("unsteady:", *failed, sep="\n  ", flush=True)
    return status


def main(arguments: list[str]) -> int:
    """Run every stage; return 0 where all passed."""
    stages = Stages()
    for name, words in (("lint", ["check"]), ("format", ["format", "--check"])):
        if status := stages.run(name, [str(BIN / "ruff"), *words]):
            return status
    with subprocess.Popen(
        TYPES, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as types:
        status = tested(stages, arguments)
        print(types.communicate()[0], flush=True)
    print(stages, flush=True)
    return status or types.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
