"""OpenAI's audio routes with a real engine process and a tiny Whisper: over HTTP, the socket, and back."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from freehold.base.config import Settings
from freehold.base.errors import Overloaded, UsageError
from freehold.base.serving import SpeechJob
from freehold.run.local.served_speech import OpenSamples, PartTurns, TakenSamples, open_served_speech
from freehold.run.local.speech import load_speech
from freehold.run.local.transcribing import RATE
from freehold.run.sounds import opening
from freehold.run.store import ModelRef, Store
from freehold.serve.http.core.sockets import bind_tcp
from freehold.serve.http.serve import Doors, ServerSettings
from freehold.serve.worker.models import EngineModels
from tests.http.conftest import TOKEN
from tests.http.test_streams import eventually
from tests.vectors.whisper import write_listener

CLIP = (Path(__file__).parents[1] / "sounds" / "austen-0880.wav").read_bytes()
PAUSE_S = 12.0


def minute() -> bytes:
    """A minute of the clip with pauses between, as a WAV: several chunks, which become several parts."""
    samples = np.frombuffer(CLIP[44:], "<i2")
    pause = np.zeros(int(PAUSE_S * RATE), np.int16)
    whole = np.concatenate([np.concatenate([samples] * 6 + [pause])] * 4).tobytes()
    return (
        CLIP[:4]
        + (36 + len(whole)).to_bytes(4, "little")
        + CLIP[8:40]
        + len(whole).to_bytes(4, "little")
        + whole
    )


class Real:
    """A server with the tiny Whisper, and how to reach it."""

    def __init__(self, folder: Path, languages: tuple[str, ...] = ()) -> None:
        up, started = threading.Event(), list[Any]()
        whisper = write_listener(folder / "whisper", languages=languages)
        files = tuple(whisper.glob("*.safetensors"))
        self.ref = ModelRef("ear", whisper, "safetensors", "", files[0].stat().st_size, "user", "", "", files)

        async def main() -> None:
            models = EngineModels(Store(Settings(folder / "home", offline=True)), paths={"ear": self.ref})
            doors = Doors(models, ServerSettings(drain_s=0.5, owner=TOKEN, home=folder))
            started.extend((doors, models, asyncio.get_running_loop()))
            await doors.open(bind_tcp("127.0.0.1", 0), opened=up.set)

        self.thread = threading.Thread(target=asyncio.run, args=(main(),))
        self.thread.start()
        assert up.wait(60)
        self.doors, self.models, self.loop = started
        self.client = openai.OpenAI(base_url=f"{self.doors.url}/v1", api_key="none", max_retries=0)

    def text(self, sound: bytes = CLIP, **more: Any) -> Any:
        return self.client.audio.transcriptions.create(file=sound, model="ear", **more)

    @property
    def row(self) -> Any:
        return next(each for each in self.models.loaded() if each.name == "ear")

    def end(self) -> None:
        self.client.close()
        self.loop.call_soon_threadsafe(lambda: self.doors.stop(now=True))
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    running = Real(tmp_path_factory.mktemp("ears"))
    yield running
    running.end()


pytestmark = pytest.mark.heavy


def test_the_server_s_text_is_the_library_s(real: Real):
    with load_speech(real.ref, threads=1) as speech:
        expected = speech.transcribe(CLIP, words=True)
    got = real.text(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert got.text == expected.text and got.duration == round(expected.duration_s, 3)
    assert [(s.text.strip(), s.tokens) for s in got.segments] == [
        (each.text, list(each.tokens)) for each in expected.segments
    ]
    words = [word for each in expected.segments for word in each.words]
    assert [w.word for w in got.words or []] == [word.text for word in words]


def test_an_engine_that_is_killed_is_begun_again_with_the_chunks_that_are_left(real: Real):
    sound = minute()
    whole = real.text(sound)
    assert whole.to_dict()["freehold"]["chunks"] >= 3
    restarts, texts, killed = real.row.restarts, list[str](), False
    for event in real.text(sound, stream=True):
        texts.append(event.text if event.type == "transcript.text.done" else event.delta)
        if not killed:
            os.kill(real.row.pid, signal.SIGKILL)
            killed = True
    assert real.row.restarts == restarts + 1
    assert "".join(texts[:-1]) == texts[-1] == whole.text


def test_a_client_that_leaves_lets_the_engine_rest(real: Real):
    stream = real.text(minute(), stream=True)
    next(iter(stream))
    stream.close()
    assert eventually(lambda: real.models._handles["ear"].idle)
    assert real.text().text


def test_chats_with_it_are_refused_by_name(real: Real):
    with pytest.raises(openai.BadRequestError, match="ear only transcribes recordings"):
        real.client.chat.completions.create(model="ear", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="ear only transcribes recordings"):
        real.client.embeddings.create(model="ear", input="hi")


@pytest.mark.parametrize(
    "sound, more, words",
    [
        (b"nonsense", {}, "known audio format"),
        (CLIP, {"language": "de"}, "'de' is not one of the model's: en"),
    ],
)
def test_what_it_cannot_hear_is_400(real: Real, sound: bytes, more: dict[str, Any], words: str):
    with pytest.raises(openai.BadRequestError, match=words):
        real.text(sound, **more)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_an_english_model_refuses_to_translate(real: Real):
    with pytest.raises(openai.BadRequestError, match="does not translate"):
        real.client.audio.translations.create(file=CLIP, model="ear")


@pytest.mark.parametrize("seconds", [0.0, 0.05, 2.0])
def test_silence_is_an_empty_text(real: Real, seconds: float):
    zeros = bytes(2 * int(seconds * RATE))
    silent = CLIP[:40] + len(zeros).to_bytes(4, "little") + zeros
    verbose = real.text(silent, response_format="verbose_json")
    assert (verbose.text, verbose.segments, verbose.duration) == ("", [], seconds)
    assert [e.type for e in real.text(silent, stream=True)] == ["transcript.text.done"]


def test_it_is_listed_with_its_capability(real: Real):
    card = real.client.models.retrieve("ear").to_dict()
    assert card["freehold"]["capabilities"] == ["transcription"]  # type: ignore[index]


def test_a_job_s_bounds_are_checked_in_the_engine_too(real: Real):
    served = open_served_speech(real.ref, threads=1)
    try:
        for job, words in (
            (SpeechJob(most_s=1.0), "has 3 seconds; the limit is 1"),
            (SpeechJob(prompt="x" * 20_000), "20,000 characters"),
            (SpeechJob(temperature=2.0), "temperature is 2.0"),
            (SpeechJob(language="x" * 100), "100 characters"),
        ):
            with pytest.raises(UsageError, match=words):
                served.listen(CLIP, job, 0)
    finally:
        served.close()


def test_samples_count_up_to_a_limit():
    samples = OpenSamples(100)
    first, second, third = (TakenSamples(samples) for _ in range(3))
    first.take(500)  # alone it may be any length
    with pytest.raises(Overloaded, match="are open at a time"):
        second.take(1)
    first.close()
    first.close()
    second.take(60)
    third.take(40)
    with pytest.raises(Overloaded):
        second.take(61)
    second.take(50)  # fewer are always right
    third.take(50)


def test_a_recording_beyond_what_may_be_open_is_refused_before_it_is_decoded(real: Real, monkeypatch):
    """Three of four hours were decoded, 5.5 GB, before the third was refused."""
    served = open_served_speech(real.ref, threads=1)
    served._samples = OpenSamples(5 * RATE)
    try:
        first = served.listen(CLIP, SpeechJob(), 0)
        monkeypatch.setattr(opening, "resampled_pieces", lambda *_: pytest.fail("it was decoded"))
        with pytest.raises(Overloaded, match="are open at a time"):
            served.listen(CLIP, SpeechJob(), 0)
        monkeypatch.undo()
        first.close()
        served.listen(minute(), SpeechJob(), 0).close()
        with pytest.raises(UsageError):
            served.listen(b"nonsense", SpeechJob(), 0)
        assert served._samples._open == 0
    finally:
        served.close()


def test_ten_recordings_at_once_have_the_texts_that_each_has_alone(real: Real):
    samples, sounds = CLIP[44:], list[bytes]()
    for i in range(10):
        part = samples[3200 * i :] * (1 + i % 3)
        sounds.append(CLIP[:40] + len(part).to_bytes(4, "little") + part)
    alone = [real.text(sound).text for sound in sounds]
    assert len({*alone}) > 5, "they differ"
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(lambda sound: real.text(sound).text, sounds)) == alone


def test_parts_go_to_the_client_whose_last_one_was_longest_ago():
    turns, order = PartTurns(), list[str]()

    def one(client: str) -> None:
        with turns.mine(client, lambda: None):
            order.append(client)

    with ThreadPoolExecutor(8) as pool, turns.mine("a", lambda: None):
        for count, client in enumerate(("a", "a", "a", "b", "b", "c"), 1):
            pool.submit(one, client)
            assert eventually(lambda count=count: len(turns._waiting) == count)
    assert order == ["b", "c", "a", "b", "a", "a"]


def test_who_waits_for_a_part_no_longer_leaves_it_to_others():
    turns = PartTurns()

    def leaves() -> None:
        raise KeyboardInterrupt

    with turns.mine("a", lambda: None), pytest.raises(KeyboardInterrupt), turns.mine("b", leaves):
        pytest.fail("it had a turn")
    with turns.mine("a", leaves):
        assert turns._waiting == []
