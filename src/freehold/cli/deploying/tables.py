"""Deployments as tables, lines and JSON: what `deploy status`, `ps` and a start's progress show.

Knows rows and words; asks nothing. Path: cli/deploying/verbs.py, cli/ps.py -> rows, as_json -> stdout
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from freehold.backends import kept
from freehold.backends.contract import DeploymentRow, ReplicaRow
from freehold.backends.planning.printed import as_dict
from freehold.store.space import human

HEAD = ("NAME", "REPLICA", "ENGINE", "STATE", "PID", "MEMORY", "ANSWERS", "RESTARTS")
RIGHT = (1, 4, 5, 6, 7)


def rows(deployments: Sequence[DeploymentRow]) -> list[tuple[str, ...]]:
    """Return a row for each replica."""
    return [_cells(each, replica) for each in deployments for replica in each.replicas]


def _cells(of: DeploymentRow, replica: ReplicaRow) -> tuple[str, ...]:
    version = replica.version or of.plan.version
    return (
        of.name,
        str(replica.number),
        f"{of.plan.engine} {version}".rstrip(),
        state(of, replica),
        str(replica.pid) if replica.pid else "",
        human(replica.memory_bytes) if replica.memory_bytes else "",
        str(replica.in_flight),
        str(replica.restarts),
    )


def state(of: DeploymentRow, replica: ReplicaRow) -> str:
    """Return a replica's state in words, with what a start is doing and since when."""
    words = f"{replica.state}: {replica.phase}" if replica.phase else replica.state
    if replica.state in ("starting", "probing", "waiting", "draining"):
        words += f", {replica.since_s:.0f} s"
    return f"{words} ({of.rolling})" if of.rolling else words


def deaths(deployments: Iterable[DeploymentRow]) -> list[str]:
    """Return the latest death of each replica that had one."""
    return [
        f"{each.name} replica {replica.number}: {replica.said}"
        for each in deployments
        for replica in each.replicas
        if replica.said
    ]


def counts(of: DeploymentRow) -> str:
    """Return what became of a deployment's requests; "" before the first."""
    if not of.requests:
        return ""
    others = {"retried": of.retried, "resumed": of.resumed, "cut": of.cut}
    told = ", ".join(f"{count} {word}" for word, count in others.items() if count)
    requests = f"{of.requests:,} {'request' if of.requests == 1 else 'requests'}"
    return f"{of.name}: {requests}" + (f", {told}" if told else "")


def progress(of: DeploymentRow) -> str:
    """Return how far a start is, in one line: each replica's phase, processor seconds and memory."""
    told = []
    for replica in of.replicas:
        phase = replica.phase or replica.state
        memory = f", {human(replica.memory_bytes)}" if replica.memory_bytes else ""
        cpu = f", {replica.cpu_s:.0f} s of CPU" if replica.cpu_s else ""
        number = f"replica {replica.number}: " if len(of.replicas) > 1 else ""
        told.append(f"{number}{phase}, {replica.since_s:.0f} s{cpu}{memory}")
    rolling = f", {of.rolling}" if of.rolling else ""
    return f"{of.name}{rolling}: {'; '.join(told)}"


def as_json(of: DeploymentRow) -> dict[str, Any]:
    """Return a row for programs: everything that a server tells, the plan as --dry-run --json has it."""
    return {**kept.as_json(of), "plan": as_dict(of.plan)}
