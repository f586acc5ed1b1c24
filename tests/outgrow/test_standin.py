"""The stand-in is what the other tests take it for: exact continuations, and deaths of each shape."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.outgrow import standin
from tests.outgrow.engines import synchronous
from tests.outgrow.standin import text

CHAT = [{"role": "user", "content": "hello"}]


class Running:
    """A stand-in on a socket."""

    def __init__(self, process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> None:
        self.process, self.session = process, session

    async def events(self, path: str, **body: Any) -> list[Any]:
        body = {"model": "m", "temperature": 0, "stream": True} | body
        async with self.session.post(f"http://e{path}", json=body) as reply:
            lines = (await reply.text()).split("\n\n")
        said = [line.removeprefix("data: ") for line in lines if line]
        return [line if line == "[DONE]" else json.loads(line) for line in said]

    async def status(self, path: str) -> int:
        async with self.session.get(f"http://e{path}") as reply:
            return reply.status


async def started(folder: Path, dialect: str, *flags: str, **options: object) -> Running:
    socket = folder / "s.sock"
    where = ("--host", str(socket)) if dialect == "llamacpp" else ("--uds", str(socket))
    words = (*standin.command(dialect, **options), *where, "--served-model-name", "m", *flags)
    process = await asyncio.create_subprocess_exec(*words, stderr=asyncio.subprocess.DEVNULL)
    while not socket.exists():
        await asyncio.sleep(0.01)
    return Running(process, aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))))


async def ended(running: Running, *, by_itself: bool = False) -> int:
    """Return the process's status; one that ends `by_itself` is sent no signal.

    A signal polls first, and a status that this takes is lost to the loop, which then says 255.
    """
    await running.session.close()
    if not by_itself:
        running.process.terminate()
    return await running.process.wait()


def said(events: list[Any]) -> str:
    choices = [c for e in events if e != "[DONE]" for c in e.get("choices", ())]
    return "".join(c.get("text") or (c.get("delta") or {}).get("content") or "" for c in choices)


def test_tokens_of_text_and_answer_are_the_tokens_of_both() -> None:
    prompt = "a question"
    answer = text.answer(prompt, 12)
    assert text.encode(prompt + answer) == text.encode(prompt) + text.encode(answer)
    assert text.decode(text.encode(prompt + answer)) == prompt + answer
    assert len(text.encode(answer)) == 12


@synchronous
async def test_answer_is_continued_exactly_from_its_text_and_from_its_ids(tmp_path: Path) -> None:
    running = await started(tmp_path, "vllm")
    whole = said(await running.events("/v1/chat/completions", messages=CHAT, max_tokens=10))
    begun = text.decode(text.encode(whole)[:4])
    turns = [*CHAT, {"role": "assistant", "content": begun}]
    more = {"continue_final_message": True, "add_generation_prompt": False, "max_tokens": 6}
    assert begun + said(await running.events("/v1/chat/completions", messages=turns, **more)) == whole
    prompt = text.rendered(CHAT, open_end=False)  # type: ignore[arg-type]
    ids = text.encode(prompt + begun)
    assert begun + said(await running.events("/v1/completions", prompt=ids, max_tokens=6)) == whole
    assert await ended(running) == 0


@pytest.mark.parametrize("death", ["error", "abort"])
@synchronous
async def test_torn_answer_ends_with_done(tmp_path: Path, death: str) -> None:
    running = await started(tmp_path, "vllm", corpse_s=1.0)
    events = await running.events("/v1/completions", prompt=f"x [[{death} 3]]", max_tokens=9)
    assert events[-1] == "[DONE]"
    assert len(text.encode(said(events))) == 3
    last = events[-2]
    assert ("error" in last) if death == "error" else (last["choices"][0]["finish_reason"] == "abort")
    assert await running.status("/health") == 503 and await running.status("/v1/models") == 200
    assert await running.process.wait() == 1
    await running.session.close()


@synchronous
async def test_resumed_answer_does_not_die_of_the_same_prompt(tmp_path: Path) -> None:
    running = await started(tmp_path, "llamacpp")
    begun = text.answer("x [[cut 3]]", 3)
    events = await running.events("/v1/completions", prompt="x [[cut 3]]" + begun, max_tokens=2)
    assert begun + said(events) == text.answer("x [[cut 3]]", 5)
    with pytest.raises(aiohttp.ClientError):
        await running.events("/v1/completions", prompt="x [[cut 3]]", max_tokens=9)
    assert await ended(running, by_itself=True) == 1


@synchronous
async def test_control_file_ends_it_with_status_zero(tmp_path: Path) -> None:
    control = tmp_path / "control"
    running = await started(tmp_path, "sglang", control=control)
    control.write_text("exit 0")
    assert await ended(running, by_itself=True) == 0
