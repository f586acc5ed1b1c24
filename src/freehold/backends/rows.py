"""What runs of the deployments: a row for each name and each of its engines, and what may be done with them.

Knows plans and numbers; knows no process. Path: server/system/deployments.py -> Deployments -> DeploymentRow
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from freehold.backends.contract import DeployPlan, EngineNumbers
from freehold.errors import EngineLost

ReplicaState = Literal["starting", "probing", "ready", "draining", "waiting", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One engine of a deployment, as `deploy status` shows it."""

    number: int  # from 0; it stays the same when the engine is started again
    state: ReplicaState  # waiting: until its next start, after a death; failed: it is not started again
    version: str
    pid: int = 0
    phase: str = ""  # of a start: "loading weights"
    since_s: float = 0.0  # in this state
    in_flight: int = 0
    restarts: int = 0  # starts after a death
    said: str = ""  # the latest death, in one sentence
    memory_bytes: int = 0
    numbers: EngineNumbers = field(default_factory=EngineNumbers)
    cpu_s: float = 0.0  # of all its processes together
    load_s: float = 0.0  # that its latest start took until the first token; 0: none came yet


@dataclass(frozen=True, slots=True)
class DeploymentRow:
    """A name and the engines that answer it."""

    name: str
    plan: DeployPlan
    replicas: tuple[ReplicaRow, ...]
    ready: bool  # at least one replica answers
    rolling: str = ""  # "restart" or "upgrade" while one runs
    requests: int = 0
    resumed: int = 0  # answers that another replica continued
    retried: int = 0  # requests asked again before their first token
    cut: int = 0  # answers that ended with an error after their first token
    fallback: str = ""  # the model of ours that answers while no replica is ready
    gap_s: float = 0.0  # that no replica was ready in its latest roll

    def answers(self, *, first: bool = False) -> bool:
        """Return whether a replica answers. `first`: at a first start one death of each replica is enough.

        Raises EngineLost with the cause where none will answer any more.
        """
        lost = [each.state == "failed" or (first and bool(each.said)) for each in self.replicas]
        if not self.ready and lost and all(lost):
            death = next((each.said for each in self.replicas if each.said), "no replica could be started")
            raise EngineLost(f"{self.name}: {death}", "freehold deploy MODEL --dry-run shows the command")
        return self.ready


class Deployments(Protocol):
    """The deployments of a server. Its models (serving.ModelManager) have them too; both are one object.

    Names are looked up as they are; ModelNotFound for one that is not deployed.
    """

    def rows(self) -> Sequence[DeploymentRow]: ...
    async def add(self, plan: DeployPlan, *, fallback: str = "") -> DeploymentRow:
        """Begin to start the plan's replicas and return at once; `rows` tells how far they are.

        Raises UsageError where a deployment or a local model has the name.
        """
        ...

    async def restart(self, name: str, *, drain_first: bool = False) -> None:
        """Replace every replica, one after the other, each by one that has answered a token. No answer is cut.

        `drain_first`: the old engine ends before the new one starts, as it does where both have no room.
        Raises EngineLost where a new one does not become ready: the old ones stay.
        """
        ...

    async def upgrade(
        self, name: str, plan: DeployPlan, *, fallback: str = "", drain_first: bool = False
    ) -> None:
        """Do the same with another plan: other flags, another version, more or fewer replicas; then with `fallback`."""
        ...

    async def stop(self, name: str, drain_s: float) -> None:
        """Let answers end for up to `drain_s`, then end its engines; the name is then unknown."""
        ...

    def log(self, name: str, replica: int) -> Sequence[str]:
        """Return the newest lines of a replica's engine, bounded."""
        ...
