"""Replicas of our own engine, as whole processes: the same bits as one engine, and an answer goes on after kill -9."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

import freehold
from freehold import SamplingParams
from freehold.base.config import Settings
from freehold.base.types import Chunk
from freehold.outgrow.engines import own
from freehold.run.formats.filemap import RACY_S
from freehold.serve.http.inside import DeployedLLM
from tests.vectors.files import write_gguf

GREEDY, SEEDED = SamplingParams(temperature=0.0), SamplingParams(temperature=1.0, seed=7)
PROMPT = "Once upon a time"
MOST = 400  # tokens; the model's context is 512


@dataclass
class Two:
    """Two replicas, and what one engine in this process answers."""

    replicas: DeployedLLM
    plain: Callable[[SamplingParams], str]
    settings: Settings


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("own")
    path = write_gguf("qwen2", folder / "tiny.gguf", dtype="Q8_0")
    settings = Settings(folder / "home", offline=True, adopt=False)
    with pytest.MonkeyPatch.context() as patched, freehold.load(path, context=512) as llm:
        patched.setattr(own, "default_threads", lambda: 2)  # a core each, on any machine
        plain = {
            s.seed: joined(llm.stream_text(PROMPT, max_tokens=MOST, sampling=s)) for s in (GREEDY, SEEDED)
        }
        until(lambda: time.time() > path.stat().st_ctime + RACY_S)  # a file that is too new has no pack
        with freehold.deploy(str(path), engine="freehold", replicas=2, settings=settings) as replicas:
            until(lambda: all(r.state == "ready" for r in replicas.status().replicas))
            yield Two(replicas, lambda sampling: plain[sampling.seed], settings)


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, "it did not come about in 60 s"
        time.sleep(0.02)


def joined(chunks: Iterator[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def asked(two: Two, sampling: SamplingParams) -> Iterator[Chunk]:
    return two.replicas.stream_text(PROMPT, max_tokens=MOST, sampling=sampling)


@pytest.mark.heavy
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_replica_answers_with_the_bits_of_one_engine(two: Two, sampling: SamplingParams) -> None:
    assert joined(asked(two, sampling)) == two.plain(sampling)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_an_answer_goes_on_with_the_same_text_after_its_replica_is_killed(
    two: Two, sampling: SamplingParams
) -> None:
    for _ in range(5):  # an answer may be whole before the kill
        until(lambda: all(r.state == "ready" for r in two.replicas.status().replicas))
        before = two.replicas.status()
        answer = asked(two, sampling)
        text = next(answer).text
        for row in two.replicas.status().replicas:
            if row.in_flight:
                os.kill(row.pid, signal.SIGKILL)
        text += joined(answer)
        assert text == two.plain(sampling)
        after = two.replicas.status()
        assert after.cut == before.cut == 0
        if after.resumed > before.resumed:
            return
    raise AssertionError("no answer was torn")


@pytest.mark.heavy
def test_replicas_share_the_weights_and_listen_on_loopback_with_keys_of_their_own(two: Two) -> None:
    until(lambda: all(r.state == "ready" for r in two.replicas.status().replicas))
    until(lambda: all(r.numbers.generated_tokens > 0 for r in two.replicas.status().replicas))
    until(lambda: len(list((two.settings.home / "packs").glob("*.pack"))) == 1)
    keys, ports = set[str](), set[int]()
    for row in two.replicas.status().replicas:
        assert row.memory_bytes > 0
        server = psutil.Process(row.pid)
        keys.add(server.environ()["FREEHOLD_API_KEY"])
        assert server.environ()["FREEHOLD_API_KEY"] not in " ".join(server.cmdline())
        for process in (server, *server.children(recursive=True)):
            heard = [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            assert {address.ip for address in heard} <= {"127.0.0.1"}
            ports |= {address.port for address in heard}
    assert len(keys) == len(ports) == 2


@pytest.mark.heavy
def test_a_restart_replaces_both_and_every_process_ends_with_the_server(two: Two) -> None:
    before = {row.pid for row in two.replicas.status().replicas}
    after = {row.pid for row in two.replicas.restart().replicas}
    assert len(after) == 2 and not before & after
    trees = [psutil.Process(pid) for pid in after]
    (pack,) = (two.settings.home / "packs").glob("*.pack")
    for each in trees if sys.platform == "linux" else ():  # macOS does not say what a process maps
        maps = [Path(f"/proc/{p.pid}/maps").read_text() for p in (each, *each.children(recursive=True))]
        assert any(pack.name in text for text in maps), "a replica has weights of its own"
    trees += [child for each in trees for child in each.children(recursive=True)]
    two.replicas.close()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in trees))
