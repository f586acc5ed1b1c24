"""Measures what an engine's steps take, through the API that its clients use, and fits StepTime to it.

    samples = await measure(door, MeasurePlan(batches=(1, 4, 16), depths=(64, 1024)))
    model = fit(samples, rules("vllm"))

Prompts alone give the cost of a prompt token; answers side by side, at several depths, the cost of a step; a prompt
beside answers how the engine shares a step; requests that come and go what they take beside it. Prompts are warmed
where the engine has a prefix cache, so that answers of one measurement begin together. Knows no trace.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Self
from urllib.parse import SplitResult, urlsplit

import numpy as np

from freehold.base.config import Settings, load_settings, nearest
from freehold.base.errors import ServerUnreachable, UpstreamFailed, UsageError
from freehold.outgrow.capacity.engine import EngineLimits, EngineModel, StepTime
from freehold.outgrow.capacity.simulation import simulate
from freehold.outgrow.capacity.trace import RequestTrace, TracedRequest
from freehold.outgrow.engines.attach import HERE

_WORDS = (
    *("the", "of", "in", "to", "and", "is", "it", "for", "on", "as", "at", "be"),
    *("by", "we", "he", "she", "you", "not", "all", "one", "two", "new", "old"),
    *("day", "man", "way", "out", "up", "time", "about", "other", "people", "water"),
)
_TRIAL = 100  # words of the prompt that tells how many tokens a word has
_FEW = 4  # steps that a prompt beside answers was spread over: the engine keeps its answers fluent
_SAME_DEPTH = 64  # tokens: depths that differ by less are one
# Times the tokens of an answer that are tried: fast engines end some before others begin.
_LONGER = (1, 4, 16)
_TURNOVER = 12  # requests that come and go, and two more of each client
_LEAST_WINDOW = 3  # tokens of each answer in the time when all of them run
_SIDE_BY_SIDE, _LONG = (1, 4096), (8, 10_000_000)  # requests; tokens of context
_BOUNDS = {
    **dict.fromkeys(("batches", "beside", "clients"), _SIDE_BY_SIDE),
    **dict.fromkeys(("depths", "prompts"), _LONG),
}
_NEEDED = ("batches", "depths", "prompts")  # the others may be left out


@dataclass(frozen=True, slots=True)
class MeasurePlan:
    """What is measured. The largest batch at the largest depth has to fit into the engine's cache."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    depths: tuple[int, ...] = (64, 1024)
    prompts: tuple[int, ...] = (16, 256, 1024)  # tokens of prompts that are timed alone
    beside: tuple[int, ...] = (2, 8)  # answers beside which a prompt is timed
    clients: tuple[int, ...] = (1, 4, 12)  # that ask one request after another
    tokens: int = 32  # of each answer
    rounds: int = 2

    def __post_init__(self) -> None:
        for what, (least, most) in _BOUNDS.items():
            values = getattr(self, what)
            if any(not least <= v <= most for v in values) or (not values and what in _NEEDED):
                raise UsageError(
                    f"{what} of {', '.join(map(str, values)) or 'nothing'} cannot be measured",
                    f"give numbers from {least} to {most:,}",
                )
        if self.tokens < 8 or self.rounds < 1:
            raise UsageError("answers have 8 tokens or more, and there is one round or more")


@dataclass(slots=True)
class StepSamples:
    """What was measured, in seconds."""

    prompts: list[tuple[int, float]] = field(default_factory=list)  # tokens, to the first token
    steps: list[tuple[int, float, float]] = field(default_factory=list)  # batch, depths together, a step
    # Answers, prompt tokens beside them, s to its first token, tokens that each answer made meanwhile.
    beside: list[tuple[int, int, float, float]] = field(default_factory=list)
    runs: list[list[TimedRequest]] = field(default_factory=list)  # requests that came and went


class PromptWords:
    """Prompts of random words, of about the number of tokens asked for; no two begin alike."""

    def __init__(self, seed: int, per_word: float) -> None:
        """`per_word`: tokens of a word, as the engine's tokenizer has it."""
        self._dice, self._per_word = random.Random(seed), per_word

    @classmethod
    async def for_engine(cls, door: EngineDoor, seed: int) -> Self:
        """Ask an engine how many tokens such a word has. Raises UpstreamFailed."""
        trial = cls(10**9 + seed, 1.0).draw(_TRIAL)  # no other prompt begins like it
        tried = _whole(await door.ask(trial, 8))
        return cls(seed, max(tried.prompt_tokens / _TRIAL, 0.2))

    def draw(self, tokens: int) -> str:
        words = max(round(tokens / self._per_word), 1)
        begin = [str(self._dice.randrange(10, 100)) for _ in range(2)] if words > 4 else []
        return " ".join([*begin, *self._dice.choices(_WORDS, k=words - len(begin))])


async def measure(
    door: EngineDoor,
    plan: MeasurePlan = MeasurePlan(),
    on_progress: Callable[[str], None] | None = None,
    seed: int = 1,
) -> StepSamples:
    """Measure. Raises UpstreamFailed where an answer fails, ServerUnreachable."""
    show = on_progress or (lambda _: None)
    show("the first prompt")
    words, samples = await PromptWords.for_engine(door, seed), StepSamples()
    for number in range(plan.rounds):
        shown = f"round {number + 1} of {plan.rounds}"
        for tokens in plan.prompts:
            show(f"{shown}: a prompt of {tokens:,} tokens")
            answer = _whole(await door.ask(words.draw(tokens), 1))
            samples.prompts.append((answer.prompt_tokens, answer.ttft))
        for depth in plan.depths:
            prompts = [words.draw(depth) for _ in range(max(plan.batches))]
            for prompt in prompts:  # into its prefix cache
                show(f"{shown}: warming prompts of {depth:,} tokens")
                answer = _whole(await door.ask(prompt, 1))
                samples.prompts.append((answer.prompt_tokens, answer.ttft))
            for batch in plan.batches:
                show(f"{shown}: {batch} answers {depth:,} tokens deep")
                samples.steps += await _steps(door, prompts[:batch], plan.tokens)
        for batch in plan.beside:
            show(f"{shown}: a prompt beside {batch} answers")
            samples.beside += await _beside(door, words, batch, max(plan.prompts), plan.tokens)
        for clients in plan.clients:
            show(f"{shown}: {clients} clients with one request after another")
            lengths = (min(plan.prompts), max(plan.prompts)), (plan.tokens // 2, 2 * plan.tokens)
            turnover_plan = TurnoverPlan(clients, _TURNOVER + 2 * clients, *lengths)
            samples.runs.append(await turnover(door, words, turnover_plan, seed + number))
    return samples


def _whole(answer: TimedAnswer) -> TimedAnswer:
    if answer.error or not answer.pieces:
        raise UpstreamFailed(
            f"the engine did not answer a prompt of random words: {answer.error or 'no token came'}",
            "can it hold the largest batch at the largest depth? see --batches and --depths",
        )
    return answer


async def _steps(door: EngineDoor, prompts: Sequence[str], tokens: int) -> list[tuple[int, float, float]]:
    """Time answers side by side, in the time when all of them run; they are made longer until there is one."""
    begin = end = mean = 0.0
    answers, generated = [], []
    for longer in _LONGER:
        # More tokens for more answers: they do not begin at one moment.
        requests = (door.ask(p, longer * (tokens + len(prompts))) for p in prompts)
        answers = [_whole(a) for a in await asyncio.gather(*requests)]
        begin, end = max(a.pieces[0] for a in answers), min(a.pieces[-1] for a in answers)
        generated = [_between(a, begin, end) for a in answers]
        mean = sum(generated) / len(generated)
        if mean >= tokens / 2:
            break
    if mean < _LEAST_WINDOW or end <= begin:
        return []
    depth = 0.0
    for answer, tokens_then in zip(answers, generated, strict=True):
        depth += answer.prompt_tokens + answer.tokens * (1 - tokens_then / 2 / max(answer.tokens, 1))
    return [(len(prompts), depth, (end - begin) / mean)]


def _between(answer: TimedAnswer, begin: float, end: float) -> float:
    """Return how many tokens came after `begin` and until `end`; a piece may have more than one, or none be seen."""
    pieces = sum(begin < p <= end for p in answer.pieces)
    return pieces * max(answer.tokens - 1, 1) / max(len(answer.pieces) - 1, 1)


async def _beside(
    door: EngineDoor, words: PromptWords, batch: int, prompt: int, tokens: int
) -> list[tuple[int, int, float, float]]:
    """Time a prompt that arrives while answers run, if these can be made to last until its first token."""
    length = 4 * tokens
    while True:
        running = [asyncio.create_task(door.ask(words.draw(16), length)) for _ in range(batch)]
        first = asyncio.create_task(door.ask(words.draw(16), 4))  # its end says that the others run
        await first
        newcomer = _whole(await door.ask(words.draw(prompt), 1))
        answers = [_whole(a) for a in await asyncio.gather(*running)]
        if all(a.pieces[0] < newcomer.sent and a.pieces[-1] > newcomer.pieces[0] for a in answers):
            step_s = sum(_between(a, newcomer.sent, newcomer.pieces[0]) for a in answers) / batch
            return [(batch, newcomer.prompt_tokens, newcomer.ttft, step_s)]
        if length >= 32 * tokens:
            return []
        length *= 2


def rules(engine: str) -> EngineLimits:
    """Return what is known of how an engine shares a step, before anything is measured."""
    if engine == "freehold":  # engine/schedule/budget.py
        return EngineLimits(chunk=512, pace=2.2, floor_s=0.004, burst_s=0.2, alone_s=0.25, shortest=True)
    return EngineLimits(chunk=2048)  # vLLM's and SGLang's default for serving


def fit(samples: StepSamples, limits: EngineLimits, about: dict[str, object] | None = None) -> EngineModel:
    """Fit the step's terms by least squares of relative errors. Raises UsageError where too little was measured."""
    if not samples.steps or len(samples.prompts) < 2:
        raise UsageError(
            "too little was measured: no time in which all answers ran",
            "the engine may answer fewer at a time: give smaller --batches, or more --tokens",
        )
    fixed, depth = _fit_steps(samples.steps)
    const, prompt, positions = _fit_prompts(samples.prompts)
    alone = min(fixed[1] if 1 in fixed else min(fixed.values()), const)
    batches = sorted(fixed)
    times = (alone, *(fixed[b] for b in batches))
    time = StepTime((0, *batches), times, depth, prompt, positions, arrival=const - alone)
    time, limits = _fit_beside(samples, time, limits)
    errors = [np.log(s / time.seconds(b, d)) for b, d, s in samples.steps]
    errors += [np.log(s / (time.arrival + time.seconds(0, 0, n))) for n, s in samples.prompts if s > 0]
    free = max(len(errors) - len(fixed) - 4, 1)  # terms that were fitted take doubt out of the residuals
    spread = float(np.sqrt(np.sum(np.square(errors)) / free))
    basis = f"measured: {len(samples.steps)} steps and {len(samples.prompts)} prompts"
    time = replace(time, spread=spread, basis=basis)
    return fitted(EngineModel(time, limits, dict(about or {})), samples.runs)


def _fit_steps(steps: Sequence[tuple[int, float, float]]) -> tuple[dict[int, float], float]:
    """Return the seconds of each batch at no depth, and of a token of depth; neither is below 0."""
    batches = sorted({b for b, _, _ in steps})
    rows = np.array([[*(b == x for x in batches), d] for b, d, _ in steps], dtype=float)
    weights = 1 / np.array([s for _, _, s in steps])
    solution, *_ = np.linalg.lstsq(rows * weights[:, None], np.ones(len(steps)), rcond=None)
    several = any(len({d // _SAME_DEPTH for x, d, _ in steps if x == b}) > 1 for b in batches)
    slope = max(float(solution[-1]), 0.0) if several else 0.0
    rest: dict[int, list[float]] = defaultdict(list)
    for b, d, s in steps:
        rest[b].append(max(s - slope * d, s / 10))
    return dict(zip(batches, _rising([median(rest[b]) for b in batches]), strict=True)), slope


def _rising(values: Sequence[float]) -> list[float]:
    """Return the nearest values that never fall: a larger batch takes no less time, so a fall is noise."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    return [value for value, count in blocks for _ in range(count)]


def _fit_prompts(prompts: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Return the seconds of a prompt without tokens, of a token, and of a position that a token attends to."""
    by_size: dict[int, list[float]] = defaultdict(list)
    for n, s in prompts:
        by_size[n].append(s)
    n = np.array([*by_size], dtype=float)
    s = np.array([median(v) for v in by_size.values()])
    terms = np.stack([np.ones_like(n), n, n * (n - 1) / 2], axis=1)
    for used in ([0, 1, 2], [0, 1], [1]):
        if len(n) < len(used):
            continue
        solution, *_ = np.linalg.lstsq(terms[:, used] / s[:, None], np.ones(len(n)), rcond=None)
        if (solution > 0).all():
            term = dict(zip(used, map(float, solution), strict=True))
            return term.get(0, float(s.min()) / 10), term.get(1, 0.0), term.get(2, 0.0)
    return float(np.median(s)), 0.0, 0.0


def _fit_beside(samples: StepSamples, time: StepTime, limits: EngineLimits) -> tuple[StepTime, EngineLimits]:
    """Fit how an engine shares a step: what a prompt token costs beside answers, and how much longer steps may be."""
    costs, paces = [], []
    for batch, tokens, seconds, steps in samples.beside:
        step = time.of_batch(batch)
        alone = time.seconds(0, 0, tokens) - time.of_batch(0)
        if steps <= 0 or alone <= 0:
            continue
        costs.append(max(seconds - time.arrival - steps * step, alone / 4) / alone)
        if steps >= _FEW:
            paces.append((seconds - time.arrival) / steps / step)
    if costs:
        time = replace(time, beside=float(min(max(median(costs), 0.25), 8.0)))
    if paces and len(paces) > len(costs) / 2:
        limits = replace(limits, pace=float(max(median(paces), 1.05)))
    return time, limits


# --- what requests take beyond their steps: clients that ask one after another, and a fit that simulates the same ----
# Steps are measured while no request comes or goes. Under traffic a server also takes connections, tokenizes, schedules
# and ends answers, and where it shares processors with its engine all answers wait meanwhile. Which process takes how
# much does not show through an API; the simulator's terms for it are those with which it gives the measured times, with
# few requests at a time and with many.

_FINEST = 0.01  # the last step of the search, of each term's logarithm
_DEVIATION = math.sqrt(math.pi / 2)  # a standard deviation over the mean distance, of normal errors


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """A request as it came and what its answer took, in seconds."""

    at: float  # since the first one
    prompt: int  # tokens
    answer: int
    ttft: float
    tpot: float  # nan: all tokens came at once


@dataclass(frozen=True, slots=True)
class TurnoverPlan:
    """Requests of random lengths that each of `clients` asks one after another."""

    clients: int
    requests: int  # of all clients together
    prompts: tuple[int, int]  # the fewest and the most tokens, evenly drawn in the logarithm
    answers: tuple[int, int]


async def turnover(door: EngineDoor, words: PromptWords, plan: TurnoverPlan, seed: int) -> list[TimedRequest]:
    """Ask, and return the answers that came whole in the order of their requests."""
    dice, low, high = random.Random(seed), *map(math.log, plan.prompts)
    requests = [
        (words.draw(round(math.exp(dice.uniform(low, high)))), dice.randint(*plan.answers))
        for _ in range(plan.requests)
    ]
    left, answers = iter(requests), list[TimedAnswer]()

    async def client() -> None:
        for prompt, tokens in left:
            answers.append(await door.ask(prompt, tokens))

    await asyncio.gather(*(client() for _ in range(plan.clients)))
    whole = sorted((a for a in answers if a.pieces and not a.error), key=lambda a: a.sent)
    return [
        TimedRequest(
            a.sent - whole[0].sent,
            a.prompt_tokens,
            max(a.tokens, 1),
            a.ttft,
            a.tpot if len(a.pieces) > 1 else math.nan,
        )
        for a in whole
    ]


def fitted(model: EngineModel, runs: Sequence[Sequence[TimedRequest]]) -> EngineModel:
    """Return the model with the terms that give the measured times of `runs`.

    A pattern search over what a request takes and what the measured terms are multiplied by. The doubt is what is left.
    """
    runs = [run for run in runs if run]
    if not runs:
        return model
    step = model.time.of_batch(1)
    terms, width = [0.0, 0.0, 0.0, 0.0], 0.5

    def times_of(terms: Sequence[float]) -> EngineModel:
        request, before, beside, steps = terms
        time, takes = model.time, math.sinh(request) * step
        time = replace(
            time,
            request=takes,
            # A prompt that is timed alone has both, and does not tell which of them makes answers wait.
            arrival=max(time.arrival + math.sinh(before) * step - takes, 0.0),
            beside=time.beside * math.exp(beside),
            fixed=tuple(s * math.exp(steps) for s in time.fixed),
            depth=time.depth * math.exp(steps),
        )
        return replace(model, time=time)

    best = distance(times_of(terms), runs)
    while width > _FINEST:
        before = best
        for i in range(len(terms)):
            for to in (terms[i] + width, terms[i] - width):
                tried = [*terms[:i], max(to, 0.0) if i == 0 else to, *terms[i + 1 :]]
                if (result := distance(times_of(tried), runs)) < best:
                    best, terms = result, tried
        width = width / 2 if best >= 0.995 * before else width
    result = times_of(terms)
    return replace(result, time=replace(result.time, spread=max(result.time.spread, _DEVIATION * best)))


def distance(model: EngineModel, runs: Sequence[Sequence[TimedRequest]]) -> float:
    """Return how far simulated times are from the measured: the mean of logarithms between their distributions."""
    apart = []
    for run in runs:
        trace = RequestTrace(tuple(TracedRequest(r.at, r.prompt, r.answer) for r in run), "measured")
        simulated = simulate(trace, model)
        for what in ("ttft", "tpot"):
            true = np.array([getattr(r, what) for r in run])
            seen = ~np.isnan(true)
            if not seen.any():
                continue
            ours = getattr(simulated, what)[seen]
            apart.append(float(np.mean(np.abs(np.log(np.sort(ours) / np.sort(true[seen]))))))
    return float(np.mean(apart))


# --- asks an engine for a completion and times the pieces of its answer as they arrive ------------------
# Raw sockets and httptools: the client shares processors with the engine that it times, so it does little for a piece.
# It asks engines and servers of one's own.

LIMIT_S = 120.0  # of one answer
_MOST_ERROR = 300  # characters of an engine's error that are passed on


@dataclass
class TimedAnswer:
    """What came back. Times are of time.perf_counter; a piece is all tokens that arrived at one time."""

    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""

    @property
    def ttft(self) -> float:
        """Seconds to the first piece."""
        return self.pieces[0] - self.sent

    @property
    def tpot(self) -> float:
        """Seconds for each token after the first."""
        return (self.pieces[-1] - self.pieces[0]) / max(self.tokens - 1, 1)


@dataclass(frozen=True)
class EngineDoor:
    """Where an engine or a server of one's own answers, such as http://127.0.0.1:8000/v1."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    socket: Path | None = None
    temperature: float = 1.0  # drawn tokens are hard to draft: steps of one token each are what is timed

    async def ask(self, prompt: str, tokens: int, limit_s: float = LIMIT_S) -> TimedAnswer:
        """Ask for exactly `tokens` tokens; a failure is in the answer's `error`. Raises ServerUnreachable."""
        body: dict[str, Any] = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "stream": True}
        body |= {"temperature": self.temperature, "ignore_eos": True}
        body["stream_options"] = {"include_usage": True}
        return (await self._call("POST", "/completions", body, limit_s)).answer

    async def models(self) -> dict[str, str]:
        """Return the models that it offers, and who made their engine as far as it tells."""
        call = await self._call("GET", "/models", None, LIMIT_S)
        try:
            rows = json.loads(call.body)["data"]
            return {str(row["id"]): str(row.get("owned_by", "")) for row in rows}
        except (ValueError, KeyError, TypeError) as e:
            raise UpstreamFailed(
                f"{self.url} lists no models: {call.answer.error or e}", "is it an OpenAI API with /v1?"
            ) from e

    def _address(self) -> tuple[SplitResult, str, int]:
        """Return the parts of its address, its host and its port. Raises UsageError."""
        try:
            parts = urlsplit(self.url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            if parts.scheme in ("http", "https") and parts.hostname:
                return parts, parts.hostname, port
        except ValueError:
            pass
        raise UsageError(
            f"{self.url} is not a valid address of a server", "for example http://127.0.0.1:8000/v1"
        )

    async def _call(self, method: str, path: str, body: Any, limit_s: float) -> _TimedCall:
        parts, host, port = self._address()
        raw = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1"]
        lines += [f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(raw)}"]
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        request = "\r\n".join([*lines, "", ""]).encode() + raw
        loop = asyncio.get_running_loop()
        try:
            if self.socket is not None:
                _, call = await loop.create_unix_connection(lambda: _TimedCall(request), str(self.socket))
            else:
                tls = parts.scheme == "https" or None
                _, call = await loop.create_connection(lambda: _TimedCall(request), host, port, ssl=tls)
        except (OSError, UnicodeError) as e:  # the second: a name that no resolver takes
            raise ServerUnreachable(
                f"no server answers at {self.socket or self.url}: {e}", "is it running?"
            ) from e
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.shield(call.over)
        except TimeoutError:
            call.answer.error = f"no end within {limit_s:g} s"
        finally:
            call.close()
        return call


class _TimedCall(asyncio.Protocol):
    """A connection that carries one request, closed after its answer."""

    def __init__(self, request: bytes) -> None:
        import httptools

        self.answer, self.body = TimedAnswer(), b""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._parser = request, httptools.HttpResponseParser(self)
        self._rest, self._now, self._stream = b"", 0.0, False
        self._transport: asyncio.Transport | None = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.answer.sent = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        import httptools

        self._now = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            self.answer.error = f"not HTTP: {e}"
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._stream = value.startswith(b"text/event-stream")

    def on_body(self, body: bytes) -> None:
        if not self._stream:
            self.body += body
            return
        *events, self._rest = (self._rest + body).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if event.startswith(b"data:"):
                self._event(event[5:].strip())

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200 and not self.answer.error:
            self.answer.error = f"status {status}: {self.body[:_MOST_ERROR].decode('utf-8', 'replace')}"
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            return
        answer = self.answer
        try:
            event = json.loads(data)
        except ValueError:
            answer.error = "an event that is not JSON"
            return
        if problem := event.get("error"):
            answer.error = str(problem)[:_MOST_ERROR]
        if usage := event.get("usage"):
            answer.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            answer.tokens = int(usage.get("completion_tokens") or 0)
        # An event's text may be empty: a character of several tokens is sent when it is whole.
        if event.get("choices") and answer.pieces[-1:] != [self._now]:
            answer.pieces.append(self._now)


# --- from an engine's name or address to the model that a simulation uses -------------------------------
#     steps = deploy_bench("http://127.0.0.1:8000/v1")
#     deploy_capacity(steps=steps, rate=20, objective="ttft-p95=2s")

_PLAN = MeasurePlan()
_ADDRESS = "write http://127.0.0.1:8000/v1"


def deploy_bench(
    target: str,
    *,
    model: str = "",
    key: str = "",
    batches: Sequence[int] = _PLAN.batches,
    depths: Sequence[int] = _PLAN.depths,
    prompts: Sequence[int] = _PLAN.prompts,
    clients: Sequence[int] = _PLAN.clients,
    max_tokens: int = _PLAN.tokens,
    rounds: int = _PLAN.rounds,
    streams: int | None = None,
    room: int | None = None,
    settings: Settings | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> EngineModel:
    """Measure what the steps of a running engine take, in seconds, for deploy_capacity. Prompts are random words.

    `target`: a deployment or another model of the running server, or the URL of an engine with OpenAI's API, with its
    `key` and `model`. It measures `batches` of answers of `max_tokens` tokens at `depths` tokens of context, prompts of
    `prompts` tokens alone, and `clients` that send one request after another, each `rounds` times. `streams` (parallel
    answers) and `room` (tokens of KV cache) are the engine's limits, if known. `as_json` of the result is what
    `freehold deploy bench --json` prints. Raises ServerUnreachable, UpstreamFailed if an answer fails, UsageError if
    the measurements are not sufficient, and RuntimeError inside a running event loop (use asyncio.to_thread there).
    """
    beside = tuple(b for b in _PLAN.beside if b <= max(batches, default=0))
    sizes = (tuple(batches), tuple(depths), tuple(prompts))
    plan = MeasurePlan(*sizes, beside, tuple(clients), max_tokens, rounds)
    door = _door(settings or load_settings(), target, model, key)

    async def measured() -> EngineModel:
        chosen, engine = _chosen(door, await door.models())
        samples = await measure(chosen, plan, on_progress)
        load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
        about = {"model": chosen.model, "engine": engine, "at": chosen.url, "load_average": load}
        return fit(samples, rules(engine), about)

    result = asyncio.run(measured())
    limits = {name: value for name, value in (("streams", streams), ("room", room)) if value}
    return replace(result, limits=replace(result.limits, **limits))


def _door(settings: Settings, target: str, model: str, key: str) -> EngineDoor:
    """Return where to ask: a URL, or this home's server by its owner's socket. Raises UsageError."""
    if target.startswith(("http://", "https://")):
        _check_key(target, key)
        return EngineDoor(target.rstrip("/"), model, key)
    if "://" in target:
        raise UsageError(f"{target[:80]!r} is not an engine's address", _ADDRESS)
    if model:
        raise UsageError("--model goes with a URL", f"write freehold deploy bench {model}")
    if key:
        raise UsageError("a key goes with a URL", "this home's server is asked by its owner's socket")
    if not settings.socket.exists():
        raise ServerUnreachable(
            "no server of this home runs", f"freehold serve {target} starts one, or give a URL"
        )
    return EngineDoor("http://freehold/v1", target, socket=settings.socket)


def _check_key(url: str, key: str) -> None:
    """Raise UsageError for a key that would be sent in the clear to another machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise UsageError(f"{url[:80]!r} is not an engine's address", _ADDRESS) from None
    if key and parts.scheme == "http" and parts.hostname not in HERE:
        raise UsageError(
            f"{parts.hostname} is not this machine, and http shows the key on the way",
            "use https, a tunnel to a local port, or no key",
        )


def _chosen(door: EngineDoor, offered: dict[str, str]) -> tuple[EngineDoor, str]:
    """Return the door with a model that is there, and its engine as far as the server names it."""
    if not door.model and len(offered) == 1:
        door = replace(door, model=next(iter(offered)))
    if door.model not in offered:
        near = nearest(door.model, [*offered]) if door.model else ""
        hint = f"did you mean {near}?" if near else f"it offers {', '.join(offered) or 'none'}"
        raise UsageError(f"{door.url} has no model {door.model!r}" if door.model else "which model?", hint)
    return door, offered[door.model]
