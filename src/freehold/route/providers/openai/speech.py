"""OpenAI's transcriptions and translations: a recording becomes a form, its answer a transcript.

OpenAI, Groq and servers that speak the same take the form. A recording's own file name is never sent. Written from
platform.openai.com/docs/api-reference/audio and console.groq.com/docs/speech-to-text, read on 2 December 2026.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from math import isfinite

import msgspec

from freehold.base.errors import UnsupportedModel
from freehold.base.serving import SpeechJob, SpeechPart, SpeechSource
from freehold.base.types import Segment, Word
from freehold.route.providers.contract import (
    Outgoing,
    RemoteModel,
    RentedTranscript,
    SoundUsage,
    SpeechUpload,
)
from freehold.route.providers.faults import check_counts, decoded, invalid

PIECE = 1 << 20  # bytes of a recording that are read and sent at a time
MB = 1 << 20
# By the provider's host: OpenAI's "25 MB", Groq's 100 MB (25 MB without a paid account, which it answers with 413).
MOST_BYTES = {"api.openai.com": 25 * MB, "api.groq.com": 100 * MB}
# A form as run/sounds names it -> the name that a file of it is sent by: providers judge by its end.
FILES = {
    "WAV": "recording.wav",
    "FLAC": "recording.flac",
    "MP3": "recording.mp3",
    "Ogg": "recording.ogg",
    "MP4 or M4A": "recording.m4a",
    "WebM or Matroska": "recording.webm",
}
HEARS = re.compile(r"whisper|transcri", re.IGNORECASE)  # names of models that transcribe
_TIMELESS = re.compile(r"^gpt-", re.IGNORECASE)  # answer json alone: a text without times
_ONE_LANGUAGE = re.compile(r"^gpt-|turbo|distil|\.en$|-en$", re.IGNORECASE)  # do not translate
MOST_S = 1e6  # seconds that a time in an answer may have


class _SentWord(msgspec.Struct, gc=False):
    word: str
    start: float
    end: float


class _SentSegment(msgspec.Struct, gc=False):
    start: float
    end: float
    text: str
    tokens: tuple[int, ...] = ()
    temperature: float | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None


class _TokenKinds(msgspec.Struct):
    audio_tokens: int = 0
    text_tokens: int = 0


class _SentUsage(msgspec.Struct):
    type: str = ""
    seconds: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    input_token_details: _TokenKinds | None = None


class _SentTranscript(msgspec.Struct):
    text: str
    language: str | None = None
    duration: float | None = None
    segments: list[_SentSegment] | None = None
    words: list[_SentWord] | None = None
    usage: _SentUsage | None = None


_TRANSCRIPT = msgspec.json.Decoder(_SentTranscript, strict=False)  # OpenAI has sent `duration` as a string


def lacks(remote: RemoteModel, job: SpeechJob, size: int, host: str) -> str:
    """Return what a recording needs and a model cannot do; "" for nothing. `size`: its bytes."""
    if not remote.abilities.transcription:
        return "transcribes no recordings"
    if job.task == "translate" and _ONE_LANGUAGE.search(remote.model):
        return "does not translate"
    if (job.times or job.words) and _TIMELESS.search(remote.model):
        return "returns no times: it supports only json and text"
    most = MOST_BYTES.get(host, 0)
    if most and size > most:
        return f"takes recordings of at most {most:,} bytes, and this one has {size:,}"
    return ""


async def pieces_of(recording: SpeechSource) -> AsyncIterator[bytes]:
    """Yield a recording's bytes, PIECE at a time; they end early where the recording does."""
    at = 0
    while at < recording.size and (piece := await recording.read(at, min(PIECE, recording.size - at))):
        at += len(piece)
        yield piece


def transcription(remote: RemoteModel, job: SpeechJob, recording: SpeechSource, form: str) -> Outgoing:
    """Return the request for a recording of a form as run/sounds names it. Raises UnsupportedModel for other forms."""
    name = FILES.get(form)
    if name is None:
        raise UnsupportedModel(
            f"{remote.model} does not accept {form}", "convert the recording to FLAC or WAV"
        )
    fields = [("model", remote.model)]
    if _TIMELESS.search(remote.model):
        fields.append(("response_format", "json"))
    else:
        fields.append(("response_format", "verbose_json"))
        if job.words:  # OpenAI translates without times of words
            fields += [("timestamp_granularities[]", each) for each in ("segment", "word")]
    if job.language and job.task == "transcribe":
        fields.append(("language", job.language))
    if job.prompt:
        fields.append(("prompt", job.prompt))
    if job.temperature is not None:
        fields.append(("temperature", f"{job.temperature:g}"))
    boundary = secrets.token_hex(24)  # drawn after the fields are known, so that none of them can hold it
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in fields
    )
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
    before = f"{head}Content-Type: application/octet-stream\r\n\r\n".encode()
    after = f"\r\n--{boundary}--\r\n".encode()

    async def pieces() -> AsyncIterator[bytes]:
        yield before
        async for piece in pieces_of(recording):
            yield piece
        yield after

    path = "/audio/translations" if job.task == "translate" else "/audio/transcriptions"
    upload = SpeechUpload(len(before) + recording.size + len(after), pieces)
    return Outgoing(path, b"", {"Content-Type": f"multipart/form-data; boundary={boundary}"}, upload=upload)


def transcript(body: bytes, job: SpeechJob, duration_s: float) -> RentedTranscript:
    """Read an answer; `duration_s`: of the recording. Raises UpstreamFault for anything but a transcript."""
    sent = decoded(_TRANSCRIPT, body, "no transcript")
    for each in (*(sent.segments or ()), *(sent.words or ())):
        if not (isfinite(each.start) and isfinite(each.end) and 0 <= each.start <= each.end <= MOST_S):
            raise invalid("times that no recording has")
    segments = _segments(sent, duration_s)
    language = "en" if job.task == "translate" else job.language or (sent.language or "").lower()[:32]
    part = SpeechPart(segments, (0.0,), duration_s, language)
    return RentedTranscript(part, _used(sent))


def _segments(sent: _SentTranscript, duration_s: float) -> tuple[Segment, ...]:
    words = [Word(each.word, each.start, each.end) for each in sent.words or ()]
    if not sent.segments:
        text = sent.text.strip()
        return (Segment(0.0, duration_s, text, words=tuple(words)),) if text else ()
    segments, at = list[Segment](), 0
    for number, each in enumerate(sent.segments, 1):
        first = at
        while at < len(words) and (number == len(sent.segments) or words[at].start < each.end):
            at += 1
        segments.append(_segment(each, words[first:at]))
    return tuple(segments)


def _segment(each: _SentSegment, words: Sequence[Word]) -> Segment:
    return Segment(
        each.start,
        each.end,
        each.text.strip(),
        each.tokens,
        each.temperature or 0.0,
        each.avg_logprob or 0.0,
        each.compression_ratio or 0.0,
        each.no_speech_prob or 0.0,
        tuple(words),
    )


def _used(sent: _SentTranscript) -> SoundUsage | None:
    """Return what was counted. whisper-1 counts seconds, gpt-4o-transcribe tokens, others only say the duration."""
    usage = sent.usage
    if usage is None or (usage.type == "duration" and not usage.seconds):
        seconds = sent.duration or 0.0
        _check_seconds(seconds)
        return SoundUsage(seconds) if seconds else None
    if usage.type == "duration":
        _check_seconds(usage.seconds)
        return SoundUsage(usage.seconds)
    kinds = usage.input_token_details or _TokenKinds(usage.input_tokens)
    check_counts(kinds.audio_tokens, kinds.text_tokens, usage.output_tokens)
    return SoundUsage(0.0, kinds.audio_tokens, kinds.text_tokens, usage.output_tokens)


def _check_seconds(seconds: float) -> None:
    """Raise UpstreamFault for seconds that no recording has: the ledger would take them for money."""
    if not 0 <= seconds <= MOST_S:
        raise invalid("seconds that no recording has")
