# ruff: noqa: E501 (a line of a log is a line here)
"""Lines of ordinary code, prose and logs that any machine with this repository and Python has, drawn the same way."""

from __future__ import annotations

import random
import re
import sysconfig
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).parents[3]
# Authors' addresses in old modules are mail addresses: found, and no false alarm.
_ADDRESS = re.compile(r"[\w.+%-]@[\w-]+(\.[\w-]+)*\.[A-Za-z]{2,}")


def files() -> Iterator[Path]:
    """Yield sources and pages: ours, and Python's."""
    standard = Path(sysconfig.get_paths()["stdlib"])
    yield from sorted(standard.glob("*.py"))
    yield from sorted((standard / "asyncio").glob("*.py"))
    for folder in ("src", "csrc", "docs", "benches"):
        found = sorted((ROOT / folder).rglob("*"))
        yield from (p for p in found if p.suffix in (".py", ".md", ".cpp", ".h", ".inl", ".toml"))


def written_lines() -> Iterator[str]:
    """Yield the lines of all files that hold more than a bracket, without mail addresses."""
    for path in files():
        if "router/detect" in path.as_posix():
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if len(line.strip()) > 8 and not _ADDRESS.search(line):
                yield line


def _when(draw: random.Random) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=draw.random() * 3e7)


def _digits(draw: random.Random, n: int) -> str:
    return str(draw.randrange(10 ** (n - 1), 10**n))


def _hexes(draw: random.Random, n: int) -> str:
    return f"{draw.getrandbits(4 * n):0{n}x}"


LOGS: tuple[Callable[[random.Random], str], ...] = (
    lambda r: f"{_when(r).isoformat()} INFO [worker-{r.randrange(64)}] done in {r.random() * 900:.3f} ms",
    lambda r: f"{_when(r):%d/%b/%Y:%H:%M:%S} +0100 GET /v1/items/{_digits(r, 8)}?page={r.randrange(99)} 200 {_digits(r, 5)}",
    lambda r: f"{_when(r):%Y-%m-%d %H:%M:%S},{r.randrange(1000):03d} [{_digits(r, 5)}] DEBUG pool size={r.randrange(500)}",
    lambda r: f"commit {_hexes(r, 40)} {_when(r):%d.%m.%Y}",
    lambda r: f"sha256:{_hexes(r, 64)}  freehold-{r.randrange(9)}.{r.randrange(20)}.{r.randrange(99)}.tar.gz",
    lambda r: f"request {uuid.UUID(int=r.getrandbits(128))} took {r.randrange(10**7)} us",
    lambda r: f"build {r.randrange(9)}.{r.randrange(99)}.{_digits(r, 5)}.{r.randrange(999)} of branch release/{_when(r):%Y%m%d}",
    lambda r: f"order no. {_digits(r, 10)} shipped on {_when(r):%d-%m-%Y}, invoice {_when(r):%Y}-{_digits(r, 6)}",
    lambda r: f"order {_digits(r, 12)} item {_digits(r, 6)} x{r.randrange(9)} EUR {r.randrange(9999)},{r.randrange(99):02d}",
    lambda r: f"ts={_digits(r, 10)} ms=17{_digits(r, 11)} ns=1{_digits(r, 18)} level=warn",
    lambda r: f"peer {'.'.join(str(r.randrange(256)) for _ in range(4))}:{r.randrange(65536)} closed after {_digits(r, 4)} bytes",
    lambda r: f"link {':'.join(_hexes(r, 2) for _ in range(6))} up, {'-'.join(_hexes(r, 2) for _ in range(6))} down",
    lambda r: f"@@ -{r.randrange(999)},{r.randrange(99)} +{r.randrange(999)},{r.randrange(99)} @@ def f(x):",
    lambda r: f"{r.randrange(10**7):07o} " + " ".join(_hexes(r, 4) for _ in range(8)),
    lambda r: f"0x{_hexes(r, 16)} in main () at main.c:{r.randrange(2000)}",
    lambda r: f"position {r.uniform(-90, 90):+.6f}, {r.uniform(-180, 180):+.6f} height {r.uniform(0, 4000):.1f}",
    lambda r: " ".join(f"{r.gauss(0, 1):.6e}" for _ in range(6)),
    lambda r: ",".join(str(r.randrange(10**6)) for _ in range(9)),
    lambda r: f"ISBN 978-{r.randrange(10)}-{_digits(r, 3)}-{_digits(r, 5)}-{r.randrange(10)}, {r.randrange(900)} pages",
    lambda r: f"total {r.randrange(1, 999)} {r.randrange(1000):03d} {r.randrange(1000):03d} bytes, {r.randrange(99)},{r.randrange(1000):03d} files",
    lambda r: f"pid {_digits(r, 6)} tid {_digits(r, 9)} cpu {r.randrange(100)}% rss {_digits(r, 8)}",
    lambda r: f"ETag: W/\"{_hexes(r, 8)}-{_hexes(r, 12)}\" cache-control: max-age={_digits(r, 6)}",
    lambda r: f"ticket ABC-{_digits(r, 5)} moved to sprint {r.randrange(99)} by user{r.randrange(999)}",
    lambda r: f"step {r.randrange(10**5)}/{10**5} loss {r.random():.4f} lr {r.random() / 1e4:.2e} tok/s {_digits(r, 6)}",
    lambda r: f"parcel {_digits(r, 16)} left the depot at {_when(r):%H:%M}",
)  # fmt: skip


def log_lines(number: int) -> list[str]:
    """Return lines of logs: each kind as often as the others."""
    draw = random.Random(7)
    return [LOGS[i % len(LOGS)](draw) for i in range(number)]
