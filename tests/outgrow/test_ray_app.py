"""A Ray Serve replica without Ray: its engine, its passage, its end; and the one file that is emitted."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from freehold.outgrow.contract import Listens
from freehold.outgrow.planning.options import SOCKET
from freehold.outgrow.process import process as ring
from freehold.outgrow.ray import app
from freehold.outgrow.ray.app import EngineChild, EngineEnded, MetricsTally, Passage, Passed
from freehold.outgrow.ray.plan import app_text, settings_of
from tests.outgrow import standin
from tests.outgrow.engines import synchronous
from tests.outgrow.plans import plan

KEY = "k" * 64
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()


def settings(*flags: str, **options: object) -> dict[str, Any]:
    words = [*standin.command("vllm", **options), "--uds", "{socket}", "--served-model-name", "m", *flags]
    return {**app.SETTINGS, "model": "m", "argv": words, "keys": [("VLLM_API_KEY", "")]}


async def no_metrics() -> str:
    return "of all\n"


async def started(**options: object) -> EngineChild:
    engine = EngineChild(settings(**options))
    engine.start()
    await engine.first_token()
    return engine


async def asked(engine: EngineChild, path: str, key: str = KEY, method: str = "POST", **body: Any) -> Passed:
    given = json.dumps({"model": "m", "temperature": 0, **body}).encode() if method == "POST" else b""
    passage = Passage(engine, DIGEST, no_metrics)
    return await passage.answer(method, path, "", f"Bearer {key}", coming(given))


async def coming(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(passed: Passed) -> str:
    return b"".join([part async for part in passed.parts]).decode()


@synchronous
async def test_an_answer_passes_as_the_engine_streams_it() -> None:
    engine = await started(token_s=0.1)
    try:
        passed = await asked(engine, "/v1/completions", prompt="hello", max_tokens=6, stream=True)
        parts = [part async for part in passed.parts]
        assert (passed.status, passed.media_type.partition(";")[0]) == (200, "text/event-stream")
        assert b"".join(parts).endswith(b"data: [DONE]\n\n")
        assert len(parts) > 1  # in pieces, not as a whole
        assert engine.running == 0
    finally:
        await engine.close()
    assert not Path(engine.folder).exists()


@synchronous
async def test_a_request_without_the_key_never_reaches_the_engine() -> None:
    engine = await started()
    try:
        await engine.close()  # a request that reached it would get 503
        for wrong in ("", "x" * 64, DIGEST):
            passed = await asked(engine, "/v1/completions", key=wrong, prompt="x")
            assert passed.status == 401
            assert "authentication_error" in await read(passed)
    finally:
        await engine.close()


@synchronous
async def test_a_body_is_read_after_its_key_and_no_further_than_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "MOST_BODY", 100)
    engine = EngineChild(settings())
    passage, body = Passage(engine, DIGEST, no_metrics), coming(*[b"x" * 60] * 9)
    for path, key in (("/v1/completions", "x" * 64), ("/sleep", KEY)):
        assert (await passage.answer("POST", path, "", f"Bearer {key}", body)).status in (401, 404)
    assert (await passage.answer("POST", "/v1/completions", "", f"Bearer {KEY}", body)).status == 413
    assert len([part async for part in body]) == 7  # two of nine were read
    os.rmdir(engine.folder)


@synchronous
async def test_the_app_itself_reads_no_body_of_a_request() -> None:
    """It would be held before its key is checked."""

    async def parts() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    engine = EngineChild(settings())
    given: Any = SimpleNamespace(
        method="POST",
        url=SimpleNamespace(path="/v1/completions", query=""),
        headers={"authorization": "Bearer wrong"},
        stream=parts,
        body=lambda: anext(parts()),
    )
    replica: Any = SimpleNamespace(passage=Passage(engine, DIGEST, no_metrics))
    starlette = ModuleType("starlette.responses")
    starlette.StreamingResponse = lambda parts, status, headers: status  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "starlette", ModuleType("starlette"))
        patch.setitem(sys.modules, "starlette.responses", starlette)
        assert await app.EngineReplica.__call__(replica, given) == 401
    os.rmdir(engine.folder)


@synchronous
async def test_neither_keys_nor_requests_of_an_engine_are_in_its_log(capfd: pytest.CaptureFixture) -> None:
    """What an engine prints goes to a file of Ray's, which outlives the replica."""
    words = ["sh", "-c", 'echo "args: key=$VLLM_API_KEY"; echo "ERROR Dumping input data: a prompt"']
    engine = EngineChild({**settings(), "argv": words})
    engine.start()
    with pytest.raises(EngineEnded):
        await engine.first_token()
    while len(engine.log) < 2:
        await asyncio.sleep(0.01)
    await engine.close()
    assert [*engine.log] == ["args: key=[secret]", "ERROR [text of requests is left out]"]
    assert "a prompt" not in capfd.readouterr().err
    assert app._REQUESTS.pattern == ring._REQUESTS.pattern.decode()


CLOSED = (
    *("/invocations", "/inference/v1/generate", "/load", "/version", "/docs", "/openapi.json", "/ping"),
    *("/is_scaling_elastic_ep", "/scale_elastic_ep", "/generative_scoring", "/kv_event_sources", "/pause"),
    *("/sleep", "/collective_rpc", "/server_info", "/start_profile", "/score", "/rerank"),
)


@synchronous
async def test_eighteen_routes_of_vllm_are_closed() -> None:
    engine = EngineChild(settings())
    assert len(CLOSED) == 18
    for path in CLOSED:
        for method in ("GET", "POST"):
            assert (await asked(engine, path, method=method)).status == 404
    os.rmdir(engine.folder)


@synchronous
async def test_the_engine_has_a_key_of_its_own_and_nothing_of_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 48)
    monkeypatch.setenv("FREEHOLD_INGRESS_KEY", KEY)
    engine = await started()
    try:
        assert engine._process is not None
        (process,) = psutil.Process(engine._process.pid).children()
        environment, words = process.environ(), " ".join(process.cmdline())
        assert len(environment["VLLM_API_KEY"]) == 64
        assert environment["VLLM_API_KEY"] != KEY
        assert environment["VLLM_API_KEY"] not in words
        assert not {"RAY_AUTH_TOKEN", "FREEHOLD_INGRESS_KEY"} & environment.keys()
        assert os.stat(engine.folder).st_mode & 0o77 == 0
    finally:
        await engine.close()


@synchronous
async def test_an_engine_that_its_first_token_ends_is_never_ready() -> None:
    engine = EngineChild(settings(first_ends=1))
    engine.start()
    try:
        with pytest.raises(EngineEnded, match="Unsupported CPU attention configuration: head_dim=16"):
            await engine.first_token()
    finally:
        await engine.close()


@synchronous
async def test_an_engine_that_gives_vectors_is_ready_by_a_vector() -> None:
    """vLLM with --runner pooling answers no completion."""
    engine = EngineChild({**settings("--runner=pooling"), "vectors": True})
    engine.start()
    try:
        await engine.first_token()
    finally:
        await engine.close()


@synchronous
async def test_a_start_that_stands_still_comes_to_an_end() -> None:
    engine = EngineChild({**settings(), "argv": ["sleep", "60"], "still_s": 0.5})
    engine.start()
    try:
        with pytest.raises(EngineEnded, match="stopped making progress"):
            await engine.first_token()
    finally:
        await engine.close()


@synchronous
async def test_a_killed_engine_breaks_its_answers_and_the_check() -> None:
    engine = await started(token_s=0.02)
    try:
        passed = await asked(engine, "/v1/completions", prompt="hello", max_tokens=500, stream=True)
        assert engine._process is not None
        (process,) = psutil.Process(engine._process.pid).children()
        got = []
        with pytest.raises((OSError, app.aiohttp.ClientError)):  # no proper end: it is not taken for whole
            async for part in passed.parts:
                got.append(part)
                process.kill()
        assert got and not b"".join(got).endswith(b"[DONE]\n\n")
        while engine._process.poll() is None:
            await asyncio.sleep(0.01)
        with pytest.raises(EngineEnded, match="has ended"):
            engine.check_moving()
        assert (await asked(engine, "/v1/completions", prompt="x")).status == 503
    finally:
        await engine.close()


@synchronous
async def test_a_client_that_leaves_closes_the_engines_connection() -> None:
    engine = await started(token_s=0.02)
    try:
        passed = await asked(engine, "/v1/completions", prompt="hello", max_tokens=5000, stream=True)
        parts: Any = passed.parts
        await anext(parts)
        assert engine.running == 1
        await parts.aclose()
        assert engine.running == 0
        again = await asked(engine, "/v1/completions", prompt="hello", max_tokens=2)
        assert again.status == 200 and "choices" in await read(again)
    finally:
        await engine.close()


@pytest.mark.heavy
@synchronous
async def test_a_hung_engine_fails_the_check_once_nothing_moves() -> None:
    engine = await started(token_s=0.02)
    try:
        await engine.metrics()
        engine.running, engine.moved_at = 1, time.monotonic() - 1000
        with pytest.raises(EngineEnded, match="no counter moved for 1000 s"):
            engine.check_moving()
        await read(await asked(engine, "/v1/completions", prompt="hello", max_tokens=2))
        engine.running, engine.moved_at = 1, time.monotonic() - 1000
        assert "generation_tokens" in await engine.metrics()
        engine.check_moving()  # a counter has moved
    finally:
        await engine.close()


PARENT = """
import asyncio, json, sys
from freehold.outgrow.ray.app import EngineChild
async def main():
    engine = EngineChild(json.loads(sys.stdin.readline()))
    engine.start()
    await engine.first_token()
    print(engine._process.pid, engine.folder, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.mark.heavy
def test_an_engine_and_its_workers_end_with_a_killed_replica() -> None:
    given = json.dumps(settings(children=2)).encode() + b"\n"
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin and parent.stdout
    parent.stdin.write(given)
    parent.stdin.flush()
    pid, folder = parent.stdout.readline().decode().split()
    guard = psutil.Process(int(pid))
    tree = [guard, *guard.children(recursive=True)]
    assert len(tree) == 4  # guard, engine, two workers
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _, left = psutil.wait_procs(tree, timeout=10)
    assert not left
    assert not Path(folder).exists()


@synchronous
async def test_workers_of_a_killed_engine_end_too() -> None:
    engine = await started(children=2)
    assert engine._process is not None
    guard = psutil.Process(engine._process.pid)
    tree = guard.children(recursive=True)
    assert len(tree) == 3
    guard.children()[0].kill()
    _, left = psutil.wait_procs(tree, timeout=10)
    assert not left
    await engine.close()


def test_the_tally_keeps_counters_of_ended_replicas_and_drops_their_gauges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tally = MetricsTally()
    tally.tell("a", '# TYPE x counter\nx_tokens_total{engine="0"} 5\nrunning 2\n')
    tally.tell("a", "")  # did not answer
    tally.tell("b", "x_tokens_total 7\n")
    assert tally.text().splitlines() == [
        'x_tokens_total{replica="a",engine="0"} 5',
        'running{replica="a"} 2',
        'x_tokens_total{replica="b"} 7',
    ]
    later = time.monotonic() + app.ENDED_S + 1
    monkeypatch.setattr(app.time, "monotonic", lambda: later)
    tally.tell("b", "x_tokens_total 8\n")
    assert tally.text().splitlines() == [
        'x_tokens_total{replica="a",engine="0"} 5',
        'x_tokens_total{replica="b"} 8',
    ]


@synchronous
async def test_metrics_are_those_of_all_replicas() -> None:
    engine = EngineChild(settings())
    assert await read(await asked(engine, "/metrics", method="GET")) == "of all\n"
    os.rmdir(engine.folder)


# --- the file -------------------------------------------------------------------------------------


def inner() -> Any:
    return replace(plan(), listens=Listens(SOCKET), replicas=2)


def test_the_app_is_one_file_that_imports_nothing_of_ours(tmp_path: Path) -> None:
    text = app_text(inner())
    compile(text, "app.py", "exec")
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names - sys.stdlib_module_names == {"aiohttp", "ray", "starlette"}
    found: dict[str, Any] = {"__name__": "app"}
    exec(text, found)
    told = found["SETTINGS"]
    assert told["argv"] == list(inner().argv())
    assert told["socket"] == "{folder}/s.sock"
    assert (told["replicas"], told["gpus"], told["streams"]) == (2, 2.0, 64)
    assert told["keys"] == [("VLLM_API_KEY", "")]
    assert told.keys() >= app.SETTINGS.keys()


@pytest.mark.parametrize("role, vectors", [("generator", False), ("", False), ("embedder", True)])
def test_the_app_knows_whether_its_model_gives_vectors(role: str, vectors: bool) -> None:
    made = inner()
    model = replace(made.model, anatomy=replace(made.model.anatomy, role=role))
    assert settings_of(replace(made, model=model))["vectors"] is vectors


def test_replicas_follow_the_queue_where_more_are_allowed() -> None:
    fixed = app.deployment_options({**app.SETTINGS, "replicas": 2, "most_replicas": 2})
    assert fixed["num_replicas"] == 2 and "autoscaling_config" not in fixed
    moving = app.deployment_options({**app.SETTINGS, "replicas": 1, "most_replicas": 4, "streams": 8})
    assert "num_replicas" not in moving
    scaling = moving["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 4)
    assert scaling["target_ongoing_requests"] < 8 < moving["max_ongoing_requests"]


class Deployment:
    """Stands in for what `serve.deployment` returns."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __call__(self, of: type) -> Deployment:
        self.of = of
        return self

    def bind(self, *given: Any) -> Deployment:
        self.given = given
        return self


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in of Ray's decorator where the app imports it from."""
    ray, serve, config = ModuleType("ray"), ModuleType("ray.serve"), ModuleType("ray.serve.config")
    serve.deployment = Deployment  # type: ignore[attr-defined]
    config.RequestRouterConfig = dict  # type: ignore[attr-defined]
    ray.serve = serve  # type: ignore[attr-defined]
    for name, module in (("ray", ray), ("ray.serve", serve), ("ray.serve.config", config)):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("ray")
def test_the_app_hashes_sessions_and_holds_only_the_hash_of_its_key() -> None:
    built = app.build({**app.SETTINGS, "name": "x"}, KEY)
    assert built.options["request_router_config"]["request_router_class"].endswith(".ConsistentHashRouter")
    assert built.options["graceful_shutdown_timeout_s"] > 0
    assert built.given[1] == DIGEST
    assert KEY not in repr(built.given)
    assert built.of is app.EngineReplica


@pytest.mark.usefixtures("ray")
def test_an_app_without_a_key_or_a_token_is_not_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="32 characters"):
        app.build(app.SETTINGS, "short")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(SystemExit, match="RAY_AUTH_MODE=token"):
        app.main()


@synchronous
async def test_a_replica_leaves_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    def leave(status: int) -> None:
        left.append(status)
        raise asyncio.CancelledError

    monkeypatch.setattr(app.os, "_exit", leave)
    engine = await started()
    assert engine._process is not None
    psutil.Process(engine._process.pid).children()[0].kill()
    replica: Any = SimpleNamespace(child=engine)
    with suppress(asyncio.CancelledError):
        await app.EngineReplica.leave_with_engine(replica)
    assert left == [1]
    await engine.close()
