"""What the console adds to the start of `freehold serve`: this checkout beside an earlier one, in turns.

`python benches/console/start.py --against FOLDER [--rounds 15]`: FOLDER is another checkout with its native module, as
`git worktree add` and a copy of the `.so` make it. Each round starts both servers with no model on an empty home, one
after the other, and takes the wall time to the line that says the server is up, and the CPU time until then; the
difference of a round's two is what counts, since the machine's load moves both. The last line is JSON; exit 1 where
the median of the wall time's differences is above the ceiling.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

CEILING_MS = 10.0
NAMES = "before", "now"
ROOT = Path(__file__).parents[2]
CODE = "import sys; from freehold.cli.main import main; main()"


def started(source: Path) -> tuple[float, float]:
    """Start a server of a checkout; return (wall, CPU) milliseconds until it is up, and end it."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "config.toml").write_text("adopt = false\n")
        env = {**os.environ, "FREEHOLD_HOME": home, "PYTHONPATH": str(source / "src")}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling at each start would be most of what is measured
        command = [sys.executable, "-c", CODE, "serve", "--port", "0", "--json"]
        begun = time.perf_counter()
        with subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            assert server.stdout is not None
            line = server.stdout.readline()
            wall = 1000 * (time.perf_counter() - begun)
            assert "url" in line, f"no server of {source} came up"
            used = psutil.Process(server.pid).cpu_times()
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        return wall, 1000 * (used.user + used.system)


def main() -> int:
    """Measure in turns, print each round and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    for source in (asked.against, ROOT):
        started(source)  # compiles what is not compiled yet
    rows: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for turn in range(asked.rounds):
        order = (asked.against, ROOT) if turn % 2 else (ROOT, asked.against)
        took = {source: started(source) for source in order}
        rows.append((took[asked.against], took[ROOT]))
        said = (
            f"{name} {wall:7.1f} ms, CPU {cpu:6.1f}"
            for name, (wall, cpu) in zip(NAMES, rows[-1], strict=True)
        )
        print(f"{turn + 1:>3}  {'   '.join(said)}", flush=True)
    more = [statistics.median(now[i] - before[i] for before, now in rows) for i in (0, 1)]
    found = {
        "before_ms": round(statistics.median(before[0] for before, _ in rows), 1),
        "now_ms": round(statistics.median(now[0] for _, now in rows), 1),
        "more_ms": round(more[0], 1),
        "more_cpu_ms": round(more[1], 1),
        "ceiling_ms": CEILING_MS,
        "rounds": asked.rounds,
    }
    print(json.dumps(found))
    return int(more[0] > CEILING_MS)


if __name__ == "__main__":
    sys.exit(main())
