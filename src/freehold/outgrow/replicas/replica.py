"""One engine of a deployment from its start to its end, and from each death to the next start.

    starting -> probing -> ready -> (death) waiting -> starting ...       failed: it is not started again
                             `-> draining -> stopped                      when that was asked for

Ready is one token, or one vector, through the road that clients take. Any end that was not asked for is a death,
whatever its status. An engine whose counters stop while requests run is hung, and killed. Knows no other
replica, and no text.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from freehold.base.errors import FreeholdError, UsageError
from freehold.base.serving import PACKING_TURN_S
from freehold.outgrow.contract import (
    DeployPlan,
    EngineDeath,
    EngineDriver,
    EngineNumbers,
    LaunchedEngine,
    ReplicaRow,
    ReplicaState,
)
from freehold.outgrow.replicas.calls import EngineCalls
from freehold.route.providers.hop import Hop

log = logging.getLogger("freehold.outgrow")


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """Times of a replica's life, in seconds, and how often it may die."""

    # before the second start in a row that came to nothing; doubled for each further one
    first_wait_s: float = 1.0
    most_wait_s: float = 60.0
    useless: int = 5  # starts in a row that came to nothing: a crash loop
    deaths: int = 40  # within `window_s`, however useful the engines were between them
    window_s: float = 600.0
    useful_s: float = 60.0  # an engine that was ready for so long, or answered a request, was of use
    still_s: float = 180.0  # a start in which nothing of the process moves for so long has come to nothing
    probe_s: float = 0.25  # between two attempts to reach an engine that starts
    token_s: float = 120.0  # for the first token of an engine that takes connections
    refused_s: float = 30.0  # in which every first token is refused: it answers, and will never be ready
    watch_s: float = 2.0  # between two looks at its counters
    quiet_s: float = 5.0  # without a moved counter while requests run: others are asked first
    hung_s: float = 20.0  # the same: it is killed
    busy_s: float = 900.0  # instead of `hung_s` where its processors compute: a long text in one step
    faults: int = 3  # requests in a row that it failed: it is asked for a token, and killed if none comes


DEFAULTS = ReplicaLimits()
_REFUSED = "its first token failed"
# Seconds of processor from one mark to the next: an engine beside 20 others has as many within `hung_s`.
_COMPUTES_CPU_S = 1.0
_RAY_S = 150.0  # 120 until a replica calls itself hung (ray/app.py), and Ray's next look at it
_STEP_TOKENS = 4096  # that an engine computes in one step, before any counter moves


def hung_after(plan: DeployPlan, limits: ReplicaLimits) -> float:
    """Return the seconds after which an engine counts as hung: two of its slowest steps, where they are predicted.

    An app of Ray Serve ends a replica of its own that hangs; it is ended here where none of them moves after that.
    """
    if plan.engine == "ray":
        return max(limits.hung_s, _RAY_S)
    slowest = plan.prefill.low if plan.prefill is not None else 0.0
    return max(limits.hung_s, 2 * _STEP_TOKENS / slowest) if slowest > 0 else limits.hung_s


def still_after(plan: DeployPlan, limits: ReplicaLimits) -> float:
    """Return the seconds without a sign after which a start has come to nothing."""
    return limits.still_s + (PACKING_TURN_S if plan.engine == "freehold" else 0.0)


def placed(plan: DeployPlan, folder: Path) -> DeployPlan:
    """Return a plan with its socket in the replica's own folder, in its flags too."""
    planned = plan.listens.socket
    if planned is None:
        return plan
    own = folder / "s.sock"
    flags = (replace(f, value=str(own)) if f.value == str(planned) else f for f in plan.flags)
    return replace(plan, flags=tuple(flags), listens=replace(plan.listens, socket=own))


class Replica:
    """One engine that is kept alive."""

    def __init__(
        self,
        number: int,
        plan: DeployPlan,
        driver: EngineDriver,
        folder: Path,
        hop: Hop,
        *,
        limits: ReplicaLimits = DEFAULTS,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`folder`: 0700, its own. `changed` is called whenever its state is another one."""
        self.number, self.plan, self.driver = number, plan, driver
        self._folder, self._hop, self._limits, self._changed = folder, hop, limits, changed
        self.state: ReplicaState = "starting"
        self.said = ""  # the latest death, in one sentence
        self.restarts = 0
        self.answered = 0  # of the engine that runs now
        self.in_flight = 0
        self.load_s = 0.0  # of its latest start
        self.embeds = False  # its latest engine was ready by a vector
        self.calls: EngineCalls | None = None
        self._engine: LaunchedEngine | None = None
        self._last_log: tuple[str, ...] = ()
        self._numbers = TalliedNumbers()
        self._hung_s = hung_after(plan, limits)
        self._shows_work = not driver.busy_waits and plan.nodes.rig.device.kind == "cpu"
        self._since = self._moved_at = self._busy_at = time.monotonic()
        self._faults, self._fault_at = 0, 0.0  # in a row; the latest
        self._useless = 0
        self._deaths: deque[float] = deque()
        self._asked_to_end = False
        self._life: asyncio.Task[None] | None = None

    # --- what it is -------------------------------------------------------------------------------

    @property
    def place(self) -> str:
        """How errors and receipts call it."""
        return f"replica {self.number} of {self.plan.model.name}"

    @property
    def ready(self) -> bool:
        """Whether it answers and may be given requests."""
        return self.state == "ready" and self.calls is not None

    @property
    def quiet(self) -> bool:
        """Whether others are asked first: its latest request failed, or nothing moves though requests run."""
        if self._faults and time.monotonic() - self._fault_at < self._limits.quiet_s:
            return True
        return self.in_flight > 0 and self._still_s() > self._limits.quiet_s

    @property
    def hopeless(self) -> bool:
        """Whether it is not started again."""
        return self.state in ("failed", "stopped")

    @property
    def numbers(self) -> EngineNumbers:
        """Its counters, those of the engines before it included."""
        return self._numbers.total

    @property
    def log(self) -> tuple[str, ...]:
        """The newest lines of its engine, or of the one that ended last."""
        return tuple(self._engine.log) if self._engine is not None else self._last_log

    def row(self) -> ReplicaRow:
        """Return what `deploy status` shows."""
        engine = self._engine
        progress = engine.progress() if engine is not None else None
        return ReplicaRow(
            self.number,
            self.state,
            self.plan.version,
            pid=engine.pid if engine is not None else 0,
            phase=progress.phase if progress is not None and self.state == "starting" else "",
            since_s=time.monotonic() - self._since,
            in_flight=self.in_flight,
            restarts=self.restarts,
            said=self.said,
            memory_bytes=progress.memory_bytes if progress is not None else 0,
            numbers=self.numbers,
            cpu_s=progress.cpu_s if progress is not None else 0.0,
            load_s=self.load_s,
        )

    def counts_on(self, other: Replica) -> None:
        """Take over the counters of the replica that had its number."""
        self._numbers.add(other.numbers)
        self.restarts += other.restarts

    # --- what answers tell it ---------------------------------------------------------------------

    def began(self) -> None:
        """Note a request that is given to it."""
        if not self.in_flight:
            self._busy_at = time.monotonic()
        self.in_flight += 1

    def moved(self) -> None:
        """Note a piece of an answer."""
        self._moved_at = time.monotonic()

    def ended(self, *, whole: bool) -> None:
        """Note the end of a request; `whole`: its answer came to its end."""
        self.in_flight -= 1
        self.answered += whole
        self._faults = 0 if whole else self._faults
        self._moved_at = time.monotonic()
        if not self.in_flight:
            self._changed()  # a drain waits for it

    def faulted(self) -> None:
        """Note a request that it failed by a fault of its own."""
        self._faults += 1
        self._fault_at = time.monotonic()

    # --- its life ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Start it, and another engine whenever one dies. `changed` tells of each state."""
        self._life = asyncio.get_running_loop().create_task(self._run())

    async def stop(self, drain_s: float) -> None:
        """Take it out of rotation, let its answers end for up to `drain_s`, and end its engine."""
        self._asked_to_end = True
        began = self.state == "ready" or self.in_flight > 0
        if not self.hopeless:
            self._enter("draining")
        until = time.monotonic() + drain_s
        while self.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.02)
        engine = self._engine
        if engine is not None and began:
            await engine.stop(max(until - time.monotonic(), 0.0) if self.in_flight else 0.0)
        elif engine is not None:  # while it loads it has nothing to finish, and heeds no request to end
            engine.kill("stop")
            await engine.ended
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait([self._life])
        self._enter("stopped")

    async def _run(self) -> None:
        try:
            while not self._asked_to_end:
                death = await self._one_engine()
                if death is None or self._asked_to_end:
                    return
                self._died(death)
                if self.hopeless:
                    return
                if wait := self._wait_s():
                    self._enter("waiting")
                    await asyncio.sleep(wait)
                self.restarts += 1
        except Exception as e:  # ours, not the engine's: a replica must not look as if it lived
            log.exception("%s is given up", self.place)
            self.said = f"internal error: {type(e).__name__}"
            self._enter("failed")

    async def _one_engine(self) -> EngineDeath | None:
        """Start an engine and keep it until it ends; return its death, None for an end that was asked for."""
        self._enter("starting")
        began = time.monotonic()
        try:
            engine = self._engine = await self.driver.launch(placed(self.plan, self._folder), self._folder)
        except FreeholdError as e:
            return EngineDeath(e.message, fatal=isinstance(e, UsageError))
        except (OSError, TimeoutError) as e:
            return EngineDeath(f"it could not be started: {e or type(e).__name__}")
        calls = EngineCalls(self._hop, self.driver, engine, self.place)
        watching: asyncio.Task[None] | None = None
        try:
            if await self._answers(engine, calls):
                self.calls, self.answered, self.load_s = calls, 0, time.monotonic() - began
                self._faults, self.embeds = 0, calls.embeds
                self._moved_at = time.monotonic()
                self._enter("ready")
                watching = asyncio.create_task(self._watch(engine, calls))
            return await asyncio.shield(engine.ended)
        finally:
            if watching is not None:
                watching.cancel()
            self._numbers.engine_ended()
            self._last_log, self._engine, self.calls = tuple(engine.log), None, None
            self._hop.forget(calls.providers)

    async def _answers(self, engine: LaunchedEngine, calls: EngineCalls) -> bool:
        """Wait until it has answered one token; return False where it ended first, or was killed for standing still."""
        refused_at = 0.0
        while not engine.ended.done():
            probe = asyncio.ensure_future(self._probed(calls))
            done, _ = await asyncio.wait(
                [probe, engine.ended], timeout=1.0, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:  # a connection was taken, or this would have failed by now
                self._enter("probing")
                await asyncio.wait([probe, engine.ended], return_when=asyncio.FIRST_COMPLETED)
            if not probe.done():
                probe.cancel()
            elif probe.result():
                return True
            elif self.said.startswith(_REFUSED):
                refused_at = refused_at or time.monotonic()
                if time.monotonic() - refused_at > self._limits.refused_s:
                    engine.kill(f"{self.said} for {self._limits.refused_s:.0f} s")
            progress = engine.progress()
            if progress.since_s > still_after(self.plan, self._limits):
                phase = progress.phase or "starting"
                engine.kill(f"its start made no progress for {progress.since_s:.0f} s while it was {phase}")
            await asyncio.wait([engine.ended], timeout=self._limits.probe_s)
        return False

    async def _probed(self, calls: EngineCalls) -> bool:
        """Ask for one token, or one vector, through the road that clients take; return whether it came."""
        try:
            await calls.prove(self._limits.token_s)
        except FreeholdError as e:
            loads = getattr(e, "status", 0) == 503  # llama-server takes connections before its model is there
            if getattr(e, "cause", "") != "connect" and not loads:
                self.said = f"{_REFUSED}: {e.message}"
            return False
        self.said = "" if self.said.startswith(_REFUSED) else self.said
        return True

    async def _watch(self, engine: LaunchedEngine, calls: EngineCalls) -> None:
        """Read its counters, and kill it when they stop while requests run and it computes nothing."""
        used, computed_at = math.inf, -math.inf  # seconds of processor at the latest mark, its time
        tells = False  # it has counters: without them a long answer in one piece looks like a hang
        while True:
            await asyncio.sleep(self._limits.watch_s)
            numbers = await calls.numbers(self._numbers.now, self._hung_s / 8)
            tells = tells or numbers is not None
            if numbers is not None and self._numbers.update(numbers):
                self.moved()
            still = self._still_s()
            if self._shows_work:
                now, cpu_s = time.monotonic(), engine.progress().cpu_s
                if cpu_s - used >= _COMPUTES_CPU_S:
                    used, computed_at = cpu_s, now
                used = min(used, cpu_s)  # of the first look, and after a process of it has ended
            computes = time.monotonic() - computed_at < self._hung_s
            limit = self._limits.busy_s if computes or not tells else self._hung_s
            if self.in_flight and still > limit:
                stood = "no counter moved" if tells else "nothing of an answer came"
                return engine.kill(f"{stood} for {still:.0f} s while {self.in_flight} requests ran: it hung")
            if self._faults >= self._limits.faults and not await self._still_answers(calls):
                return engine.kill(f"it failed {self._faults} requests in a row, and then a single token")

    async def _still_answers(self, calls: EngineCalls) -> bool:
        """Return whether an engine that fails requests gives a token: vLLM's server may outlive its core."""
        try:
            async with asyncio.timeout(self._hung_s):
                answers = await self._probed(calls)
        except TimeoutError:
            answers = False
        if answers:
            self._faults = 0
        return answers

    def _still_s(self) -> float:
        return time.monotonic() - max(self._moved_at, self._busy_at)

    # --- deaths -----------------------------------------------------------------------------------

    def _died(self, death: EngineDeath) -> None:
        now = time.monotonic()
        was_ready = self.state == "ready"
        useful = was_ready and (self.answered > 0 or now - self._since > self._limits.useful_s)
        self._useless = 0 if useful else self._useless + 1
        self._deaths.append(now)
        while self._deaths[0] < now - self._limits.window_s:
            self._deaths.popleft()
        self.said = death.sentence
        log.warning("%s ended: %s", self.place, death.sentence)
        if death.fatal and not was_ready:
            self._fails("another start would end the same way")
        elif self._useless >= self._limits.useless:
            self._fails(f"{self._useless} starts in a row came to nothing, and it is not started again")
        elif len(self._deaths) >= self._limits.deaths:
            times = f"{len(self._deaths)} times in {self._limits.window_s / 60:.0f} minutes"
            self._fails(f"it died {times}, and is not started again")

    def _fails(self, why: str) -> None:
        self.said = f"{self.said.rstrip('.')}; {why}"
        log.error("%s: %s", self.place, self.said)
        self._enter("failed")

    def _wait_s(self) -> float:
        """Return the seconds before the next start: none after an engine that was of use."""
        if not self._useless:
            return 0.0
        return min(self._limits.first_wait_s * 2 ** (self._useless - 1), self._limits.most_wait_s)

    def _enter(self, state: ReplicaState) -> None:
        if self._asked_to_end and state not in ("draining", "stopped"):
            return
        if state != self.state:
            self.state, self._since = state, time.monotonic()
        self._changed()


# --- an engine's counters over its restarts: each new engine begins at nothing, and the sum must not

_COUNTERS = ("_total", "_sum", "_count", "_bucket")  # how Prometheus ends the names of what only grows
_OF_PROCESS = ("process_", "python_", "http_")  # these move by being asked for


def is_counter(series: str) -> bool:
    """Whether a series only grows, by its name without labels."""
    return series.partition("{")[0].endswith(_COUNTERS)


class TalliedNumbers:
    """The counters of one replica."""

    def __init__(self) -> None:
        self._before = EngineNumbers()  # of the engines that ended
        self._now = EngineNumbers()

    @property
    def now(self) -> EngineNumbers:
        """What the engine that runs reported last."""
        return self._now

    @property
    def total(self) -> EngineNumbers:
        """The counters of all its engines; gauges of the one that runs."""
        before, now = self._before, self._now
        return replace(
            now,
            prompt_tokens=before.prompt_tokens + now.prompt_tokens,
            generated_tokens=before.generated_tokens + now.generated_tokens,
            cached_tokens=_plus(before.cached_tokens, now.cached_tokens),
            steps=_plus(before.steps, now.steps),
            series=_summed(before.series, now.series),
        )

    def update(self, numbers: EngineNumbers) -> bool:
        """Take what the engine tells now; return whether any counter has moved."""
        moved = _counted(numbers) != _counted(self._now)
        self._now = numbers
        return moved

    def engine_ended(self) -> None:
        """Keep what the engine counted, and forget its gauges."""
        ended, self._now = self._now, EngineNumbers()
        self.add(ended)

    def add(self, other: EngineNumbers) -> None:
        """Add the counters of an engine that has ended."""
        before = self._before
        counted = {name: n for name, n in other.series.items() if is_counter(name)}
        self._before = EngineNumbers(
            prompt_tokens=before.prompt_tokens + other.prompt_tokens,
            generated_tokens=before.generated_tokens + other.generated_tokens,
            cached_tokens=_plus(before.cached_tokens, other.cached_tokens),
            steps=_plus(before.steps, other.steps),
            series=_summed(before.series, counted),
        )


def _counted(numbers: EngineNumbers) -> tuple[object, ...]:
    grown = {
        name: n for name, n in numbers.series.items() if is_counter(name) and not name.startswith(_OF_PROCESS)
    }
    return numbers.prompt_tokens, numbers.generated_tokens, numbers.cached_tokens, numbers.steps, grown


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None and b is None else (a or 0) + (b or 0)


def _summed(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    sums = {name: n + (before.get(name, 0.0) if is_counter(name) else 0.0) for name, n in now.items()}
    return {**{name: n for name, n in before.items() if name not in sums}, **sums}
