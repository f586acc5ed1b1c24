"""A chat beside an attack: `python benches/server/attack.py MODEL [--rounds 6] [--seconds 8] [--same-address]`.

`freehold serve` with keys; one key asks short greedy chats and /health is asked all the while, in turn quiet and beside
another key's attack: bodies of 16 MB that would become a million objects, 2,000 silent connections, 3 MB to tokenise
by clients who leave, and a file whose chat template never ends. Loopback alone, bounded in clients and seconds; the
attackers yield the processor, for elsewhere they have their own.
Exit 1 where the median of the rounds' ratios is above 2, or an answer of /health took above 0.2 s.
Ends in one JSON line. Path: attack.py -> Server -> watched, beside -> attack.py --attack (a process of its own)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benches.lib import machine, watch  # noqa: E402
from benches.lib.watch import HOST, Period, asked, watched  # noqa: E402
from benches.server.own_server import tell  # noqa: E402
from benches.server.servers import Server, free_port  # noqa: E402

RATIO, HEALTH_S = 2.0, 0.2  # what must hold
CHATS, TOKENS = 6, 32  # of a period; of an answer
SILENT, BODIES, LEAVING, BOMBERS = 2000, 6, 24, 2  # clients of an attack
PAUSE_S = 0.5  # between two attempts of one client
OTHER = "127.0.0.2"  # the attackers' address, another than the chat's
KEYS = {"alice": "alice-0123456789abcdef", "mallory": "mallory-0123456789abcdef"}
BOMB = (
    "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(40) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}"
)


def request(method: str, path: str, body: bytes = b"", key: str = "") -> bytes:
    """Write a request of one of KEYS."""
    return watch.request(method, path, body, KEYS[key] if key else "")


# --- the attack --------------------------------------------------------------------------------------------


def bombs_of_bytes() -> list[bytes]:
    """Make bodies of up to 16 MB that become far more, and one that is only long."""
    size = (16 << 20) - 200
    chat = b'"model": "none", "messages": [{"role": "user", "content": "hi"}]'
    return [
        b"{" + chat + b"".join(b', "k%d": 1' % i for i in range(1_000_000)) + b"}",
        b"{" + chat + b', "x": [' + b"[]," * (size // 3) + b"[]]}",
        b"{" + chat + b', "x": [' + b'"",' * (size // 3) + b'""]}',
        b"{" + chat + b', "x": ' + b"[" * (size // 2) + b"]" * (size // 2) + b"}",
        b'{"model": "none", "prompt": [' + b",".join(b"%d" % i for i in range(1 << 20)) + b"]}",
        b'{"model": "none", "messages": [{"role": "user", "content": "' + b"a, [b] " * (size // 7) + b'"}]}',
    ]


@dataclass
class Attack:
    """The attackers' clients. `source`: the address that they come from; `ends`: what came of what they sent."""

    port: int
    model: str
    source: str
    ends: Counter[str] = field(default_factory=Counter)

    async def run(self, seconds: float) -> None:
        """Attack for so long."""
        bodies = bombs_of_bytes()
        text = json.dumps({"model": self.model, "prompt": "word " * 600_000}).encode()
        clients = [self._body(bodies[i % len(bodies)]) for i in range(BODIES)]
        clients += [self._leave(text) for _ in range(LEAVING)] + [self._bomb() for _ in range(BOMBERS)]
        work = [asyncio.create_task(self._again(client)) for client in clients]
        work.append(asyncio.create_task(self._silent()))
        print("begun", flush=True)
        await asyncio.sleep(seconds)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)

    async def _again(self, attempt: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await attempt()
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
                self.ends[f"no answer: {type(e).__name__}"] += 1
            await asyncio.sleep(PAUSE_S)

    def _body(self, body: bytes) -> Callable[[], Awaitable[None]]:
        path = "/v1/completions" if b'"prompt"' in body[:40] else "/v1/chat/completions"
        data = request("POST", path, body, "mallory")

        async def attempt() -> None:
            self.ends[f"a long body: {(await asked(self.port, data, self.source))[0]}"] += 1

        return attempt

    def _leave(self, body: bytes) -> Callable[[], Awaitable[None]]:
        data = request("POST", "/tokenize", body, "mallory")

        async def attempt() -> None:
            _, writer = await asyncio.open_connection(HOST, self.port, local_addr=(self.source, 0))
            with closing(writer):
                writer.write(data)
                await writer.drain()
            self.ends["tokenise and leave"] += 1

        return attempt

    def _bomb(self) -> Callable[[], Awaitable[None]]:
        chat = {"model": "bomb", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        data = [
            request("POST", "/v1/chat/completions", json.dumps(chat).encode(), "mallory"),
            request("GET", "/api/tags", key="mallory"),
        ]

        async def attempt() -> None:
            for each in data:
                self.ends[f"a template without end: {(await asked(self.port, each, self.source))[0]}"] += 1

        return attempt

    async def _silent(self) -> None:
        """Hold connections that say nothing."""
        held: list[asyncio.StreamWriter] = []
        try:
            for _ in range(SILENT):
                with suppress(OSError):
                    connection = asyncio.open_connection(HOST, self.port, local_addr=(self.source, 0))
                    held.append((await connection)[1])
                    self.ends["silent connections"] += 1
            await asyncio.Event().wait()
        finally:
            for writer in held:
                writer.close()


def attack(port: int, model: str, source: str, seconds: float) -> int:
    """Be the attackers' process; print what came of it all."""
    os.nice(19)  # elsewhere, attackers would have processors of their own
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * SILENT), hard), hard))
    run = Attack(port, model, source)
    asyncio.run(run.run(seconds))
    print(json.dumps(dict(sorted(run.ends.items()))))
    return 0


# --- what is measured --------------------------------------------------------------------------------------


async def measured(port: int, model: str) -> Period:
    """Ask some chats one after another, and for health all the while."""
    chat = {"model": model, "messages": [{"role": "user", "content": "Count to twenty."}], "temperature": 0}
    body = json.dumps(chat | {"max_tokens": TOKENS}).encode()
    return await watched(port, request("POST", "/v1/chat/completions", body, "alice"), chats=CHATS)


def beside(port: int, model: str, source: str, seconds: float) -> tuple[Period, Counter[str]]:
    """Measure beside an attack of so many seconds."""
    command = [sys.executable, __file__, model, "--attack", str(port), "--seconds", str(seconds)]
    command += ["--source", source]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attackers:
        assert attackers.stdout is not None
        attackers.stdout.readline()  # its bodies are made, and its clients go
        time.sleep(1.0)
        period = asyncio.run(measured(port, model))
        ends = Counter(json.loads(attackers.stdout.read() or "{}"))
    return period, ends


def served(path: Path, folder: Path) -> tuple[list[str], int]:
    """Write the keys and a file with a template that never ends; return a server's command line and its port."""
    from freehold.serve.http.core.keys import KeyFile, made
    from tests.vectors import files

    for name, secret in KEYS.items():
        KeyFile(folder / "keys.json").add(made(name, secret, admin=False, models=(), rate="", tokens=""))
    keys = {"tokenizer.chat_template": BOMB}
    bomb = files.write_gguf("llama", folder / "bomb.gguf", dtype="Q8_0", keys=keys)
    link = folder / "model.gguf"
    link.symlink_to(path)
    port = free_port()
    command = [sys.executable, "-m", "freehold.cli.main", "serve", str(link), str(bomb), "--port", str(port)]
    return [*command, "--key-file", str(folder / "keys.json")], port


async def until_loaded(port: int) -> None:
    """Wait until the model answers."""
    chat = {"model": "model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    for _ in range(600):
        if (await asked(port, request("POST", "/v1/chat/completions", json.dumps(chat).encode(), "alice")))[
            0
        ] == 200:
            return
        await asyncio.sleep(0.2)
    raise SystemExit("the model did not answer")


def bench(path: Path, rounds: int, seconds: float, source: str) -> dict[str, Any]:
    """Measure quiet and beside an attack in turn; return the record."""
    quiet, loud, ends = [], [], Counter[str]()
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        command, port = served(path, Path(folder))
        with Server(command, port, {}, "/health") as server:
            asyncio.run(until_loaded(port))
            asyncio.run(measured(port, "model"))  # what is new costs more once
            for i in range(rounds):
                quiet.append(asyncio.run(measured(port, "model")))
                period, came = beside(port, "model", source, seconds)
                loud.append(period)
                ends += came
                print(
                    f"round {i + 1}: {_line(quiet[-1])}; beside the attack {_line(period)}", file=sys.stderr
                )
                time.sleep(1.0)
            memory = server.memory()
    return _record(path, quiet, loud, ends) | {"memory_mb": round(memory), "source": source}


def _line(period: Period) -> str:
    return f"chat {statistics.median(period.chats):.3f} s, health {max(period.health):.3f} s at most"


def _record(path: Path, quiet: list[Period], loud: list[Period], ends: Counter[str]) -> dict[str, Any]:
    ratios = [
        statistics.median(b.chats) / statistics.median(a.chats) for a, b in zip(quiet, loud, strict=True)
    ]
    health = sorted(s for period in loud for s in period.health)
    ratio, slowest = statistics.median(ratios), health[-1]
    wrong = [each for period in (*quiet, *loud) for each in period.wrong]
    if ratio > RATIO:
        wrong.append(f"a chat beside the attack took {ratio:.2f} times as long; at most {RATIO} may be")
    if slowest > HEALTH_S:
        late = sum(s > HEALTH_S for s in health)
        wrong.append(f"/health took {slowest:.3f} s, {late} of {len(health)} more than {HEALTH_S} s")
    return {
        "bench": "attack",
        **machine.describe(path),
        "rounds": len(ratios),
        "quiet_s": round(statistics.median([s for p in quiet for s in p.chats]), 4),
        "attack_s": round(statistics.median([s for p in loud for s in p.chats]), 4),
        "ratios": [round(r, 3) for r in ratios],
        "ratio": round(ratio, 3),
        "health_samples": len(health),
        "health_median_s": round(statistics.median(health), 4),
        "health_max_s": round(slowest, 4),
        "health_quiet_max_s": round(max(s for p in quiet for s in p.health), 4),
        "ends": dict(sorted(ends.items())),
        "wrong": wrong,
    }


def main() -> int:
    """Measure, print, return 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8, help="of each attack")
    parser.add_argument(
        "--same-address", action="store_true", help="the attackers come from the chat's own address"
    )
    parser.add_argument("--source", default="", help=argparse.SUPPRESS)
    parser.add_argument("--attack", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    source = args.source or (HOST if args.same_address else OTHER)
    if args.attack:
        return attack(args.attack, args.model, source, args.seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    record = bench(machine.resolve(args.model), args.rounds, args.seconds, source)
    print(f"{record['cpu']}, {os.cpu_count()} cores, {record['commit']}, load {record['load_1m']}")
    print(
        f"a chat of {TOKENS} tokens: {record['quiet_s']:.3f} s quiet, {record['attack_s']:.3f} s beside the attack"
    )
    print(f"ratios {record['ratios']}, median {record['ratio']:.2f}; at most {RATIO}")
    print(
        f"/health: {record['health_median_s']:.4f} s, {record['health_max_s']:.3f} s at most; at most {HEALTH_S}"
    )
    return tell(record, "ends")


if __name__ == "__main__":
    sys.exit(main())
