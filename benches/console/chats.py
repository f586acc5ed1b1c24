"""A list of 10,000 chats, a search through them, and the opening of a chat of 2,000 messages, over HTTP.

`python benches/console/chats.py [--chats 10000] [--rounds 20]`. Chats as files on disk, 44 MB of text; a server of the
same process answers a client over loopback. `first look`: no index is there yet. `after a restart`: the index is there
and nothing is in memory. Each list and search comes after the terminal wrote to one chat, as both must see it.
Prints each figure beside its limit, and ends in one JSON line; exit 1 where a limit is missed.
Path: chats.main -> ChatFolder; a server -> /console/api/chats
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from freehold.serve.chats.folder import ChatFolder
from freehold.serve.chats.types import ChatLine
from tests.http.conftest import start

LIMITS = {"list_ms": 300.0, "search_oldest_ms": 300.0, "search_nothing_ms": 300.0, "open_2000_ms": 500.0}
URL = "/console/api/chats"
OLDEST = "the quokka of the first message"


def fill(folder: ChatFolder, count: int) -> float:
    """Write chats of eight messages, 550 characters each at the mean; return megabytes of text."""
    draw = random.Random(1)
    words = ["".join(draw.choices("etaoinshrdlucmfwyp", k=draw.randint(2, 10))) for _ in range(20_000)]
    size = 0
    fsync, os.fsync = os.fsync, lambda _: None  # making them is not what is measured
    for n in range(count):
        lines, parent = [], None
        for m in range(8):
            text = OLDEST if (n, m) == (0, 0) else " ".join(draw.choices(words, k=draw.choice((15, 60, 160))))
            size += len(text)
            role, id = ("assistant", "user")[m % 2 == 0], f"m{m}"
            lines.append(
                ChatLine(id=id, parent=parent, role=role, content=text, at=1e9 + n * 10 + m)  # type: ignore[arg-type]
            )
            parent = id
        folder.write(f"chat-{n:05}", "tiny", lines)
    long = [
        ChatLine(
            id=f"m{m}",
            parent=f"m{m - 1}" if m else None,
            role=("user", "assistant")[m % 2],  # type: ignore[arg-type]
            content=" ".join(draw.choices(words, k=150)),
            at=2e9 + m,
        )
        for m in range(2000)
    ]
    folder.write("long", "tiny", long)
    os.fsync = fsync
    return size / 1e6


def main() -> int:
    """Measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="freehold-chats-") as at:
        home = Path(at) / "home"
        terminal = ChatFolder.of(home)
        megabytes = fill(terminal, args.chats)
        found: dict[str, float] = {"megabytes": round(megabytes, 1)}
        for name in ("first_look_ms", "after_restart_ms"):
            server = start(Path(at) / name, home=home)
            began = time.perf_counter()
            assert len(server.client.get(URL, params={"limit": 100}).json()["chats"]) == 100
            found[name] = 1e3 * (time.perf_counter() - began)
            if name == "first_look_ms":
                server.end()

        def timed(name: str, ask: Callable[[], object]) -> None:
            spent = []
            for n in range(args.rounds):
                with terminal.writer(f"chat-{n:05}") as writer:
                    writer.message("user", f"round {n}", parent="m7")
                began = time.perf_counter()
                ask()
                spent.append(1e3 * (time.perf_counter() - began))
            found[name] = statistics.median(spent)
            found[name.replace("_ms", "_most_ms")] = max(spent)

        def search(text: str, matches: int) -> None:
            seen = server.client.get(URL, params={"q": text}).json()["matches"]
            assert len(seen) == matches, (text, len(seen))

        timed("list_ms", lambda: server.client.get(URL, params={"limit": 100}))
        timed("search_oldest_ms", lambda: search("QUOKKA of the first", 1))
        timed("search_nothing_ms", lambda: search("nowhere to be found", 0))
        timed("search_common_ms", lambda: search("ta", 100))
        timed("open_2000_ms", lambda: server.client.get(f"{URL}/long"))
        timed(
            "ids_200_ms",
            lambda: server.client.get(f"{URL}/long/messages?ids=" + ",".join(f"m{i}" for i in range(200))),
        )
        server.end()
        index = sum(p.stat().st_size for p in terminal.path.glob(".index.db*"))
    found["index_mb"] = index / 1e6
    for name, value in found.items():
        limit = f"  limit {LIMITS[name]:g}" if name in LIMITS else ""
        print(f"{name:<24}{value:>10.1f}{limit}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    missed = [name for name, limit in LIMITS.items() if found[name] > limit]
    plain = {name: round(value, 1) for name, value in found.items()}
    print(
        json.dumps(
            {
                "bench": "chats",
                "commit": commit.strip(),
                "cores": os.cpu_count(),
                "chats": args.chats,
                **plain,
                "limits": LIMITS,
                "missed": missed,
            }
        )
    )
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
