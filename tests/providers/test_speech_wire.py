"""A recording on OpenAI's wire: the form as it is sent, the answer as it is read, and what is refused before."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from freehold.base.errors import PolicyRefused, UnsupportedModel
from freehold.base.serving import SpeechJob
from freehold.route.providers import upstream
from freehold.route.providers.contract import HOUSE, Abilities, RemoteModel, UpstreamFault
from freehold.route.providers.hop import Hop
from freehold.route.providers.openai.speech import MB, lacks, transcript
from freehold.run.sounds.opening import MeasuredSound
from tests.providers.sending import cleared, provider
from tests.providers.standin import Answer, Fault, StandIn
from tests.providers.standin.openai import form_of

HEARS = Abilities(transcription=True)
WAV = MeasuredSound("WAV", 1.5)


class Kept:
    """A recording in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    async def read(self, at: int, most: int) -> bytes:
        return self.data[at : at + most]


def hear(hopping: Callable[..., Any], standin: StandIn, model: str, job: SpeechJob, **more: Any) -> Any:
    remote = RemoteModel(provider(standin), model, abilities=HEARS)
    places = more.pop("places", (HOUSE, "far"))
    recording, sound = more.pop("recording", Kept(b"RIFF sound")), more.pop("sound", WAV)

    async def work(hop: Hop) -> Any:
        return await upstream.hear(hop, cleared(job, *places), remote, recording, sound, timeout_s=1.0)

    return hopping(work)


def test_a_recording_of_several_pieces_arrives_byte_for_byte(hopping, standin):
    data = bytes(range(256)) * 10_000 + b"\r\n--x--\r\n"
    hear(hopping, standin, "whisper-1", SpeechJob(prompt='a "quoted"\r\nline'), recording=Kept(data))
    (received,) = standin.received
    form = form_of(received.body)
    assert form["file"] == data and form["prompt"] == b'a "quoted"\r\nline'
    assert int(received.headers["content-length"]) == len(received.body)


@pytest.mark.parametrize(
    "form, name", [("WAV", "recording.wav"), ("FLAC", "recording.flac"), ("MP4 or M4A", "recording.m4a")]
)
def test_a_file_has_a_name_of_ours_that_says_its_form(hopping, standin, form, name):
    hear(hopping, standin, "whisper-1", SpeechJob(), sound=MeasuredSound(form, 1.0))
    assert form_of(standin.received[0].body)["filename"] == name


def test_a_form_that_the_provider_does_not_take_is_refused_before_it_is_sent(hopping, standin):
    with pytest.raises(UnsupportedModel, match="does not accept AIFF"):
        hear(hopping, standin, "whisper-1", SpeechJob(), sound=MeasuredSound("AIFF", 1.0))
    assert not standin.received


def test_a_recording_without_clearance_does_not_leave(hopping, standin):
    with pytest.raises(PolicyRefused):
        hear(hopping, standin, "whisper-1", SpeechJob(), places=(HOUSE,))
    assert not standin.received


def test_no_fault_quotes_the_prompt(hopping, standin):
    standin.say.append(Fault("status", 500, "cannot take: Dr. Ada Lovelace of Nowhere"))
    with pytest.raises(UpstreamFault) as caught:
        hear(hopping, standin, "whisper-1", SpeechJob(prompt="Dr. Ada Lovelace of Nowhere"))
    assert caught.value.cause == "server" and "Lovelace" not in caught.value.message


@pytest.mark.parametrize("kind, cause", [("hang", "timeout"), ("cut", "broken"), ("html", "invalid")])
def test_faults_have_the_causes_of_chats(hopping, standin, kind, cause):
    standin.say.append(Fault(kind, at=20, answer=Answer(("A long text.",))))
    with pytest.raises(UpstreamFault) as caught:
        hear(hopping, standin, "whisper-1", SpeechJob())
    assert caught.value.cause == cause


def test_words_are_given_to_their_segments():
    words = [{"word": w, "start": s, "end": s + 0.1} for w, s in (("He", 0.1), ("was", 0.4), ("late", 1.2))]
    segments = [{"start": 0, "end": 1, "text": " He was"}, {"start": 1, "end": 2, "text": " late"}]
    sent = {"text": "He was late", "duration": "2.0", "segments": segments, "words": words}
    answer = transcript(json.dumps(sent).encode(), SpeechJob(words=True), 2.0)
    assert [[w.text for w in each.words] for each in answer.part.segments] == [["He", "was"], ["late"]]
    assert answer.used is not None and answer.used.seconds == 2.0


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"<html>",
        b'{"text": "x", "duration": -1}',
        b'{"text": "x", "duration": 1e300}',
        b'{"text": "x", "segments": [{"start": 2, "end": 1, "text": "x"}]}',
        b'{"text": "x", "usage": {"type": "tokens", "output_tokens": -5}}',
        b'{"text": "x", "usage": {"type": "duration", "seconds": 1e12}}',
    ],
)
def test_an_answer_that_is_no_transcript_is_invalid(body):
    with pytest.raises(UpstreamFault) as caught:
        transcript(body, SpeechJob(), 2.0)
    assert caught.value.cause == "invalid"


def test_what_a_model_lacks_is_said_before_anything_is_sent(standin):
    def lack(model: str, size: int = 10, host: str = "api.openai.com", **job: Any) -> str:
        return lacks(RemoteModel(provider(standin), model, abilities=HEARS), SpeechJob(**job), size, host)

    assert lack("whisper-1", times=True) == lack("whisper-1", task="translate") == ""
    assert "no times" in lack("gpt-4o-transcribe", words=True)
    assert "does not translate" in lack("whisper-large-v3-turbo", task="translate")
    assert "26,214,400" in lack("whisper-1", 25 * MB + 1) and not lack("w", 25 * MB + 1, "api.groq.com")
