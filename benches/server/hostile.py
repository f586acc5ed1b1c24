"""One hostile client beside another's chat, by every route: `python benches/server/hostile.py [MODEL]`.

`freehold serve` with a tiny model (or MODEL) and two keys. The victim chats and /health is asked every 50 ms, quiet and
while the hostile key asks one route in one way: deep, wide, many at once, long names and texts, exactly at limits,
references, unknown fields, answers that are not taken, clients that leave, stored objects. The routes come from the
application, and bodies from the structs that it reads, so a new route is tried by itself; what is known to hurt is in
SEEDS. The attackers yield the processor, for elsewhere they have their own.
The limit of the chat is twice its quiet time or its fair share (fair_share), whichever is longer.

    --routes         list the cases and end          --only TEXT      cases whose route or way has TEXT
    --against PATH   beside another checkout, in turns: PATH has a native module, as for benches/console/start.py

A case that misses is measured three times, and the median counts. Exit 1 where /health was more than 20 ms above quiet
at worst, a chat took longer than that, the server's memory grew by more than its limits, or an answer to
the victim failed. Ends in one JSON line. Path: hostile.py -> Server -> watched, hostile.py --attack (a process apart)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benches.lib import machine  # noqa: E402
from benches.lib.watch import HOST, SAMPLE_S, Period, watched  # noqa: E402
from benches.server.attack import KEYS, request, until_loaded  # noqa: E402
from benches.server.hostile_bodies import WAYS, Case, cases, made, stored  # noqa: E402
from benches.server.own_server import tell  # noqa: E402
from benches.server.servers import Server, free_port  # noqa: E402
from freehold.run.engine.schedule.budget import ITL_FLOOR_S, SHARED_TOKENS  # noqa: E402

ABOVE_MS, RATIO = 20.0, 2.0  # what must hold
MEMORY_MB = 512 + 128 + 128  # bodies in progress, stored responses, and what their answers take
CHAT_TOKENS, CLIENTS, MANY, SLOW = 32, 4, 64, 48
PAUSE_S = 0.02  # between two requests of one attacker
SETTLE_S = 0.5  # between two cases
TRIES = 3
# A checkout's sources must win over the editable install of this one.
_SITE = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]\n"


# --- the attack --------------------------------------------------------------------------------------------


class Attacker:
    """The hostile key's clients, in a process apart: a case is a line of stdin, what came of it one of stdout."""

    def __init__(self, port: int, model: str) -> None:
        self._port, self._model = port, model
        self._ids: dict[str, list[str]] = {}

    async def run(self) -> None:
        """Store what cases refer to, then attack as stdin says until stdin ends."""
        self._ids = await stored(self._port, self._model)
        print(json.dumps({"stored": self._ids}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            told = json.loads(line)
            print(json.dumps(await self._attack(Case(**told["case"]), told["seconds"])), flush=True)

    async def _attack(self, case: Case, seconds: float) -> dict[str, int]:
        requests = made(case, self._model, self._ids)
        print(json.dumps({"begun": len(requests), "bytes": sum(map(len, requests))}), flush=True)
        ends: Counter[str] = Counter()
        clients = {"many": MANY, "slow": SLOW}.get(case.way, CLIENTS)
        work = [asyncio.create_task(self._client(case, requests, i, ends)) for i in range(clients)]
        await asyncio.sleep(seconds)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        return dict(sorted(ends.items()))

    async def _client(self, case: Case, requests: list[bytes], first: int, ends: Counter[str]) -> None:
        at = first
        while True:
            try:
                ends[await self._ask(case, requests[at % len(requests)])] += 1
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
                ends[type(e).__name__] += 1
            at += 1
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, case: Case, data: bytes) -> str:
        reader, writer = await asyncio.open_connection(HOST, self._port, limit=1 << 16)
        try:
            writer.write(data)
            with suppress(ConnectionError):
                await writer.drain()
            if case.way == "leaving":
                await asyncio.sleep(0.01)
                return "left"
            if case.way == "slow":
                await asyncio.sleep(3600)
            head = await reader.readuntil(b"\r\n\r\n")
            while await reader.read(1 << 18):
                pass
        finally:
            writer.transport.abort()
        return head[9:12].decode()


def attack(port: int, model: str) -> int:
    """Be the attackers' process."""
    os.nice(19)
    with suppress(OSError):  # Linux may weigh sessions instead of processes (sched_autogroup_enabled)
        Path("/proc/self/autogroup").write_text("19")
    asyncio.run(Attacker(port, model).run())
    return 0


# --- what is measured --------------------------------------------------------------------------------------


def fair_share(quiet_s: float) -> float:
    """Return the seconds of the victim's chat that docs/design/scheduler.md allows beside one other client.

    Its two clients halve the processors, so all that it takes alone takes twice as long; and each of its tokens may
    wait for a step that both share, of SHARED_TOKENS tokens computed alone or ITL_FLOOR_S, whichever is longer.
    """
    step_s = max(SHARED_TOKENS * quiet_s / CHAT_TOKENS, ITL_FLOOR_S)
    return 2 * quiet_s + CHAT_TOKENS * step_s


async def measured(server: Running, seconds: float) -> Period:
    """Chat and ask for health for so long; at least one chat is awaited."""
    chat = {"model": "model", "messages": [{"role": "user", "content": "Count."}], "temperature": 0}
    body = json.dumps(chat | {"max_tokens": CHAT_TOKENS}).encode()
    return await watched(
        server.port,
        request("POST", "/v1/chat/completions", body, "alice"),
        seconds=seconds,
        pause_s=SAMPLE_S,
        limit_s=60.0,
        resident_mb=server.resident_mb,
    )


class Running:
    """A server of one checkout with its attackers."""

    def __init__(self, source: Path, model: Path, folder: Path) -> None:
        """Write keys and the model's link below `folder`; the server starts when entered."""
        from freehold.serve.http.core.keys import KeyFile, made

        folder.mkdir()
        for name, secret in KEYS.items():
            key = made(name, secret, admin=False, models=(), rate="", tokens="")
            KeyFile(folder / "keys.json").add(key)
        link = folder / "model.gguf"
        link.symlink_to(model)
        (folder / "sitecustomize.py").write_text(_SITE if source != ROOT else "")
        self.port = free_port()
        command = [sys.executable, "-m", "freehold.cli.main", "serve", str(link), "--port", str(self.port)]
        command += ["--key-file", str(folder / "keys.json"), "--log-level", "warning"]
        environ = {"PYTHONPATH": os.pathsep.join([str(folder), str(source / "src")])}
        self._server = Server(command, self.port, environ, "/health")

    def __enter__(self) -> Running:
        self._stack = ExitStack()
        self._stack.enter_context(self._server)
        self._process = psutil.Process(self._server.process.pid)
        asyncio.run(until_loaded(self.port))
        command = [sys.executable, __file__, "--attack", str(self.port)]
        self._attackers = self._stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        )
        self._told()
        self.quiet = self.period(2.0)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._attackers.stdin is not None
        self._attackers.stdin.close()
        self._stack.close()

    def resident_mb(self) -> float:
        """Return the server process's memory; its engines have theirs."""
        return self._process.memory_info().rss / 1e6

    def period(self, seconds: float) -> Period:
        """Measure without an attack."""
        return asyncio.run(measured(self, seconds))

    def beside(self, case: Case, seconds: float) -> tuple[Period, dict[str, int]]:
        """Measure beside a case."""
        assert self._attackers.stdin is not None
        self._attackers.stdin.write(json.dumps({"case": asdict(case), "seconds": seconds}) + "\n")
        self._attackers.stdin.flush()
        self._told()
        period = asyncio.run(measured(self, seconds))
        return period, self._told()

    def _told(self) -> dict[str, Any]:
        assert self._attackers.stdout is not None
        line = self._attackers.stdout.readline()
        if not line:
            raise SystemExit("the attackers ended: is the server there?")
        return json.loads(line)


def row_of(server: Running, case: Case, seconds: float) -> dict[str, Any]:
    """Measure a case, again where it misses; return its row."""
    tries = []
    for _ in range(TRIES):
        before = server.resident_mb()
        period, ends = server.beside(case, seconds)
        tries.append((period, period.memory_mb - before, ends))
        time.sleep(SETTLE_S)  # what was asked is worked off, or cancelled
        if not _misses(server.quiet, period, period.memory_mb - before):
            break
        server.quiet = min(server.quiet, server.period(1.0), key=lambda each: each.worst)
    tries.sort(key=lambda each: each[0].worst)
    period, grown, ends = tries[len(tries) // 2]
    return {
        "case": case.name,
        "above_ms": round(1000 * (period.worst - server.quiet.worst), 1),
        "chat": round(period.chat / server.quiet.chat, 2),
        "fair": round(fair_share(server.quiet.chat) / server.quiet.chat, 2),
        "grown_mb": round(grown),
        "ends": ends,
        "wrong": period.wrong[:1],
        "missed": _misses(server.quiet, period, grown),
        "tries": len(tries),
    }


def _misses(quiet: Period, period: Period, grown_mb: float) -> list[str]:
    found = [f"an answer failed: {period.wrong[0]}"] if period.wrong else []
    above_ms = 1000 * (period.worst - quiet.worst)
    if above_ms > ABOVE_MS:
        found.append(f"/health {above_ms:.0f} ms above quiet")
    if period.chat > max(RATIO * quiet.chat, fair := fair_share(quiet.chat)):
        found.append(f"chat {period.chat / quiet.chat:.1f} times, its share is {fair / quiet.chat:.1f}")
    if grown_mb > MEMORY_MB:
        found.append(f"memory {grown_mb:.0f} MB more")
    return found


def bench(model: Path, asked_for: list[Case], seconds: float, against: Path | None) -> dict[str, Any]:
    """Measure all cases on this checkout, and beside another one; return the record."""
    record = {"bench": "hostile", **machine.describe(model), "seconds": seconds}
    sources = {"now": ROOT} if against is None else {"before": against, "now": ROOT}
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder, ExitStack() as stack:
        servers = {
            name: stack.enter_context(Running(source, model, Path(folder) / name))
            for name, source in sources.items()
        }
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
        for case in asked_for:
            for name, server in servers.items():
                rows[name].append(row_of(server, case, seconds))
                _show(name if against else "", rows[name][-1])
        quiet = {
            name: {
                "health_worst_ms": round(1000 * s.quiet.worst, 1),
                "chat_ms": round(1000 * s.quiet.chat, 1),
            }
            for name, s in servers.items()
        }
    now = rows["now"]
    wrong = [f"{row['case']}: {each}" for row in now for each in row["missed"]]
    worst = {name: max(each["above_ms"] for each in found) for name, found in rows.items()}
    counts = {
        "cases": len(now),
        "missed": sum(bool(row["missed"]) for row in now),
        "chat_within_twice": sum(row["chat"] <= RATIO for row in now),
    }
    return record | {"quiet": quiet, "worst_ms": worst, "counts": counts, "rows": rows, "wrong": wrong}


def _show(name: str, row: dict[str, Any]) -> None:
    ends = " ".join(f"{status}:{count}" for status, count in row["ends"].items())
    line = f"{row['case']:<58} {row['above_ms']:>8.1f} {row['chat']:>6.2f} {row['grown_mb']:>6}  {ends}"
    print(f"{name:<7}{line}  {'; '.join(row['missed'])}".rstrip(), flush=True)


def tiny_model(folder: Path) -> Path:
    """Make a model that answers nonsense at once."""
    command = [sys.executable, "-m", "freehold.cli.main", "make-tiny", "qwen3", "--format", "gguf"]
    done = subprocess.run(
        [*command, "--out", str(folder), "--json"], capture_output=True, text=True, check=True
    )
    return Path(json.loads(done.stdout)["gguf"]).resolve()


def main() -> int:
    """Measure, print a row a case, return 1 where one misses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="", help="default: a tiny one")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each case")
    parser.add_argument("--only", action="append", help="cases whose route or way has one of these texts")
    parser.add_argument("--routes", action="store_true", help="list the cases")
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout")
    parser.add_argument("--attack", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.attack:
        return attack(args.attack, "model")
    chosen = [case for case in cases() if any(text in case.name for text in args.only or [""])]
    if args.routes:
        print("\n".join(case.name for case in chosen))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="tiny-") as folder:
        model = machine.resolve(args.model) if args.model else tiny_model(Path(folder))
        record = bench(model, chosen, args.seconds, args.against and args.against.resolve())
    print(f"{record['cpu']}, {os.cpu_count()} cores, {record['commit']}, load {record['load_1m']}")
    print(f"quiet: {record['quiet']}; worst above quiet: {record['worst_ms']}; ways: {', '.join(WAYS)}")
    return tell(record, "counts")


if __name__ == "__main__":
    sys.exit(main())
