"""Workloads of a running server, and the figures taken from them. Knows answers and times; knows no program.

A token is what the server's `usage` counts, and every answer is made to have a fixed number of them. TTFT is
from the request to the first piece of text; TPOT the rest of the answer by the tokens in it; ITL every gap
between pieces, one or more tokens that arrive together; E2E to the last piece. A figure's last word is its unit.
Path: race.py -> Scenario.run -> load.ask
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from benches.lib.load_text import Prompts
from benches.lib.results import percentile
from benches.server import load
from benches.server.load import Answer, Call, ask, completion
from benches.server.servers import Room, Server, get

TTFT_S, TPOT_S = 2.0, 0.1  # goodput's terms: a reader waits two seconds, then reads ten tokens a second
QUESTION = 24  # tokens after a shared prefix
QUIET_S = 2.5  # that streams run alone before a long prompt comes
LONG_LIMIT_S = (
    60.0  # that a long prompt may take while streams run; a server whose slots are taken never begins
)
DRIFT_S = 300.0  # of the beginning and of the end that a drift compares
ROUTE = "/v1/completions"

Figures = dict[str, float]


@dataclass(frozen=True)
class Scenario:
    """Some traffic. `prompt` and `output` are tokens; `waves` requests come from each client, one by one."""

    name: str
    kind: str
    clients: int
    prompt: int
    output: int
    waves: int = 2
    headline: str = "output tok/s"  # the figure by which a server's settings are chosen
    minutes: float = 0  # that a drift runs
    temperature: float = 0.0  # greedy text comes to repeat itself, and a server that guesses gains by it

    @property
    def room(self) -> Room:
        """What a server must have room for."""
        return Room(self.clients + (self.kind == "intrusion"), self._longest + 64)

    @property
    def _longest(self) -> int:
        return self.prompt + self.output + (QUESTION if self.kind in ("prefix", "together") else 0)

    @property
    def trial(self) -> Scenario:
        """The same in short, to try settings on."""
        return replace(self, waves=1)

    def run(self, server: Server, prompts: Prompts) -> Figures:
        """Warm the server up, do it, return the figures. Raises RuntimeError where an answer is not whole."""
        return asyncio.run(self._run(server, prompts))

    async def _run(self, server: Server, prompts: Prompts) -> Figures:
        client = Client(server, model_name(server.port), self.temperature)
        await client.together([prompts.draw(32) for _ in range(self.clients)], 8)
        work: dict[str, Callable[..., Coroutine[Any, Any, Figures]]]
        work = {"load": _load, "prefix": _prefix, "together": _together, "intrusion": _intrusion}
        figures = await (work | {"drift": _drift})[self.kind](self, client, prompts)
        return figures | {"memory MB": server.memory()}


@dataclass
class Client:
    """Asks one model of one server."""

    server: Server
    model: str
    temperature: float

    @property
    def port(self) -> int:
        """The server's."""
        return self.server.port

    async def ask(self, prompt: str, output: int) -> Answer:
        """Get a whole answer of `output` tokens. Raises RuntimeError for anything else."""
        answer = await ask(self.port, ROUTE, self._body(prompt, output))
        if not answer.ok or answer.tokens != output or not answer.pieces:
            what = answer.error or answer.body[:200] or f"{answer.tokens} tokens of {output}"
            raise RuntimeError(f"status {answer.status}: {what}")
        return answer

    async def together(self, prompts: list[str], output: int) -> list[Answer]:
        """Ask everything at once."""
        return await asyncio.gather(*(self.ask(prompt, output) for prompt in prompts))

    async def begin(self, prompt: str, output: int) -> Call:
        """Start a stream and leave it running."""
        return await load.start(self.port, ROUTE, self._body(prompt, output))

    def _body(self, prompt: str, output: int) -> dict[str, Any]:
        return completion(self.model, prompt, output, temperature=self.temperature, seed=1)


CLIENTS = {1: 4, 4: 2, 16: 1}  # clients -> requests of each: a slow server takes a minute for sixteen
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        *(Scenario(f"short-{n}", "load", n, 32, 128, waves) for n, waves in CLIENTS.items()),
        *(Scenario(f"chat-{n}", "load", n, 256, 128, waves) for n, waves in CLIENTS.items()),
        # The same clients, who ask again: what goes on, not a burst with its beginning and its end.
        Scenario("steady-16", "load", 16, 256, 128, waves=3),
        Scenario("drift", "drift", 4, 256, 128, minutes=60, headline="last output tok/s"),
        Scenario("prefix", "prefix", 1, 2000, 8, 3, headline="hit % of cold"),
        Scenario("together", "together", 4, 2000, 8, 1, headline="last ttft ms"),
        Scenario("intrusion", "intrusion", 4, 4000, 1000, 1, headline="worst itl ms"),
    )
}


def model_name(port: int) -> str:
    """Ask a server what its model is called."""
    status, body = get(port, "/v1/models")
    if status != 200:
        raise RuntimeError(f"/v1/models answers {status}")
    return json.loads(body)["data"][0]["id"]


async def closed_loop(client: Client, prompts: list[str], clients: int, output: int) -> list[Answer]:
    """Let so many clients ask what is left in `prompts`, each its next when it has its answer."""
    waiting, answers = list(reversed(prompts)), []

    async def one() -> None:
        while waiting:
            answers.append(await client.ask(waiting.pop(), output))

    await asyncio.gather(*(one() for _ in range(clients)))
    return answers


def latencies(answers: list[Answer]) -> Figures:
    """Give the percentiles of everything that a client waits for."""
    values = {
        "ttft": [a.ttft for a in answers],
        "tpot": [a.tpot for a in answers],
        "itl": [gap for a in answers for gap in a.gaps],
        "e2e": [a.e2e for a in answers],
    }
    return {
        f"{name} p{percent} ms": 1e3 * percentile(times, percent)
        for name, times in values.items()
        for percent in (50, 95, 99)
    }


async def _load(scenario: Scenario, client: Client, prompts: Prompts) -> Figures:
    texts = [prompts.draw(scenario.prompt) for _ in range(scenario.clients * scenario.waves)]
    began = time.perf_counter()
    answers = await closed_loop(client, texts, scenario.clients, scenario.output)
    wall = max(a.pieces[-1] for a in answers) - began
    good = sum(a.ttft <= TTFT_S and a.tpot <= TPOT_S for a in answers)
    rates = {"output tok/s": sum(a.tokens for a in answers) / wall, "goodput req/s": good / wall}
    pieces = sum(len(a.pieces) for a in answers) / sum(a.tokens for a in answers)
    return rates | latencies(answers) | {"pieces a token x": pieces}


async def _drift(scenario: Scenario, client: Client, prompts: Prompts) -> Figures:
    """Keep the clients busy for long; the beginning beside the end."""
    began, answers = time.perf_counter(), list[Answer]()
    end, part = began + 60 * scenario.minutes, min(DRIFT_S, 15 * scenario.minutes)
    memory = list[float]()

    async def one() -> None:
        while time.perf_counter() < end:
            answers.append(await client.ask(prompts.draw(scenario.prompt), scenario.output))
            if not memory and time.perf_counter() > began + part:
                memory.append(client.server.memory())

    await asyncio.gather(*(one() for _ in range(scenario.clients)))
    spans = {"first": (began, began + part), "last": (end - part, end)}
    figures: Figures = {}
    for name, (since, until) in spans.items():
        chosen = [answer for answer in answers if since <= answer.pieces[-1] < until]
        if not chosen:
            raise RuntimeError(f"no answer ended in the {name} {part:.0f} s; let it drift for more minutes")
        window = {"output tok/s": sum(answer.tokens for answer in chosen) / part, **latencies(chosen)}
        figures |= {f"{name} {key}": value for key, value in window.items() if "p95" not in key}
    return figures | {"memory then MB": memory[0]}


async def _prefix(scenario: Scenario, client: Client, prompts: Prompts) -> Figures:
    cold, hits = [], []
    for _ in range(scenario.waves):
        prefix = prompts.draw(scenario.prompt)
        for i in range(4):
            answer = await client.ask(f"{prefix} {prompts.draw(QUESTION)}", scenario.output)
            (hits if i else cold).append(answer.ttft)
    first, again = statistics.median(cold), statistics.median(hits)
    return {"cold ttft ms": 1e3 * first, "hit ttft ms": 1e3 * again, "hit % of cold": 100 * again / first}


async def _together(scenario: Scenario, client: Client, prompts: Prompts) -> Figures:
    alone = await client.ask(f"{prompts.draw(scenario.prompt)} {prompts.draw(QUESTION)}", scenario.output)
    prefix = prompts.draw(scenario.prompt)
    texts = [f"{prefix} {prompts.draw(QUESTION)}" for _ in range(scenario.clients)]
    last = max(a.ttft for a in await client.together(texts, scenario.output))
    return {
        "alone ttft ms": 1e3 * alone.ttft,
        "last ttft ms": 1e3 * last,
        "last % of alone": 100 * last / alone.ttft,
    }


async def _intrusion(scenario: Scenario, client: Client, prompts: Prompts) -> Figures:
    """Let streams run, then send a long prompt; their gaps before it came, and until its first token."""
    alone = await client.ask(prompts.draw(scenario.prompt), 1)
    streams = [await client.begin(prompts.draw(32), scenario.output) for _ in range(scenario.clients)]
    await asyncio.gather(*(stream.first.wait() for stream in streams))
    quiet_from = time.perf_counter() + 0.5
    await asyncio.sleep(0.5 + QUIET_S)
    came = time.perf_counter()
    long = await client.begin(prompts.draw(scenario.prompt), 1)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LONG_LIMIT_S):
            await long.first.wait()
    until = time.perf_counter()
    quiet, disturbed = _gaps(streams, quiet_from, came), _gaps(streams, came, until)
    for call in (*streams, long):
        call.leave()
        await load.finish(call)
    if not quiet or not disturbed:
        raise RuntimeError("the streams ended before the long prompt came")
    usual, worst = statistics.median(quiet), max(disturbed)
    figures = {
        "quiet itl ms": 1e3 * usual,
        "quiet worst itl ms": 1e3 * max(quiet),
        "worst itl ms": 1e3 * worst,
    }
    figures |= {"worst / quiet x": worst / usual, "long alone ttft ms": 1e3 * alone.ttft}
    return figures | {"long ttft ms": 1e3 * (until - came) if long.answer.pieces else math.inf}


def _gaps(calls: list[Call], begin: float, end: float) -> list[float]:
    """List the streams' gaps that touch a time; one still open at its end counts as far as it goes."""
    found = []
    for call in calls:
        times = call.answer.pieces + ([] if call.answer.complete else [end])
        found += [b - a for a, b in itertools.pairwise(times) if a < end and begin < b]
    return found
