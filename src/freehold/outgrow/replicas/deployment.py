"""Several replicas of one model behind one name: which one answers, and who comes in the place of which.

A roll starts a new replica, waits for its first token, takes the old one out of rotation, lets its answers end and ends
it: one after the other, so that there are never fewer than before. Where one fails, those not yet replaced stay. Where
two engines have no room beside each other, the old one ends first, and is started again if the new one fails.

Pictures on their way to an engine are looked at before it gets them, and counted where it does not count them itself:
engines decode what they are sent in their own process, some of them the whole of a bomb, so a picture's header is read
here first, in the process that can be killed (pictures/).
Knows replicas, a deployment's plan and requests' keys; knows no wire and no protocol.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Literal

from freehold.base import private
from freehold.base.errors import EngineClosed, EngineLost, Overloaded, UsageError
from freehold.base.serving import EmbedJob, Job, Vectors
from freehold.base.types import Image, Message
from freehold.outgrow.contract import DeploymentRow, DeployPlan, EngineDriver
from freehold.outgrow.planning.eyes import tower_counts
from freehold.outgrow.replicas.affinity import PrefixRing, pick, prefix_key
from freehold.outgrow.replicas.answer import ITS_OWN, MAX_LOST, DeployedStream
from freehold.outgrow.replicas.calls import EngineCalls
from freehold.outgrow.replicas.replica import DEFAULTS, Replica, ReplicaLimits
from freehold.route.providers.contract import UpstreamFault
from freehold.route.providers.hop import Hop

# --- pictures --------------------------------------------------------------------------------------

KEPT = 4096  # pictures whose sizes are remembered: a chat sends all of its again with each turn
# Of a picture whose rows llama.cpp computes in one batch: it makes more tokens of a longer one than its limit, and one
# beyond the batch ends the process. At this ratio 1,347, by its formula, of a limit of 1,120, whose batch has 1,536.
MAX_RATIO = 200
# Formats that an engine reads, by their names in pictures/opening.py; an engine that is not here reads all of them.
_READS = {"llamacpp": ("PNG", "JPEG", "GIF")}  # stb_image
Size = tuple[int, int]


class PictureDoor:
    """The door of one deployment: no picture passes that our own engine would refuse by its header."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[bytes, tuple[Size, str]] = OrderedDict()
        self._tokens_of: OrderedDict[tuple[str, Size], int] = OrderedDict()  # by the tower's file and a size

    async def check(self, job: Job, plan: DeployPlan) -> None:
        """Look at a job's pictures. Raises UsageError naming one by its place, as opening.header does.

        An address passes: the engine's wire refuses it by name. Our own engine looks for itself.
        """
        plan = plan.inner or plan
        pictures = list(_pictures(job))
        if pictures and plan.engine != "freehold":
            from freehold.run.pictures.decoders import in_turn_of

            with in_turn_of(job.client or job.tenant):  # a thread has its caller's context
                await asyncio.to_thread(self._check, pictures, plan)

    async def tokens(self, job: Job, plan: DeployPlan) -> int | None:
        """Return how many tokens a job's pictures become by our arithmetic; None: the tower is none of ours."""
        return await asyncio.to_thread(self._tokens, list(_pictures(job)), plan.inner or plan)

    def _check(self, pictures: list[tuple[Image, str]], plan: DeployPlan) -> None:
        reads = _READS.get(plan.engine)
        for image, place in pictures:
            (width, height), kind = self._size(image, place)
            whole = plan.engine == "llamacpp" and plan.model.tower is not None and plan.model.tower.whole
            if whole and max(width, height) > MAX_RATIO * min(width, height):
                raise UsageError(
                    f"{place}: the picture is {width:,} x {height:,} pixels; the engine of {plan.model.name} takes "
                    f"a side up to {MAX_RATIO} times the other",
                    "cut it into several",
                    place,
                )
            if reads is not None and kind not in reads:
                raise UsageError(
                    f"{place}: the picture has the format {kind}; the engine of {plan.model.name} reads "
                    f"{', '.join(reads)}",
                    "save it as PNG or JPEG",
                    place,
                )

    def _tokens(self, pictures: list[tuple[Image, str]], plan: DeployPlan) -> int | None:
        tower = plan.model.tower
        if tower is None or not tower.name or not plan.model.here:
            return None
        source = tower.file or plan.model.source
        sizes = [self._size(image, place)[0] for image, place in pictures]
        if missing := sorted({size for size in sizes if (source, size) not in self._tokens_of}):
            counts = tower_counts(source, missing).get("tokens")
            if not counts:
                return None
            self._tokens_of |= {(source, size): count for size, count in zip(missing, counts, strict=True)}
        total = sum(self._tokens_of[source, size] for size in sizes)
        while len(self._tokens_of) > KEPT:
            self._tokens_of.popitem(last=False)
        return total

    def _size(self, image: Image, place: str) -> tuple[Size, str]:
        """Return width, height and format of a picture. Raises UsageError with its place."""
        from freehold.run.pictures.opening import header

        try:
            data = image.decoded()
            digest = hashlib.sha256(data).digest()
            if (known := self._sizes.get(digest)) is None:
                size = header(data)
                known = (size.width, size.height), size.format
                self._sizes[digest] = known
                while len(self._sizes) > KEPT:
                    self._sizes.popitem(last=False)
        except UsageError as e:
            raise type(e)(f"{place}: {e.message}", e.hint, place) from None
        return known


def without_pictures(job: Job) -> Job:
    """Return a chat's job with its texts alone, of which an engine's tokenizer counts the tokens."""
    return replace(job, messages=tuple(_texts(message) for message in job.messages or ()))


def pictures_of(job: Job) -> bool:
    """Return whether a job has pictures."""
    return any(isinstance(part, Image) for message in job.messages or () for part in message.parts)


def _texts(message: Message) -> Message:
    texts = tuple(part for part in message.parts if not isinstance(part, Image))
    if len(texts) == len(message.parts):
        return message
    return replace(message, content="".join(str(text) for text in texts), parts=())


def _pictures(job: Job) -> Iterator[tuple[Image, str]]:
    """Yield the pictures that a job brings with it, each with where it stands."""
    for i, message in enumerate(job.messages or ()):
        for j, part in enumerate(message.parts):
            if isinstance(part, Image) and not part.url:
                yield part, part.place or f"messages[{i}].parts[{j}]"


# --- replicas --------------------------------------------------------------------------------------

WAIT_S = 120.0  # a request waits so long for a replica, where none is ready
MOST_WAITING = 1024  # requests
DRAIN_S = 600.0  # that a roll gives the answers of an old replica
AGAIN_S = 5.0  # after which a refused client may ask again

Roll = Literal["", "restart", "upgrade"]


class ReplicaSet:
    """The replicas of one deployment. `folder`: 0700; each engine gets one of its own in it."""

    def __init__(
        self,
        plan: DeployPlan,
        driver: Callable[[DeployPlan], EngineDriver],
        folder: Path,
        hop: Hop,
        *,
        limits: ReplicaLimits = DEFAULTS,
    ) -> None:
        self.plan, self._driver, self._folder, self._hop, self._limits = plan, driver, folder, hop, limits
        self.rolling: Roll = ""
        self.requests = self.retried = self.resumed = self.cut = 0
        self.gap_s = 0.0  # of the latest roll
        self._replicas: dict[int, Replica] = {}  # by number: those that take requests, or will
        self._leaving: set[Replica] = set()
        self._last: dict[int, int] = {}  # number -> its latest request
        self._ticks, self._engines = count(1), count()
        self._ring = PrefixRing()
        self._turn = asyncio.Event()  # set whenever a replica's state is another one
        self._waiting = 0
        self._closed = False
        self.door = PictureDoor()

    # --- what it is -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.plan.model.name

    @property
    def replicas(self) -> list[Replica]:
        """Every replica, by number; those that drain after a roll at the end."""
        return [*(self._replicas[n] for n in sorted(self._replicas)), *self._leaving]

    @property
    def ready(self) -> bool:
        """Whether a replica answers."""
        return any(replica.ready for replica in self._replicas.values())

    @property
    def embeds(self) -> bool:
        """Whether it gives vectors and no text: by its plan, else by what its replicas were ready by."""
        return not self.plan.model.gives_text or any(replica.embeds for replica in self._replicas.values())

    @property
    def in_flight(self) -> int:
        """Requests that a replica has."""
        return sum(replica.in_flight for replica in self.replicas)

    def row(self, fallback: str = "") -> DeploymentRow:
        """Return what `deploy status` shows."""
        return DeploymentRow(
            self.name,
            self.plan,
            tuple(replica.row() for replica in self.replicas),
            self.ready,
            rolling=self.rolling,
            requests=self.requests,
            resumed=self.resumed,
            retried=self.retried,
            cut=self.cut,
            fallback=fallback,
            gap_s=self.gap_s,
        )

    def replica(self, number: int) -> Replica:
        """Return a replica. Raises UsageError for a number that there is not."""
        replica = self._replicas.get(number)
        if replica is None:
            have = ", ".join(map(str, sorted(self._replicas)))
            raise UsageError(f"{self.name} has no replica {number}", f"it has {have}")
        return replica

    # --- requests ---------------------------------------------------------------------------------

    async def start(self, job: Job) -> DeployedStream:
        """Ask a replica; return once its first token has come. Raises UsageError for a picture that none may get."""
        await self.door.check(job, self.plan)
        self.requests += 1
        stream = DeployedStream(self, job, prefix_key(job))
        await stream.open()
        return stream

    async def embed(self, job: EmbedJob, limit_s: float) -> Vectors:
        """Return unit vectors, from the least loaded replica; from another one where that one fails."""
        self.requests += 1
        until, lost = time.monotonic() + limit_s, set[EngineCalls]()
        while True:
            replica = await self.take(None, lost, until)
            calls, whole = replica.calls, False
            assert calls is not None, "a replica that was taken is ready"
            try:
                vectors = await calls.embed(job, limit_s=max(until - time.monotonic(), 0.001))
                whole = True
                return vectors
            except UpstreamFault as e:
                lost.add(calls)
                if e.cause not in ITS_OWN or len(lost) >= MAX_LOST:
                    raise
                replica.faulted()
                self.retried += 1
            finally:
                replica.ended(whole=whole)

    async def take(self, key: int | None, lost: set[EngineCalls], until: float) -> Replica:
        """Return a ready replica whose engine is not among the `lost`, with the request counted as its own.

        Waits for one up to WAIT_S. Raises EngineLost where none is started again, Overloaded where it takes too long.
        """
        replica = self._picked(key, lost)
        if replica is None:
            replica = await self._waited(key, lost, until)
        self._last[replica.number] = next(self._ticks)
        replica.began()
        return replica

    def other(self, lost: set[EngineCalls]) -> bool:
        """Return whether a replica is ready whose engine is not among the `lost`."""
        return any(r.ready and r.calls not in lost for r in self._replicas.values())

    async def gone(self, calls: EngineCalls, most_s: float) -> bool:
        """Return whether an engine has ended, or does so within `most_s`."""
        until = time.monotonic() + most_s
        while any(r.calls is calls for r in self._replicas.values()):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.05)
        return True

    def _picked(self, key: int | None, lost: set[EngineCalls]) -> Replica | None:
        ready = {n: r for n, r in self._replicas.items() if r.ready and r.calls not in lost}
        loud = {n: r for n, r in ready.items() if not r.quiet}
        loads: Mapping[int, int] = {n: r.in_flight for n, r in (loud or ready).items()}
        number = pick(self._ring, key, loads, lambda n: self._last.get(n, 0))
        return None if number is None else ready[number]

    async def _waited(self, key: int | None, lost: set[EngineCalls], until: float) -> Replica:
        if self._waiting >= MOST_WAITING:
            raise Overloaded(
                f"{self._waiting:,} requests wait for a replica of {self.name}", "ask later", AGAIN_S
            )
        until = min(until, time.monotonic() + WAIT_S)
        self._waiting += 1
        try:
            while True:
                self._turn.clear()
                if (replica := self._picked(key, lost)) is not None:
                    return replica
                if self._closed:
                    raise EngineClosed(f"{self.name} is being stopped", "ask another model")
                if not self.rolling and all(r.hopeless for r in self._replicas.values()):
                    reason = next((r.said for r in self._replicas.values() if r.said), "it was stopped")
                    raise EngineLost(
                        f"no engine of {self.name} runs: {reason}", "freehold deploy logs tells more"
                    )
                left = until - time.monotonic()
                if left <= 0:
                    raise Overloaded(f"no replica of {self.name} is ready yet", "try again", AGAIN_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._turn.wait()
        finally:
            self._waiting -= 1

    # --- replicas ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Start the plan's replicas."""
        for number in range(self.plan.replicas):
            self._replicas[number] = self._new(number, self.plan)
        self._ring = PrefixRing(self._replicas)

    def _new(self, number: int, plan: DeployPlan) -> Replica:
        if self._closed:  # a roll goes from one replica to the next while it is stopped
            raise EngineClosed(f"{self.name} is being stopped", "deploy it again when it has ended")
        folder = private.folder(self._folder / str(next(self._engines)))
        own, driver = plan.of_replica(number), self._driver(plan)
        replica = Replica(number, own, driver, folder, self._hop, limits=self._limits, changed=self._turn.set)
        replica.run()
        return replica

    async def roll(self, plan: DeployPlan, kind: Roll, *, drain_first: bool = False) -> None:
        """Replace every replica by one of `plan`, one after the other.

        `drain_first`: each old one ends before its new one starts; always so where they have no room beside each other.
        Raises EngineLost where a new one does not become ready: the old ones that are left stay as they are.
        """
        if self.rolling:
            raise UsageError(
                f"{self.name} is in a {self.rolling} already", "freehold deploy status shows how far"
            )
        self.rolling, self.gap_s = kind, 0.0
        in_place = drain_first or not self.plan.room_beside(plan)
        try:
            for number in range(plan.replicas):
                old = self._replicas.get(number)
                if old is not None and in_place:
                    await self._replaced(old, plan)
                    continue
                new = await self._proven(self._new(number, plan), "the old ones still answer")
                self._put(new)
                if old is not None:
                    await self._ended(old)
                    new.counts_on(old)
            self.plan = plan
            for number in [n for n in self._replicas if n >= plan.replicas]:
                old = self._replicas.pop(number)
                self._ring = PrefixRing(self._replicas)
                await self._ended(old)
        finally:
            self.rolling = ""

    async def _replaced(self, old: Replica, plan: DeployPlan) -> None:
        """End a replica, then start one of `plan` in its place; where that fails, the old command is started again."""
        began = time.monotonic()
        alone = not any(each.ready for each in self._replicas.values() if each is not old)
        await old.stop(DRAIN_S)
        new = self._new(old.number, plan)
        new.counts_on(old)
        self._put(new)
        try:
            await self._proven(new, f"the command of before is started again for replica {old.number}")
        except EngineLost:
            if not self._closed:
                again = self._new(old.number, old.plan)
                again.counts_on(old)
                self._put(again)
            raise
        finally:
            self.gap_s += time.monotonic() - began if alone else 0.0

    def _put(self, replica: Replica) -> None:
        """Let a replica take requests under its number."""
        self._replicas[replica.number] = replica
        self._ring = PrefixRing(self._replicas)

    async def _proven(self, new: Replica, otherwise: str) -> Replica:
        """Return a replica once it has answered a token. Raises EngineLost, with what is `otherwise`, if none comes."""
        restarts = new.restarts
        try:
            while not new.ready:
                if new.restarts > restarts or new.state in ("waiting", "failed") or self._closed:
                    what = f"the new replica {new.number} of {self.name} did not become ready: {new.said}"
                    raise EngineLost(what, otherwise)
                await asyncio.sleep(0.05)
        except BaseException:
            await new.stop(0.0)
            raise
        return new

    async def _ended(self, old: Replica) -> None:
        self._leaving.add(old)
        try:
            await old.stop(DRAIN_S)
        finally:
            self._leaving.discard(old)

    async def stop(self, drain_s: float) -> None:
        """Let answers end for up to `drain_s`, and end every engine."""
        self._closed = True
        self._turn.set()
        await asyncio.gather(*(replica.stop(drain_s) for replica in self.replicas))
        shutil.rmtree(self._folder, ignore_errors=True)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.replicas)
