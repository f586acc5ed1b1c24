"""The probe of containers, run as they run it: against stand-ins, and against our server before one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from freehold.outgrow.emit import file_text
from freehold.outgrow.emit.containers import container_engine, gateway_toml
from freehold.outgrow.emit.probe import STILL_S
from freehold.outgrow.process.process import free_port

from ..standin import command
from .plans import plan

KEY, NAME = "k" * 24, "meta/Llama-3.1-405B"


@contextmanager
def running(*words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    env = {**os.environ, **variables}
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=20)


@contextmanager
def standin(
    port: int, dialect: str = "vllm", *flags: str, **options: object
) -> Iterator[subprocess.Popen[str]]:
    words = (*command(dialect, **options), "--port", str(port), "--served-model-name", NAME, *flags)
    with running(*words, VLLM_API_KEY=KEY) as process:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        yield process


class Probe:
    """The shipped program, with a folder of its own for what it keeps."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "probe.py"
        self.path.write_text(file_text("probe.py"))

    def __call__(self, verb: str, port: int, *more: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-I", str(self.path), verb, f"http://127.0.0.1:{port}", NAME, *more]
        env = {"VLLM_API_KEY": key, "PROBE_FOLDER": str(self.folder)}
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return Probe(tmp_path)


def test_engine_without_an_open_port_is_not_ready(probe):
    assert probe("ready", free_port(), "VLLM_API_KEY").returncode == 1


def test_engine_is_ready_by_a_token_and_stays_so_by_its_health(probe):
    port = free_port()
    with standin(port):
        refused = probe("ready", port, "VLLM_API_KEY", key="wrong")
        assert refused.returncode == 1 and "wrong" not in refused.stderr
        assert probe("ready", port, "VLLM_API_KEY").returncode == 0
        assert (
            probe("ready", port, "VLLM_API_KEY", key="wrong").returncode == 0
        )  # no second token is asked for
    assert probe("ready", port, "VLLM_API_KEY").returncode == 1


def test_engine_that_gives_vectors_is_ready_by_one(probe):
    port = free_port()
    with standin(port, "vllm", "--runner=pooling"):
        assert probe("ready", port, "VLLM_API_KEY").returncode == 0


def test_engine_whose_first_request_ends_it_is_never_ready(probe):
    port = free_port()
    with standin(port, first_ends=1):
        assert probe("ready", port, "VLLM_API_KEY").returncode == 1


def test_key_may_be_a_file(probe, tmp_path):
    port, path = free_port(), tmp_path / "engine-key"
    path.write_text(f"{KEY}\n")
    with standin(port):
        assert probe("ready", port, str(path)).returncode == 0


@contextmanager
def asking(port: int, prompt: str, tokens: int) -> Iterator[None]:
    """Have a request under way."""
    asked = json.dumps({"model": NAME, "prompt": prompt, "max_tokens": tokens})
    asks = (
        "import sys, urllib.request as r\n"
        "head = {'Authorization': sys.argv[3], 'Content-Type': 'application/json'}\n"
        "r.urlopen(r.Request(sys.argv[1], sys.argv[2].encode(), head))"
    )
    words = (f"http://127.0.0.1:{port}/v1/completions", asked, f"Bearer {KEY}")
    waits = subprocess.Popen([sys.executable, "-c", asks, *words], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield
    finally:
        waits.kill()
        waits.wait()


@pytest.mark.heavy
def test_engine_that_hangs_with_a_request_is_not_alive(probe, tmp_path):
    port = free_port()
    with standin(port):
        assert probe("alive", port, "VLLM_API_KEY", "vllm:").returncode == 0
        with asking(port, "[[hang 2]]", 9):
            assert probe("alive", port, "VLLM_API_KEY", "vllm:").returncode == 0  # it may still be at work
            last = tmp_path / "freehold-last-count"
            since, tokens = last.read_text().split()
            last.write_text(f"{float(since) - STILL_S - 60} {tokens}")
            died = probe("alive", port, "VLLM_API_KEY", "vllm:")
            assert (died.returncode, "no token for 300 s" in died.stderr) == (1, True)


@pytest.mark.heavy
def test_sglang_is_alive_during_an_answer_of_which_it_counts_the_tokens_at_its_end(probe, tmp_path):
    port, key = free_port(), tmp_path / "key"
    key.write_text(KEY)
    with (
        standin(port, "sglang", f"--api-key={KEY}", "--enable-metrics", token_s=0.05),
        asking(port, "long", 100),
    ):
        assert probe("alive", port, str(key), "sglang:").returncode == 0
        last = tmp_path / "freehold-last-count"
        since, tokens = last.read_text().split()
        last.write_text(f"{float(since) - STILL_S - 60} {tokens}")
        time.sleep(0.2)
        assert probe("alive", port, str(key), "sglang:").returncode == 0


def test_quiet_engine_is_alive_however_long_it_is_quiet(probe, tmp_path):
    port = free_port()
    with standin(port):
        assert probe("alive", port, "VLLM_API_KEY", "vllm:").returncode == 0
        last = tmp_path / "freehold-last-count"
        since, tokens = last.read_text().split()
        last.write_text(f"{float(since) - 10 * STILL_S} {tokens}")
        assert probe("alive", port, "VLLM_API_KEY", "vllm:").returncode == 0


@pytest.mark.heavy
def test_our_server_in_a_container_is_ready_by_a_token_through_its_own_road(probe, tmp_path):
    """The emitted gateway.toml before a stand-in, with a data folder as a cluster mounts one: open to its group."""
    engine, home = free_port(), tmp_path / "home"
    home.mkdir()
    home.chmod(0o2777)
    path = tmp_path / "gateway.toml"
    path.write_text(gateway_toml(plan("vllm"), container_engine("vllm", ""), f"http://127.0.0.1:{engine}/v1"))
    path.chmod(0o644)
    words = (sys.executable, "-m", "freehold.cli.main", "serve", "--port", "0", "--offline", "--json")
    variables = {"FREEHOLD_HOME": str(home), "FREEHOLD_API_KEY": "s" * 24, "ENGINE_KEY": KEY}
    with running(*words, "--gateway", str(path), **variables) as server:
        assert server.stdout is not None
        port = int(json.loads(server.stdout.readline())["url"].rsplit(":", 1)[1])
        probed = ("ready", port, "VLLM_API_KEY")
        assert probe(*probed, key="s" * 24).returncode == 1  # no engine yet
        with standin(engine):
            assert probe(*probed, key="x" * 24).returncode == 1
            fine = probe(*probed, key="s" * 24)
            assert (fine.returncode, fine.stderr) == (0, "")
