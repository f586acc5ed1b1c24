"""Attached engines: known by their answers, asked through a replica, and left alone."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freehold.base.config import load_settings
from freehold.base.errors import EngineLost, UsageError
from freehold.base.serving import EmbedJob
from freehold.outgrow import drivers
from freehold.outgrow.contract import DeployPlan
from freehold.outgrow.engines import attach
from freehold.outgrow.engines.attach import EngineReply, attached_plan, target
from freehold.outgrow.options import DeployOptions
from freehold.outgrow.planning import options as planning
from freehold.outgrow.planning import printed
from freehold.outgrow.replicas.deployment import ReplicaSet
from freehold.outgrow.replicas.models import info_of
from freehold.outgrow.replicas.replica import Replica
from freehold.route.providers.hop import Hop
from tests.outgrow import standin
from tests.outgrow.engines import QUICK, chat, expected, joined, operated, read, synchronous, until

FOUND = {
    "vllm": ("vllm", "0.32.0"),
    "sglang": ("sglang", "0.5.23"),
    "trtllm": ("trtllm", "1.2.1"),
    "llamacpp": ("llamacpp", "b10434-7e4c0a9"),
    "mlx": ("compatible", ""),
}


class Elsewhere:
    """An engine on a socket, started by other means."""

    def __init__(self, folder: Path, dialect: str, *flags: str, **options: object) -> None:
        self.socket = folder / "x.sock"
        where = ("--host" if dialect == "llamacpp" else "--uds", str(self.socket))
        model = "default_model" if dialect == "mlx" else "m"
        self.words = (*standin.command(dialect, **options), *where, "--served-model-name", model, *flags)
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            *self.words, stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "VLLM_API_KEY": "k1"}
        )
        while not self.socket.exists():
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


async def planned(elsewhere: Elsewhere, **more: Any) -> DeployPlan:
    return await asyncio.to_thread(attached_plan, f"unix:{elsewhere.socket}", **more)


def attached(folder: Path, plan: DeployPlan) -> AbstractAsyncContextManager[Replica]:
    return operated(plan, drivers.driver_of(plan), folder)


@pytest.mark.parametrize("dialect", FOUND)
@synchronous
async def test_engine_is_known_by_its_answers_and_runs_on_after_we_let_go(
    dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", "k1")
    elsewhere = Elsewhere(tmp_path, dialect)
    await elsewhere.start()
    try:
        plan = await planned(
            elsewhere, name="ours", **({"key_env": "THEIR_KEY"} if dialect == "vllm" else {})
        )
        assert (plan.engine, plan.version) == FOUND[dialect]
        assert plan.model.name == "ours" and plan.attached == f"unix:{elsewhere.socket}"
        assert plan.context in (8192, 1024)
        assert "k1" not in repr(plan)
        async with attached(tmp_path, plan) as replica:
            await until(lambda: replica.ready)
            assert replica.calls is not None
            said = joined(await read(await replica.calls.start(chat("hello"), limit_s=10)))
            assert said == expected("hello")
            assert replica.row().pid == 0
        assert elsewhere.process is not None and elsewhere.process.returncode is None
    finally:
        await elsewhere.end()


@pytest.mark.parametrize(
    "dialect, flag, embeds",
    [
        ("vllm", "--runner=pooling", True),
        ("llamacpp", "--embedding", True),
        ("mlx", "--chats-only", False),
    ],
)
@synchronous
async def test_engine_is_ready_by_what_it_gives_and_shown_as_that(
    dialect: str, flag: str, embeds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say whether it was started for text or for vectors."""
    monkeypatch.setenv("THEIR_KEY", "k1")
    elsewhere = Elsewhere(tmp_path, dialect, flag)
    await elsewhere.start()
    hop = Hop()
    try:
        plan = await planned(elsewhere, key_env="THEIR_KEY")
        replicas = ReplicaSet(plan, drivers.driver_of, tmp_path, hop, limits=QUICK)
        assert info_of(replicas).can_chat
        try:
            replicas.run()
            await until(lambda: replicas.ready)
            info = info_of(replicas)
            assert (info.embeds_only, info.can_chat) == (embeds, not embeds)
            if embeds:
                assert len((await replicas.embed(EmbedJob(("a", "b")), 10.0)).tokens) == 2
        finally:
            await replicas.stop(0.0)
    finally:
        await hop.close()
        await elsewhere.end()


@pytest.mark.heavy
@synchronous
async def test_engine_that_ends_is_dead_and_comes_back_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attach, "LOOK_S", 0.05)
    monkeypatch.setattr(attach, "LOST_S", 0.2)
    elsewhere = Elsewhere(tmp_path, "llamacpp")
    await elsewhere.start()
    plan = await planned(elsewhere)
    async with attached(tmp_path, plan) as replica:
        try:
            await until(lambda: replica.ready)
            assert replica.calls is not None
            await read(await replica.calls.start(chat("hello"), limit_s=10))
            await elsewhere.end()
            await until(lambda: not replica.ready)
            await until(lambda: replica.restarts == 1)
            assert "does not answer" in replica.said or replica.said.startswith("llama.cpp at")
            await asyncio.sleep(1.0)
            assert replica.state == "starting"  # it waits, however long that takes
            assert "waiting for" in replica.row().phase
            await elsewhere.start()
            await until(lambda: replica.ready)
        finally:
            await elsewhere.end()


@pytest.mark.heavy
@synchronous
async def test_engine_that_hangs_is_given_up_and_not_touched(tmp_path: Path) -> None:
    elsewhere = Elsewhere(tmp_path, "mlx")
    await elsewhere.start()
    try:
        async with attached(tmp_path, await planned(elsewhere)) as replica:
            await until(lambda: replica.ready)
            assert elsewhere.process is not None
            os.kill(elsewhere.process.pid, signal.SIGSTOP)
            replica.began()
            await until(lambda: replica.restarts == 1)
            # whichever sees it first: counters that stand still, or a route that does not answer
            assert "given up" in replica.said or "does not answer" in replica.said
            replica.ended(whole=False)
            assert elsewhere.process.returncode is None
            os.kill(elsewhere.process.pid, signal.SIGCONT)
            await until(lambda: replica.ready)
    finally:
        await elsewhere.end()


@synchronous
async def test_engine_is_planned_for_from_a_coroutine_too(tmp_path: Path) -> None:
    """A notebook's cells run inside an event loop."""
    elsewhere = Elsewhere(tmp_path, "llamacpp")
    await elsewhere.start()
    try:
        assert attached_plan(f"unix:{elsewhere.socket}").engine == "llamacpp"
    finally:
        await elsewhere.end()


@synchronous
async def test_wrong_key_unknown_model_and_silence_are_told(tmp_path: Path) -> None:
    elsewhere = Elsewhere(tmp_path, "vllm")
    with pytest.raises(EngineLost, match="nothing answers at"):
        await planned(elsewhere)
    plan = await planned(elsewhere, engine="vllm", model="m")  # what it is is known: it may come later
    assert plan.engine == "vllm" and plan.served == "m"
    await elsewhere.start()
    try:
        with pytest.raises(UsageError, match="wants a key"):
            await planned(elsewhere)
        with pytest.raises(UsageError, match="THEIR_KEY, which --attach-key-env names, is not set"):
            await planned(elsewhere, key_env="THEIR_KEY")
    finally:
        await elsewhere.end()


@synchronous
async def test_model_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    elsewhere = Elsewhere(tmp_path, "sglang")
    await elsewhere.start()
    try:
        with pytest.raises(UsageError) as error:
            await planned(elsewhere, model="mm")
        assert "has no model 'mm'" in error.value.message and "m" in error.value.hint
    finally:
        await elsewhere.end()


@pytest.mark.parametrize(
    "address, url",
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        ("http://[::1]:9", "http://[::1]:9"),
        ("localhost:8000", "http://localhost:8000"),
        ("https://gpu.example:8443", "https://gpu.example:8443"),
        ("unix:/run/e.sock", "http://engine"),
    ],
)
def test_addresses_on_this_machine_and_https_are_taken(address: str, url: str) -> None:
    assert target(address).url == url


@pytest.mark.parametrize(
    "address, said",
    [
        ("http://10.0.0.7:8000", "is not this machine"),
        ("gpu:8000", "is not this machine"),
        ("http://127.0.0.1.example:80", "is not this machine"),
        ("ftp://127.0.0.1", "is not an engine's address"),
        ("http://u:p@127.0.0.1:1", "has no password"),
        ("http://127.0.0.1:1/?key=x", "has no password and no query"),
        ("http://127.0.0.1:99999", "no valid port"),
        ("http://[::1", "no valid port or host"),
        ("http://127.0.0.1:1/other", "without a path"),
        ("unix:e.sock", "names no socket"),
    ],
)
def test_other_addresses_are_refused(address: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        target(address)


def test_plain_http_beyond_this_machine_takes_the_word_for_it() -> None:
    assert target("http://10.0.0.7:8000", cleartext=True).url == "http://10.0.0.7:8000"
    with pytest.raises(UsageError) as error:
        target("http://10.0.0.7:8000", key_env="K")
    assert "--attach-cleartext" in error.value.hint


def test_engine_on_another_machine_counts_as_the_houses_own_and_the_plan_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nothing(ask: Any, engine: str) -> None:
        return None

    monkeypatch.setattr(attach, "surveyed", nothing)
    notes = attached_plan("https://gpu.example", "m", engine="vllm").notes
    assert any("counts as yours" in note for note in notes)
    assert len(attached_plan("http://127.0.0.1:1", "m", engine="vllm").notes) == 1


def test_metrics_that_are_taken_when_read_are_left_to_their_owner() -> None:
    assert attach.AttachDriver(drivers.driver("trtllm")).metrics_path == ""
    assert attach.AttachDriver(drivers.driver("vllm")).metrics_path == "/metrics"


def test_no_engine_that_is_attached_only_can_be_deployed() -> None:
    assert "compatible" not in drivers.names()
    with pytest.raises(UsageError, match="not started by a deployment"):
        drivers.driver("compatible").plan(None)  # type: ignore[arg-type]


def test_plan_of_an_attached_engine_is_chosen_by_its_address() -> None:
    plan = replace(_plan(), attached="http://127.0.0.1:1")
    assert isinstance(drivers.driver_of(plan), attach.AttachDriver)
    assert attach.STREAMS > 0


def _plan() -> DeployPlan:
    from tests.outgrow import plans

    return plans.plan()


@synchronous
async def test_deploy_plans_for_an_address(tmp_path: Path) -> None:
    elsewhere = Elsewhere(tmp_path, "llamacpp")
    await elsewhere.start()
    try:
        asked = DeployOptions("m", name="ours", attach=f"unix:{elsewhere.socket}")
        plan = await asyncio.to_thread(planning.planned, load_settings(), asked)
        assert (plan.engine, plan.model.name, plan.served) == ("llamacpp", "ours", "m")
        said = printed.text(plan)
        assert said.startswith(f"ours at unix:{elsewhere.socket}: llamacpp b10434-7e4c0a9, which calls it m")
        assert "command" not in said and "it is already running" in said
    finally:
        await elsewhere.end()
    for wrong in ({"replicas": 2}, {"flags": ("--x",)}, {"on": "h100"}, {"python": "/p"}):
        with pytest.raises(UsageError):
            planning.planned(load_settings(), DeployOptions("m", attach="127.0.0.1:1", **wrong))  # type: ignore[arg-type]


class Said:
    """Answers of an engine, by path."""

    def __init__(self, **bodies: bytes) -> None:
        self._bodies = bodies

    async def get(self, path: str) -> EngineReply | None:
        body = self._bodies.get(path.rpartition("/")[2])
        return None if body is None else EngineReply(200, {}, body)


@pytest.mark.parametrize("said", ['"many"', "1e400", "[1]", "-5", "true", "null", "9" * 30])
@synchronous
async def test_context_that_is_no_number_of_tokens_is_not_known(said: str) -> None:
    models = f'{{"data": [{{"id": "m", "owned_by": "vllm", "max_model_len": {said}}}]}}'.encode()
    found = await attach.surveyed(Said(models=models, version=b'{"version": "1\\u001b[2J"}'))  # type: ignore[arg-type]
    assert found is not None and (found.engine, found.context, found.version) == ("vllm", 0, "")


@synchronous
async def test_models_that_cannot_be_read_are_no_dialect() -> None:
    for body in (b"[" * 100_000, b"\xff", b'{"data": 7}'):
        with pytest.raises(UsageError, match="no dialect"):
            await attach.surveyed(Said(models=body))  # type: ignore[arg-type]
