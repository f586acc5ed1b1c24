"""Twenty hostile keys and one victim: `python benches/server/crowd.py MODEL [--minutes 30] [--keys 20] [--quiet-s 90]`.

`freehold serve` with a key for each client. The victim asks short greedy chats, first alone, then beside the crowd:
each hostile key sends, in a random order of its own, requests that are legal and expensive, and leaves, reads slowly
or starts again. /health is asked every 50 ms. Loopback alone, bounded in clients and time; the crowd's process yields
the processor, for elsewhere it has its own.
Exit 1 where the victim's p99 first token is above 3 times the quiet one, a request of the victim was refused or
failed, or the server's memory grew without an end. Ends in one JSON line.
Path: crowd.py -> Server -> victim, crowd.py --crowd (a process of its own)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from benches.lib import machine  # noqa: E402
from benches.server.load import Answer, ask  # noqa: E402
from benches.server.own_server import tell  # noqa: E402
from benches.server.servers import Server, free_port  # noqa: E402

RATIO = 3.0  # of the victim's p99 first token, beside the crowd to quiet
GROWTH = (
    1.1  # of memory, from the middle of the soak to its last tenth: the first half touches the pool of blocks
)
PAUSE_S = 0.2  # between the victim's chats
SAMPLE_S = 0.05  # between two questions for health
TOKENS = 16  # of the victim's answers
PATIENCE_S = 30.0  # after which a hostile client leaves
MODEL = "model"
AMBIGUOUS = 'start: e\ne: e e | "a" | e e e | ""\n'
Body = tuple[str, Any, dict[str, Any]]  # path, body, how it is read


# --- what a hostile key sends ------------------------------------------------------------------------------


def _chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}


def grammar(draw: random.Random) -> Body:
    """An ambiguous grammar: each mask costs more than the last."""
    body = _chat(grammar=AMBIGUOUS, max_tokens=400, temperature=0, stream=True)
    return "/v1/chat/completions", body, {}


def many_answers(draw: random.Random) -> Body:
    """1,024 sequences in one request."""
    return "/v1/completions", {"model": MODEL, "prompt": ["b"] * 8, "n": 128, "max_tokens": 20}, {}


def embeddings(draw: random.Random) -> Body:
    """As many texts as a request may have."""
    return "/v1/embeddings", {"model": MODEL, "input": [f"text {i}" for i in range(2048)]}, {}


def long_prompt(draw: random.Random) -> Body:
    """A prompt that no cache has."""
    words = " ".join(str(draw.randrange(10**6)) for _ in range(1500))
    return "/v1/completions", {"model": MODEL, "prompt": words, "max_tokens": 64, "stream": True}, {}


def wide_object(draw: random.Random) -> Body:
    """A body of many names that no protocol knows."""
    body = json.dumps(_chat())[:-1] + "".join(f', "k{i}": 1' for i in range(130_000)) + "}"
    return "/v1/chat/completions", body.encode(), {}


def many_blocks(draw: random.Random) -> Body:
    """As many content blocks as a body may have lists and objects."""
    blocks = [{"type": "text", "text": ""}] * 63_000
    body = {"model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": blocks}]}
    return "/v1/messages/count_tokens", body, {}


def leaves(draw: random.Random) -> Body:
    """3 MB to tokenise, from a client that does not wait."""
    return "/tokenize", {"model": MODEL, "prompt": "word " * 600_000}, {"leave_after": 0}


def stored(draw: random.Random) -> Body:
    """A stored response of many empty parts."""
    parts = [{"type": "input_text", "text": ""}] * 1000
    messages = [{"role": "user", "content": parts}] * 60
    return "/v1/responses", {"model": MODEL, "input": messages, "max_output_tokens": 16, "store": True}, {}


def slow_reader(draw: random.Random) -> Body:
    """A long answer that is read in small pieces."""
    body = _chat(max_tokens=1000, stream=True, ignore_eos=True, logprobs=True, top_logprobs=20)
    return "/v1/chat/completions", body, {"pause_s": 0.5}


def choices(draw: random.Random) -> Body:
    """A format of ten thousand alternatives, new each time."""
    options = [f"{draw.randrange(10**9)} of {i}" for i in range(10_000)]
    return "/v1/chat/completions", _chat(guided_choice=options, max_tokens=20), {}


def calls(draw: random.Random) -> Body:
    """Tool calls with long names, and a result for each."""
    names = ["n" * 60 + str(i) for i in range(128)]
    turns: list[dict[str, Any]] = []
    for _ in range(9):
        turns.append(
            {"role": "assistant", "tool_calls": [{"function": {"name": n, "arguments": {}}} for n in names]}
        )
        turns += [{"role": "tool", "content": "1", "tool_name": n} for n in names]
    messages = [{"role": "user", "content": "hi"}, *turns]
    return "/api/chat", {"model": MODEL, "messages": messages, "options": {"num_predict": 1}}, {}


HABITS: tuple[Callable[[random.Random], Body], ...] = (
    grammar,
    many_answers,
    embeddings,
    long_prompt,
    wide_object,
    many_blocks,
    leaves,
    stored,
    slow_reader,
    choices,
    calls,
)


async def _hostile(port: int, key: str, seed: int, until: float, ends: Counter[str]) -> None:
    draw = random.Random(seed)
    headers = {"Authorization": f"Bearer {key}"}
    while time.monotonic() < until:
        habit = draw.choice(HABITS)
        path, body, how = habit(draw)
        end = "no connection"
        with suppress(OSError):
            answer = await ask(port, path, body, headers=headers, limit_s=PATIENCE_S, **how)
            end = "left" if answer.left else str(answer.status)
        ends[f"{habit.__name__}: {end}"] += 1
        await asyncio.sleep(draw.random() * 0.4)


def crowd(port: int, keys: int, seconds: float) -> int:
    """Be the crowd's process; print what came of it all."""
    os.nice(19)
    with suppress(OSError):  # Linux weighs sessions against each other, whatever the niceness within each
        Path("/proc/self/autogroup").write_text("19")
    ends: Counter[str] = Counter()

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(_hostile(port, secret(f"h{i}"), i, until, ends) for i in range(keys)))

    asyncio.run(run())
    print(json.dumps(dict(sorted(ends.items()))))
    return 0


# --- what is measured --------------------------------------------------------------------------------------


def secret(name: str) -> str:
    """The secret of a key, known to both processes."""
    return f"{name}-0123456789abcdef"


@dataclass
class Period:
    """Seconds to the victim's first tokens and of /health's answers, and the victim's failures."""

    first: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)


async def measured(server: Server, seconds: float, until: Callable[[], bool]) -> Period:
    """Ask the victim's chats one after another for so long, or until `until`, and for health all the while."""
    period, draw = Period(), random.Random(7)
    end = time.monotonic() + seconds

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            await ask(server.port, "/health", limit_s=60.0)
            period.health.append(time.perf_counter() - began)
            await asyncio.sleep(SAMPLE_S)

    watching = asyncio.create_task(watch())
    while time.monotonic() < end and not until():
        question = f"Is {draw.randrange(10**6)} an even number? Answer in one word."
        body = _chat(messages=[{"role": "user", "content": question}], max_tokens=TOKENS, temperature=0)
        headers = {"Authorization": f"Bearer {secret('victim')}"}
        answer = await ask(server.port, "/v1/chat/completions", body | {"stream": True}, headers=headers)
        _take(answer, period)
        period.memory.append(server.memory())
        await asyncio.sleep(PAUSE_S)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return period


def _take(answer: Answer, period: Period) -> None:
    if answer.ok and answer.pieces:
        period.first.append(answer.ttft)
    else:
        code = answer.error.get("code") if isinstance(answer.error, dict) else answer.error
        period.failed[f"{answer.status} {code}"] += 1


async def _until_loaded(port: int) -> None:
    headers = {"Authorization": f"Bearer {secret('victim')}"}
    for _ in range(300):
        answer = await ask(port, "/v1/chat/completions", _chat(max_tokens=1), headers=headers)
        if answer.ok:
            return
        await asyncio.sleep(0.2)
    raise SystemExit(f"the model did not answer: {answer.status} {answer.body[:200]!r}")


def bench(path: Path, minutes: float, keys: int, quiet_s: float) -> dict[str, Any]:
    """Measure quiet, then beside the crowd; return the record."""
    from freehold.serve.http.core.keys import KeyFile, made

    with tempfile.TemporaryDirectory(prefix="crowd-") as folder:
        file = Path(folder) / "keys.json"
        for name in ("victim", *(f"h{i}" for i in range(keys))):
            KeyFile(file).add(made(name, secret(name), admin=False, models=(), rate="", tokens=""))
        link = Path(folder) / f"{MODEL}.gguf"
        link.symlink_to(path)
        port = free_port()
        command = [sys.executable, "-m", "freehold.cli.main", "serve", str(link), "--port", str(port)]
        with Server([*command, "--key-file", str(file)], port, {}, "/health") as server:
            asyncio.run(_until_loaded(port))
            asyncio.run(measured(server, 5.0, lambda: False))  # what is new costs more once
            quiet = asyncio.run(measured(server, quiet_s, lambda: False))
            print(f"quiet: {_line(quiet)}", file=sys.stderr)
            seconds = 60.0 * minutes
            others = [sys.executable, __file__, str(path), "--crowd", str(port), "--keys", str(keys)]
            others += ["--minutes", str(minutes)]
            with subprocess.Popen(
                others, stdout=subprocess.PIPE, text=True, start_new_session=True
            ) as process:
                loud = asyncio.run(measured(server, seconds, lambda: process.poll() is not None))
                ends = json.loads(process.communicate()[0] or "{}")
            print(f"beside the crowd: {_line(loud)}", file=sys.stderr)
    return _record(path, quiet, loud) | {"minutes": minutes, "keys": keys, "ends": ends}


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def _line(period: Period) -> str:
    first = period.first or [float("nan")]
    return (
        f"{len(period.first)} chats, first token p50 {statistics.median(first):.3f} s, p99"
        f" {_percentile(first, 0.99):.3f}; /health p99 {_percentile(period.health, 0.99):.3f} s, at most"
        f" {max(period.health):.3f}"
    )


def _record(path: Path, quiet: Period, loud: Period) -> dict[str, Any]:
    failed = quiet.failed + loud.failed
    wrong = [f"{count:,} of the victim's chats ended with {end}" for end, count in failed.items()]
    ratio = _percentile(loud.first, 0.99) / _percentile(quiet.first, 0.99) if loud.first else float("inf")
    if ratio > RATIO:
        wrong.append(f"p99 of the victim's first token is {ratio:.2f} times the quiet one; at most {RATIO}")
    tenth, half = max(len(loud.memory) // 10, 1), len(loud.memory) // 2
    early = statistics.median(loud.memory[half : half + tenth] or [1])
    late = statistics.median(loud.memory[-tenth:])
    if late > GROWTH * early:
        wrong.append(f"memory grew from {early:,.0f} to {late:,.0f} MB")
    record: dict[str, Any] = {"bench": "crowd", **machine.describe(path), "ratio_p99": round(ratio, 3)}
    for name, period in (("quiet", quiet), ("crowd", loud)):
        record |= {
            f"{name}_chats": len(period.first),
            f"{name}_first_p50_s": round(statistics.median(period.first or [0]), 4),
            f"{name}_first_p99_s": round(_percentile(period.first or [0], 0.99), 4),
            f"{name}_health_p99_s": round(_percentile(period.health, 0.99), 4),
            f"{name}_health_max_s": round(max(period.health), 4),
        }
    record |= {"memory_mb": [round(early), round(late), round(max(loud.memory))]}
    return record | {"wrong": wrong}


def main() -> int:
    """Measure, print, return 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--quiet-s", type=float, default=90)
    parser.add_argument("--crowd", type=int, default=0, help=argparse.SUPPRESS)  # a port: be the crowd
    args = parser.parse_args()
    if args.crowd:
        return crowd(args.crowd, args.keys, 60.0 * args.minutes)
    record = bench(machine.resolve(args.model), args.minutes, args.keys, args.quiet_s)
    return tell(record, "ends")


if __name__ == "__main__":
    raise SystemExit(main())
