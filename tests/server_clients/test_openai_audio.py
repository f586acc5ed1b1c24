"""More than thirty checks by the `openai` client's audio calls as they are, against a real engine with a tiny Whisper.

The model knows three languages; its texts are no language, so the checks compare them with each other. Source: the
fields and types of the client, version 2, and OpenAI's reference of both routes.
"""

from __future__ import annotations

import asyncio
import io
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
    Translation,
    TranslationVerbose,
)

from tests.http.test_audio_real import CLIP, Real, minute
from tests.sounds.flac_files import FlacShape, flac
from tests.sounds.test_hostile import written

Check = Callable[[Real], None]
CHECKS: dict[str, Check] = {}
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning"),  # of `translations`
]
SECONDS = len(CLIP[44:]) / 32_000
TIME = re.compile(r"(\d\d):(\d\d):(\d\d)[,.](\d\d\d)")


def check(function: Check) -> Check:
    """Count a function among the checks."""
    CHECKS[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    running = Real(tmp_path_factory.mktemp("ears"), languages=("en", "de", "fr"))
    yield running
    running.end()


def refused(real: Real, param: str, words: str, sound: Any = CLIP, **more: Any) -> None:
    """Assert that a call is answered with 400 and a message that names its field."""
    with pytest.raises(openai.BadRequestError) as error:
        real.text(sound, **more)
    body = error.value.body
    assert isinstance(body, dict) and body["param"] == param and words in body["message"], body


def translated(real: Real, **more: Any) -> Any:
    return real.client.audio.translations.create(file=CLIP, model="ear", **more)


def cues(subtitles: str) -> list[tuple[float, float, str]]:
    """Return begin, end and text of each cue."""
    parsed = list[tuple[float, float, str]]()
    for block in subtitles.split("\n\n"):
        lines = [line for line in block.splitlines() if line]
        at = next((i for i, line in enumerate(lines) if " --> " in line), None)
        if at is not None:
            begin, end = (
                sum(int(each) * unit for each, unit in zip(m.groups(), (3600, 60, 1, 0.001), strict=True))
                for m in TIME.finditer(lines[at])
            )
            parsed.append((begin, end, " ".join(lines[at + 1 :])))
    return parsed


# --- formats -------------------------------------------------------------------------------------------


@check
def json_is_the_default(real: Real) -> None:
    answer = real.text()
    assert type(answer) is Transcription and answer.text == real.text(response_format="json").text != ""


@check
def usage_is_the_duration_in_whole_seconds(real: Real) -> None:
    usage = real.text().usage
    assert (usage.type, usage.seconds) == ("duration", math.ceil(SECONDS))


@check
def text_is_the_text_alone(real: Real) -> None:
    assert real.text(response_format="text") == real.text().text + "\n"


@check
def srt_has_numbered_cues_in_order(real: Real) -> None:
    srt = real.text(minute(), response_format="srt")
    numbers = [int(block.splitlines()[0]) for block in srt.strip().split("\n\n")]
    assert numbers == [*range(1, len(numbers) + 1)] and "," in srt.splitlines()[1]
    begins = [begin for begin, _, _ in cues(srt)]
    assert begins == sorted(begins) and len(numbers) > 2
    assert all(begin < end for begin, end, _ in cues(srt))


@check
def vtt_has_the_cues_of_srt(real: Real) -> None:
    vtt = real.text(minute(), response_format="vtt")
    assert vtt.startswith("WEBVTT\n\n")
    srt = cues(real.text(minute(), response_format="srt"))
    assert [each[:2] for each in cues(vtt)] == [each[:2] for each in srt]


@check
def verbose_json_has_language_duration_and_segments(real: Real) -> None:
    verbose = real.text(minute(), response_format="verbose_json", language="en")
    assert type(verbose) is TranscriptionVerbose and verbose.language == "english"
    assert verbose.usage.seconds == math.ceil(verbose.duration) and verbose.to_dict()["task"] == "transcribe"
    assert [each.id for each in verbose.segments] == [*range(len(verbose.segments))]
    assert "".join(each.text for each in verbose.segments).strip() == verbose.text
    for each in verbose.segments:
        assert 0 <= each.seek / 100 <= each.start < each.end and each.tokens
        assert each.end <= verbose.duration + 0.02
        assert each.avg_logprob < 0 < each.compression_ratio and 0 <= each.no_speech_prob <= 1


@check
def segments_can_be_requested_alone(real: Real) -> None:
    verbose = real.text(response_format="verbose_json", timestamp_granularities=["segment"])
    assert verbose.segments and verbose.words is None


@check
def words_can_be_requested_alone(real: Real) -> None:
    verbose = real.text(response_format="verbose_json", timestamp_granularities=["word"])
    assert verbose.words and verbose.segments is None
    begins = [each.start for each in verbose.words]
    assert begins == sorted(begins) and all(e.start <= e.end <= verbose.duration for e in verbose.words)


@check
def words_and_segments_come_together(real: Real) -> None:
    verbose = real.text(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert verbose.words and verbose.segments


@check
def times_of_words_need_verbose_json(real: Real) -> None:
    refused(real, "timestamp_granularities", "verbose_json", timestamp_granularities=["word"])


@check
def speakers_are_refused_by_name(real: Real) -> None:
    refused(real, "response_format", "diarized_json", response_format="diarized_json")
    refused(real, "known_speaker_names", "speakers", known_speaker_names=["ann"])
    refused(
        real, "known_speaker_references", "speakers", known_speaker_references=["data:audio/wav;base64,AA=="]
    )


# --- what changes a text -------------------------------------------------------------------------------


@check
def a_prompt_changes_the_text_and_is_not_repeated(real: Real) -> None:
    one, other = real.text(prompt="Ada Lovelace"), real.text(prompt="Charles Babbage wrote")
    assert one.text != other.text and "Lovelace" not in one.text
    assert real.text(prompt="Ada Lovelace").text == one.text


@check
def a_temperature_is_used_and_reported(real: Real) -> None:
    verbose = real.text(response_format="verbose_json", temperature=0.4)
    assert {each.temperature for each in verbose.segments} == {0.4}


@check
def a_temperature_of_zero_rises_until_the_text_is_good(real: Real) -> None:
    """The tiny model's texts fail at each temperature; OpenAI documents that 0 raises it."""
    verbose = real.text(response_format="verbose_json", temperature=0)
    assert verbose.text == real.text().text
    assert {each.temperature for each in verbose.segments} <= {0, 0.2, 0.4, 0.6, 0.8, 1}


@check
def a_temperature_above_one_is_refused(real: Real) -> None:
    refused(real, "temperature", "1.5", temperature=1.5)


@check
def the_language_is_that_of_the_request(real: Real) -> None:
    verbose = real.text(response_format="verbose_json", language="de")
    assert verbose.language == "german" and verbose.text != real.text(language="fr").text


@check
def a_language_is_detected(real: Real) -> None:
    verbose = real.text(response_format="verbose_json")
    codes = {"english": "en", "german": "de", "french": "fr"}
    assert verbose.text == real.text(language=codes[verbose.language]).text


@check
def an_unknown_language_is_refused_with_those_that_are_known(real: Real) -> None:
    refused(real, "language", "de, en, fr", language="xx")


@check
def speech_is_split_at_pauses_by_either_strategy(real: Real) -> None:
    expected = real.text().text
    assert real.text(chunking_strategy="auto").text == expected
    assert real.text(chunking_strategy={"type": "server_vad"}).text == expected


@check
def log_probabilities_of_tokens_are_refused_by_name(real: Real) -> None:
    refused(real, "include", "logprobs", include=["logprobs"])


# --- events --------------------------------------------------------------------------------------------


@check
def a_stream_has_deltas_and_the_whole_text_at_the_end(real: Real) -> None:
    sound = minute()
    *deltas, done = real.text(sound, stream=True)
    assert len(deltas) > 2 and all(type(each) is TranscriptionTextDeltaEvent for each in deltas)
    assert type(done) is TranscriptionTextDoneEvent
    assert "".join(each.delta for each in deltas) == done.text == real.text(sound).text


@check
def a_stream_that_is_left_makes_room_for_the_next(real: Real) -> None:
    with real.text(minute(), stream=True) as stream:
        next(iter(stream))
    assert [*real.text(stream=True)][-1].text == real.text().text


@check
def a_stream_of_subtitles_is_refused(real: Real) -> None:
    refused(real, "stream", "srt", response_format="srt", stream=True)


# --- translations --------------------------------------------------------------------------------------


@check
def a_translation_is_json_by_default(real: Real) -> None:
    answer = translated(real)
    assert type(answer) is Translation and answer.text


@check
def a_translation_is_english_whatever_was_heard(real: Real) -> None:
    verbose = translated(real, response_format="verbose_json")
    assert type(verbose) is TranslationVerbose and verbose.language == "english"
    assert verbose.segments and verbose.to_dict()["task"] == "translate"


@check
def a_translation_comes_as_text_and_subtitles_too(real: Real) -> None:
    text = translated(real, response_format="text")
    assert text == translated(real).text + "\n"
    srt, vtt = (translated(real, response_format=form) for form in ("srt", "vtt"))
    assert [each[:2] for each in cues(srt)] == [each[:2] for each in cues(vtt)] != []


# --- files ---------------------------------------------------------------------------------------------


@check
def a_file_may_be_bytes_a_path_or_open(real: Real) -> None:
    path = Path(__file__).parents[1] / "sounds" / "austen-0880.wav"
    with path.open("rb") as file:
        forms = [path, file, io.BytesIO(CLIP), ("talk.wav", CLIP), ("talk", CLIP, "audio/wav")]
        assert {real.text(form).text for form in forms} == {real.text().text}


@check
def every_documented_form_is_read(real: Real) -> None:
    samples = np.frombuffer(CLIP[44:], "<i2")
    speech = samples / 32768.0
    forms = {
        "flac": flac(samples[:, None].astype(np.int64), shape=FlacShape(parameter=8)),
        "wav": CLIP,
        "mp3": written(speech, "mp3", "libmp3lame"),
        "mp4": written(speech, "mp4", "aac"),
        "m4a": written(speech, "ipod", "aac"),
        "ogg": written(speech, "ogg", "libopus", rate=48_000),
        "webm": written(speech, "webm", "libopus", rate=48_000),
    }
    forms |= {"mpeg": forms["mp3"], "mpga": forms["mp3"]}
    for suffix, data in forms.items():
        verbose = real.text((f"talk.{suffix}", data), response_format="verbose_json")
        assert verbose.text and abs(verbose.duration - SECONDS) < 0.1, suffix
    assert real.text(("talk.mp3", forms["flac"])).text == real.text().text, "a suffix means nothing"


@check
def what_is_not_a_recording_is_refused(real: Real) -> None:
    refused(real, "file", "known audio format", sound=b"nonsense")
    refused(real, "file", "empty", sound=("empty.wav", b""))


# --- the client's other ways -----------------------------------------------------------------------


@check
def an_unknown_model_is_not_found(real: Real) -> None:
    with pytest.raises(openai.NotFoundError, match="whisper-9"):
        real.client.audio.transcriptions.create(file=CLIP, model="whisper-9")


@check
def an_unknown_field_is_named_in_a_warning(real: Real) -> None:
    answer = real.text(extra_body={"langauge": "de"}).to_dict()
    assert "did you mean language" in answer["freehold"]["warnings"][0]


@check
def raw_and_streamed_responses_have_their_headers(real: Real) -> None:
    calls = real.client.audio.transcriptions
    raw = calls.with_raw_response.create(file=CLIP, model="ear")
    assert raw.headers["content-type"] == "application/json" and raw.headers["x-request-id"]
    assert raw.parse().text == real.text().text
    with calls.with_streaming_response.create(file=CLIP, model="ear", response_format="vtt") as streamed:
        assert streamed.headers["content-type"].startswith("text/plain")
        assert "".join(streamed.iter_text()) == real.text(response_format="vtt")


@check
def the_asynchronous_client_does_the_same(real: Real) -> None:
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{real.doors.url}/v1", api_key="none") as client:
            create = client.audio.transcriptions.create
            whole, stream = await asyncio.gather(
                create(file=CLIP, model="ear"), create(file=CLIP, model="ear", stream=True)
            )
            return whole.text, [each async for each in stream][-1].text

    assert asyncio.run(both()) == (real.text().text,) * 2


@pytest.mark.parametrize("name", CHECKS)
def test_the_client_s_call(real: Real, name: str):
    CHECKS[name](real)


def test_there_are_thirty_checks_or_more():
    assert len(CHECKS) >= 30
