"""Several models in processes of their own: tiny ones, and real ones under the mark `model`."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import freehold
from freehold import _native as native
from freehold.base.config import Settings
from freehold.base.errors import BadModelFile, CapacityExceeded, ModelNotFound, Overloaded, UsageError
from freehold.base.serving import Job
from freehold.base.types import Format, Message
from freehold.route.router.toml.table import KeptEnvironment
from freehold.run.store import ModelRef, Store
from freehold.run.store.create import Recipe, make
from freehold.serve.http.core.problems import hint_for
from freehold.serve.worker import client
from freehold.serve.worker import models as models_module
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.handle import EngineHandle
from freehold.serve.worker.models import HEADROOM, LEAST_CACHE, EngineModels
from freehold.serve.worker.stream import EngineStream
from freehold.serve.worker.wire import Event, Failed, Frame, Script
from tests.serving import served as open_tiny
from tests.vectors.files import write_gguf, write_safetensors
from tests.worker.conftest import answers, text, tokens

OPTIONS = EngineOptions(context=256, threads=1, cache_bytes=8 << 20)
ENDLESS = {"logit_bias": {2: -1e6, 4: -1e6}}  # neither the end of text nor of a turn
CHAT = Job(messages=(Message("user", "Hi"),), max_tokens=60, sampling={"seed": 3, **ENDLESS})


def seeded(seed: int) -> Job:
    return replace(CHAT, sampling={"seed": seed, **ENDLESS})


@pytest.mark.heavy
def test_rounded_weights_reserve_their_packed_bytes_and_not_the_files(tmp_path: Path):
    store = Store(Settings(tmp_path / "home"))
    ref = store.pull(str(write_safetensors("qwen3", tmp_path / "tiny")), rounding="q8")
    plain = replace(ref, rounding="")
    models = EngineModels(store, OPTIONS)
    assert models._weight_bytes([plain]) == ref.bytes > 3 * models._weight_bytes([ref]) > 0
    assert models._weight_bytes([ref, plain]) == models._weight_bytes([ref]) + ref.bytes


@pytest.fixture(scope="module")
def alone(tiny: dict[str, ModelRef]):
    """Return what the tiny model answers in this process, with no other request beside it."""
    with freehold.load(tiny["tiny"].path, context=256, threads=1) as llm:
        yield lambda seed: llm.chat("Hi", max_tokens=60, seed=seed, logit_bias=ENDLESS["logit_bias"])


# --- the same tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kill_at", [[], [1], [20, 40]])
def test_answer_is_the_one_given_alone_whatever_dies(serve, tiny, alone, monkeypatch, kill_at: list[int]):
    go_on, told = EngineStream.job_to_go_on, [0]

    def noted(stream: EngineStream) -> Job:
        job = go_on.__get__(stream)
        told.append(sum(map(len, job.resume)))
        return job

    monkeypatch.setattr(EngineStream, "job_to_go_on", property(noted))

    async def body(models: EngineModels) -> None:
        [chunks] = await answers(await models.use("tiny"), CHAT, kill_at)
        want = alone(3)
        assert (tuple(tokens(chunks)), text(chunks)) == (want.token_ids, want.text)
        usage = chunks[-1].usage
        assert usage.completion_tokens == want.usage.completion_tokens
        # Its last engine's; not `kill_at`'s, as an engine may have made all of it before the reader is let at it.
        assert usage.resumed_tokens == told[-1] and usage.prefill_s > 0

    serve(body, OPTIONS, paths=tiny)


def test_answer_held_to_a_format_is_the_same_whatever_dies(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        job = replace(CHAT, sampling={"seed": 3}, format=Format("regex", "[a-z]{30,40}"))
        [whole] = await answers(served, job)
        [killed] = await answers(served, job, [12])
        assert re.fullmatch("[a-z]{30,40}", text(whole)) and whole[-1].finish_reason == "stop"
        assert (tokens(killed), text(killed)) == (tokens(whole), text(whole))
        with pytest.raises(UsageError, match="unclosed"):
            await served.start(replace(job, format=Format("regex", "[")))

    serve(body, OPTIONS, paths=tiny)


def test_sixteen_streams_and_one_with_four_answers_are_each_as_alone(serve, tiny, alone):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        jobs = [seeded(i) for i in range(16)] + [replace(CHAT, n=4)]
        got = await asyncio.gather(*(answers(served, job) for job in jobs))
        for seed, [chunks] in enumerate(got[:16]):
            assert tuple(tokens(chunks)) == alone(seed).token_ids
        for i, chunks in enumerate(got[16]):
            assert tuple(tokens(chunks)) == alone(3 + i).token_ids

    serve(body, OPTIONS, paths=tiny)


def test_four_answers_of_different_lengths_survive_a_death(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        job = replace(CHAT, n=4, stop=("e", "q"))
        whole = await answers(served, job)
        assert len({len(tokens(chunks)) for chunks in whole}) > 1
        longest = max(range(4), key=lambda i: len(tokens(whole[i])))
        stream, got, killed = await served.start(job), [[] for _ in range(4)], False
        async for index, chunk in stream:
            got[index].append(chunk)
            if not killed and len(tokens(got[longest])) > len(tokens(whole[longest])) // 2:
                os.kill(served.pid, signal.SIGKILL)
                killed = True
        assert [tokens(c) for c in got] == [tokens(c) for c in whole]
        assert [text(c) for c in got] == [text(c) for c in whole]
        assert [c[-1].finish_reason for c in got] == [c[-1].finish_reason for c in whole]

    serve(body, OPTIONS, paths=tiny)


@pytest.mark.heavy
def test_seed_that_nobody_named_is_kept_over_a_death(serve, tiny, alone):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        stream = await served.start(replace(CHAT, sampling=ENDLESS))
        chunks = [(await anext(stream))[1]]
        os.kill(served.pid, signal.SIGKILL)
        chunks += [chunk async for _, chunk in stream]
        assert tuple(tokens(chunks)) == alone(stream.begin.sampling.seed).token_ids

    serve(body, OPTIONS, paths=tiny)


def test_prompt_is_scored_over_the_wire(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        stream = await served.start(Job(prompt="the end", max_tokens=0, prompt_logprobs=1))
        scores = stream.begin.prompt_logprobs
        assert scores is not None and scores[0] is None and len(scores) == len(stream.begin.prompt_ids)
        [(index, last)] = [piece async for piece in stream]
        assert (index, last.finish_reason) == (0, "length")

    serve(body, OPTIONS, paths=tiny)


def test_calls_answer_as_the_model_in_this_process(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        with open_tiny(tiny["tiny"].path, context=64, threads=1) as llm:
            ids = await served.tokenizer.tokenize("the end é")
            assert ids == llm.tokenize("the end é")
            assert await served.tokenizer.detokenize(ids) == "the end é"
            assert b"".join(await served.tokenizer.token_texts(ids)).decode() == "the end é"
            assert await served.tokenizer.render(CHAT.messages) == llm.render(CHAT.messages)
            assert await served.count(CHAT) == len(llm.render(CHAT.messages))
            long = replace(CHAT, messages=(Message("user", "a b " * 900),))
            assert await served.count(long) == llm.count(long) > served.info.context
            described = await served.tokenizer.template()
            assert described["chat_template"] == llm.template()["chat_template"]
        with pytest.raises(UsageError, match="outside the vocabulary"):
            await served.tokenizer.detokenize([10**6])

    serve(body, OPTIONS, paths=tiny)


def test_cancelled_streams_leave_no_block_behind(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        for seed in range(8):
            stream = await served.start(replace(seeded(seed), n=2))
            await anext(stream)
            await stream.aclose()
        while served.stats.blocks_live or served.stats.running:
            await asyncio.sleep(0.02)

    serve(body, OPTIONS, paths=tiny)


@pytest.mark.heavy
def test_full_queue_refuses_with_the_wait(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        with pytest.raises(Overloaded):
            for _ in range(200):
                await served.start(replace(CHAT))

    serve(body, replace(OPTIONS, engine={"max_queued": 1}), paths=tiny)


@pytest.mark.heavy
def test_death_with_a_queue_too_small_for_all_refuses_nobody(serve, tiny, alone, monkeypatch):
    told = EngineHandle._frame
    refusals: list[Event] = []

    def told_apart(served: EngineHandle, frame: Frame) -> None:
        refusals.extend(event for event in frame.events if isinstance(event, Failed))
        told(served, frame)

    monkeypatch.setattr(EngineHandle, "_frame", told_apart)

    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        streams, got = [], []
        for seed in range(6):  # one after the other they never wait
            streams.append(await served.start(seeded(seed)))
            got.append([(await anext(streams[-1]))[1]])
        os.kill(served.pid, signal.SIGKILL)
        for seed, stream in enumerate(streams):
            got[seed] += [chunk async for _, chunk in stream]
            assert tuple(tokens(got[seed])) == alone(seed).token_ids
        assert refusals == []
        assert sum(served.stats.step_sizes) == served.stats.steps  # of both engines

    serve(body, replace(OPTIONS, engine={"max_queued": 2}), paths=tiny)


# --- finding -------------------------------------------------------------------------------------------


def test_request_may_not_name_a_file(serve, tiny):
    async def body(models: EngineModels) -> None:
        for name in (str(tiny["tiny"].path), "./tiny.gguf", "../x.gguf", "", "no-such-model"):
            with pytest.raises(ModelNotFound):
                await models.use(name)
        assert [m.name for m in await models.names()] == ["other", "tiny"]

    serve(body, OPTIONS, paths=tiny)


def test_spellings_of_a_name_reach_one_model_and_do_not_pile_up(serve, tmp_path: Path, monkeypatch):
    name = Store(Settings(tmp_path)).pull(str(write_gguf("llama", tmp_path / "tiny.gguf"))).name
    monkeypatch.setattr(models_module, "MAX_SPELLINGS", 8)

    async def body(models: EngineModels) -> None:
        served = {await models.use(" " * i + name) for i in range(20)}
        assert [s.name for s in served] == [name] and len(models._aliases) <= 8

    serve(body, OPTIONS)


def test_damaged_file_is_a_named_error_and_not_tried_in_a_loop(serve, tiny, tmp_path: Path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny["tiny"].path.read_bytes()[:5000])
    ref = replace(tiny["tiny"], name="broken", path=broken, bytes=5000, files=(broken,))

    async def body(models: EngineModels) -> None:
        waiting = [models.use("broken") for _ in range(3)]
        got = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(e) for e in got] == [BadModelFile] * 3
        assert models.loaded() == [] and not models._handles["broken"].restarts
        await answers(await models.use("tiny"), CHAT)

    serve(body, OPTIONS, paths={**tiny, "broken": ref})


def test_damaged_pack_costs_a_load_and_no_answer_a_token(serve, tiny, alone, tmp_path: Path, caplog):
    """The engine ends before a token leaves, names the file, and the next one packs the weights anew."""
    ref = replace(tiny["tiny"], digest="ab" * 32)

    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        await answers(served, CHAT)
        await served.unload()
        (pack,) = (tmp_path / "packs").iterdir()
        whole = pack.read_bytes()
        pack.write_bytes(whole[:-40_000] + bytes(20_000) + whole[-20_000:])
        [chunks] = await answers(await models.use("tiny"), CHAT)
        assert tokens(chunks) == list(alone(3).token_ids)
        assert served.restarts == 1 and served.was_loaded
        assert "packed copy of the weights" in caplog.text and pack.name in caplog.text
        await served.unload()
        assert pack.read_bytes() == whole

    serve(body, OPTIONS, paths={"tiny": ref})


@pytest.mark.heavy
def test_pack_cut_short_under_a_running_engine_ends_no_answer(serve, tiny, alone, tmp_path: Path, caplog):
    ref = replace(tiny["tiny"], digest="ab" * 32)

    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        await served.unload()
        await models.use("tiny")
        (pack,) = (tmp_path / "packs").iterdir()
        os.truncate(pack, 4096)
        [chunks] = await answers(served, CHAT)
        assert tokens(chunks) == list(alone(3).token_ids)
        assert served.restarts == 1 and "was cut short" in caplog.text

    serve(body, OPTIONS, paths={"tiny": ref})


def test_requests_for_one_loading_model_share_the_load(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await asyncio.gather(*(models.use("tiny") for _ in range(5)))
        assert len({s.pid for s in served}) == 1

    serve(body, OPTIONS, paths=tiny)


# --- memory --------------------------------------------------------------------------------------------


async def begin_and_stop(served: EngineHandle, job: Job) -> asyncio.Task[EngineStream]:
    """Stop an engine and send it a job, so that it is busy until the engine is let go on; return the start."""
    os.kill(served.pid, signal.SIGSTOP)
    starting = asyncio.create_task(served.start(job))
    while not served.in_flight:
        await asyncio.sleep(0)
    return starting


@pytest.mark.heavy
def test_idle_model_makes_room_for_the_next(serve, tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models_module, "resident_bytes", lambda pid: 0)
    monkeypatch.setattr(models_module, "HEADROOM", 0)

    async def body(models: EngineModels) -> None:
        await answers(await models.use("tiny"), CHAT)
        await answers(await models.use("other"), CHAT)
        assert [loaded.name for loaded in models.loaded()] == ["other"]
        await answers(await models.use("tiny"), CHAT)
        assert [loaded.name for loaded in models.loaded()] == ["tiny"]

    serve(body, OPTIONS, paths=tiny, available=lambda: 9 << 20)


@pytest.mark.heavy
def test_a_model_made_anew_is_opened_anew_once_its_answers_have_ended(serve, tmp_path: Path):
    store = Store(Settings(tmp_path))
    base = store.pull(str(write_gguf("llama", tmp_path / "tiny.gguf"))).name
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"

    async def body(models: EngineModels) -> None:
        await models.use(base)
        make(store, "mario", Recipe(base=base, template=template), lambda _: None)
        served = await models.use("Mario")
        starting = await begin_and_stop(served, CHAT)
        make(store, "mario", Recipe(base=base), lambda _: None)
        await models.retire("mario")  # does not wait for them
        assert {loaded.name for loaded in models.loaded()} == {base, "mario"}
        await served.load(3600)  # that another caller wants it longer keeps it no longer
        os.kill(served.pid, signal.SIGCONT)
        stream = await starting
        assert [chunk async for _, chunk in stream][-1].finish_reason
        while served.awake:
            await asyncio.sleep(0.01)
        assert [loaded.name for loaded in models.loaded()] == [base]
        await models.retire("mario")  # its base's engine stays
        assert [loaded.name for loaded in models.loaded()] == [base]

    serve(body, OPTIONS)


@pytest.mark.heavy
def test_model_that_is_leaving_is_waited_for_where_its_memory_is_needed(serve, tiny, monkeypatch):
    monkeypatch.setattr(models_module, "HEADROOM", 0)
    monkeypatch.setattr(client, "STOP_S", 0.5)
    held: list[EngineHandle] = []

    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        held.append(served)
        os.kill(served.pid, signal.SIGSTOP)
        unloading = asyncio.ensure_future(models.unload("tiny"))
        await asyncio.sleep(0)
        await answers(await models.use("other"), CHAT)
        await unloading

    def available() -> int:
        return 0 if held and held[0].pid else 9 << 20

    serve(body, OPTIONS, paths=tiny, available=available)


@pytest.mark.heavy
def test_busy_model_is_not_unloaded_and_the_error_has_the_numbers(serve, tiny, monkeypatch):
    monkeypatch.setattr(models_module, "resident_bytes", lambda pid: 0)
    monkeypatch.setattr(models_module, "HEADROOM", 0)

    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        starting = await begin_and_stop(served, replace(CHAT, max_tokens=200))
        with pytest.raises(
            CapacityExceeded, match=r"other needs .* MB with its cache; .* are available$"
        ) as e:
            await models.use("other")
        assert e.value.hint.startswith("loaded: tiny (") and "1 running" in e.value.hint
        # A client's key whose scope lacks tiny reads neither.
        assert "tiny" not in hint_for(e.value, owner=False) + e.value.message
        os.kill(served.pid, signal.SIGCONT)
        assert len([piece async for piece in await starting]) == 201
        await models.use("other")

    serve(body, OPTIONS, paths=tiny, available=lambda: 9 << 20)


@pytest.mark.heavy
def test_no_more_models_are_loaded_than_allowed(serve, tiny):
    async def body(models: EngineModels) -> None:
        await models.use("tiny")
        other = await models.use("other")
        starting = await begin_and_stop(other, replace(CHAT, max_tokens=200))
        assert [loaded.name for loaded in models.loaded()] == ["other"]
        with pytest.raises(CapacityExceeded, match="one model more than the 1 allowed"):
            await models.use("tiny")
        os.kill(other.pid, signal.SIGCONT)
        await (await starting).aclose()

    serve(body, replace(OPTIONS, max_models=1), paths=tiny)


def test_model_beyond_memory_is_loaded_where_paging_is_allowed_with_a_small_cache(serve, tiny):
    async def body(models: EngineModels) -> None:
        served = await models.use("tiny")
        assert await answers(served, CHAT)

    serve(body, EngineOptions(threads=1, allow_paging=True), paths=tiny, available=lambda: 1_000_000)


def test_model_that_could_never_fit_says_so(serve, tiny):
    async def body(models: EngineModels) -> None:
        with pytest.raises(
            CapacityExceeded, match=r"tiny needs .* MB with its cache; 1\.0 MB are available$"
        ) as e:
            await models.use("tiny")
        assert e.value.hint == "free memory, or choose a smaller model"

    serve(body, EngineOptions(), paths=tiny, available=lambda: 1_000_000)


def test_cache_takes_half_of_what_the_weights_leave(serve, tiny):
    free = HEADROOM + tiny["tiny"].bytes + 4 * LEAST_CACHE

    async def body(models: EngineModels) -> None:
        info = (await models.use("tiny")).info
        assert info.context == info.trained_context
        a_token = (info.memory_bytes - tiny["tiny"].bytes) / info.kv_tokens
        assert info.kv_tokens * a_token <= 2 * LEAST_CACHE
        assert info.kv_tokens == 8 * info.context  # no more than eight contexts

    serve(body, EngineOptions(threads=1), paths=tiny, available=lambda: free)


@pytest.mark.heavy
def test_context_that_finds_no_room_unloads_an_idle_model_first(serve, tiny):
    """The engine alone knows what a token costs, so its refusal comes before any client is refused."""
    a_block = 4 * 2 * 16 * 2 * 2 * native.BLOCK_TOKENS  # layers, heads, width, keys and values, bytes
    asked: list[int] = []

    async def body(models: EngineModels) -> None:
        await models.use("other")
        make_room = models._memory._make_room

        async def scarce(served, weights: int) -> int:
            cache = await make_room(served, weights)
            asked.append(cache)
            return cache if len(asked) > 1 else a_block

        models._memory._make_room = scarce  # pyright: ignore[reportAttributeAccessIssue]
        served = await models.use("tiny")
        assert served.info.context == 256 and len(asked) == 2
        assert [loaded.name for loaded in models.loaded()] == ["tiny"]

    serve(body, OPTIONS, paths=tiny)


# --- real models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(model_path) -> dict[str, ModelRef]:
    names = {"smollm2": "smollm2:135m", "gemma3": "gemma3:270m"}
    paths = {name: model_path(model) for name, model in names.items()}
    return {n: ModelRef(n, p, "gguf", "", p.stat().st_size, "user", "", "", (p,)) for n, p in paths.items()}


@pytest.mark.heavy
@pytest.mark.model
def test_real_streams_of_two_models_are_as_alone_through_two_deaths(serve, real):
    asked = [f"Tell me a story about the number {i}." for i in range(16)]
    jobs = [Job(messages=(Message("user", a),), max_tokens=40, sampling={"temperature": 0}) for a in asked]
    with freehold.load(real["smollm2"].path, context=512) as llm:
        want = [llm.chat(a, max_tokens=40, temperature=0).token_ids for a in asked]
    with freehold.load(real["gemma3"].path, context=512) as llm:
        other = llm.chat(asked[0], max_tokens=40, temperature=0).token_ids

    async def body(models: EngineModels) -> None:
        small, gemma = await models.use("smollm2"), await models.use("gemma3")
        beside = asyncio.ensure_future(answers(gemma, jobs[0]))
        first, *rest = await asyncio.gather(
            answers(small, jobs[0], [10, 25]), *(answers(small, job) for job in jobs[1:])
        )
        assert [tuple(tokens(chunks)) for [chunks] in (first, *rest)] == want
        assert tuple(tokens((await beside)[0])) == other
        assert (small.restarts, gemma.restarts) == (2, 0)

    serve(body, EngineOptions(context=512), paths=real)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="the environment is read in /proc")
def test_an_engine_is_given_no_key(serve, monkeypatch: pytest.MonkeyPatch):
    secret = "fh-secret-0123456789abcdef"
    for name in (*client.KEYS, "SELLER"):
        monkeypatch.setenv(name, secret)
    environ = KeptEnvironment()
    assert environ["SELLER"] == secret
    environ.hide()

    async def body(models: EngineModels) -> None:
        await models.use("script")
        (engine,) = models.loaded()
        given = Path(f"/proc/{engine.pid}/environ").read_bytes()
        assert b"PATH=" in given and secret.encode() not in given

    serve(body, scripts={"script": Script()})
