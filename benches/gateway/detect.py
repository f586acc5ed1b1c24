"""CPU time of the gateway's detectors on ordinary texts of 2 kB and 200 kB, and their false alarms.

    python benches/gateway/detect.py

Budget: 0.1 ms for 2 kB, 2 ms for 200 kB. The ceiling is one pass of RE2 over the bytes with an expression that finds
nothing. Texts: prose and code of this repository, logs made up, French with its typography (which is made plain
first), and a chat that repeats 200 kB turn by turn. False alarms: of all lines of this repository's and Python's
sources and pages, and of made-up logs.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from freehold.route.router.detect import Sieve  # noqa: E402
from tests.router.detect.ordinary import log_lines, written_lines  # noqa: E402

ROOT = Path(__file__).parents[2]
SIZES = (2_000, 200_000)
ROUNDS = 15


def texts() -> dict[str, str]:
    """Return texts of 200 kB, of several kinds."""
    pages = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").rglob("*.md")))
    code = "".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "src" / "freehold").rglob("*.py")))
    french = (
        "C\u2019est l\u2019\u00e9t\u00e9\u00a0: le prix \u2013 1\u202f234\u00a0\u20ac \u2013 a chang\u00e9. "
    )
    made = {
        "prose": pages.encode("ascii", "ignore").decode(),
        "pages as they are": pages,
        "code": code,
        "logs": "\n".join(log_lines(4000)),
        "french": french * 4000,
    }
    return {name: text[: SIZES[-1]] for name, text in made.items()}


def cpu_ms(action: Callable[[], object], calls: int) -> tuple[float, float]:
    """Return the least and the median milliseconds of CPU of a call."""
    action()
    found = []
    for _ in range(ROUNDS):
        before = time.process_time()
        for _ in range(calls):
            action()
        found.append((time.process_time() - before) / calls * 1e3)
    return min(found), statistics.median(found)


def ceiling_ms(text: str) -> float:
    import re2

    options = re2.Options()
    options.encoding = options.Encoding.LATIN1
    nothing, encoded = re2.compile(rb"\bq[0-9]q[0-9]q\b", options), text.encode()
    return cpu_ms(lambda: nothing.search(encoded), 5)[0]


def alarms(sieve: Sieve) -> dict[str, float]:
    lines = {"sources and pages": list(written_lines()), "logs": log_lines(50_000)}
    return {
        name: 1000 * sum(bool(sieve.find([s])) for s in given) / len(given) for name, given in lines.items()
    }


def main() -> None:
    sieve = Sieve()
    print(f"{platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}")
    measured: dict[str, dict[str, float]] = {}
    for name, text in texts().items():
        for size in SIZES:
            part = text[:size]
            least, median = cpu_ms(lambda part=part: sieve.find([part]), 50 if size == SIZES[0] else 2)
            measured[f"{name}, {size // 1000} kB"] = {"least_ms": least, "median_ms": median}
            top = f"{ceiling_ms(part):6.3f}" if size == SIZES[-1] else "     -"
            print(
                f"{name:18} {len(part):7,} chars  least {least:6.3f}  median {median:6.3f}  one pass {top} ms"
            )
    rates = alarms(sieve)
    for name, rate in rates.items():
        print(f"false alarms in 1,000 lines, {name}: {rate:.3f}")
    print(json.dumps({"detect": measured, "alarms_per_1000": rates}))


if __name__ == "__main__":
    main()
