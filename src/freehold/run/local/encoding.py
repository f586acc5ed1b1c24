"""Pictures that wait for a tower: opened ahead, computed by turns between clients, each once for all who want it.

Knows clients, pictures and threads; knows no prompt's text and no file of pictures but through pictures/. EncodeTurns
decides whose picture is next and starts nothing; EncodeQueue has the threads: two that open pictures and read and write
files of features, one that computes. A run of the tower pauses every few hundredths of a second, where the threads of
the pool are free for steps, the turn may pass to another client, and work that nothing waits for ends.

Features that were computed before are kept in memory up to a limit of bytes, and in files. A key is a tenant's name and
a digest of all that the features depend on (senses.py makes it), never a text that a caller chose.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import CapacityExceeded, EngineClosed, FreeholdError, Overloaded, UsageError
from freehold.base.platforms import run_thread_below
from freehold.base.stopping import check_stopped
from freehold.run.engine.cache.disk import CheckedFolder
from freehold.run.engine.schedule.shares import Shares
from freehold.run.models.seeing import BATCH_ROWS, LIVE_ROWS, PIXEL_BYTES, SMALL_RUNS, Picture, TowerRun
from freehold.run.models.tower import PicturePlan
from freehold.run.pictures.decoders import in_turn_of
from freehold.run.pictures.opening import open_picture

F32 = NDArray[np.float32]

# --- features computed before ----------------------------------------------------------------------

FeatureKey = tuple[str, bytes]  # the tenant for whom it was computed, "" where tenants share; the digest

MAGIC, SUFFIX = b"FREEHFT1", ".features"
DISK_BYTES = 1 << 30  # that the files may take: some 60 screenshots of a model of 2,048 columns


class FeatureCache:
    """Features by key, the longest unused ones forgotten first."""

    def __init__(self, most: int, folder: Path | None = None, budget: int | None = None) -> None:
        """Keep `most` bytes in memory, one picture at least, and in `folder` `budget` bytes, by default DISK_BYTES."""
        self._most = most
        self._kept: OrderedDict[FeatureKey, F32] = OrderedDict()
        self._files = None if folder is None else CheckedFolder(folder, (SUFFIX,), DISK_BYTES, budget)
        self._lock = Lock()
        self.nbytes = 0
        self.hits = 0  # found in memory,
        self.disk_hits = 0  # and in files
        self.computed = 0  # and in neither

    @property
    def on_disk(self) -> bool:
        """Whether features outlive the process."""
        return self._files is not None

    def get(self, key: FeatureKey) -> F32 | None:
        """Return features that are in memory."""
        with self._lock:
            features = self._kept.get(key)
            if features is not None:
                self._kept.move_to_end(key)
                self.hits += 1
            return features

    def add(self, key: FeatureKey, features: F32) -> None:
        """Keep features that were computed: in memory, see `write`."""
        with self._lock:
            self.computed += 1
        self._keep(key, features)

    def read(self, key: FeatureKey, rows: int, columns: int) -> F32 | None:
        """Return features that a file has, and keep them in memory."""
        if self._files is None:
            return None
        name, head = _named(key, rows, columns)
        content = np.empty(4 * rows * columns, np.uint8)
        if not self._files.fill(content, name, head, time.time_ns()):
            return None
        features = content.view("<f4").reshape(rows, columns)
        if not np.isfinite(features).all():
            return None
        with self._lock:
            self.disk_hits += 1
        self._keep(key, features)
        return features

    def write(self, key: FeatureKey, features: F32) -> None:
        """Write a file unless it is there; a disk that is full or fails costs hits and no answer."""
        name, head = _named(key, *features.shape)
        if self._files is not None and not self._files.has(name):
            content = np.ascontiguousarray(features, "<f4").view(np.uint8).reshape(-1)
            with suppress(OSError):
                self._files.write(name, head, content, time.time_ns())

    def _keep(self, key: FeatureKey, features: F32) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = features
                self.nbytes += features.nbytes
            while self.nbytes > self._most and len(self._kept) > 1:
                self.nbytes -= self._kept.popitem(last=False)[1].nbytes


def _named(key: FeatureKey, rows: int, columns: int) -> tuple[str, bytes]:
    """Return the name of a file, and what it begins with: tenant, digest, rows and columns, all of a fixed length."""
    tenant, digest = key
    whose = hashlib.sha256(b"freehold tenant " + tenant.encode()).digest()
    head = MAGIC + whose + hashlib.sha256(digest).digest() + struct.pack(">II", rows, columns)
    return hashlib.sha256(head).hexdigest() + SUFFIX, head


# --- turns and threads -----------------------------------------------------------------------------

U8 = NDArray[np.uint8]

OPENERS = (
    2  # pictures of a client that are opened at a time, where no other waits; as many are decoded at a time
)
OPENER_THREADS = (
    4  # so that a client's pictures, which may take long, do not hold them all (pictures/decoders.py)
)
# Bytes of files that may wait to be opened. A client within its part of it, by the clients that wait, is not refused
# for what others sent; so n clients may exceed it by the factor 1 + ln n.
WAITING_BYTES = 512 << 20
NICE = 5  # of the threads: they work beside the steps of all
PAUSE_S = 0.0003  # between two sections of a tower: until a step that waits for the threads has woken
LOOK_S = 0.1  # between looks at whether a caller's work is still wanted
WRITES = 64  # features that wait to be written; beyond it the oldest are not
CLOSE_S = 2.0  # seconds that closing waits for what is being written


@dataclass(eq=False, slots=True)
class EncodeWork:
    """A picture on its way to features, for one request or several."""

    key: FeatureKey
    client: str
    plan: PicturePlan
    columns: int  # of its features
    data: bytes  # of its file, until it is opened
    number: int = 0  # in order of arrival
    seeing: list[Seeing] = field(default_factory=list)  # who waits for it
    state: Literal["waiting", "opening", "open", "running", "over"] = "waiting"
    pixels: Sequence[U8] = ()  # while it is open
    opening_s: float = 0.0
    encoding_s: float = 0.0  # its part of the seconds of its run

    @property
    def pixel_bytes(self) -> int:
        """Bytes of its pixels once it is open."""
        return 3 * sum(each[-1].width * each[-1].height for each in self.plan.resizes if each)


@dataclass(eq=False, slots=True)
class EncodeRun:
    """Pictures that a tower computes together."""

    works: list[EncodeWork]
    steps: TowerRun | None = None

    @property
    def rows(self) -> int:
        """Rows of the tower."""
        return sum(work.plan.patches for work in self.works)


# --- whose turn it is -------------------------------------------------------------------------------


class EncodeTurns:
    """Decides which picture is opened next, and which run computes its next section. The caller locks.

    Clients take equal parts of the tower's seconds (engine/schedule/shares.py): beside n - 1 others, a picture takes at
    most n times as long as alone and one section more, however many pictures they sent, and where runs that have begun
    hold all memory, until one of them has ended: all but the largest have LIVE_ROWS at most (models/seeing.py).
    """

    def __init__(self) -> None:
        self.works: dict[FeatureKey, EncodeWork] = {}
        self.runs: list[EncodeRun] = []
        self.crowded = False  # memory did not suffice for one run more
        self._waiting: OrderedDict[str, deque[EncodeWork]] = OrderedDict()
        self._open: OrderedDict[str, deque[EncodeWork]] = OrderedDict()
        self._opening: Counter[str] = Counter()
        self._shares = Shares()
        self._count = 0

    def add(self, work: EncodeWork) -> None:
        """Take a picture in."""
        self._count += 1
        work.number = self._count
        self.works[work.key] = work
        self._waiting.setdefault(work.client, deque()).append(work)
        self._shares.enter(work.client)

    def waiting_bytes(self) -> Counter[str]:
        """Return the bytes of files that are not opened yet, by client."""
        held: Counter[str] = Counter()
        for work in self.works.values():
            held[work.client] += len(work.data)
        return held

    def next_to_open(self) -> EncodeWork | None:
        """Return the picture that is opened next, of the client with the least service; None if none may be now.

        One of a client's is opened at a time where others wait, and no more are than fill its next run.
        """
        ready = [work for work in self.works.values() if work.state in ("opening", "open")]
        held = sum(work.pixel_bytes for work in ready)
        begun = [(work.client, work.plan.patches) for work in ready]
        for client in self._ranked(self._waiting):
            work = self._waiting[client][0]
            ahead = sum(rows for owner, rows in begun if owner == client)
            most = OPENERS if len(self._waiting) == 1 else 1
            if self._opening[client] >= most or (ahead and ahead + work.plan.patches > BATCH_ROWS):
                continue
            if held and held + work.pixel_bytes > PIXEL_BYTES:
                return None  # a smaller one of another client would go before it again and again
            _take(self._waiting, work)
            self._opening[client] += 1
            work.state = "opening"
            return work
        return None

    def opened(self, work: EncodeWork) -> None:
        """Note that a picture's pixels are there, or what is wrong with it: its seconds are of its client's service."""
        self._shares.charge(work.client, work.opening_s)
        self._opening[work.client] -= 1
        self._opening += Counter()  # drops those at zero
        if work.state == "opening":
            work.state = "open"
            self._open.setdefault(work.client, deque()).append(work)

    def turn(self) -> EncodeRun | None:
        """Return the run whose section is computed next; it begins if its `steps` are None. None: nothing can run."""
        live = {work.client: run for run in self.runs for work in run.works if work.state == "running"}
        blocked = False  # a client with less service waits for memory
        for client in self._ranked({**live, **self._open}):
            if client in live:
                return live[client]
            works = self._batch(client, live)
            if not self._fits(sum(work.plan.patches for work in works), blocked):
                blocked = True
                continue
            for work in works:
                _take(self._open, work)
                work.state = "running"
            self.runs.append(run := EncodeRun(works))
            return run
        return self.runs[0] if self.runs else None

    def _batch(self, client: str, live: dict[str, EncodeRun]) -> list[EncodeWork]:
        """Return what a client's next run computes: a picture of each client that waits, or several of its own."""
        first = self._open[client][0]
        works, rows = [first], first.plan.patches
        others = [each for each in self._ranked(self._open) if each != client and each not in live]
        more = [self._open[each][0] for each in others] or [*self._open[client]][1:]
        for work in more:
            if rows + work.plan.patches <= BATCH_ROWS:
                works.append(work)
                rows += work.plan.patches
        return works

    def _fits(self, rows: int, blocked: bool) -> bool:
        """Tell whether a run of `rows` may begin beside those that have begun."""
        live = [run.rows for run in self.runs]
        if not live:
            return True
        if self.crowded or (blocked and rows > BATCH_ROWS):
            return False
        if rows <= BATCH_ROWS and sum(each <= BATCH_ROWS for each in live) >= SMALL_RUNS:
            return False
        return sum(live) + rows - max(*live, rows) <= LIVE_ROWS

    def charge(self, run: EncodeRun, seconds: float) -> None:
        """Count the seconds of a section, for each picture of the run by its rows."""
        for work in run.works:
            part = seconds * work.plan.patches / run.rows
            work.encoding_s += part
            self._shares.charge(work.client, part)

    def put_back(self, run: EncodeRun) -> None:
        """Let the pictures of a run that could not begin wait again until another run has ended."""
        self.runs.remove(run)
        self.crowded = True
        for work in reversed(run.works):
            if work.state == "running":
                work.state = "open"
                self._open.setdefault(work.client, deque()).appendleft(work)

    def end(self, work: EncodeWork) -> None:
        """Remove a picture, whatever became of it; a run without pictures that anything waits for ends."""
        if work.state == "over":
            return
        for queue in (self._waiting, self._open):
            if work in queue.get(work.client, ()):
                _take(queue, work)
        work.state, work.data, work.pixels = "over", b"", ()
        self.works.pop(work.key, None)
        self._shares.leave(work.client)

    def end_run(self, run: EncodeRun) -> None:
        """Remove a run and its pictures."""
        self.runs.remove(run)
        self.crowded = False
        for work in run.works:
            self.end(work)

    def _ranked(self, clients: Iterable[str]) -> list[str]:
        """Order clients by their service, then by arrival."""
        first = {client: 0 for client in clients}
        for work in reversed(self.works.values()):
            if work.client in first:
                first[work.client] = work.number
        return sorted(first, key=lambda client: (self._shares.used(client), first[client]))


def _take(queue: OrderedDict[str, deque[EncodeWork]], work: EncodeWork) -> None:
    queue[work.client].remove(work)
    if not queue[work.client]:
        del queue[work.client]


# --- a request's pictures ----------------------------------------------------------------------------


class Seeing:
    """The features of one request's pictures while they are computed."""

    def __init__(self, queue: EncodeQueue, keys: Sequence[FeatureKey], places: dict[FeatureKey, str]) -> None:
        self._queue, self._keys, self._places = queue, keys, places
        self._features: dict[FeatureKey, F32] = {}
        self._left = set(keys)
        self._error: Exception | None = None
        self._wake: Callable[[], object] = lambda: None
        self.opening_s = 0.0  # that its pictures took to be opened,
        self.encoding_s = 0.0  # and to be computed

    @property
    def done(self) -> bool:
        """Whether `features` returns without waiting."""
        return not self._left or self._error is not None

    @property
    def failed(self) -> bool:
        """Whether `features` raises."""
        return self._error is not None

    def wakes(self, wake: Callable[[], object]) -> None:
        """Call `wake` once it is done, from the thread that computed the last picture."""
        self._wake = wake
        if self.done:
            wake()

    def wait(self) -> None:
        """Wait until it is done. Raises Stopped if the caller's work is no longer wanted."""
        try:
            self._queue.wait(self)
        except BaseException:
            self.cancel()
            raise

    def features(self) -> list[F32]:
        """Return the features of each picture in order. Raises what opening or computing one did, with its place."""
        assert self.done
        if self._error is not None:
            raise self._error
        return [self._features[key] for key in self._keys]

    def cancel(self) -> None:
        """Leave: pictures that nothing else waits for are dropped within a section. Harmless once it is done."""
        self._queue.leave(self)

    def take(self, key: FeatureKey, features: F32, work: EncodeWork | None = None) -> None:
        """Take the features of a picture."""
        if work is not None:
            self.opening_s += work.opening_s
            self.encoding_s += work.encoding_s
        self._features[key] = features
        self._left.discard(key)
        if not self._left:
            self._wake()

    def fail(self, key: FeatureKey, error: Exception) -> None:
        """End with an error, the first one of them."""
        if self._error is None:
            place = self._places.get(key, "")
            self._error = placed(error, place) if isinstance(error, FreeholdError) else error
            self._wake()


def placed(error: FreeholdError, place: str) -> FreeholdError:
    """Return an error with a picture's place before what is wrong with it, where it is the picture's fault."""
    if not isinstance(error, UsageError):
        return error
    return type(error)(f"{place}: {error.message}", error.hint, place)


# --- the threads -------------------------------------------------------------------------------------


class TowerLike(Protocol):
    """What computes features."""

    @property
    def feature_width(self) -> int: ...
    def run(self, batch: Sequence[Picture]) -> TowerRun: ...


@dataclass(frozen=True, slots=True)
class WantedPicture:
    """A picture of a request."""

    key: FeatureKey
    data: bytes
    plan: PicturePlan
    place: str


def opened_pixels(data: bytes, plan: PicturePlan) -> Sequence[U8]:
    """Return a picture's pixels as a plan has them."""
    return open_picture(data, lambda width, height: plan.resizes)[1]


class EncodeQueue:
    """Computes what requests want to see. Its threads live while there is something to do."""

    def __init__(
        self,
        tower: TowerLike,
        cache: FeatureCache,
        opens: Callable[[bytes, PicturePlan], Sequence[U8]] = opened_pixels,
    ) -> None:
        self._tower, self.cache, self._opens = tower, cache, opens
        self._turns = EncodeTurns()
        self._changed = threading.Condition()
        self._unwritten: deque[tuple[FeatureKey, F32]] = deque(maxlen=WRITES)
        self._threads: Counter[str] = Counter()
        self._closed = False

    def see(self, pictures: Sequence[WantedPicture], client: str = "", admitted: bool = False) -> Seeing:
        """Begin to compute pictures for a client, each once; those that are remembered are there at once.

        Raises Overloaded where too many bytes wait to be opened, unless the request is `admitted`; EngineClosed.
        """
        with self._changed:
            if self._closed:
                raise EngineClosed("the model is closed", "load it again")
            distinct = {each.key: each for each in pictures}
            seeing = Seeing(
                self, [each.key for each in pictures], {key: each.place for key, each in distinct.items()}
            )
            known = {key: features for key in distinct if (features := self.cache.get(key)) is not None}
            fresh = [p for key, p in distinct.items() if key not in known and key not in self._turns.works]
            if not admitted:
                self._check(client, sum(len(each.data) for each in fresh))
            for each in fresh:
                self._turns.add(EncodeWork(each.key, client, each.plan, self._tower.feature_width, each.data))
            for key in distinct.keys() - known.keys():
                self._turns.works[key].seeing.append(seeing)
            for key, features in known.items():
                seeing.take(key, features)
            self._start()
            self._changed.notify_all()
        return seeing

    def wait(self, seeing: Seeing) -> None:
        """Wait until it is done. Raises Stopped."""
        with self._changed:
            while not seeing.done:
                check_stopped()
                self._changed.wait(LOOK_S)

    def leave(self, seeing: Seeing) -> None:
        """Drop what only this request wants."""
        with self._changed:
            for work in [*self._turns.works.values()]:
                if seeing in work.seeing:
                    work.seeing.remove(seeing)
                    if not work.seeing and work.state != "running":
                        self._turns.end(work)
            self._changed.notify_all()

    def close(self) -> None:
        """End all that waits with EngineClosed, and write what is quick to write."""
        with self._changed:
            self._closed = True
            self._fail_all(EngineClosed("the model was closed", "load it again"))
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._threads.total(), CLOSE_S)

    def _check(self, client: str, more: int) -> None:
        held = self._turns.waiting_bytes()
        if more and held.total() + more > WAITING_BYTES:
            clients = len(held.keys() | {client})
            if held[client] and held[client] + more > WAITING_BYTES // clients:
                raise Overloaded(
                    f"pictures of {held.total():,} bytes wait to be opened, {held[client]:,} of them yours; this "
                    f"request has {more:,} more, and the limit is {WAITING_BYTES:,}",
                    "wait for earlier answers, or send smaller pictures",
                    1.0,
                )

    def _start(self) -> None:
        """Start threads for what is to do; the caller locks."""
        jobs = {"encode": (1, self._encode_all), "open": (OPENER_THREADS, self._open_all)}
        for name, (most, work) in jobs.items():
            if self._threads[name] < most and (self._turns.works or (self._unwritten and name == "open")):
                self._threads[name] += 1
                threading.Thread(
                    target=self._run, args=(name, work), name=f"freehold-{name}", daemon=True
                ).start()

    def _run(self, name: str, work: Callable[[], None]) -> None:
        run_thread_below(NICE)
        try:
            work()
        except BaseException as e:  # a mistake of ours: nothing may wait for ever
            self._thread_ended(name, e)
            raise
        self._thread_ended(name)

    def _thread_ended(self, name: str, error: BaseException | None = None) -> None:
        with self._changed:
            self._threads[name] -= 1
            if error is not None:
                self._fail_all(RuntimeError(f"pictures cannot be computed: {error}"))
                self._turns.runs.clear()
            elif not self._closed:
                self._start()  # for what came meanwhile
            self._changed.notify_all()

    def _fail_all(self, error: Exception) -> None:
        for work in [*self._turns.works.values()]:
            self._fail(work, error)
            self._turns.end(work)

    # --- opening -----------------------------------------------------------------------------------

    def _open_all(self) -> None:
        while (work := self._next_to_open()) is not None:
            if isinstance(work, EncodeWork):
                self._open_one(work)
            else:
                self.cache.write(*work)

    def _next_to_open(self) -> EncodeWork | tuple[FeatureKey, F32] | None:
        with self._changed:
            while True:
                if not self._closed and (work := self._turns.next_to_open()) is not None:
                    return work
                if self._unwritten:
                    return self._unwritten.popleft()
                if self._closed or not self._turns.works:
                    return None
                self._changed.wait()

    def _open_one(self, work: EncodeWork) -> None:
        """Fill a picture's pixels, or its features where a file has them."""
        features, pixels, error, started = None, (), None, time.perf_counter()
        try:
            features = self.cache.read(work.key, work.plan.tokens, work.columns)
            if features is None:
                with in_turn_of(work.client):
                    pixels = self._opens(work.data, work.plan)
        except Exception as e:
            error = e
        with self._changed:
            work.opening_s, work.data, work.pixels = time.perf_counter() - started, b"", pixels
            self._turns.opened(work)
            if error is not None:
                self._fail(work, error)
                self._turns.end(work)
            elif features is not None:
                self._give(work, features)
                self._turns.end(work)
            self._changed.notify_all()

    # --- computing ---------------------------------------------------------------------------------

    def _encode_all(self) -> None:
        while (run := self._next_run()) is not None:
            started = time.perf_counter()
            try:
                next(self._steps(run))
                self._charged(run, started)
            except StopIteration as e:
                self._charged(run, started)
                self._ended(run, e.value)
            except Exception as e:
                self._failed(run, e)
            time.sleep(PAUSE_S)

    def _next_run(self) -> EncodeRun | None:
        with self._changed:
            while True:
                for run in [*self._turns.runs]:
                    if not any(work.seeing for work in run.works):  # all have left
                        self._close(run)
                if (run := self._turns.turn()) is not None:
                    if run.steps is None:
                        self._changed.notify_all()  # more may be opened in the place of its pictures
                    return run
                if not self._turns.works:
                    return None
                self._changed.wait()

    def _steps(self, run: EncodeRun) -> TowerRun:
        if run.steps is None:
            run.steps = self._tower.run([(work.plan, work.pixels) for work in run.works])
        return run.steps

    def _charged(self, run: EncodeRun, started: float) -> None:
        with self._changed:
            self._turns.charge(run, time.perf_counter() - started)

    def _ended(self, run: EncodeRun, computed: Sequence[F32]) -> None:
        with self._changed:
            for work, features in zip(run.works, computed, strict=True):
                self.cache.add(work.key, features)
                if self.cache.on_disk:
                    self._unwritten.append((work.key, features))
                self._give(work, features)
            self._turns.end_run(run)
            self._start()
            self._changed.notify_all()

    def _failed(self, run: EncodeRun, error: Exception) -> None:
        with self._changed:
            if isinstance(error, CapacityExceeded) and len(self._turns.runs) > 1:
                run.steps = None
                self._turns.put_back(run)  # until others have given their memory back
                return
            for work in run.works:
                self._fail(work, error)
            self._close(run)
            self._changed.notify_all()

    def _close(self, run: EncodeRun) -> None:
        if run.steps is not None:
            run.steps.close()
        self._turns.end_run(run)

    def _give(self, work: EncodeWork, features: F32) -> None:
        for seeing in work.seeing:
            seeing.take(work.key, features, work)

    def _fail(self, work: EncodeWork, error: Exception) -> None:
        for seeing in work.seeing:
            seeing.fail(work.key, error)
        work.seeing = []


def joined(features: Sequence[F32]) -> F32:
    """Return features one below another, those of a single picture as they are."""
    return features[0] if len(features) == 1 else np.concatenate(features)
