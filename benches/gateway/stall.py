"""How long hostile texts hold up a gateway's event loop, and how late they make another client's requests.

    python benches/gateway/stall.py [--texts 200] [--at-once 2] [--against CHECKOUT]

`freehold serve --gateway` in front of the stand-in provider of the tests, with detectors on, an own pattern, a tiny
local model for labelled requests, two keys. One key sends 200 texts of up to 1.5 MB, made to be expensive: numbers
that are almost telephones, cards or mails, escapes, accents, typography, arguments of tools, data URLs. The other
asks /health every 20 ms, and for a short answer of the provider every 100 ms. Inside of the server a task that wants
to run every millisecond notes how late it was. What of that the loop's thread spent in the queue for a processor is
taken off, as other processes cause it; the rest is the time for which the loop was held, by its own work or by another
thread that had the interpreter's lock. `--stacks FILE` writes what all threads did then.

Bounds: the loop held 20 ms at most, /health P99 50 ms. Exits 1 where one is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

KEYS = {"mallory": "fh-" + "m" * 32, "alice": "fh-" + "a" * 32}
HELD_MS, PING_MS = 20.0, 50.0
SIZES = (2_000, 20_000, 60_000, 200_000, 480_000, 1_500_000)  # bytes
FILE = """
[providers.far]
kind = "openai"
url = "%(url)s"
key = "env:BENCH_KEY"
[models.far]
provider = "far"
model = "far"
price = { input = 1.0, output = 10.0 }
[models.own]
local = "%(local)s"
[labels.private]
stay = "owned"
detect = ["pii", "secrets"]
patterns = ['Project \\d{6}']
[routes.chat]
targets = ["far", "own"]
cache = "60s"
"""


def _repeated(piece: Callable[[random.Random], str]) -> Callable[[random.Random, int], str]:
    def made(draw: random.Random, size: int) -> str:
        some = "".join(piece(draw) for _ in range(200))
        return (some * (size // len(some) + 1))[:size]

    return made


def _digits(draw: random.Random, n: int) -> str:
    return "".join(draw.choice("0123456789") for _ in range(n))


TEXTS: dict[str, Callable[[random.Random, int], str]] = {
    "phone 000-0000": _repeated(lambda r: "phone 000-0000 "),
    "rows of a CSV": _repeated(lambda r: f"{_digits(r, 4)},phone 0{_digits(r, 2)}-{_digits(r, 4)},x\n"),
    "almost telephones": _repeated(lambda r: f"phone {_digits(r, 3)}-055-{_digits(r, 4)} "),
    "after plus": _repeated(lambda r: f"+{_digits(r, 8)} "),
    "almost mails": _repeated(lambda r: "a@b.zz "),
    "almost cards": _repeated(lambda r: f"4000 0000 0000 000{r.randrange(1, 9)} "),
    "almost accounts": _repeated(lambda r: f"DE00{_digits(r, 18)} "),
    "digits and signs": _repeated(lambda r: r.choice("0123456789-. ()+/@")),
    "escapes": _repeated(lambda r: r.choice((r"\n", r"\u0041", r"\\u00e9"))),
    "accents": lambda r, n: "\uff11" + "\u0300\u0323" * (n // 2),
    "long ligatures": lambda r, n: "\uff11" + "\ufdfa" * n,
    "typography": _repeated(lambda r: "\u2019\u00a0\u2013 \u202f1\u200b"),
    "other digits": _repeated(lambda r: chr(0x661 + r.randrange(9))),
    "words": _repeated(lambda r: r.choice(("the ", "order ", "of ", "a ", "customer "))),
    "one word": lambda r, n: "a" * n,
}


def _chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def _parts(text: str) -> dict[str, Any]:
    cut = [text[i : i + 2000] for i in range(0, len(text), 2000)]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in cut]}]}


def _turns(text: str) -> dict[str, Any]:
    cut = [text[i : i + 300] for i in range(0, len(text), 300)]
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(cut[:9999])]}


def _arguments(text: str) -> dict[str, Any]:
    function = {"name": "f", "arguments": json.dumps({"a": text})}
    called = {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    result = {"role": "tool", "tool_call_id": "c", "content": json.dumps({"text": text[:1000]})}
    return {"messages": [{"role": "user", "content": "go on"}, called, result]}


def _schema(text: str) -> dict[str, Any]:
    function = {"name": "f", "description": text, "parameters": {"type": "object"}}
    return {**_chat("hello"), "tools": [{"type": "function", "function": function}]}


def _data(text: str) -> dict[str, Any]:
    body = base64.b64encode(b"\x89PNG" + text.encode()[: 1 << 20]).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{body}"}}
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, picture]}]}


FORMS = (_chat, _chat, _parts, _arguments, _schema, _turns, _data)


def hostile(number: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and bodies, the same at every run."""
    names, draw = [*TEXTS], random.Random(7)
    for i in range(number):
        name, form = names[i % len(names)], draw.choice(FORMS)
        size = SIZES[-1 - (i // len(names)) % len(SIZES)]
        text = TEXTS[name](draw, size).encode()[:size].decode(errors="ignore")
        body = {"model": "chat", "max_tokens": 8, **form(text)}
        yield f"{name}, {size:,} as {form.__name__[1:]}", json.dumps(body, ensure_ascii=False).encode()


# --- the server, watched from inside -----------------------------------------------------------------------


def serve(package: str, log: str, arguments: list[str]) -> None:
    """Run `freehold serve` of a checkout with a task beside it that notes how late it runs."""
    if package:
        sys.meta_path[:] = [f for f in sys.meta_path if "Scikit" not in type(f).__name__]
        sys.path.insert(0, package)
    from freehold.cli import main
    from freehold.serve.http import serve as served

    made = served._loop_factory()

    def factory() -> asyncio.AbstractEventLoop:
        loop = made() if made is not None else asyncio.new_event_loop()
        loop.call_soon(lambda: tasks.append(loop.create_task(watch(log))))
        return loop

    tasks: list[asyncio.Task[None]] = []
    served._loop_factory = lambda: factory
    sys.argv = ["freehold", *arguments]
    main.main()


async def watch(log: str) -> None:
    beat = [time.monotonic()]
    threading.Thread(target=sample, args=(log, beat, threading.get_ident()), daemon=True).start()
    with open(log, "w", buffering=1) as out:
        while True:
            began, spent, queued = time.monotonic(), time.thread_time(), queued_s()
            beat[0] = began
            await asyncio.sleep(0.001)
            late, cpu = time.monotonic() - began - 0.001, time.thread_time() - spent
            if late > 0.004:
                held = max(late - (queued_s() - queued), cpu)
                print(json.dumps([began, late * 1e3, held * 1e3, cpu * 1e3]), file=out)


def queued_s() -> float:
    """Return the seconds for which this thread could have run and had no processor (Linux)."""
    with open("/proc/thread-self/schedstat", "rb", buffering=0) as stat:
        return int(stat.read().split()[1]) / 1e9


def sample(log: str, beat: list[float], loop: int) -> None:
    """Write what every thread does while the loop is late, to be mended."""
    with open(f"{log}-stacks", "w", buffering=1) as out:
        while True:
            time.sleep(0.005)
            if (late := time.monotonic() - beat[0]) > 0.012:
                print(f"--- {late * 1e3:.0f} ms", file=out)
                for thread, frame in sys._current_frames().items():
                    if thread != threading.get_ident():
                        name = "the loop" if thread == loop else "a thread"
                        lines = traceback.extract_stack(frame)[-4:]
                        print(
                            name,
                            *(f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in lines),
                            file=out,
                        )


# --- the clients ---------------------------------------------------------------------------------------------


def provide(pipe: Any) -> None:
    from tests.providers.standin import StandIn

    with StandIn() as standin:
        standin.checks = False
        pipe.send(standin.url("openai"))
        while True:
            time.sleep(1)
            standin.received.clear()


def ping(url: str, pipe: Any) -> None:
    """Ask as another client does, from a process of its own, until the parent says stop."""
    headers = {"Authorization": f"Bearer {KEYS['alice']}"}
    body = {"model": "far", "max_tokens": 8, **_chat("What is two and two?")}
    found: dict[str, list[float]] = {"health": [], "chat": []}
    stop = threading.Event()

    def every(name: str, seconds: float, ask: Callable[[httpx2.Client], Any]) -> None:
        with httpx2.Client(base_url=url, headers=headers, timeout=120) as client:
            while not stop.wait(seconds):
                began = time.perf_counter()
                answer = ask(client)
                found[name].append((time.perf_counter() - began) * 1e3)
                assert answer.status_code == 200, answer.text

    asking = [
        threading.Thread(target=every, args=("health", 0.02, lambda c: c.get("/health"))),
        threading.Thread(
            target=every, args=("chat", 0.1, lambda c: c.post("/v1/chat/completions", json=body))
        ),
    ]
    for thread in asking:
        thread.start()
    pipe.recv()
    stop.set()
    for thread in asking:
        thread.join()
    pipe.send(found)


@dataclass
class Seen:
    """What one run found. Milliseconds."""

    health: list[float] = field(default_factory=list)
    chat: list[float] = field(default_factory=list)
    held: list[tuple[float, float, float, float]] = field(default_factory=list)  # at, late, held, processor
    spans: list[tuple[float, float, str]] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    cpu_s: float = 0.0

    def worst(self, number: int = 5) -> list[str]:
        """Return what was sent while the loop was held longest."""
        worst = sorted(self.held, key=lambda held: -held[2])[:number]
        return [
            f"{held:7.1f} ms, {cpu:6.1f} of processor, {late:6.1f} late: {self._sent(at)}"
            for at, late, held, cpu in worst
        ]

    def _sent(self, at: float) -> str:
        return (
            "; ".join(name for began, ended, name in self.spans if began - 0.05 <= at <= ended) or "nothing"
        )


def run(
    folder: Path, package: str, texts: list[tuple[str, bytes]], at_once: int, stacks: Path | None
) -> Seen:
    seen = Seen()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    provider = context.Process(target=provide, args=(theirs,), daemon=True)
    provider.start()
    with server(folder, package, ours.recv()) as url:
        pings, there = context.Pipe()
        pinger = context.Process(target=ping, args=(url, there), daemon=True)
        with httpx2.Client(base_url=url, timeout=300) as client:
            for model in ("far", "own"):
                _send(
                    client, b"%b" % json.dumps({"model": model, "max_tokens": 4, **_chat("hello")}).encode()
                )
        pinger.start()
        time.sleep(3)  # the pinger's interpreter starts
        waiting, lock = iter(texts), threading.Lock()

        def sender() -> None:
            with httpx2.Client(base_url=url, timeout=300) as client:
                while True:
                    with lock:
                        name, body = next(waiting, ("", b""))
                    if not name:
                        return
                    began = time.monotonic()
                    status = _send(client, body)
                    seen.spans.append((began, time.monotonic(), name))
                    seen.statuses[status] = seen.statuses.get(status, 0) + 1

        senders = [threading.Thread(target=sender) for _ in range(at_once)]
        for thread in senders:
            thread.start()
        for thread in senders:
            thread.join()
        pings.send("stop")
        found = pings.recv()
        seen.health, seen.chat = found["health"], found["chat"]
        first = min(began for began, _, _ in seen.spans)
        lines = (folder / "late").read_text().splitlines()
        if stacks:
            stacks.write_text((folder / "late-stacks").read_text())
        seen.held = [held for line in lines if (held := tuple(json.loads(line)))[0] >= first]
    provider.kill()
    return seen


def _send(client: httpx2.Client, body: bytes) -> int:
    headers = {"Authorization": f"Bearer {KEYS['mallory']}", "Content-Type": "application/json"}
    return client.post("/v1/chat/completions", content=body, headers=headers).status_code


@contextmanager
def server(folder: Path, package: str, provider: str) -> Iterator[str]:
    from benches.server.hostile import tiny_model
    from freehold.serve.http.core.keys import KeyFile, key_of

    for name, secret in KEYS.items():
        KeyFile(folder / "keys.json").add(key_of(name, secret))
    tiny = tiny_model(folder / "tiny")
    environ = {**os.environ, "FREEHOLD_HOME": str(folder), "BENCH_KEY": "sk-bench"}
    pull = [sys.executable, "-m", "freehold.cli.main", "pull", str(tiny)]
    subprocess.run(pull, env=environ, check=True, capture_output=True)
    (folder / "gateway.toml").write_text(FILE % {"url": provider, "local": tiny.stem})
    command = [sys.executable, __file__, "--serve", package, str(folder / "late"), "serve"]
    command += ["--port", "0", "--json", "--gateway", str(folder / "gateway.toml")]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError((folder / "log").read_text()[-2000:])
        yield json.loads(line)["url"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def report(name: str, seen: Seen) -> dict[str, Any]:
    late, held, cpu = (max((each[i] for each in seen.held), default=0.0) for i in (1, 2, 3))
    row = {
        "late_ms": late,
        "held_ms": held,
        "held_cpu_ms": cpu,
        "health_p99_ms": percentile(seen.health, 0.99),
        "health_worst_ms": max(seen.health),
        "chat_p50_ms": percentile(seen.chat, 0.5),
        "chat_p99_ms": percentile(seen.chat, 0.99),
        "chat_worst_ms": max(seen.chat),
    }
    row = {key: round(value, 1) for key, value in row.items()}
    print(f"{name}: {row}; pings {len(seen.health)}; statuses {seen.statuses}")
    print("\n".join(f"  {line}" for line in seen.worst()), flush=True)
    return {**row, "statuses": seen.statuses}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=2, help="texts of the one key at a time")
    parser.add_argument("--against", default="", metavar="CHECKOUT", help="measured first, in the same way")
    parser.add_argument("--stacks", type=Path, metavar="FILE", help="write what held the loop to a file")
    given = parser.parse_args()
    texts = list(hostile(given.texts))
    rows = {}
    for name, package in (("before", given.against and f"{given.against}/src"), ("now", "")):
        if name == "now" or package:
            with tempfile.TemporaryDirectory() as folder:
                rows[name] = report(name, run(Path(folder), package, texts, given.at_once, given.stacks))
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"bench": "gateway/stall", "texts": len(texts), "load": load, **rows}))
    return int(rows["now"]["held_ms"] > HELD_MS or rows["now"]["health_p99_ms"] > PING_MS)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        sys.exit(main())
