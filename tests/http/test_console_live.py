"""The engine view: who sees what, figures as /metrics has them, and nothing computed without a viewer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Generator

import pytest

from freehold.serve.http.console.live import LiveFeed, quantile
from freehold.serve.http.core.keys import Ring
from tests.http.fakes import Script
from tests.http.test_chat import CHAT
from tests.http.test_door import key, secret
from tests.http.test_metrics import samples
from tests.http.test_streams import eventually

URL = "/v1/chat/completions"


def states(client, name: str = "") -> Generator[dict, None, None]:
    """Yield the states that a viewer gets."""
    headers = {"Authorization": f"Bearer {secret(name)}"} if name else {}
    with client.stream("GET", "/console/api/live", headers=headers) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


@pytest.fixture
def chatting(serving):
    """A server with keys whose answers wait for a gate, and one stream of each key."""
    gate = threading.Event()
    keys = Ring([key("ann"), key("bob"), key("eve", models=("other:*",)), key("root", kind="admin")])
    server = serving(Script(text="word " * 50, gate=gate), keys=keys)
    threads = [
        threading.Thread(
            target=server.client.post,
            args=(URL,),
            kwargs={"json": CHAT, "headers": {"Authorization": f"Bearer {secret(name)}"}},
        )
        for name in ("ann", "bob")
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: sum(bool(call.work.prompt_tokens) for call in list(server.doors.server.calls)) == 2)
    yield server
    gate.set()
    for thread in threads:
        thread.join()


def test_a_key_sees_its_own_streams_and_the_owner_all_of_them(chatting):
    (ann,) = (state := next(states(chatting.client, "ann")))["streams"]
    assert (
        ann["key"] == "ann"
        and ann["model"] == "fake:1b"
        and ann["state"] == "prefill"
        and ann["prompt_tokens"]
    )
    assert state["machine"] is None and [m["full"] for m in state["models"]] == [None]
    assert state["models"][0].keys() == {"name", "waiting", "expected_wait_s", "full"}
    for client, name in ((chatting.client, "root"), (chatting.owner, "")):
        state = next(states(client, name))
        assert {s["key"] for s in state["streams"]} == {"ann", "bob"}
        assert state["machine"]["memory"] > state["machine"]["free"] > 0
    eve = next(states(chatting.client, "eve"))
    assert eve["streams"] == eve["models"] == []


def test_processes_are_named_to_the_owner_alone(chatting):
    assert next(states(chatting.owner))["models"][0]["full"]["process"]["pid"] == 1
    assert next(states(chatting.client, "root"))["models"][0]["full"]["process"] is None
    assert chatting.client.get("/console/api/live").status_code == 401


def test_a_removed_key_s_view_ends(serving, tmp_path):
    from freehold.serve.http.core.keys import KeyFile, made, new_secret

    file, given = KeyFile(tmp_path / "keys.json"), new_secret()
    file.add(made("ann", given, admin=False, models=(), rate="", tokens=""))
    server = serving(keys=Ring(file=file))
    began = time.monotonic()
    with server.client.stream(
        "GET", "/console/api/live", headers={"Authorization": f"Bearer {given}"}, timeout=30
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("id: ")
        file.remove("ann")
        rest = list(lines)
    assert rest and time.monotonic() - began < 25


def test_figures_are_those_of_metrics(serving):
    server = serving(
        Script(text="a few words that are said", delay=0.002, cached=3), keep_alive_s=9.0
    )  # its own
    for _ in range(12):
        assert server.client.post(URL, json=CHAT | {"stream": True}).status_code == 200
    state, told = next(states(server.client)), samples(server.client.get("/metrics").text)
    of = (("engine", "0"), ("model_name", "fake:1b"))
    (model,) = state["models"]
    full, cache = model["full"], model["full"]["cache"]

    def metric(name):
        return told[name, of]

    assert full["ttft"]["all"]["count"] == metric("vllm:time_to_first_token_seconds_count") == 12
    assert full["itl"]["all"]["count"] == metric("vllm:inter_token_latency_seconds_count")
    assert model["waiting"] == metric("vllm:num_requests_waiting")
    assert model["expected_wait_s"] == metric("freehold_expected_wait_seconds")
    assert full["running"] == metric("vllm:num_requests_running")
    assert cache["blocks"] == metric("freehold_cache_blocks")
    assert (cache["live"], cache["shared"]) == (
        metric("freehold_cache_blocks_live"),
        metric("freehold_cache_blocks_shared"),
    )
    assert cache["evictable"] == metric("freehold_cache_blocks_cached")
    assert cache["hit_tokens"] == metric("vllm:prefix_cache_hits_total")
    assert full["memory_bytes"] == metric("freehold_model_memory_bytes")
    assert full["preemptions"] == metric("vllm:num_preemptions_total")
    assert full["restarts"] == metric("freehold_engine_restarts_total")
    assert full["slow_readers"] == metric("freehold_slow_readers_total")
    counts = [
        value for (name, labels), value in told.items() if name == "vllm:time_to_first_token_seconds_bucket"
    ]
    bounds = [
        float(dict(labels)["le"])
        for name, labels in told
        if name == "vllm:time_to_first_token_seconds_bucket"
    ]
    each = [int(now - before) for now, before in zip(counts, [0, *counts], strict=False)]
    assert full["ttft"]["all"]["p99"] == pytest.approx(quantile(bounds[:-1], each, 0.99))


def test_a_quantile_is_interpolated_within_its_bucket():
    assert quantile([1.0, 2.0, 4.0], [0, 4, 4, 0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 4.0], [0, 4, 4, 0], 0.75) == 3.0
    assert quantile([1.0, 2.0], [0, 0, 5], 0.5) == 2.0  # beyond the last bound


def test_nothing_is_computed_without_a_viewer_and_once_for_all_of_them(serving):
    server = serving(insecure=False)
    one, other = states(server.client), states(server.owner)
    next(one)
    feed = server.doors.server.part(LiveFeed)
    taken, take = [], feed._looks.take

    def counted():
        taken.append(time.monotonic())
        return take()

    feed._looks.take = counted
    for _ in range(3):
        assert {"at", "streams", "models"} <= next(one).keys() & next(other).keys()
    seen = len(taken)
    assert 2 <= seen <= 5  # two viewers of three states each
    one.close()
    other.close()
    eventually(lambda: feed._task is None)
    before = len(taken)
    time.sleep(1.1)
    assert len(taken) == before


def test_rates_come_with_the_second_look(serving):
    server = serving(Script(text="word " * 400, delay=0.005), max_age=None) if False else serving()
    seen = states(server.client)
    server.client.post(URL, json=CHAT)
    first, second = next(seen), next(seen)
    seen.close()
    assert first["models"][0]["full"]["tok_s"] is None and second["models"][0]["full"]["tok_s"] >= 0
