"""Which replica a request goes to: the one that has its prompt's beginning in its cache, unless that is too busy.

Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018): a key's replica is the next one on a
ring, and a replica that has more than its share times BOUND is passed over. Replicas that die and come back have the
same points, so the prompts that they have cached find them again.
Knows keys and numbers of requests; knows no engine.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping

from freehold.base.serving import EmbedJob, Job

POINTS = 64  # of one replica on the ring: shares of keys then differ by some 12 %
BOUND = 1.25  # a replica takes at most this multiple of the mean number of requests
KEY_CHARS = 1024  # of the instructions, and as many of what follows them
# A cache keeps whole blocks of 16 tokens (vLLM; 128 on CPUs): below some 64 tokens there is little to find in it.
LEAST_CHARS = 256


def prefix_key(job: Job | EmbedJob) -> int | None:
    """Return the key of a prompt's beginning; None where it is too short to be worth a place in a cache.

    Two beginnings count: of the instructions, which many chats have in common, and of the first turn after them, which
    the later turns of one chat have in common. So one chat stays, and many chats with the same instructions spread.
    """
    if isinstance(job, EmbedJob):
        return None
    parts = [part for part in _beginnings(job) if part]
    if sum(map(len, parts)) < LEAST_CHARS:
        return None
    return _hash("\0".join([job.tenant, *parts]))


def _beginnings(job: Job) -> Iterator[str]:
    if job.messages is None:
        prompt = job.prompt or ""
        if not isinstance(prompt, str):  # a token of text has some four characters
            prompt = " ".join(map(str, prompt[: KEY_CHARS // 2]))
        yield prompt[: 2 * KEY_CHARS]
        return
    turns = iter(job.messages)
    instructions = ""
    for message in turns:
        if message.role != "system":
            yield instructions[:KEY_CHARS] + ",".join(tool.name for tool in job.tools)
            yield message.content[:KEY_CHARS]
            return
        instructions += message.content
    yield instructions[:KEY_CHARS]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


class PrefixRing:
    """The replicas of one deployment on a ring of hashes."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        points = sorted((_hash(f"{number}/{i}"), number) for number in set(numbers) for i in range(POINTS))
        self._at = [at for at, _ in points]
        self._of = [number for _, number in points]

    def order(self, key: int) -> Iterator[int]:
        """Yield each replica once, in the order in which the ring has them from a key on."""
        first = bisect_right(self._at, key)
        seen: set[int] = set()
        for number in (*self._of[first:], *self._of[:first]):
            if number not in seen:
                seen.add(number)
                yield number


def pick(
    ring: PrefixRing, key: int | None, loads: Mapping[int, int], last: Callable[[int], float]
) -> int | None:
    """Return the replica for a request, of those in `loads` (number -> requests it has); None where there is none.

    Without a key it is the least loaded; of several, the one whose `last` request is longest ago.
    """
    if not loads:
        return None
    if key is not None:
        most = math.ceil(BOUND * (sum(loads.values()) + 1) / len(loads))
        for number in ring.order(key):
            if number in loads and loads[number] < most:
                return number
    return min(loads, key=lambda number: (loads[number], last(number)))
