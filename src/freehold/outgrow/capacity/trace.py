"""Requests to plan for: when each arrives, what it reads and writes, and which prompts begin alike.

From a CSV (timestamp, tokens read, tokens written), JSON lines in Mooncake's form (with hashes of blocks of 512),
from rows that a caller already has, or made up at a rate. Files may be gzipped. Knows no engine and no ledger.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from freehold.base.errors import UsageError
from freehold.base.regular import bounded_lines

MOONCAKE_BLOCK = 512  # tokens under one hash id
MOST_REQUESTS = 5_000_000
MOST_TOKENS = 10_000_000  # of one request
MOST_LINE = 1 << 20  # characters; a prompt of ten million tokens has 20,000 blocks
MOST_SECONDS = 1e11  # of a moment: since 1970 until the year 5138; in milliseconds today has 1.8e12
_SHOWN = 3  # bad lines that an error names
# Columns by what they may be called; the first is Azure's public traces', the last our own.
_TIMES = ("TIMESTAMP", "timestamp", "time", "at")
_PROMPTS = ("ContextTokens", "input_length", "input_tokens", "input", "prompt_tokens", "prompt")
_ANSWERS = ("GeneratedTokens", "output_length", "output_tokens", "output", "completion_tokens", "completion")


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request. `blocks`: ids of the whole blocks of its prompt; two prompts with equal first ids begin alike."""

    at: float  # seconds since the trace begins
    prompt: int  # tokens
    answer: int  # tokens, at least 1
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """Requests in the order of their arrival. `block`: tokens under one id; 0 where prompts have no ids."""

    requests: tuple[TracedRequest, ...]
    source: str
    block: int = 0

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return self.requests[-1].at - self.requests[0].at if self.requests else 0.0

    @property
    def rate(self) -> float:
        """Requests a second, at the mean."""
        return (len(self.requests) - 1) / self.span_s if self.span_s else 0.0

    @property
    def prompt_mean(self) -> float:
        """Tokens of a prompt, at the mean."""
        return sum(r.prompt for r in self.requests) / len(self.requests)

    @property
    def answer_mean(self) -> float:
        """Tokens of an answer, at the mean."""
        return sum(r.answer for r in self.requests) / len(self.requests)

    def faster(self, factor: float) -> RequestTrace:
        """Return the same requests at `factor` times the rate."""
        if not (factor > 0 and math.isfinite(factor) and self.span_s / factor <= MOST_SECONDS):
            raise UsageError(f"{factor:g} times the rate is not a load", "give a factor above 0, such as 2")
        sped = tuple(replace(r, at=r.at / factor) for r in self.requests)
        return replace(self, requests=sped, source=f"{self.source}, at {factor:g} times its rate")

    def first(self, seconds: float) -> RequestTrace:
        """Return what arrives within the first `seconds`."""
        kept = tuple(r for r in self.requests if r.at <= seconds)
        return replace(self, requests=kept, source=f"{self.source}, its first {seconds:g} s")


def steady(
    rate: float, prompt: int, answer: int, *, seconds: float = 600.0, seed: int = 1, vary: bool = False
) -> RequestTrace:
    """Return requests that arrive independently (Poisson) at `rate` a second, for `seconds`.

    All have the same lengths, or with `vary` exponential ones around these means. Raises UsageError.
    """
    if not (rate > 0 and seconds > 0 and rate * seconds <= MOST_REQUESTS):
        raise UsageError(
            f"{rate:g} requests a second for {seconds:g} s cannot be simulated",
            f"give a rate and a time above 0, with {MOST_REQUESTS:,} requests at most",
        )
    if not (1 <= prompt <= MOST_TOKENS and 1 <= answer <= MOST_TOKENS):
        raise UsageError(f"requests of {prompt:,} + {answer:,} tokens cannot be simulated")
    dice, at, requests = random.Random(seed), 0.0, []
    while True:
        at += dice.expovariate(rate)
        if at > seconds:
            break
        read = 1 + int(dice.expovariate(1 / prompt)) if vary else prompt
        written = 1 + int(dice.expovariate(1 / answer)) if vary else answer
        requests.append(TracedRequest(at, read, written))
    if not requests:
        raise UsageError(
            f"no request comes within {seconds:g} s at {rate:g} a second",
            "--seconds for longer, or a higher --rate",
        )
    lengths = "exponential lengths around" if vary else "each of"
    paced = f"{rate:g} {'request' if rate == 1 else 'requests'} a second"
    source = f"{paced} for {seconds:g} s, {lengths} {prompt:,} + {answer:,} tokens"
    return RequestTrace(tuple(requests), source)


def from_rows(rows: Iterable[tuple[float, int, int]], source: str) -> RequestTrace:
    """Return rows of (seconds, tokens read, tokens written), in any order. Raises UsageError if there is none."""
    return _trace([TracedRequest(at, max(read, 1), max(written, 1)) for at, read, written in rows], source)


def from_file(path: Path, most: int = MOST_REQUESTS) -> RequestTrace:
    """Read a trace: CSV with a head line, or JSON lines in Mooncake's form; both also as .gz.

    Raises UsageError that names the bad lines: none is left out in silence.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        opening = gzip.open if packed else open
        with opening(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = bounded_lines(file, MOST_LINE)
            head = next(lines, "")
            if head.lstrip().startswith("{"):
                texts = enumerate(chain((head,), lines), 1)
                parsed = ((n, lambda text=text: _of_json(text)) for n, text in texts if text.strip())
                requests = _read(path, parsed, most)
                return _trace(requests, path.name, MOONCAKE_BLOCK if any(r.blocks for r in requests) else 0)
            return _trace(_read(path, _csv_lines(path, head, lines), most), path.name)
    except FileNotFoundError as e:
        raise UsageError(f"there is no trace {path}", "--trace takes a CSV or JSON-lines file") from e
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as e:
        why = (isinstance(e, OSError) and e.strerror) or e
        raise UsageError(f"{path} cannot be read: {why}", "--trace takes a CSV or JSON-lines file") from e


_Parsed = tuple[int, Callable[[], TracedRequest]]


def _read(path: Path, lines: Iterator[_Parsed], most: int) -> list[TracedRequest]:
    requests: list[TracedRequest] = []
    bad: list[str] = []
    for number, parse in lines:
        if len(requests) >= most:
            break
        try:
            requests.append(_checked(parse()))
        except (ValueError, TypeError, OverflowError, RecursionError) as e:
            bad.append(f"line {number}: {e}")
            if len(bad) >= most:  # of a pipe that has nothing else, and no end
                break
    if bad:
        more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
        raise UsageError(f"{path}: {'; '.join(bad[:_SHOWN])}{more}", "mend or remove these lines")
    return requests


def _checked(request: TracedRequest) -> TracedRequest:
    if not abs(request.at) <= MOST_SECONDS:
        raise ValueError(f"a request at {request.at:g} s")
    for what, tokens in (("reads", request.prompt), ("writes", request.answer)):
        if not 0 <= tokens <= MOST_TOKENS:
            raise ValueError(f"a request that {what} {tokens:,} tokens")
    if request.answer and request.prompt:
        return request
    return replace(request, answer=max(request.answer, 1), prompt=max(request.prompt, 1))


def _of_json(text: str) -> TracedRequest:
    """Read one line in Mooncake's form. Raises ValueError."""
    row = json.loads(text)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    at, prompt, answer = (_number(row, name) for name in ("timestamp", "input_length", "output_length"))
    ids = row.get("hash_ids") or []
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise ValueError("its hash_ids are not a list of numbers")
    # Only whole blocks are shared by engines; the last id of a prompt mostly stands for a part of one.
    blocks = tuple(ids[: int(prompt) // MOONCAKE_BLOCK])
    return TracedRequest(at / 1000, int(prompt), int(answer), blocks)


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError(f"its {name} is not a number" if name in row else f"it has no {name}")


def _csv_lines(path: Path, head: str, lines: Iterable[str]) -> Iterator[_Parsed]:
    names = next(csv.reader([head]), [])

    def column(known: tuple[str, ...], what: str) -> int:
        for name in known:
            if name in names:
                return names.index(name)
        raise UsageError(
            f"{path} has no column of {what}: its columns are {', '.join(names) or 'none'}",
            f"it may be called {', '.join(known)}",
        )

    at = column(_TIMES, "times")
    prompt, answer = column(_PROMPTS, "tokens read"), column(_ANSWERS, "tokens written")

    def parse(row: list[str]) -> TracedRequest:
        if len(row) != len(names):
            raise ValueError(f"{len(row)} values, where the head has {len(names)}")
        return TracedRequest(_seconds(row[at]), int(row[prompt]), int(row[answer]))

    for number, row in enumerate(csv.reader(lines), 2):
        if row:
            yield number, lambda row=row: parse(row)


def _seconds(text: str) -> float:
    """Read seconds, or an ISO 8601 moment; Azure's have seven digits behind the second."""
    try:
        return float(text)
    except ValueError:
        pass
    whole, _, rest = text.strip().partition(".")
    moment = datetime.fromisoformat(whole)
    digits = rest.rstrip("Z")
    fraction = float(f"0.{digits}") if digits.isdigit() else 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() + fraction


def _trace(requests: list[TracedRequest], source: str, block: int = 0) -> RequestTrace:
    if not requests:
        raise UsageError(f"{source} has no request", "a trace has a line for each request")
    requests.sort(key=lambda r: r.at)
    begin = requests[0].at
    return RequestTrace(tuple(replace(r, at=r.at - begin) for r in requests), source, block)
