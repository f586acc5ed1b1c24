"""The deployments of this home's running server, asked through its owner's socket.

Knows the routes of server/system/deployments.py and their JSON; prints nothing.
Path: cli/deploy.py, cli/deploying/verbs.py -> RunningDeployments -> Unix socket -> server/system/deployments.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from freehold.backends import kept
from freehold.backends.contract import DeploymentRow, DeployPlan
from freehold.backends.planning.options import DeployOptions
from freehold.cli.serving.attach import RunningServer
from freehold.errors import ModelNotFound, ServerUnreachable, UpstreamFailed

_AT = "/admin/deployments"
_T = TypeVar("_T")


class _Listed(msgspec.Struct):
    deployments: list[dict[str, Any]] = []


class _Lines(msgspec.Struct):
    lines: list[str]


class RunningDeployments:
    """What a running server has deployed."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server

    @property
    def url(self) -> str:
        """Where clients reach the server."""
        return self._server.greeting.url

    def rows(self) -> list[DeploymentRow]:
        """Return every deployment."""
        return [_row(each) for each in self._call("GET", "", as_=_Listed).deployments]

    def row(self, name: str) -> DeploymentRow:
        """Return one. Raises ModelNotFound."""
        deployment = next((row for row in self.rows() if row.name == name), None)
        if deployment is None:
            raise ModelNotFound(
                f"nothing is deployed as {name}", "freehold deploy status lists what is deployed"
            )
        return deployment

    def add(self, plan: DeployPlan, options: DeployOptions) -> DeploymentRow:
        """Begin to start a plan."""
        body = {"plan": kept.as_json(plan), "asked": kept.as_json(options)}
        return _row(self._call("POST", "", body))

    def restart(self, name: str, *, drain_first: bool) -> DeploymentRow:
        """Roll every replica; returns when all are new."""
        return _row(self._call("POST", "/restart", {"name": name, "drain_first": drain_first}))

    def upgrade(
        self, name: str, plan: DeployPlan, options: DeployOptions, *, drain_first: bool
    ) -> DeploymentRow:
        """Roll to another plan; returns when all replicas follow it."""
        body = {"name": name, "plan": kept.as_json(plan), "asked": kept.as_json(options)}
        return _row(self._call("POST", "/upgrade", {**body, "drain_first": drain_first}))

    def stop(self, name: str, drain_s: float) -> None:
        """End a deployment after its answers."""
        self._call("POST", "/stop", {"name": name, "drain_s": drain_s})

    def log(self, name: str, replica: int) -> Sequence[str]:
        """Return the newest lines of an engine's log."""
        return self._call("POST", "/log", {"name": name, "replica": replica}, as_=_Lines).lines

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, as_: type[_T] = dict
    ) -> _T:
        try:
            return self._server.api.call(method, _AT + path, body, as_=as_)
        except ModelNotFound as e:
            if "no route" in e.message:  # a server of an earlier version
                raise ServerUnreachable(
                    f"the running server ({self._server.greeting.version}) deploys no engines",
                    "freehold stop, then start it with this version",
                ) from e
            raise


def _row(plain: Mapping[str, Any]) -> DeploymentRow:
    try:
        return kept.of_json(plain, DeploymentRow)
    except msgspec.ValidationError as e:
        raise UpstreamFailed(f"the server lists deployments of another version: {e}", "restart it") from e
