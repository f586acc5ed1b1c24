"""Start-up times: `import freehold` and `freehold --help`, each in a fresh process, median of many.

`python benches/engine/startup.py [--rounds 20]`. Ends in one JSON line; exit 1 when a median misses its target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

TARGETS_MS = {"import freehold": 50.0, "freehold --help": 150.0}
COMMANDS = {
    "bare python": [sys.executable, "-c", "pass"],
    "import freehold": [sys.executable, "-c", "import freehold"],
    "freehold --help": [sys.executable, "-m", "freehold.cli.main", "--help"],
}


def milliseconds(command: list[str]) -> float:
    """Run one process to its end and return its wall time."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - start)


def import_milliseconds() -> float:
    """Return what `import freehold` itself takes, without the interpreter's start."""
    code = "import time; t = time.perf_counter(); import freehold; print(1000 * (time.perf_counter() - t))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    times = {name: [milliseconds(command) for _ in range(rounds)] for name, command in COMMANDS.items()}
    medians = {name: statistics.median(ms) for name, ms in times.items()}
    for name, ms in times.items():
        target = f"target {TARGETS_MS[name]:.0f}" if name in TARGETS_MS else ""
        print(f"{name:<18}{medians[name]:7.1f} ms  ({min(ms):.1f} to {max(ms):.1f})  {target}".rstrip())
    inside = statistics.median(import_milliseconds() for _ in range(rounds))
    print(f"{'import alone':<18}{inside:7.1f} ms")
    names = {"import_ms": medians["import freehold"], "help_ms": medians["freehold --help"]}
    print(json.dumps({**{k: round(v, 1) for k, v in names.items()}, "import_alone_ms": round(inside, 2)}))
    return int(any(medians[name] > target for name, target in TARGETS_MS.items()))


if __name__ == "__main__":
    sys.exit(main())
