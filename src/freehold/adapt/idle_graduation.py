"""Graduation by itself: a server's routes are taught while it has nothing else to do.

`freehold graduate ROUTE` is started as a process of its own, at the lowest priority, once a route has enough kept texts
and the server was quiet for a while. A request ends it; a later quiet time continues it from its last whole step. It
ends with a proposal: only `freehold graduate ROUTE --move` lets a student take over. Knows processes, the clock and how
far each route is; knows no request and no training.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from freehold.base import private
from freehold.base.errors import FreeholdError
from freehold.base.sandbox.children import spawn
from freehold.route.router.gateway import Gateway
from freehold.route.router.graduation import IdleTry, TaughtNow, folder_of, graduand, kept_count, proposal_of
from freehold.route.router.opening import ledger_path

LOOK_S = 0.2  # between two looks at whether requests came
DUE_S = 10.0  # between two looks at the routes, which read files
END_S = 10.0  # for a process to keep its state; then it is killed, as a kill costs little
GROWN = 1.25  # times the texts of a finished try, from which the next one may end otherwise
TEST_SHARE = 0.1  # of texts, which are set apart and teach nothing
LOWEST = 19  # of the system's priorities
PROGRAM = (sys.executable, "-P", "-m", "freehold.base.sandbox.die_with_parent", "freehold.cli.main")
_log = logging.getLogger("freehold.adapt")


def taught_by_itself(gateway: Gateway) -> dict[str, float]:
    """Return the routes whose students the server teaches, and after how many quiet seconds."""
    plans = {name: route.graduate for name, route in gateway.routes.items() if route.graduate}
    return {name: plan.idle_s for name, plan in plans.items() if plan.by_itself}


def due(home: Path, gateway: Gateway, quiet_s: float = math.inf) -> tuple[str, int] | None:
    """Return the first route that can be taught now, and how many texts are kept of it; None: there is none."""
    ledger = ledger_path(gateway, home)
    for name, idle_s in taught_by_itself(gateway).items():
        if quiet_s < idle_s:
            continue
        before, count = IdleTry.of(home, name), kept_count(ledger, name)
        if before is not None and not before.ended:
            return name, count  # it was cut off, and continues with its own texts
        wanted = graduand(gateway, name).settings.at / (1 - TEST_SHARE)
        if count < max(wanted, GROWN * before.texts if before else 0):
            continue
        if not _is_proposed(home, gateway, name):
            return name, count
    return None


def _is_proposed(home: Path, gateway: Gateway, route: str) -> bool:
    """Tell whether a student reached the bar: what follows is its owner's to decide, now or after it went back."""
    try:
        state = proposal_of(home, route)
        return state is not None and state[1] >= graduand(gateway, route).task.bar
    except FreeholdError:
        return True  # a damaged state: freehold graduate names it


class IdleGraduation:
    """Teaches one server's routes. `current`: the gateway in force; `busy`: whether a request is being answered.

    `environment`: the variables of the process, with the providers' keys, which the server's own no longer has.
    `options`: of `freehold graduate`.
    """

    def __init__(
        self,
        home: Path,
        path: Path,
        current: Callable[[], Gateway],
        busy: Callable[[], bool],
        environment: Callable[[], Mapping[str, str]],
        options: Sequence[str] = (),
    ) -> None:
        self._home, self._path, self._current, self._busy = home, path, current, busy
        self._environment, self._options = environment, options
        self._since = time.monotonic()  # of the quiet
        self.now = TaughtNow()

    async def run(self) -> None:
        """Teach what is due, until cancelled; the process that runs then is ended first."""
        looked = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            quiet_s, now = self._quiet_s(), time.monotonic()
            least = min(taught_by_itself(self._current()).values(), default=math.inf)
            if quiet_s < least or now - looked < min(least, DUE_S):
                continue
            looked = now
            following = await asyncio.to_thread(due, self._home, self._current(), quiet_s)
            if following is not None and self._quiet_s() >= quiet_s:
                await self._teach(*following)

    def _quiet_s(self) -> float:
        """Return the seconds since a request was being answered; 0: one is."""
        if self._busy():
            self._since = time.monotonic()
            return 0.0
        return time.monotonic() - self._since

    async def _teach(self, route: str, texts: int) -> None:
        """Start a process, and end it where a request comes; note what became of it."""
        log = folder_of(self._home, route) / "idle.log"
        # Noted first: a server that is killed leaves a try that was cut off.
        IdleTry(texts, False, at=time.time()).keep(self._home, route)
        try:
            child = await asyncio.to_thread(self._started, route, log)
        except OSError as e:
            _log.warning("%s is not taught: %s", route, e)
            IdleTry(texts, True, str(e), time.time()).keep(self._home, route)
            return
        _log.info("%s is being taught, while there is no request", route)
        self.now.route = route
        try:
            while child.poll() is None:
                await asyncio.sleep(LOOK_S)
                if not self._quiet_s():
                    await _end(child)
                    _log.info("a request came: %s is taught further later", route)
                    return
        except asyncio.CancelledError:
            await asyncio.shield(_end(child))
            raise
        finally:
            self.now.route = ""
        self._note(route, texts, child.returncode, log)

    def _started(self, route: str, log: Path) -> subprocess.Popen[bytes]:
        """Start `freehold graduate` at the lowest priority, which its threads and engines inherit."""
        command = (*PROGRAM, "graduate", route, "--gateway", str(self._path), "--json", *self._options)
        env = {**self._environment(), "FREEHOLD_HOME": str(self._home)}
        nothing = subprocess.DEVNULL
        with open(log, "w", encoding="utf-8", opener=private.opener) as file:
            child = spawn(command, stdin=nothing, stdout=file, stderr=file, env=env, start_new_session=True)
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, LOWEST)
        return child

    def _note(self, route: str, texts: int, status: int, log: Path) -> None:
        """Keep how a process ended that was not cut off: only more texts begin another try."""
        message = ""
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            named = (line.removeprefix("error: ") for line in lines if line.startswith("error: "))
            message = next(named, f"it ended with status {status}; {log} says more")
        IdleTry(texts, True, message, time.time()).keep(self._home, route)
        if message:
            _log.warning("%s was not taught: %s", route, message)
            return
        with suppress(FreeholdError):
            if (state := proposal_of(self._home, route)) is not None:
                _log.info("%s: %s", route, state[2])


async def _end(child: subprocess.Popen[bytes]) -> None:
    """Have a process keep its state and end; kill it after END_S."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(child.pid, sign)
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            if child.poll() is not None:
                return
            await asyncio.sleep(LOOK_S / 4)


def missing() -> str:
    """Return the package that teaching needs and this installation lacks; empty: it has it."""
    return "" if find_spec("torch") else "torch"
