"""The owner's routes for engines beyond ours, over deployments that are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import EngineLost, ModelNotFound, UsageError
from freehold.outgrow import kept
from freehold.outgrow.contract import DeploymentRow, DeployPlan, EngineNumbers, ReplicaRow
from freehold.outgrow.options import DeployOptions
from freehold.serve.http.core.keys import KeyFile, made
from freehold.serve.http.system.deployments import DeploymentDesk
from tests.http.conftest import TOKEN, Running
from tests.http.test_streams import eventually
from tests.outgrow.plans import plan

AT = "/admin/deployments"
ADMIN = "0123456789abcdef0123"


class Deployed:
    """Deployments whose replicas are words."""

    def __init__(self) -> None:
        self.held: dict[str, DeploymentRow] = {}
        self.asked: list[tuple[object, ...]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail: Exception | None = None

    def rows(self) -> Sequence[DeploymentRow]:
        return list(self.held.values())

    async def add(self, plan: DeployPlan, *, fallback: str = "") -> DeploymentRow:
        if plan.model.name in self.held:
            raise UsageError(f"{plan.model.name} is deployed already")
        replicas = tuple(ReplicaRow(n, "starting", "", phase="loading weights") for n in range(plan.replicas))
        row = DeploymentRow(plan.model.name, plan, replicas, ready=False, fallback=fallback)
        self.held[row.name] = row
        return row

    async def restart(self, name: str, *, drain_first: bool = False) -> None:
        await self.gate.wait()
        if self.fail:
            raise self.fail
        self.asked.append(("restart", name, drain_first))

    async def upgrade(
        self, name: str, plan: DeployPlan, *, fallback: str = "", drain_first: bool = False
    ) -> None:
        await self.restart(name, drain_first=drain_first)
        self.held[name] = replace(self.held[name], plan=plan, fallback=fallback)

    async def stop(self, name: str, drain_s: float) -> None:
        if name not in self.held:
            raise ModelNotFound(f"nothing is deployed as {name!r}")
        self.asked.append(("stop", name, drain_s))
        del self.held[name]

    def log(self, name: str, replica: int) -> Sequence[str]:
        return ["INFO started", f"INFO replica {replica}"]

    def now(self, name: str, **changed: object) -> None:
        """Change every replica of a name."""
        row = self.held[name]
        replicas = tuple(replace(r, **changed) for r in row.replicas)  # type: ignore[arg-type]
        self.held[name] = replace(row, replicas=replicas, ready=changed.get("state") == "ready")


@pytest.fixture
def deploying(serving: Callable[..., Running], tmp_path: Path) -> Callable[..., tuple[Running, Deployed]]:
    """Return a function that starts a server with deployments."""

    def make(**settings: object) -> tuple[Running, Deployed]:
        running, deployed = serving(drain_s=0.4, **settings), Deployed()
        server = running.doors.server
        server.parts[DeploymentDesk] = DeploymentDesk(server, deployed, tmp_path / "home")
        return running, deployed

    return make


def body(name: str = "", **more: object) -> dict[str, Any]:
    asked = plan()
    if name:
        asked = replace(asked, model=replace(asked.model, name=name))
    options = DeployOptions("qwen3:8b", **more)  # type: ignore[arg-type]
    return {"plan": kept.as_json(asked), "asked": kept.as_json(options)}


def test_deployment_is_added_listed_and_stopped(deploying, tmp_path):
    running, deployed = deploying()
    row = running.admin.post(AT, json=body(fallback="smollm2:135m")).json()
    assert row["name"] == "qwen3:8b"
    assert [r["state"] for r in row["replicas"]] == ["starting", "starting"]
    deployed.now(
        "qwen3:8b",
        state="ready",
        version="0.32.0",
        pid=4711,
        restarts=2,
        said="vLLM ended with status 1: no memory",
        numbers=EngineNumbers(running=3, generated_tokens=70),
    )
    (row,) = running.admin.get(AT).json()["deployments"]
    assert row["ready"]
    assert row["replicas"][1]["pid"] == 4711
    assert row["replicas"][1]["said"] == "vLLM ended with status 1: no memory"
    assert kept.of_json(row, DeploymentRow) == deployed.held["qwen3:8b"]
    found, _ = kept.kept(tmp_path / "home")
    assert [(each.name, each.asked.fallback) for each in found] == [("qwen3:8b", "smollm2:135m")]
    assert running.admin.post(f"{AT}/stop", json={"name": "qwen3:8b", "drain_s": 5}).status_code == 200
    assert deployed.asked == [("stop", "qwen3:8b", 5.0)]
    assert running.admin.get(AT).json() == {"deployments": []}
    assert kept.kept(tmp_path / "home") == ([], [])


def test_name_that_is_taken_is_refused_and_its_file_stays(deploying, tmp_path):
    running, _ = deploying()
    running.admin.post(AT, json=body(fallback="a"))
    assert running.admin.post(AT, json=body(fallback="b")).status_code == 400
    (found,) = kept.kept(tmp_path / "home")[0]
    assert found.asked.fallback == "a"


def test_plan_that_is_none_is_refused_with_the_field(deploying):
    running, _ = deploying()
    sent: dict[str, Any] = {**body()["plan"]}
    for given in (
        {},
        {"engine": "vllm"},
        {**sent, "engine": "nope"},
        {**sent, "flags": 3},
    ):
        answer = running.admin.post(AT, json={**body(), "plan": given})
        assert answer.status_code == 400, given
        assert "plan" in answer.json()["error"]["message"]


def test_admin_s_key_lists_and_restarts_but_starts_no_program(deploying, tmp_path):
    keys = KeyFile(tmp_path / "keys.json")
    keys.add(made("root", ADMIN, admin=True, models=(), rate="", tokens=""))
    keys.add(made("ann", ADMIN[::-1], admin=False, models=(), rate="", tokens=""))
    from freehold.serve.http.core.keys import Ring

    running, deployed = deploying(keys=Ring([], keys, needed=True))
    admin = {"Authorization": f"Bearer {ADMIN}"}
    client = {"Authorization": f"Bearer {ADMIN[::-1]}"}
    refused = running.client.post(AT, json=body(), headers=admin)
    assert refused.status_code == 403
    assert "owner's socket or token" in refused.json()["error"]["message"]
    assert (
        running.client.post(AT, json=body(), headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    )
    for path in ("restart", "log"):
        answer = running.client.post(f"{AT}/{path}", json={"name": "qwen3:8b"}, headers=admin)
        assert answer.status_code == 200
    asked = {"name": "qwen3:8b", **body()}
    assert running.client.post(f"{AT}/upgrade", json=asked, headers=admin).status_code == 403
    for path, sent in (("", body()), ("/restart", {"name": "qwen3:8b"}), ("/stop", {"name": "qwen3:8b"})):
        assert running.client.post(f"{AT}{path}", json=sent, headers=client).status_code == 403
    assert running.client.get(AT, headers=client).status_code == 403
    assert deployed.asked == [("restart", "qwen3:8b", False)]


def test_roll_that_drains_first_is_passed_on(deploying):
    running, deployed = deploying()
    running.admin.post(AT, json=body())
    asked = {"name": "qwen3:8b", "drain_first": True}
    assert running.admin.post(f"{AT}/restart", json=asked).status_code == 200
    assert running.admin.post(f"{AT}/upgrade", json={**body(), **asked}).status_code == 200
    assert deployed.asked == [("restart", "qwen3:8b", True)] * 2


def test_roll_continues_where_its_client_leaves(deploying):
    import httpx2

    running, deployed = deploying()
    running.admin.post(AT, json=body())
    running.loop.call_soon_threadsafe(deployed.gate.clear)
    with pytest.raises(httpx2.TimeoutException):
        running.admin.post(f"{AT}/restart", json={"name": "qwen3:8b"}, timeout=0.3)
    assert deployed.asked == []
    running.loop.call_soon_threadsafe(deployed.gate.set)
    eventually(lambda: deployed.asked == [("restart", "qwen3:8b", False)])


def test_failed_upgrade_keeps_the_earlier_plan(deploying, tmp_path):
    running, deployed = deploying()
    running.admin.post(AT, json=body())
    more = kept.as_json(replace(plan(), replicas=3))
    deployed.fail = EngineLost("the new replica ended: unknown parser", "the old ones continue")
    answer = running.admin.post(f"{AT}/upgrade", json={**body(), "name": "qwen3:8b", "plan": more})
    assert answer.status_code >= 500
    assert kept.kept(tmp_path / "home")[0][0].plan.replicas == 2
    deployed.fail = None
    assert (
        running.admin.post(f"{AT}/upgrade", json={**body(), "name": "qwen3:8b", "plan": more}).status_code
        == 200
    )
    assert kept.kept(tmp_path / "home")[0][0].plan.replicas == 3


def test_kept_deployment_that_does_not_run_is_forgotten_by_stop(deploying, tmp_path):
    running, _ = deploying()
    kept.keep(tmp_path / "home", kept.KeptDeployment("old", plan(), DeployOptions("old")))
    assert running.admin.post(f"{AT}/stop", json={"name": "old"}).status_code == 200
    assert running.admin.post(f"{AT}/stop", json={"name": "old"}).status_code == 404


def test_unknown_name_is_answered_with_those_that_are_deployed(deploying):
    running, _ = deploying()
    running.admin.post(AT, json=body())
    answer = running.admin.post(f"{AT}/log", json={"name": "nope"})
    assert answer.status_code == 404
    assert "deployed: qwen3:8b" in answer.text


def test_server_without_deployments_lists_none_and_refuses_to_add(serving):
    running = serving()
    assert running.admin.get(AT).json() == {"deployments": []}
    assert running.admin.post(AT, json=body()).status_code == 404


def test_ready_waits_for_a_deployment_that_the_server_was_started_for(deploying):
    running, deployed = deploying()
    desk = running.doors.server.parts[DeploymentDesk]
    asyncio.run_coroutine_threadsafe(desk.add(plan(), DeployOptions("x"), awaited=True), running.loop).result(
        10
    )
    eventually(lambda: "loading weights" in running.client.get("/ready").text)
    deployed.now("qwen3:8b", state="failed", said="/opt/env/bin/python: vLLM ended: no such file")
    eventually(lambda: "no such file" in running.client.get("/ready").text)
    assert "/opt/env" not in running.client.get("/ready").text
    deployed.now("qwen3:8b", state="ready")
    eventually(lambda: running.client.get("/ready").status_code == 200)
