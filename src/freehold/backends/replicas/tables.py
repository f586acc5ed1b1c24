"""The counters of deployments for our metrics: one line a replica, under names of ours.

An engine's own series keep their names after `replica_`: ours of the same name have other labels.
Path: DeployedModels.counters -> tables -> server/core/metrics.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from freehold.backends.contract import EngineNumbers
from freehold.backends.replicas.deployment import ReplicaSet
from freehold.backends.replicas.replica import Replica
from freehold.serving import CounterTable

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
