"""Deployed models through the server: every protocol, receipts, metrics; a dead engine is not seen by clients."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import UsageError
from freehold.outgrow.replicas.models import DeployedModels
from tests.http.conftest import Running, start
from tests.outgrow import engines
from tests.outgrow.engines import QUICK, StandInDriver, expected

ASKED = {"model": "m", "max_tokens": 12, "temperature": 0}


class Deploying:
    """A server with two stand-ins deployed as `m`."""

    def __init__(self, folder: Path) -> None:
        self.driver = StandInDriver()
        self.folder = folder
        self.made: list[DeployedModels] = []
        self.running: Running = start(folder / "server", offline=True, around=self._around)
        self.client = self.running.client

    @property
    def models(self) -> DeployedModels:
        return self.made[0]

    def _around(self, models: Any) -> DeployedModels:
        self.made.append(DeployedModels(models, self.folder / "home", drivers=self.driver, limits=QUICK))
        return self.made[0]

    def do(self, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine function in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work(), self.running.loop).result(60)

    def add(self, **more: Any) -> None:
        self.do(lambda: self.models.add(engines.plan(self.folder), **more))

    def until(self, true: Callable[[], bool]) -> None:
        until = time.monotonic() + 20
        while not true():
            assert time.monotonic() < until
            time.sleep(0.01)

    def all_ready(self) -> bool:
        return all(r.state == "ready" for row in self.models.rows() for r in row.replicas)

    def asked(self, said: str, **more: Any) -> Any:
        body = {**ASKED, "messages": [{"role": "user", "content": said}], **more}
        return self.client.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="module")
def deploying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deploying]:
    made = Deploying(tmp_path_factory.mktemp("deployed"))
    made.add()
    made.until(made.all_ready)
    yield made
    made.running.end()


def events(reply: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_deployed_model_answers_in_every_protocol_beside_local_ones(deploying: Deploying) -> None:
    client, answer = deploying.client, expected("hello")
    assert {"m", "fake:1b"} <= {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert deploying.asked("hello").json()["choices"][0]["message"]["content"] == answer
    chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    said = client.post("/v1/messages", json={**chat, "max_tokens": 12, "temperature": 0}).json()
    assert said["content"][0]["text"] == answer
    options = {"num_predict": 12, "temperature": 0}
    said = client.post("/api/chat", json={**chat, "stream": False, "options": options}).json()
    assert said["message"]["content"] == answer
    assert "m" in str(client.get("/api/tags").json())
    said = client.post("/v1/chat/completions", json={**ASKED, **chat, "model": "fake:1b"})
    assert said.status_code == 200 and "engine" not in said.json()["freehold"]


def test_prompt_is_tokenised_and_counted_by_the_engine(deploying: Deploying) -> None:
    client = deploying.client
    said = client.post("/tokenize", json={"model": "m", "prompt": "hello you"}).json()
    assert said["tokens"] == [*b"hello you"]
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    counted = client.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    assert counted == len("<user>hello\n<assistant>")


@pytest.mark.heavy
def test_receipt_names_engine_version_and_replica_and_who_took_over(deploying: Deploying) -> None:
    assert deploying.asked("hello").json()["freehold"]["engine"]["name"] == "vllm 0.32.0"
    reply = deploying.asked("go on [[cut 4]]", stream=True, stream_options={"include_usage": True})
    got = events(reply)
    text = "".join(e["choices"][0]["delta"].get("content") or "" for e in got[:-1] if e["choices"])
    assert text == expected("go on [[cut 4]]") and got[-1] == "[DONE]"
    receipt = next(e["freehold"] for e in reversed(got[:-1]) if "timings" in e.get("freehold", {}))
    engine = receipt["engine"]
    assert engine["resumed"] == [1 - engine["replica"]]
    assert receipt["timings"]["resumed_tokens"] == 4
    deploying.until(deploying.all_ready)


@pytest.mark.heavy
def test_answer_that_cannot_be_continued_ends_with_the_protocols_own_error(deploying: Deploying) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "any [[cut 3]]"}], "stream": True}
    got = events(deploying.client.post("/v1/chat/completions", json={**chat, "max_tokens": 9}))
    assert (
        "cannot continue" in got[-2]["error"]["message"] or "cannot continue" in got[-1]["error"]["message"]
    )
    deploying.until(deploying.all_ready)
    reply = deploying.client.post("/v1/messages", json={**chat, "max_tokens": 9, "temperature": 1.0})
    assert "event: error" in reply.text and "message_stop" not in reply.text
    deploying.until(deploying.all_ready)


@pytest.mark.heavy
def test_metrics_have_each_replica_and_do_not_shrink_when_one_dies(deploying: Deploying) -> None:
    def tokens() -> dict[str, float]:
        lines = deploying.client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith("freehold_replica_generated_tokens_total{")]
        return {line.partition(" ")[0]: float(line.rpartition(" ")[2]) for line in found}

    deploying.until(
        lambda: len(tokens()) == 2 and all(tokens().values())
    )  # each was asked one token to be ready
    before = tokens()
    assert {line.partition('replica="')[2][0] for line in before} == {"0", "1"}
    deploying.until(lambda: all(each.pid for each in deploying.models.rows()[0].replicas))
    row = deploying.models.rows()[0]
    deploying.driver.engine_of(row.replicas[0].pid).signal(signal.SIGKILL)
    deploying.until(lambda: not deploying.all_ready())
    deploying.until(deploying.all_ready)
    after = tokens()
    assert all(after[line] >= before[line] > 0 for line in before)
    text = deploying.client.get("/metrics").text
    assert 'freehold_replica_restarts_total{engine="vllm",model_name="m",replica="0"}' in text
    assert "replica_vllm:request_success_total{" in text


@pytest.mark.heavy
def test_deployment_stands_before_a_model_of_ours_until_it_is_stopped(deploying: Deploying) -> None:
    plan = engines.plan(deploying.folder, 1)
    plan = replace(plan, model=replace(plan.model, name="fake:1b"))
    deploying.do(lambda: deploying.models.add(plan))
    with pytest.raises(UsageError, match="already"):
        deploying.do(lambda: deploying.models.add(plan))
    reply = deploying.asked("hello", model="fake:1b").json()
    assert reply["choices"][0]["message"]["content"] == expected("hello")
    with pytest.raises(UsageError, match="--fallback nothing"):
        deploying.do(lambda: deploying.models.upgrade("fake:1b", plan, fallback="nothing"))
    deploying.do(lambda: deploying.models.upgrade("fake:1b", plan, fallback="fake:1b"))
    assert [row.fallback for row in deploying.models.rows() if row.name == "fake:1b"] == ["fake:1b"]

    async def stopped() -> None:
        stopping = asyncio.create_task(deploying.models.stop("fake:1b", 1.0))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="being stopped"):  # its folder is in use until it has ended
            await deploying.models.add(plan)
        await stopping

    deploying.do(stopped)
    assert "engine" not in deploying.asked("hello", model="fake:1b").json()["freehold"]


def test_model_of_ours_answers_while_no_replica_is_ready_and_the_receipt_says_so(tmp_path: Path) -> None:
    made = Deploying(tmp_path)
    try:
        with pytest.raises(UsageError, match="--fallback nothing"):
            made.add(fallback="nothing")
        made.driver.options_now["start_s"] = 600
        made.add(fallback="fake:1b")
        said = made.asked("hello").json()
        assert said["freehold"]["model"] == "fake:1b"
        assert said["freehold"]["warnings"] == ["no replica of m was ready: fake:1b answered"]
        refused = made.client.post("/v1/embeddings", json={"model": "m", "input": "hello"})
        assert refused.status_code == 502 and "cannot be compared" in refused.text
    finally:
        made.running.end()
    assert all(engine.ended.done() for engine in made.driver.engines)
