"""The owner's routes, and the doors: binding, draining, ending."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import freehold
from freehold.base.errors import ModelNotFound, UsageError
from freehold.serve.http.core.sockets import bind_tcp, bind_unix
from tests.http.fakes import Script, failing
from tests.http.test_chat import CHAT
from tests.http.test_streams import connect, eventually, request, until

ROOT = Path(__file__).parent.parent.parent
URL = "/v1/chat/completions"


def test_hello_says_version_and_protocol(serving):
    server = serving()
    hello = server.admin.get("/admin/hello").json()
    assert hello["version"] == freehold.__version__ and hello["protocol"] == 1
    assert hello["pid"] == os.getpid() and hello["url"] == server.url


def test_ps_lists_what_is_in_memory(serving):
    server = serving()
    assert server.admin.get("/admin/ps").json() == {"models": [], "loading": {}}
    server.client.post(URL, json=CHAT)
    (row,) = server.admin.get("/admin/ps").json()["models"]
    assert row["name"] == "fake:1b" and row["context"] == 4096 and row["stats"]["running"] == 0
    assert row["expires_at"] is None and row["restarts"] == 0 and row["pid"] == 1


def test_a_model_is_loaded_and_unloaded(serving):
    server = serving()
    assert server.admin.post("/admin/load", json={"model": "fake:1b"}).json()["name"] == "fake:1b"
    assert server.admin.post("/admin/unload", json={"model": "fake:1b"}).status_code == 200
    assert server.admin.post("/admin/unload", json={"model": "fake:1b"}).status_code == 404
    assert server.admin.post("/admin/load", json={"model": "nope"}).status_code == 404


def test_an_adapter_comes_and_goes_and_is_listed_with_its_base(serving):
    server = serving()
    asked = {"model": "fake:1b", "name": "sql"}
    answer = server.admin.post("/admin/adapters/add", json=asked | {"path": "/somewhere"})
    assert answer.json() == {"model": "fake:1b+sql"}
    listed = {each["id"]: each for each in server.client.get("/v1/models").json()["data"]}
    assert listed["fake:1b+sql"]["parent"] == listed["fake:1b+sql"]["root"] == "fake:1b"
    assert listed["fake:1b"]["parent"] is None
    assert server.admin.post("/admin/adapters/add", json=asked | {"path": "here"}).status_code == 400
    assert server.admin.post("/admin/adapters/remove", json=asked).status_code == 200
    assert server.admin.post("/admin/adapters/remove", json=asked).status_code == 404
    assert "fake:1b+sql" not in server.client.get("/v1/models").text


ADMIN = [("GET", "hello"), ("GET", "ps"), ("POST", "load"), ("POST", "unload"), ("POST", "stop")]
ADMIN += [("POST", "adapters/add"), ("POST", "adapters/remove")]


@pytest.mark.parametrize("method, name", ADMIN)
def test_the_network_without_keys_does_nothing_of_the_owner_s(serving, method, name):
    answer = serving().client.request(method, f"/admin/{name}", json={})
    assert answer.status_code == 403 and "owner" in answer.json()["error"]["message"]


def test_the_sockets_folder_is_the_owners_alone(tmp_path):
    sock = bind_unix(tmp_path / "serve" / "server.sock")
    assert stat.S_IMODE((tmp_path / "serve").stat().st_mode) == 0o700
    sock.listen()
    with pytest.raises(UsageError, match="listens"):
        bind_unix(tmp_path / "serve" / "server.sock")
    sock.close()
    bind_unix(tmp_path / "serve" / "server.sock").close()  # without a listener: a leftover


def test_folder_that_hands_its_group_on_is_not_open_to_others(tmp_path):
    """A volume that a cluster mounts has the setgid bit, and folders made in it inherit it."""
    tmp_path.chmod(0o2777)
    bind_unix(tmp_path / "serve" / "server.sock").close()
    assert (tmp_path / "serve").stat().st_mode & 0o7777 == 0o2700


def test_a_socket_path_too_long_is_an_error_with_the_limit(tmp_path):
    with pytest.raises(UsageError, match="cannot be bound"):
        bind_unix(tmp_path / ("x" * 120) / "server.sock")


def test_a_taken_port_is_named(tmp_path):
    (sock,) = bind_tcp("127.0.0.1", 0)
    sock.listen()
    with sock, pytest.raises(UsageError, match=f"127.0.0.1:{sock.getsockname()[1]}"):
        bind_tcp("127.0.0.1", sock.getsockname()[1])


def test_localhost_is_bound_in_every_family_on_one_port():
    socks = bind_tcp("localhost", 0)
    assert len({s.getsockname()[1] for s in socks}) == 1
    for s in socks:
        s.close()


def test_a_name_of_another_machine_is_refused():
    with pytest.raises(UsageError):
        bind_tcp("203.0.113.7", 0)


def test_a_draining_server_takes_nobody_new_and_lets_streams_end(serving):
    server = serving(Script(text="a b c d", delay=0.1), drain_s=60.0)
    with connect(server) as sock:
        sock.sendall(request(URL, {**CHAT, "stream": True}))
        until(sock, b'"content":"a"')
        server.stop()
        assert eventually(lambda: _refused(server.port))
        assert b"[DONE]" in until(sock, b"0\r\n\r\n")
    server.thread.join(60)
    assert not server.thread.is_alive() and server.doors.drained and server.models.closed


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("how", ["deadline", "second stop"])
def test_streams_that_outlast_the_drain_end_with_an_error(serving, how):
    server = serving(Script(text="word " * 10_000, delay=0.05), drain_s=0.2 if how == "deadline" else 600.0)
    with connect(server) as sock:
        sock.sendall(request(URL, {**CHAT, "stream": True}))
        until(sock, b'"role"')
        server.stop()
        if how == "second stop":
            server.stop()
        data = until(sock, b"0\r\n\r\n")
    assert b'"code":"stopping"' in data and b"[DONE]" in data
    server.thread.join(60)
    assert not server.thread.is_alive()
    assert not server.doors.drained and server.models.in_flight == 0


def test_a_whole_answer_that_outlasts_the_drain_is_a_503(serving):
    server = serving(Script(text="a b", delay=30.0), drain_s=0.2)
    with connect(server) as sock:
        sock.sendall(request(URL, CHAT))
        assert eventually(lambda: server.models.in_flight == 1)
        server.stop()
        assert b" 503 " in until(sock, b"}}")


def test_stop_over_the_socket_ends_the_server(serving):
    server = serving(drain_s=5.0)
    assert server.admin.post("/admin/stop", json={}).status_code == 200
    server.thread.join(60)
    assert not server.thread.is_alive()


PROGRAM = """
import sys
from freehold.serve.http.core.sockets import bind_tcp
from freehold.serve.http.serve import ServerSettings, run
from tests.http.fakes import FakeModels, Script

async def models():
    return FakeModels(Script(text="word " * int(sys.argv[1]), delay=0.05))

opened = lambda doors: print(doors.url, flush=True)
drained = run(models, ServerSettings(drain_s=600.0), bind_tcp("127.0.0.1", 0), opened=opened)
sys.exit(0 if drained else 3)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("signals, status", [(1, 0), (2, 3)])
def test_sigterm_drains_and_a_second_ends_at_once(signals, status):
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, "10" if signals == 1 else "10000"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.sendall(request(URL, {**CHAT, "stream": True}))
            until(sock, b'"role"')
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
                assert eventually(lambda: _refused(port))  # the first signal has arrived: two at once are one
            data = until(sock, b"0\r\n\r\n")
        assert process.wait(60) == status
    assert b"[DONE]" in data and (b'"finish_reason":"stop"' in data) is (status == 0)


def test_ready_waits_for_the_models_named_at_the_start(serving):
    script = Script(load_gate=threading.Event())
    server = serving(script, preload=["fake:1b"])
    answer = server.client.get("/ready")
    assert answer.status_code == 503 and answer.json()["reason"] == "fake:1b: loading"
    script.load_gate.set()
    assert eventually(lambda: server.client.get("/ready").status_code == 200)


def test_a_model_that_cannot_be_loaded_keeps_ready_from_saying_yes(serving):
    server = serving(failing("use", ModelNotFound("/models/x.gguf is gone")), preload=["fake:1b"])
    assert eventually(lambda: server.client.get("/ready").json().get("reason") == "fake:1b: x.gguf is gone")
    assert server.client.get("/health").status_code == 200
