"""The models of a server with deployments: those of its own engine, and those that engines beyond it answer.

Around the server's own manager. A deployment's name is one name for all its replicas, in every API, and hides a stored
model of the same name. Counters have a `replica` label and outlive restarts. Knows names; knows no wire and no process.
Path: server -> DeployedModels.use -> DeployedHandle; server/system/deployments.py -> DeployedModels.add -> ReplicaSet
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from freehold import private
from freehold.backends.contract import DeployPlan, EngineDriver, EngineNumbers
from freehold.backends.names import named
from freehold.backends.process.leftovers import end_left, temporary_prefix
from freehold.backends.replicas.deployment import ReplicaSet
from freehold.backends.replicas.handle import DeployedHandle, FallbackHandle, info_of, stats_of
from freehold.backends.replicas.replica import DEFAULTS, Replica, ReplicaLimits
from freehold.backends.rows import DeploymentRow
from freehold.errors import EngineClosed, FreeholdError, ModelNotFound, UsageError
from freehold.platforms import SOCKET_PATH_BYTES
from freehold.providers.hop import Hop
from freehold.serving import CounterTable, LoadedInfo, ModelHandle, ModelManager, Origin, StoredModel

# The longest path of a socket below a deployment's folder, which another engine or one of ours has.
_SOCKET, _OWN_SOCKET = "0000/s.sock", "0000/home/serve/server.sock"


class DeployedModels:
    """Implements serving.ModelManager and contract.Deployments."""

    def __init__(
        self,
        models: ModelManager,
        home: Path,
        *,
        drivers: Callable[[DeployPlan], EngineDriver] | None = None,
        limits: ReplicaLimits = DEFAULTS,
    ) -> None:
        """`home`: the data folder. `drivers` returns a plan's driver."""
        self._models, self._home, self._limits = models, home, limits
        self._drivers = drivers or _driver
        self._hop = Hop()
        self._sets: dict[str, ReplicaSet] = {}
        self._fallbacks: dict[str, str] = {}
        # Names whose engines are being ended; their folder is in use until then.
        self._ending: set[str] = set()
        self._closed = False
        self._sweeping: asyncio.Task[int] | None = None

    # --- deployments ------------------------------------------------------------------------------

    def rows(self) -> list[DeploymentRow]:
        return [each.row(self._fallbacks[name]) for name, each in sorted(self._sets.items())]

    def sweep(self) -> asyncio.Task[int]:
        """Begin to end, once, the engines that an earlier server of this data folder left when it was killed."""
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(asyncio.to_thread(end_left, self._home))
        return self._sweeping

    async def add(self, plan: DeployPlan, *, fallback: str = "") -> DeploymentRow:
        name = named(plan.model.name)
        if self._closed:
            raise EngineClosed("the server is shutting down", "deploy when it is back")
        if name in self._sets:
            raise UsageError(
                f"{name} is deployed already", "freehold deploy upgrade changes it; stop ends it"
            )
        if name in self._ending:
            raise UsageError(f"{name} is being stopped", "deploy it again when its answers have ended")
        await self._check_fallback(fallback)
        await asyncio.shield(self.sweep())  # its engines may hold the devices
        replicas = self._sets[name] = ReplicaSet(
            plan, self._drivers, self._folder(name, plan), self._hop, limits=self._limits
        )
        self._fallbacks[name] = fallback
        await self._idle_copy_out(name)
        replicas.run()
        return replicas.row(fallback)

    async def _check_fallback(self, fallback: str) -> None:
        try:
            if fallback:
                await self._models.name_of(fallback)
        except ModelNotFound as e:
            raise UsageError(f"--fallback {fallback}: {e.message}", e.hint, field="fallback") from e

    async def _idle_copy_out(self, name: str) -> None:
        """Unload the stored model of a deployment's name, unless an answer or a fallback needs it."""
        if name in self._fallbacks.values():
            return
        for each in self._models.loaded():
            if each.name == name and not each.in_flight:
                await self._models.unload(name)

    async def restart(self, name: str, *, drain_first: bool = False) -> None:
        replicas = self._set(name)
        await replicas.roll(replicas.plan, "restart", drain_first=drain_first)

    async def upgrade(
        self, name: str, plan: DeployPlan, *, fallback: str = "", drain_first: bool = False
    ) -> None:
        if plan.model.name != name:
            raise UsageError(
                f"the plan is for {plan.model.name}, not for {name}", f"plan it with --name {name}"
            )
        replicas = self._set(name)
        await self._check_fallback(fallback)
        await replicas.roll(plan, "upgrade", drain_first=drain_first)
        if self._sets.get(name) is replicas:  # it may have been stopped meanwhile
            self._fallbacks[name] = fallback

    async def stop(self, name: str, drain_s: float) -> None:
        replicas = self._set(name)
        del self._sets[name], self._fallbacks[name]
        self._ending.add(name)
        try:
            await replicas.stop(drain_s)
        finally:
            self._ending.discard(name)

    def log(self, name: str, replica: int) -> Sequence[str]:
        return self._set(name).replica(replica).log

    def _set(self, name: str) -> ReplicaSet:
        replicas = self._sets.get(name)
        if replicas is None:
            names = ", ".join(sorted(self._sets)) or "none"
            raise ModelNotFound(f"nothing is deployed as {name[:200]!r}", f"deployed: {names}")
        return replicas

    def _folder(self, name: str, plan: DeployPlan) -> Path:
        """Return an empty 0700 folder whose sockets have paths that are short enough to bind."""
        folder = self._home / "engines" / quote(name, safe="+@ ").replace(".", "%2E")
        socket = _OWN_SOCKET if plan.engine == "freehold" else _SOCKET
        if len(str(folder / socket).encode()) > SOCKET_PATH_BYTES:
            return Path(tempfile.mkdtemp(prefix=temporary_prefix(self._home)))
        shutil.rmtree(folder, ignore_errors=True)  # of a server that was killed
        return private.folder(folder, self._home)

    # --- models -----------------------------------------------------------------------------------

    def asked_by(self, origin: Origin) -> _AskedModels:
        return _AskedModels(self, self._models, origin)

    async def names(self) -> Sequence[StoredModel]:
        return await self.asked_by(Origin()).names()

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        return await self.asked_by(Origin()).use(name, keep_alive)

    async def name_of(self, name: str) -> str:
        return name if name in self._sets else await self._models.name_of(name)

    async def stamp_of(self, name: str) -> str:
        return "" if name in self._sets else await self._models.stamp_of(name)

    def loaded(self) -> Sequence[LoadedInfo]:
        own = [each for each in self._models.loaded() if each.name not in self._sets]
        return [*own, *map(_loaded, self._sets.values())]

    def counters(self) -> Sequence[CounterTable]:
        return (*self._models.counters(), *tables(self._sets.values()))

    def loading(self) -> Mapping[str, tuple[int, int]]:
        return self._models.loading()

    async def unload(self, name: str) -> None:
        self._not_deployed(name, f"freehold deploy stop {name} ends it")
        await self._models.unload(name)

    async def retire(self, name: str) -> None:
        await self._models.retire(name)

    async def add_adapter(self, name: str, adapter: str, path: Path) -> None:
        self._not_deployed(name, "its engine takes adapters when it is started")
        await self._models.add_adapter(name, adapter, path)

    async def remove_adapter(self, name: str, adapter: str) -> None:
        self._not_deployed(name, "its engine takes adapters when it is started")
        await self._models.remove_adapter(name, adapter)

    def _not_deployed(self, name: str, hint: str) -> None:
        if name in self._sets:
            raise UsageError(f"{name} is deployed, and not a model of this server's own engine", hint)

    async def close(self, drain_s: float) -> None:
        """Let answers end for up to `drain_s`, and end all engines: those deployed and our own."""
        self._closed = True
        await asyncio.gather(
            self._models.close(drain_s), *(each.stop(drain_s) for each in self._sets.values())
        )
        await self._hop.close()

    # --- what one request sees --------------------------------------------------------------------

    def deployed(self, name: str) -> ReplicaSet | None:
        """Return a deployment by name."""
        return self._sets.get(name)

    def fallback(self, name: str) -> str:
        """Return the model of ours that answers in a deployment's place, where no replica is ready; "" for none."""
        replicas = self._sets[name]
        return "" if replicas.ready else self._fallbacks[name]

    def listed(self) -> list[StoredModel]:
        """Return the deployments as models with a name."""
        return [StoredModel(name, each.plan.model.anatomy.weight_bytes) for name, each in self._sets.items()]


class _AskedModels:
    """Implements serving.ModelDirectory for one origin."""

    def __init__(self, deployed: DeployedModels, models: ModelManager, origin: Origin) -> None:
        self._deployed, self._own = deployed, models.asked_by(origin)

    async def names(self) -> Sequence[StoredModel]:
        beyond = {each.name: each for each in self._deployed.listed()}
        own = {each.name: each for each in await self._own.names()}
        return sorted({**own, **beyond}.values(), key=lambda m: m.name)

    async def use(self, name: str, keep_alive: float | None = None) -> ModelHandle:
        replicas = self._deployed.deployed(name)
        if replicas is None:
            return await self._own.use(name, keep_alive)
        if other := self._deployed.fallback(name):
            try:
                return FallbackHandle(await self._own.use(other, keep_alive), name)
            except FreeholdError:
                if all(replica.hopeless for replica in replicas):
                    raise
        return DeployedHandle(replicas)

    async def name_of(self, name: str) -> str:
        return await self._deployed.name_of(name)

    async def stamp_of(self, name: str) -> str:
        return await self._deployed.stamp_of(name)

    def loaded(self) -> Sequence[LoadedInfo]:
        return self._deployed.loaded()


def _loaded(replicas: ReplicaSet) -> LoadedInfo:
    return LoadedInfo(
        replicas.name,
        info_of(replicas),
        stats_of(replicas),
        None,
        replicas.in_flight,
        sum(replica.restarts for replica in replicas),
    )


def _driver(plan: DeployPlan) -> EngineDriver:
    from freehold.backends.drivers import driver_of

    return driver_of(plan)


# --- the counters of deployments for our metrics: one line a replica, under names of ours -----------
# An engine's own series keep their names after `replica_`: ours of the same name have other labels.

_LABELS = ("model_name", "engine", "replica")
_Values = dict[tuple[str, ...], float]

# (name, help, whether it may shrink, what of a replica)
_OF_REPLICA: tuple[tuple[str, str, bool, Callable[[Replica], float]], ...] = (
    ("freehold_replica_ready", "Whether the replica answers.", True, lambda r: r.ready),
    ("freehold_replica_requests_in_flight", "Requests that the replica has.", True, lambda r: r.in_flight),
    ("freehold_replica_restarts", "Engines started after a death.", False, lambda r: r.restarts),
    ("freehold_replica_running", "Requests that the engine computes.", True, lambda r: r.numbers.running),
    ("freehold_replica_waiting", "Requests that wait in the engine.", True, lambda r: r.numbers.waiting),
    (
        "freehold_replica_prompt_tokens",
        "Prompt tokens received, of all engines of the replica together.",
        False,
        lambda r: r.numbers.prompt_tokens,
    ),
    (
        "freehold_replica_generated_tokens",
        "Tokens generated, of all engines of the replica together.",
        False,
        lambda r: r.numbers.generated_tokens,
    ),
)
_OF_NUMBERS: tuple[tuple[str, str, bool, Callable[[EngineNumbers], float | None]], ...] = (
    (
        "freehold_replica_cached_tokens",
        "Prompt tokens found in the cache.",
        False,
        lambda n: n.cached_tokens,
    ),
    ("freehold_replica_cache_usage", "Share of the cache in use, 0 to 1.", True, lambda n: n.cache_usage),
)
_OF_SET: tuple[tuple[str, str, Callable[[ReplicaSet], int]], ...] = (
    ("freehold_deployment_requests", "Requests received.", lambda d: d.requests),
    (
        "freehold_deployment_retried",
        "Requests asked again of another replica before their first token.",
        lambda d: d.retried,
    ),
    ("freehold_deployment_resumed", "Answers that another replica continued.", lambda d: d.resumed),
    (
        "freehold_deployment_cut",
        "Answers that ended with an error after their first token.",
        lambda d: d.cut,
    ),
)


def tables(sets: Iterable[ReplicaSet]) -> list[CounterTable]:
    """Return the tables of all deployments."""
    replica_sets = list(sets)
    lines = [(each, replica) for each in replica_sets for replica in each]
    out = [
        CounterTable(name, help, _LABELS, _summed(lines, value), gauge)
        for name, help, gauge, value in _OF_REPLICA
    ]
    out += [
        CounterTable(name, help, _LABELS, _summed(lines, lambda r, v=value: v(r.numbers)), gauge)
        for name, help, gauge, value in _OF_NUMBERS
    ]
    names = sorted({name for _, replica in lines for name in replica.numbers.series})
    out += [
        CounterTable(
            f"replica_{name}",
            "As the engine tells it.",
            _LABELS,
            _summed(lines, lambda r, n=name: r.numbers.series.get(n)),
            True,  # it has its whole name already, and the library would add _total to a counter's
        )
        for name in names
        if "{" not in name
    ]
    for name, help, value in _OF_SET:
        out.append(
            CounterTable(name, help, ("model_name",), {(each.name,): value(each) for each in replica_sets})
        )
    return out


def _summed(lines: Iterable[tuple[ReplicaSet, Replica]], value: Callable[[Replica], float | None]) -> _Values:
    """Return a value by replica: while a roll ends an old one, two engines have one number."""
    sums: _Values = {}
    for each, replica in lines:
        if (n := value(replica)) is not None:
            key = (each.name, replica.plan.engine, str(replica.number))
            sums[key] = sums.get(key, 0.0) + n
    return sums
