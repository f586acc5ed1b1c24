"""Measures what an engine's steps take, through the API that its clients use, and fits StepTime to it.

    samples = await measure(door, MeasurePlan(batches=(1, 4, 16), depths=(64, 1024)))
    model = fit(samples, rules("vllm"))

Prompts alone give the cost of a prompt token; answers side by side, at several depths, the cost of a step; a prompt
beside answers how the engine shares a step; requests that come and go what they take beside it. Prompts are warmed
where the engine has a prefix cache, so that answers of one measurement begin together. Knows no trace.
Path: benching.deploy_bench -> measure -> StepSamples -> fit -> EngineModel
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Protocol, Self

import numpy as np

from freehold.backends.capacity.simulation import simulate
from freehold.backends.capacity.steptime import EngineLimits, EngineModel, StepTime
from freehold.backends.capacity.timed_client import EngineDoor, TimedAnswer
from freehold.backends.capacity.trace import RequestTrace, TracedRequest
from freehold.errors import UpstreamFailed, UsageError

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
        tried = _whole(
            await door.ask(cls(10**9 + seed, 1.0).draw(_TRIAL), 8)
        )  # no other prompt begins like it
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
    depth = sum(
        a.prompt_tokens + a.tokens * (1 - m / 2 / max(a.tokens, 1))
        for a, m in zip(answers, generated, strict=True)
    )
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
    time = StepTime(
        (0, *batches), (alone, *(fixed[b] for b in batches)), depth, prompt, positions, arrival=const - alone
    )
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
    n = np.array([k for k in by_size], dtype=float)
    s = np.array([median(v) for v in by_size.values()])
    terms = np.stack([np.ones_like(n), n, n * (n - 1) / 2], axis=1)
    for used in ([0, 1, 2], [0, 1], [1]):
        if len(n) < len(used):
            continue
        solution, *_ = np.linalg.lstsq(terms[:, used] / s[:, None], np.ones(len(n)), rcond=None)
        if (solution > 0).all():
            told = dict(zip(used, map(float, solution), strict=True))
            return told.get(0, float(s.min()) / 10), told.get(1, 0.0), told.get(2, 0.0)
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


# --- what requests take beyond their steps ----------------------------------------------------------
# Clients that ask one request after another, and a fit that simulates the same.
# Steps are measured while no request comes or goes. Under traffic a server also takes connections, tokenizes,
# schedules and ends answers, and where it shares processors with its engine all answers wait meanwhile. Which
# process takes how much does not show through an API; the simulator's terms for it are those with which it
# gives the measured times, with few requests at a time and with many.

_FINEST = 0.01  # the last step of the search, of each term's logarithm
_DEVIATION = math.sqrt(math.pi / 2)  # a standard deviation over the mean distance, of normal errors


class Words(Protocol):
    """Makes prompts."""

    def draw(self, tokens: int) -> str: ...


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


async def turnover(door: EngineDoor, words: Words, plan: TurnoverPlan, seed: int) -> list[TimedRequest]:
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
