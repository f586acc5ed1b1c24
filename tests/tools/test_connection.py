"""A server that hangs, floods, dies or asks for things costs its own call, and leaves no process and no memory."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from freehold.base.errors import DeadlineExceeded, Overloaded
from freehold.serve.chats.types import ToolResult
from freehold.serve.tools.mcp import connection as connections
from freehold.serve.tools.mcp import use as pools
from freehold.serve.tools.mcp.configured import tool_server
from freehold.serve.tools.mcp.connection import ToolConnection
from freehold.serve.tools.mcp.use import MOST, RunTools
from tests.tools.world import CALL, HOSTILE, Desk, below, pool, program

pytest.importorskip("mcp")


def used(home: Path, how: str) -> ToolResult:
    """Return what comes of one allowed call."""

    async def run() -> ToolResult:
        servers = pool(home, h=program(how))
        tools = RunTools(servers, ["h"], key="", chat="c")
        try:
            await tools.offer()
            return await tools.use(CALL, Desk("once"))
        finally:
            await servers.close()

    with below() as left:
        result = asyncio.run(run())
    assert left == []
    return result


@pytest.mark.parametrize(
    "how, said",
    [
        ("die", "a last word"),
        ("flood", "more than 10,000 lines"),
        ("notify", "for one request"),
        ("huge", "more than 4,194,304 bytes"),
        ("wrong", "does not answer as it must"),
    ],
)
def test_a_server_that_fails_costs_its_call_alone(tmp_path: Path, how: str, said: str):
    before = psutil.Process().memory_info().rss
    result = used(tmp_path, how)
    assert result.failed and said in result.content
    assert psutil.Process().memory_info().rss - before < 60 << 20  # the program writes 100 MB or more


@pytest.mark.parametrize("how, said", [("sample", "Sampling"), ("roots", "roots"), ("elicit", "Elicitation")])
def test_what_a_server_asks_of_us_is_refused(tmp_path: Path, how: str, said: str):
    result = used(tmp_path, how)
    assert not result.failed and f"{said} not supported" in result.content


@pytest.mark.parametrize("how", ["chatter", "nested", "stubborn"])
def test_noise_and_deaf_ears_break_nothing(tmp_path: Path, how: str):
    assert used(tmp_path, how) == ToolResult(content='{"text": "hi"}', server="h")


def test_a_long_result_is_cut_and_says_so(tmp_path: Path):
    content = used(tmp_path, "long").content
    assert content.endswith("[cut here: 64,000 of 200,000 bytes are shown]") and len(content) < 33_000


def test_the_environment_holds_no_key_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("FREEHOLD_API_KEY", "fh-secret")
    found = json.loads(used(tmp_path, "env").content)
    assert found.keys() <= {"PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME"}


@pytest.mark.parametrize("how", ["hang-start", "hang", "deaf"])
def test_a_server_that_hangs_is_ended_at_its_limit(monkeypatch: pytest.MonkeyPatch, how: str):
    monkeypatch.setattr(connections, "START_S", 1.0 if how == "hang-start" else 30.0)
    monkeypatch.setattr(connections, "CALL_S", 5.0 if how == "hang-start" else 1.0)

    async def run() -> None:
        connection = ToolConnection(tool_server("h", program(how), "here"))
        with pytest.raises(DeadlineExceeded, match="within 1 s and was ended"):
            await connection.start()
            await connection.listed()
            await connection.listed() if how == "deaf" else await connection.call("echo", {})
        assert not connection.alive

    with below() as left:
        asyncio.run(run())
    assert left == []


def test_a_cancelled_call_ends_its_server(tmp_path: Path):
    async def run() -> None:
        servers = pool(tmp_path, h=program("hang"))
        tools = RunTools(servers, ["h"], key="", chat="c")
        await tools.offer()
        task = asyncio.create_task(tools.use(CALL, desk := Desk("once")))
        while "running" not in desk.states:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert servers.running() == {}
        await servers.close()

    with below() as left:
        asyncio.run(run())
    assert left == []


def test_a_program_that_is_not_there_is_named(tmp_path: Path):
    async def run() -> None:
        servers = pool(tmp_path, h={"command": ["/no/such/program"]})
        try:
            with pytest.raises(Exception, match="No such file"):
                await RunTools(servers, ["h"], key="", chat="c").offer()
        finally:
            await servers.close()

    asyncio.run(run())


OURS = """
import asyncio, sys
from freehold.serve.tools.mcp.configured import tool_server
from freehold.serve.tools.mcp.connection import ToolConnection
async def main():
    c = ToolConnection(tool_server("h", {"command": [sys.executable, sys.argv[1], "stubborn"]}, ""))
    await c.start()
    print("up", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a child that left its group is adopted on Linux alone")
def test_kill_9_of_us_ends_the_server_and_what_it_started():
    ours = subprocess.Popen([sys.executable, "-c", OURS, str(HOSTILE)], stdout=subprocess.PIPE, text=True)
    assert ours.stdout is not None and ours.stdout.readline() == "up\n"
    tree = psutil.Process(ours.pid).children(recursive=True)
    assert len(tree) >= 3  # guard, server, and the server's own child in a session of its own
    os.kill(ours.pid, signal.SIGKILL)
    ours.wait()
    ours.stdout.close()
    _gone, left = psutil.wait_procs(tree, timeout=20)
    assert not left, left


@pytest.mark.heavy
def test_twelve_runs_leave_no_process_and_no_descriptor(tmp_path: Path):
    used(tmp_path, "")
    before = psutil.Process().num_fds()
    for _ in range(4):
        for how in ("", "die", "stubborn"):
            used(tmp_path, how)
    until = time.monotonic() + 5
    while psutil.Process().num_fds() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert psutil.Process().num_fds() <= before


def test_many_chats_that_start_a_server_at_once_leave_few_processes(tmp_path: Path):
    async def run() -> int:
        servers = pool(tmp_path, h=program())
        try:
            await asyncio.gather(*(servers.connected(f"ann/{n}", "h") for n in range(MOST + 4)))
            return sum(servers.running().values())
        finally:
            await servers.close()

    with below() as left:
        assert asyncio.run(run()) <= MOST
    assert left == []


def test_a_server_in_a_call_is_not_ended_to_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pools, "MOST", 2)
    monkeypatch.setattr(pools, "ROOM_S", 0.2)

    async def run() -> None:
        servers = pool(tmp_path, h=program(), stuck=program("hang"))
        try:
            stuck = [await servers.connected(f"ann/{n}", "stuck") for n in range(2)]
            calls = [asyncio.create_task(each.call("echo", {"text": "hi"})) for each in stuck]
            await asyncio.sleep(0.1)
            with pytest.raises(Overloaded, match="all 2 servers of tools"):
                await servers.connected("bob/1", "h")
            assert not any(call.done() for call in calls)
            calls[0].cancel()
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            assert (await servers.connected("bob/1", "h")).alive and stuck[1].alive
            calls[1].cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await servers.close()

    with below() as left:
        asyncio.run(run())
    assert left == []
