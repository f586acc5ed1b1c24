"""Engines that cannot run here, driven through a replica against what speaks their dialect.

Ready by a token, asked in their own fields, their counters, a hang, a death with its cause, an end that was asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import UnsupportedModel
from freehold.base.serving import Job
from freehold.base.types import Format, Message, Tool
from freehold.outgrow import drivers
from freehold.route.providers.contract import Abilities, Provider, RemoteModel
from tests.outgrow import dialects
from tests.outgrow.dialects import ALL
from tests.outgrow.engines import chat, expected, joined, operated, read, synchronous, until
from tests.outgrow.standin import text

SAMPLED = {"temperature": 0.0, "top_k": 5, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.0}


@pytest.mark.parametrize("engine", ALL)
@synchronous
async def test_engine_is_ready_by_a_token_and_answers_chats_and_texts(engine: str, tmp_path: Path) -> None:
    async with dialects.replica(engine, tmp_path, start_s=0.2) as replica:
        await until(lambda: replica.ready)
        assert replica.calls is not None
        said = await read(await replica.calls.start(chat("hello", sampling=SAMPLED), limit_s=10))
        assert joined(said) == expected("hello")
        assert said[-1].finish_reason == "length"
        whole = await read(await replica.calls.start(chat("hello", whole=True), limit_s=10))
        assert joined(whole) == expected("hello") and whole[-1].usage is not None
        bare = Job(prompt="once", max_tokens=5, sampling={"temperature": 0.0})
        assert joined(await read(await replica.calls.start(bare, limit_s=10))) == text.answer("once", 5)


@pytest.mark.parametrize("engine", ["sglang", "trtllm", "llamacpp"])
@synchronous
async def test_counters_are_read_while_an_answer_runs(engine: str, tmp_path: Path) -> None:
    async with dialects.replica(engine, tmp_path, token_s=0.01) as replica:
        await until(lambda: replica.ready)
        assert replica.calls is not None
        stream = await replica.calls.start(chat("count", max_tokens=400), limit_s=30)
        async for _ in stream:
            break
        await until(lambda: replica.numbers.running == 1)
        steps = replica.numbers.steps
        assert steps is not None
        await until(lambda: (replica.numbers.steps or 0) > steps)
        assert replica.numbers.prompt_tokens > 0 or engine == "trtllm"
        await stream.aclose()


@pytest.mark.heavy
@pytest.mark.parametrize("engine", ALL)
@synchronous
async def test_hung_engine_is_found_and_replaced(engine: str, tmp_path: Path) -> None:
    async with dialects.replica(engine, tmp_path, token_s=0.01) as replica:
        await until(lambda: replica.ready)
        assert replica.calls is not None
        replica.began()
        stream = await replica.calls.start(chat("wait [[hang 3]]", max_tokens=50), limit_s=30)
        reading = asyncio.create_task(read(stream))
        await until(lambda: replica.restarts == 1, 30)
        assert "hung" in replica.said and "\n" not in replica.said
        with pytest.raises(Exception, match="broke"):
            await reading
        replica.ended(whole=False)
        await until(lambda: replica.ready)


@pytest.mark.parametrize("engine", ALL)
@synchronous
async def test_death_is_told_in_one_line_with_its_cause(engine: str, tmp_path: Path) -> None:
    control = tmp_path / "control"
    async with dialects.replica(engine, tmp_path, control=control) as replica:
        await until(lambda: replica.ready)
        control.write_text("exit 3 RuntimeError: the weights of layer 7 are damaged")
        await until(lambda: replica.restarts == 1 and replica.ready)
        assert "RuntimeError: the weights of layer 7 are damaged" in replica.said
        assert "status 3" in replica.said and "\n" not in replica.said


@pytest.mark.parametrize("engine", ALL)
@synchronous
async def test_stop_lets_the_answer_end_first(engine: str, tmp_path: Path) -> None:
    async with dialects.replica(engine, tmp_path, token_s=0.02) as replica:
        await until(lambda: replica.ready)
        assert replica.calls is not None
        replica.began()
        pid = replica.row().pid
        reading = asyncio.create_task(read(await replica.calls.start(chat("last"), limit_s=30)))
        stopping = asyncio.create_task(replica.stop(20.0))
        assert joined(await reading) == expected("last")
        replica.ended(whole=True)
        await stopping
        assert replica.state == "stopped"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@synchronous
async def test_keys_of_sglang_are_in_a_file_that_its_user_alone_reads_and_in_no_environment(
    tmp_path: Path,
) -> None:
    async with dialects.replica("sglang", tmp_path) as replica:
        await until(lambda: replica.ready)
        pid = replica.row().pid
        keys = tmp_path / "life" / "keys.yaml"
        assert stat.S_IMODE(keys.stat().st_mode) == 0o600
        assert replica.calls is not None
        key = replica.calls.remote.provider.key
        assert key is not None and key.value in keys.read_text()
        seen = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
        assert key.value.encode() not in seen
        assert not any(key.value in line for line in replica.log)


@synchronous
async def test_ollama_has_a_store_of_its_own_with_a_link_to_the_file(tmp_path: Path) -> None:
    async with dialects.replica("ollama", tmp_path) as replica:
        await until(lambda: replica.ready)
        (blob,) = (tmp_path / "life" / "models" / "blobs").iterdir()
        assert blob.samefile(tmp_path / "tiny.gguf")
        assert replica.said == ""  # what it said before its model was made is over


@synchronous
async def test_ollama_that_is_too_old_is_known_by_what_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program on PATH is not asked for its version before it starts."""
    driver = drivers.driver("ollama")
    asked = dialects.request("ollama", tmp_path)
    plan = driver.plan(replace(asked, engine=replace(asked.engine, version="")))
    monkeypatch.setattr(driver, "least", "0.36.0", raising=False)
    async with operated(plan, driver, tmp_path) as replica:
        await until(lambda: replica.hopeless)
        assert "Ollama 0.35.0 is older than 0.36.0" in replica.said


@synchronous
async def test_llama_server_that_repeats_what_was_begun_gives_only_the_rest(tmp_path: Path) -> None:
    async with dialects.replica("llamacpp", tmp_path) as replica:
        await until(lambda: replica.ready)
        assert replica.calls is not None
        turns = (Message("user", "hello"), Message("assistant", " amber be"))
        for whole in (True, False):
            job = Job(
                messages=turns, turn="continue", max_tokens=3, whole=whole, sampling={"temperature": 0.0}
            )
            said = joined(await read(await replica.calls.start(job, limit_s=10)))
            assert said == text.answer("<user>hello\n<assistant> amber be", 3)


@pytest.mark.parametrize(
    "engine, job",
    [
        ("ollama", chat("x", n=2)),
        ("ollama", chat("x", ignore_eos=True)),
        ("ollama", chat("x", sampling={"logit_bias": {"5": 1.0}})),
        ("mlx", chat("x", format=Format("json"))),
        ("mlx", chat("x", turn="continue")),
        ("trtllm", chat("x", turn="continue")),
        ("trtllm", Job(prompt="x", suffix="y", max_tokens=3)),
        ("llamacpp", chat("x", format=Format("regex", "a+"))),
        ("sglang", chat("x", format=Format("lark", 'start: "a"'))),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_an_engine_would_leave_out_in_silence_is_refused(engine: str, job: Job) -> None:
    with pytest.raises(UnsupportedModel):
        asked(engine, job)


def asked(engine: str, job: Job) -> dict[str, Any]:
    """Return the body of a request."""
    provider = Provider("there", "openai-compatible", "http://engine/v1")
    remote = RemoteModel(provider, "m", abilities=Abilities(logprobs=True, several=True, seed=True))
    return json.loads(drivers.driver(engine).wire.request(remote, job, stream=True).body)


def test_fields_are_those_that_each_engine_has() -> None:
    tool = Tool("look", "", {"type": "object", "properties": {}})
    assert asked("trtllm", chat("x", tools=(tool,)))["tool_choice"] == "auto"  # its own default is none
    assert asked("trtllm", chat("x", think_tokens=9))["thinking_token_budget"] == 9
    assert asked("trtllm", chat("x", format=Format("regex", "a+")))["response_format"]["regex"] == "a+"
    assert asked("sglang", chat("x", format=Format("regex", "a+")))["regex"] == "a+"
    assert asked("sglang", chat("x", format=Format("choice", ["a.b", "c"])))["regex"] == r"(a\.b)|(c)"
    assert "return_token_ids" not in asked("sglang", chat("x"))  # its streams of chats refuse it
    grammar = asked("llamacpp", chat("x", format=Format("choice", ['"a"', "b"])))["grammar"]
    assert grammar == r'root ::= "\"a\"" | "b"'
    sampled = chat("x", sampling={"repetition_penalty": 1.1, "temperature": 0.0})
    assert asked("llamacpp", sampled)["repeat_penalty"] == 1.1
    assert asked("mlx", chat("x"))["model"] == "default_model"  # any other name would be loaded
    assert "top_k" not in asked("ollama", chat("x", sampling={"top_k": 5}))


@synchronous
async def test_llama_server_with_a_stream_under_way_is_ended_by_a_signal(tmp_path: Path) -> None:
    async with dialects.replica("llamacpp", tmp_path, token_s=0.05) as replica:
        await until(lambda: replica.ready)
        assert replica.calls is not None
        stream = await replica.calls.start(chat("cut me", max_tokens=200), limit_s=30)
        os.kill(replica.row().pid, signal.SIGTERM)
        with pytest.raises(Exception, match="broke"):
            await read(stream)
        await until(lambda: replica.restarts == 1 and replica.ready)  # status 0 is a death too


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
def test_a_tenant_has_its_own_part_of_the_cache(engine):
    ann, bob = (asked(engine, chat("x", tenant=tenant))["cache_salt"] for tenant in ("ann", "bob"))
    assert ann != bob and "ann" not in ann
    assert "cache_salt" not in asked(engine, chat("x"))
