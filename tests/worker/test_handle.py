"""One model's lives and deaths, over the very wire, with an engine process that runs a script."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from freehold import __version__
from freehold.base.errors import (
    DeadlineExceeded,
    EngineClosed,
    EngineLost,
    FreeholdError,
    Overloaded,
    SlowReader,
    UsageError,
)
from freehold.base.serving import Begin, Job, ModelInfo
from freehold.base.types import Chunk, SamplingParams
from freehold.serve.worker import client, handle
from freehold.serve.worker import handle as handle_module
from freehold.serve.worker import stream as stream_module
from freehold.serve.worker.client import EngineOptions
from freehold.serve.worker.handle import EngineHandle
from freehold.serve.worker.models import EngineModels
from freehold.serve.worker.process.scripted import scripted_tokens
from freehold.serve.worker.wire import PROTOCOL, Hello, Open, Script, packed
from tests.worker.conftest import answers, tokens

SCRIPTS = {
    "fast": Script(words=8),
    "slow": Script(words=60, step_s=0.02),
    "endless": Script(words=10**6, step_s=0.001),
    "early": Script(words=60, step_s=0.005, poison="poison"),
    "late": Script(words=60, step_s=0.005, poison="poison", poison_at=20),
}
JOB = Job(prompt="a b c", sampling={"seed": 5})


async def until(condition, seconds: float = 60.0) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        await asyncio.sleep(0.01)


def exists(pid: int) -> bool:
    """Whether there is such a process, if only to be waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_stream_begins_gives_its_words_and_ends_with_usage(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        stream = await served.start(JOB)
        assert stream.begin.prompt_ids == tuple(await served.tokenizer.tokenize("a b c"))
        chunks = [chunk async for _, chunk in stream]
        assert tokens(chunks) == scripted_tokens(5, 0, 8)
        assert [c.finish_reason for c in chunks] == [None] * 8 + ["length"]
        assert chunks[-1].usage is not None and not served.in_flight

    serve(body, scripts=SCRIPTS)


@pytest.mark.heavy
@pytest.mark.parametrize("kill_at", [[1], [59], [20, 40], [10, 30, 50]])
def test_killed_engine_s_streams_go_on_with_the_very_next_token(serve, kill_at: list[int]):
    async def body(models: EngineModels) -> None:
        served = await models.use("slow")
        [chunks] = await answers(served, JOB, kill_at)
        assert tokens(chunks) == scripted_tokens(5, 0, 60)
        await until(
            lambda: served.restarts == len(kill_at)
        )  # the last token may come before the death is seen

    serve(body, scripts=SCRIPTS)


def test_all_streams_of_a_killed_engine_go_on(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("slow")
        jobs = [Job(prompt="a", n=2, sampling={"seed": 10 * i}) for i in range(8)]
        first, *rest = await asyncio.gather(
            answers(served, jobs[0], [30]), *(answers(served, job) for job in jobs[1:])
        )
        for i, got in enumerate([first, *rest]):
            assert [tokens(chunks) for chunks in got] == [scripted_tokens(10 * i, n, 60) for n in range(2)]
            assert all(chunks[-1].finish_reason == "length" for chunks in got)

    serve(body, scripts=SCRIPTS)


@pytest.mark.heavy
def test_fourth_death_ends_a_stream_with_engine_lost(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("slow")
        with pytest.raises(
            EngineLost, match="died, and so did 3 that took its place: it was ended by SIGKILL"
        ):
            await answers(served, JOB, [5, 10, 15, 20])
        [chunks] = await answers(served, JOB)  # and the model goes on
        assert tokens(chunks) == scripted_tokens(5, 0, 60)

    serve(body, scripts=SCRIPTS)


def test_other_models_never_notice_a_death(serve):
    async def body(models: EngineModels) -> None:
        slow, fast = await asyncio.gather(models.use("slow"), models.use("fast"))
        stream = await slow.start(JOB)
        os.kill(slow.pid, signal.SIGKILL)
        for _ in range(20):
            await answers(fast, JOB)
        assert fast.restarts == 0
        assert tokens([chunk async for _, chunk in stream]) == scripted_tokens(5, 0, 60)

    serve(body, scripts=SCRIPTS)


def test_engine_killed_while_it_loads_is_started_again(serve):
    async def body(models: EngineModels) -> None:
        using = asyncio.ensure_future(models.use("late"))
        await until(lambda: models.loading() and models._handles["late"].pid)
        os.kill(models._handles["late"].pid, signal.SIGKILL)
        served = await using
        assert served.restarts == 1
        (death,) = served.deaths
        assert death.cause and death.at > 0
        assert len(await answers(served, JOB)) == 1

    serve(body, scripts={"late": Script(load_s=0.3)})


def test_engine_killed_while_idle_comes_back(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        before = served.pid
        os.kill(before, signal.SIGKILL)
        await until(lambda: served.restarts == 1 and served.loaded)
        assert served.pid != before
        assert len(await answers(served, JOB)) == 1

    serve(body, scripts=SCRIPTS)


def test_engine_that_dies_of_every_start_is_given_up(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dies.py").write_text("import sys; sys.exit(7)")
    monkeypatch.setattr(client, "COMMAND", [sys.executable, str(tmp_path / "dies.py")])

    async def body(models: EngineModels) -> None:
        with pytest.raises(EngineLost, match="it ended with status 7"):
            await models.use("fast")
        assert models.loaded() == []

    serve(body, scripts=SCRIPTS)


GONE = ["/nonexistent/freehold-engine"]
MUTE = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "command, how",
    [(GONE, "it could not be started: No such file"), (MUTE, "it sent nothing for 0 s after its start")],
)
def test_engine_that_never_comes_to_life_counts_as_a_death(
    serve, monkeypatch: pytest.MonkeyPatch, command: list[str], how: str
):
    good, hello_s, process_with = client.COMMAND, client.HELLO_S, client._process_with
    bad: Iterator[bool] = iter(())

    def process(ours: socket.socket, theirs: socket.socket) -> Any:
        wrong = next(bad, False)
        monkeypatch.setattr(client, "COMMAND", command if wrong else good)
        monkeypatch.setattr(client, "HELLO_S", 0.3 if wrong else hello_s)
        return process_with(ours, theirs)

    monkeypatch.setattr(client, "_process_with", process)

    async def body(models: EngineModels) -> None:
        nonlocal bad
        served = await models.use("slow")
        stream = await served.start(JOB)
        bad = iter([True])
        os.kill(served.pid, signal.SIGKILL)
        assert tokens([chunk async for _, chunk in stream]) == scripted_tokens(5, 0, 60)
        assert served.restarts == 2
        stream = await served.start(JOB)
        bad = itertools.repeat(True)
        os.kill(served.pid, signal.SIGKILL)
        with pytest.raises(EngineLost, match=f"died, and so did 3 that took its place: {how}"):
            async for _ in stream:
                pass
        with pytest.raises(EngineLost, match=how):
            await models.use("fast")

    serve(body, scripts=SCRIPTS)


@pytest.mark.heavy
def test_hung_engine_is_killed_and_its_streams_go_on(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("slow")
        stream = await served.start(JOB)
        os.kill(served.pid, signal.SIGSTOP)
        assert tokens([chunk async for _, chunk in stream]) == scripted_tokens(5, 0, 60)
        assert served.restarts in (1, 2)  # the next one may also stand still, on a machine that is busy

    serve(body, EngineOptions(hung_s=3.0), scripts=SCRIPTS)


@pytest.mark.heavy
def test_stopped_engine_holds_a_bounded_number_of_bytes_back(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("freehold.serve.worker.handle.MAX_WAITING", 4 << 20)
    long = replace(JOB, prompt="a " * 500_000)

    async def leave(served: EngineHandle) -> None:
        """Ask, and go before the engine has taken the job."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await served.start(long)

    async def body(models: EngineModels) -> None:
        served, other = await models.use("slow"), await models.use("fast")
        os.kill(served.pid, signal.SIGSTOP)
        with pytest.raises(Overloaded, match="wait until the engine takes them; the limit is 4,194,304"):
            for _ in range(40):
                await leave(served)
        await answers(other, JOB)
        os.kill(served.pid, signal.SIGCONT)
        await until(lambda: not served._engine._waiting())
        assert tokens((await answers(served, JOB))[0]) == scripted_tokens(5, 0, 60)

    serve(body, scripts=SCRIPTS)


@pytest.mark.heavy
def test_idle_engine_is_not_taken_for_a_hung_one(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        await asyncio.sleep(5)
        await answers(served, JOB)
        assert served.restarts == 0

    serve(body, EngineOptions(hung_s=4.0), scripts=SCRIPTS)


def test_counters_go_on_where_a_dead_engine_s_stopped(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        await answers(served, JOB)
        await until(lambda: served.stats.generated_tokens == 8)
        os.kill(served.pid, signal.SIGKILL)
        await until(lambda: served.restarts == 1 and served.loaded)
        await answers(served, JOB)
        await until(lambda: served.stats.generated_tokens == 16 and served.stats.running == 0)

    serve(body, scripts=SCRIPTS)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["early", "late"])
@pytest.mark.parametrize("place", [0, 3, 5])
def test_job_that_kills_every_engine_ends_alone(serve, name: str, place: int):
    async def body(models: EngineModels) -> None:
        served = await models.use(name)
        jobs = [Job(prompt="a", n=2, sampling={"seed": 10 * i}) for i in range(5)]
        jobs.insert(place, Job(prompt="poison"))
        got = await asyncio.gather(*(answers(served, job) for job in jobs), return_exceptions=True)
        assert isinstance(got.pop(place), EngineLost)
        for i, whole in enumerate(got):
            assert not isinstance(whole, BaseException), whole
            assert [tokens(chunks) for chunks in whole] == [scripted_tokens(10 * i, n, 60) for n in range(2)]
        assert served.restarts == 4 and served.idle
        await answers(served, JOB)

    serve(body, scripts=SCRIPTS)


@pytest.mark.heavy
def test_jobs_that_come_during_a_trial_wait_for_its_end(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("early")
        poison = asyncio.ensure_future(served.start(Job(prompt="poison")))
        await until(lambda: served._quarantine.suspect is not None)
        [chunks], words = await asyncio.gather(answers(served, JOB), served.tokenizer.tokenize("a b"))
        assert tokens(chunks) == scripted_tokens(5, 0, 60) and len(words) == 2
        stream = await poison
        with pytest.raises(EngineLost):
            await anext(stream)

    serve(body, scripts=SCRIPTS)


@pytest.mark.heavy
def test_trial_that_lasts_holds_up_no_innocent_and_its_death_counts_against_none(
    serve, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        handle, "STEADY_S", math.inf
    )  # so that a suspect with one death left is never cleared
    monkeypatch.setattr(handle, "ALONE_S", 0.3)

    async def body(models: EngineModels) -> None:
        served = await models.use("endless")
        suspect, other = await served.start(JOB), await served.start(JOB)
        suspect.deaths, other.deaths = 2, 1
        os.kill(served.pid, signal.SIGKILL)
        await until(lambda: served._quarantine.suspect is suspect)
        job = replace(JOB, max_tokens=8)
        [waited], words = await asyncio.gather(answers(served, job), served.tokenizer.tokenize("a b"))
        [late] = await answers(served, job)
        assert tokens(waited) == tokens(late) == scripted_tokens(5, 0, 8) and len(words) == 2
        assert served._quarantine.suspect is suspect and [*served._quarantine.queue] == [other]
        beside = await served.start(JOB)
        os.kill(served.pid, signal.SIGKILL)
        with pytest.raises(EngineLost):
            async for _ in suspect:
                pass
        await until(lambda: served.restarts == 2 and served._quarantine.suspect is other)
        assert (beside.deaths, other.deaths) == (0, 2)

    serve(body, scripts=SCRIPTS)


def test_suspect_whose_reader_goes_lets_the_next_one_in(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("early")
        poison, innocent = (
            await served.start(Job(prompt="poison")),
            asyncio.ensure_future(answers(served, JOB)),
        )
        await until(lambda: served._quarantine.suspect is poison)
        await poison.aclose()
        [chunks] = await innocent
        assert tokens(chunks) == scripted_tokens(5, 0, 60)

    serve(body, scripts=SCRIPTS)


# --- readers -------------------------------------------------------------------------------------------


def test_slow_reader_loses_its_stream_and_nobody_else_does(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stream_module, "MAX_HELD_TOKENS", 100)

    async def body(models: EngineModels) -> None:
        served = await models.use("endless")
        slow = await served.start(JOB)
        # Too short to fall behind, however late this process gets its turn; each makes `slow` as much longer.
        for _ in range(2):
            [chunks] = await answers(served, replace(JOB, max_tokens=90))
            assert tokens(chunks) == scripted_tokens(5, 0, 90)
        with pytest.raises(SlowReader, match="fell 101 tokens behind; the limit is 100"):
            await anext(slow)
        assert served.slow_readers == 1 and served.in_flight == 0
        await until(lambda: served.stats.running == 0)

    serve(body, scripts=SCRIPTS)


def test_closed_stream_stops_its_job_in_the_engine(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("endless")
        stream = await served.start(JOB)
        await anext(stream)
        await stream.aclose()
        await stream.aclose()
        await until(lambda: served.stats.running == 0)
        steps = served.stats.steps
        await asyncio.sleep(0.3)
        assert served.stats.steps == steps

    serve(body, scripts=SCRIPTS)


def test_start_that_is_cancelled_drops_the_job(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("endless")
        for wait_s in (0, 0.001):
            starting = asyncio.ensure_future(served.start(JOB))
            await asyncio.sleep(wait_s)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        await until(lambda: not served.in_flight and served.stats.running == 0)

    serve(body, scripts=SCRIPTS)


def test_time_limit_ends_a_stream(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("endless")
        with pytest.raises(DeadlineExceeded, match="not whole in its time"):
            async for _ in await served.start(Job(prompt="a", timeout_s=0.2)):
                pass
        await until(lambda: served.stats.running == 0)

    serve(body, scripts=SCRIPTS)


def test_job_refused_by_the_engine_raises_in_start(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        with pytest.raises(UsageError, match="a chat or a prompt"):
            await served.start(Job())
        with pytest.raises(UsageError, match="not a request"):
            await served.start(Job(prompt="x", n="three"))  # pyright: ignore[reportArgumentType]
        with pytest.raises(UsageError, match="cannot be sent"):
            await served.start(Job(prompt="x", sampling={"seed": 1 << 70}))
        assert served.idle and served.keep_alive.expires_at is not None
        await answers(served, JOB)

    serve(body, scripts=SCRIPTS)


def test_calls_are_answered_beside_a_stream_and_after_a_death(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("endless")
        stream = await served.start(JOB)
        assert await served.tokenizer.detokenize([1, 2]) == " w1 w2"
        assert await served.tokenizer.token_texts([1]) == [b" w1"]
        os.kill(served.pid, signal.SIGKILL)
        assert len(await served.tokenizer.tokenize("a b")) == 2
        await stream.aclose()

    serve(body, scripts=SCRIPTS)


# --- rest and end --------------------------------------------------------------------------------------


def test_idle_model_is_unloaded_and_loaded_again_when_asked(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        await answers(served, JOB)
        assert served.keep_alive.expires_at is not None
        await until(lambda: not served.awake)
        assert models.loaded() == []
        await until(lambda: served.pid == 0)
        await answers(served, JOB)  # a face once given stays good
        assert served.restarts == 0

    serve(body, EngineOptions(keep_alive_s=0.1), scripts=SCRIPTS)


def test_next_load_waits_for_the_end_of_a_process_that_does_not_leave(serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "STOP_S", 0.5)

    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        old, start = served.pid, client.EngineProcess.start

        async def start_alone(engine: client.EngineProcess, asked: Open) -> ModelInfo:
            assert not exists(old), "two processes of one model"
            return await start(engine, asked)

        monkeypatch.setattr(client.EngineProcess, "start", start_alone)
        os.kill(old, signal.SIGSTOP)
        unloading = asyncio.ensure_future(models.unload("fast"))
        await asyncio.sleep(0)
        assert not models.loaded() and not served.loaded and exists(old)
        [chunks] = await answers(served, JOB)
        assert tokens(chunks) == scripted_tokens(5, 0, 8) and served.restarts == 0
        await unloading

    serve(body, scripts=SCRIPTS)


def test_model_unloaded_before_its_load_began_is_loaded_when_asked_again(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        await models.unload("fast")
        asking = asyncio.ensure_future(served.load())
        await asyncio.sleep(0)
        await served.unload()
        with pytest.raises(EngineClosed):
            await asking
        await answers(served, JOB)

    serve(body, scripts=SCRIPTS)


def test_counters_go_on_over_an_unloading(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        for made in (8, 16):
            await answers(served, JOB)
            await until(lambda made=made: served.stats.generated_tokens == made)
            await served.unload()
            assert (served.stats.generated_tokens, served.stats.blocks) == (made, 0)

    serve(body, scripts=SCRIPTS)


def test_unloading_in_the_turn_of_a_greeting_ends_the_life(serve, monkeypatch: pytest.MonkeyPatch):
    greet, unloading = client.EngineProcess._greet, []

    async def body(models: EngineModels) -> None:
        served = models._known("fast", "fast")

        def greet_and_unload(engine: client.EngineProcess, hello: Hello) -> None:
            greet(engine, hello)
            unloading.append(asyncio.ensure_future(served.unload()))

        monkeypatch.setattr(client.EngineProcess, "_greet", greet_and_unload)
        with pytest.raises(EngineClosed):
            await served.load()
        await asyncio.wait_for(unloading[0], 60)
        assert served.pid == 0 and not served.leaving

    serve(body, scripts=SCRIPTS)


def test_unloading_in_the_turn_of_a_death_ends_the_life(serve, monkeypatch: pytest.MonkeyPatch):
    watch, unloading = EngineHandle._watch, []

    async def watch_and_unload(served: EngineHandle, engine: client.EngineProcess) -> None:
        try:
            await watch(served, engine)
        finally:
            unloading.append(asyncio.ensure_future(served.unload()))

    monkeypatch.setattr(EngineHandle, "_watch", watch_and_unload)

    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        os.kill(served.pid, signal.SIGKILL)
        await until(lambda: unloading)
        await asyncio.wait_for(unloading[0], 60)
        assert served.pid == 0 and not served.leaving

    serve(body, scripts=SCRIPTS)


@pytest.mark.parametrize("keep_alive", [-1.0, float("inf")])
def test_keep_alive_of_a_request_holds_the_model_for_good(serve, keep_alive: float):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        async for _ in await served.start(JOB, keep_alive):
            pass
        await asyncio.sleep(0.3)
        assert served.loaded and served.keep_alive.expires_at is None

    serve(body, EngineOptions(keep_alive_s=0.05), scripts=SCRIPTS)


def test_keep_alive_of_zero_waits_for_the_last_job(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("slow")
        stream = await served.start(JOB, 0)
        assert tokens([chunk async for _, chunk in stream]) == scripted_tokens(5, 0, 60)
        await until(lambda: not served.awake)

    serve(body, scripts=SCRIPTS)


def test_model_stays_loaded_while_a_job_for_it_is_packed(serve, monkeypatch: pytest.MonkeyPatch):
    async def body(models: EngineModels) -> None:
        go = asyncio.Event()

        async def late(job: Job) -> msgspec.Raw:
            await go.wait()
            return await packed(job)

        monkeypatch.setattr(handle_module, "packed", late)
        monkeypatch.setattr(handle_module, "is_long", lambda job: True)  # others are encoded at once
        served = await models.use("fast")
        starting = asyncio.create_task(served.start(JOB))
        await asyncio.sleep(0)
        await served.load(0)  # another's, after which an idle model leaves at once
        for _ in range(20):
            await asyncio.sleep(0)
        assert served.awake and not served.idle
        go.set()
        assert tokens([chunk async for _, chunk in await starting]) == scripted_tokens(5, 0, 8)

    serve(body, scripts=SCRIPTS)


@pytest.mark.parametrize("turns", range(4))
def test_job_that_comes_in_the_moment_of_unloading_is_answered(serve, turns: int):
    async def body(models: EngineModels) -> None:
        served = await models.use("fast")
        async for _ in await served.start(JOB, 0):
            pass
        for _ in range(turns):  # in one of them the timer has run, and the unloading has not begun
            await asyncio.sleep(0)
        [answer] = await answers(served, JOB)
        assert tokens(answer) == scripted_tokens(5, 0, 8)

    serve(body, scripts=SCRIPTS)


def test_model_is_used_until_its_last_job_has_ended(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("slow")
        stream = await served.start(JOB)
        begun = served.keep_alive.used_at
        async for _ in stream:
            pass
        assert served.keep_alive.used_at > begun + 0.1

    serve(body, scripts=SCRIPTS)


def test_close_lets_running_jobs_end_and_refuses_new_ones(serve):
    async def body(models: EngineModels) -> None:
        served = await models.use("slow")
        stream = await served.start(JOB)
        closing = asyncio.ensure_future(models.close(60))
        await asyncio.sleep(0.01)
        with pytest.raises(EngineClosed, match="shutting down"):
            await served.start(JOB)
        with pytest.raises(EngineClosed, match="shutting down"):
            await models.use("fast")
        assert tokens([chunk async for _, chunk in stream]) == scripted_tokens(5, 0, 60)
        await closing

    serve(body, scripts=SCRIPTS)


def test_close_ends_what_takes_longer_than_it_may(serve):
    async def body(models: EngineModels) -> None:
        stream = await (await models.use("endless")).start(JOB)
        await models.close(0.1)
        with pytest.raises(EngineClosed):
            async for _ in stream:
                pass

    serve(body, scripts=SCRIPTS)


def test_engine_process_ends_with_the_server_that_is_killed(tmp_path: Path):
    """The socket is all that holds it: no file, no port, no orphan."""
    code = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from freehold.base.config import Settings\n"
        "from freehold.run.store import Store\n"
        "from freehold.serve.worker.models import EngineModels\n"
        "from freehold.serve.worker.wire import Script\n"
        "async def main():\n"
        "    models = EngineModels(Store(Settings(Path(sys.argv[1]))), scripts={'x': Script()})\n"
        "    print((await models.use('x')).pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    import subprocess

    got = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    pid = int(got.stdout)

    def running() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"

    asyncio.run(until(lambda: not running()))


# --- an engine that speaks nonsense --------------------------------------------------------------------


def impostor(path: Path, then: str) -> list[str]:
    """A process that greets well and then does `then` with the socket `s`."""
    path.write_text(
        "import os, socket, sys, time\n"
        "from freehold import __version__\n"
        "from freehold.serve.worker.wire import PROTOCOL, Hello, Writer\n"
        "s = socket.socket(fileno=int(sys.argv[1])); w = Writer()\n"
        "hello = lambda p=PROTOCOL, v=__version__: s.sendall(w.frame(Hello(p, v, os.getpid())))\n" + then
    )
    return [sys.executable, str(path)]


@pytest.mark.parametrize(
    "then, part",
    [
        ("hello(p=99); time.sleep(60)", rf"this server is freehold {__version__} \(protocol {PROTOCOL}\)"),
        ("hello(v='0.0.1'); time.sleep(60)", r"its engine process 0\.0\.1"),
        ("s.sendall(b'\\xff' * 8); time.sleep(60)", "a frame of 4,294,967,295 bytes; the limit is"),
        (
            "hello(); s.recv(9); s.sendall(b'\\3\\0\\0\\0abc'); time.sleep(60)",
            "a frame that is not a message",
        ),
        ("hello(); s.close()", "it ended with status 0"),
    ],
)
def test_engine_that_speaks_nonsense_is_a_named_error(
    serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, part: str
):
    good = client.COMMAND
    monkeypatch.setattr(client, "COMMAND", impostor(tmp_path / "impostor.py", then))

    async def body(models: EngineModels) -> None:
        with pytest.raises(FreeholdError, match=part):
            await models.use("fast")
        monkeypatch.setattr(client, "COMMAND", good)
        assert isinstance(await models.use("fast"), EngineHandle)  # and the next load is tried anew

    serve(body, scripts=SCRIPTS)


@pytest.mark.parametrize(
    "before, now, part",
    [
        (3, 4, "and the kernel ended 1 for lack of memory meanwhile"),
        (3, 3, "by another process: the kernel ended none for lack of memory meanwhile"),
        (None, None, "by the kernel for lack of memory, or by another process"),
    ],
)
def test_a_kill_is_reported_with_what_is_known_of_it(before: int | None, now: int | None, part: str):
    assert part in client.ended_by(-signal.SIGKILL, before, now)
    assert "memory" not in client.ended_by(-signal.SIGSEGV, before, now)


def test_an_answer_does_not_continue_in_other_weights():
    """The engine died, and the file under its name was replaced before the next engine began."""

    async def body() -> None:
        begin = Begin(64, (1, 2), SamplingParams(), 8, weights="one")
        stream = stream_module.EngineStream(1, Job(prompt="Hi"), lambda *_: None)
        stream.began(begin)
        stream.gain(0, Chunk("a", token_ids=(3,)))
        stream.began(replace(begin))  # an engine of the same weights reports the same again
        assert await anext(stream) == (0, Chunk("a", token_ids=(3,)))
        stream.began(replace(begin, weights="two"))
        with pytest.raises(EngineLost, match="file was replaced"):
            await anext(stream)

    asyncio.run(body())
