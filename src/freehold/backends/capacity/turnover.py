"""What requests take beyond their steps: clients that ask one request after another, and a fit that simulates the same.

Steps are measured while no request comes or goes. Under traffic a server also takes connections, tokenizes, schedules
and ends answers, and where it shares processors with its engine all answers wait meanwhile. Which process takes how
much does not show through an API; the simulator's terms for it are those with which it gives the measured times, with
few requests at a time and with many.
Path: measuring.measure -> turnover -> StepSamples.runs -> measuring.fit -> fitted -> StepTime.request
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from freehold.backends.capacity.simulation import simulate
from freehold.backends.capacity.steptime import EngineModel
from freehold.backends.capacity.timed_client import EngineDoor, TimedAnswer
from freehold.backends.capacity.trace import RequestTrace, TracedRequest

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
