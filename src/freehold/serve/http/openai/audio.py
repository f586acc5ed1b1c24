"""POST /v1/audio/transcriptions and /v1/audio/translations: a recording in a form, its text as JSON, text or subtitles.

The recording is spooled to a file that has no name, and read from there by the engine process. Knows OpenAI's fields
and shapes; knows no form of sound. A file's name is never opened, kept or logged.
"""

from __future__ import annotations

import asyncio
import bisect
import math
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, cast

import msgspec
from msgspec import Meta, Struct

from freehold.base import private
from freehold.base.errors import Overloaded, SlowReader
from freehold.base.serving import ModelHandle, SpeechFacts, SpeechJob, SpeechPart
from freehold.base.types import Segment, Transcript
from freehold.serve.http.core.answering import EventStream
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import MAX_WARNINGS, Name, Share, doc, hearing, seconds, unknown
from freehold.serve.http.core.forms import Spool, Spools, UploadForm, read_form
from freehold.serve.http.core.limits import Gone, typed
from freehold.serve.http.core.metrics import PerModel
from freehold.serve.http.core.problems import Refused, openai_error, problem
from freehold.serve.http.openai.shape import DONE
from freehold.serve.reports.transcripts import as_srt, as_vtt

MAX_PARTS = 32  # of a form: lists have one for each entry
FORM_BYTES = 256 << 10  # of a form beside its file
SEGMENT = 1000  # bytes of a segment in a long answer, with the times of its words
TIMED = ("srt", "vtt", "verbose_json")  # formats that send times on
PLAIN = b"text/plain; charset=utf-8"

ResponseFormat = Literal["json", "text", "srt", "verbose_json", "vtt"]


class TranslationRequest(Struct, kw_only=True):
    """POST /v1/audio/translations: a recording to translate into English; a form with these fields and `file`."""

    model: Annotated[Name, doc("A speech model's name.")]
    prompt: Annotated[
        Annotated[str, Meta(max_length=4096)] | None,
        doc("Names and spellings to expect. It is not repeated."),
    ] = None
    response_format: Annotated[
        ResponseFormat | None, doc("`json` (default), `verbose_json`, plain `text`, or subtitles.")
    ] = None
    temperature: Annotated[
        Share | None,
        doc(
            "0 (default): the most probable words, and a higher temperature if a text repeats itself or is "
            "improbable."
        ),
    ] = None
    keep_alive: Annotated[float | str | None, doc("How long the model stays in memory afterwards.")] = None


class TranscriptionRequest(TranslationRequest, kw_only=True):
    """POST /v1/audio/transcriptions: a recording to transcribe; a form with these fields and `file`."""

    language: Annotated[
        Annotated[str, Meta(max_length=32)] | None,
        doc("A code such as `en`. Default: detected from the first speech."),
    ] = None
    timestamp_granularities: Annotated[
        list[Literal["word", "segment"]] | None,
        doc("With `verbose_json`: the times of segments (default), of words, or of both."),
    ] = None
    stream: Annotated[
        bool | None, doc("Send texts as events as soon as they are transcribed; with `json` and `text`.")
    ] = None
    chunking_strategy: Annotated[
        str | dict[str, Any] | None,
        doc(
            '`auto` or `{"type": "server_vad"}`: the server always detects speech first and splits it at pauses.'
        ),
    ] = None
    include: Annotated[list[str] | None, doc("No further fields are supported.")] = None


async def transcriptions(call: HttpCall) -> None:
    """Transcribe a recording."""
    await _transcribe(call, TranscriptionRequest, "transcribe")


async def translations(call: HttpCall) -> None:
    """Transcribe a recording and translate it into English."""
    await _transcribe(call, TranslationRequest, "translate")


async def _transcribe(
    call: HttpCall, kind: type[TranslationRequest], task: Literal["transcribe", "translate"]
) -> None:
    call.fields = {name: name for name in ("file", "language", "prompt", "temperature")}
    folder = await call.in_thread(_folder, call.server.home)
    spool = await asyncio.to_thread(_spool, folder)
    try:
        with _counted(call) as counted:
            with call.server.uploads.into(folder, call.headers) as coming:
                form = await _form(call, spool, lambda more: (counted.came(more), coming.came(more)))
            await asyncio.to_thread(spool.flush)
            request, warnings = _read(form, kind)
            call.work.model = request.model
            recording = SpooledRecording(spool.fileno(), form.bytes)
            transcribing = Transcribing(call, request, recording, _job(call, request, task), warnings)
            await (transcribing.stream() if getattr(request, "stream", None) else transcribing.whole())
    finally:  # in a thread: the system frees the pages of a file without a name when it is closed
        asyncio.get_running_loop().run_in_executor(None, spool.close)


# --- the form ------------------------------------------------------------------------------------------


class SpooledRecording:
    """A recording in a file that is open and has no name. Implements serving.SpeechSource."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd, self.size = fd, size

    async def read(self, at: int, most: int) -> bytes:
        """Return up to `most` bytes from `at` on."""
        return await asyncio.to_thread(os.pread, self._fd, most, at)


def _folder(home: Path | None) -> Path:
    """Return where recordings are spooled: beside the server's other files, which are on a disk."""
    return Path(tempfile.gettempdir()) if home is None else private.folder(home / "serve" / "sounds")


def _spool(folder: Path) -> BinaryIO:
    """Open a file without a name; the caller closes it."""
    return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))


def _counted(call: HttpCall) -> AbstractContextManager[Spool]:
    """Count a recording among those on the disk. Raises Refused: 413 for one too long, 429 beside too many."""
    limits, digits = call.server.limits, call.headers.get(b"content-length", b"")
    stated = int(digits[:20]) if digits.isdigit() else 0
    if stated > limits.sound_bytes + FORM_BYTES:
        raise _too_long(stated, limits.sound_bytes)
    spools: Spools = call.server.parts.setdefault(Spools, Spools())
    return spools.of(call.caller, stated, limits)


async def _form(call: HttpCall, spool: BinaryIO, came: Callable[[int], object]) -> UploadForm:
    """Spool the form's file as it comes. Raises Refused: 413 for one too long, 400 for what is not a form."""
    most, size = call.server.limits.sound_bytes, 0

    def counted(more: int) -> None:
        nonlocal size
        size += more
        if size > most + FORM_BYTES:
            raise _too_long(size, most)
        came(more)

    pieces = call.pieces(2 * (most + FORM_BYTES))  # `counted` says it in words of a recording
    kind = call.headers.get(b"content-type", b"")
    form = await read_form(kind, pieces, spool, counted, apart=call.in_thread, most=MAX_PARTS)
    if form.filename is None:
        raise Refused(400, "file is missing", param="file", code="missing_required_parameter")
    if not form.bytes:
        raise Refused(400, "the file is empty", param="file", code="invalid_value")
    if form.bytes > most:
        raise _too_long(form.bytes, most)
    return form


def _too_long(size: int, most: int) -> Refused:
    return Refused(
        413,
        f"the recording has {size:,} bytes or more; the limit is {most:,}: send it as FLAC, Opus or MP3, or cut it "
        "into several",
        param="file",
        code="body_too_large",
        headers=((b"connection", b"close"),),
    )


_LISTS, _FLAGS = ("timestamp_granularities", "include"), {"true": True, "1": True, "false": False, "0": False}
# Fields of OpenAI's that ask for what is not built here, and what is missing.
_MISSING = {
    "known_speaker_names": "speakers are not distinguished",
    "known_speaker_references": "speakers are not distinguished",
    "keywords": "words cannot be weighted; `prompt` takes names and spellings to expect",
    "languages": "a recording is transcribed in one language: send it as `language`, or leave it out",
}


def _read(form: UploadForm, kind: type[TranslationRequest]) -> tuple[TranslationRequest, list[str]]:
    """Return the form's fields, and warnings of those that mean nothing. Raises Refused (400) that names a field."""
    plain, warnings = dict[str, Any](), list[str]()
    for full, values in form.values.items():
        name, _, inner = full.partition("[")
        if name in _MISSING:
            raise _unsupported(name, _MISSING[name])
        if name not in kind.__struct_fields__:
            if len(warnings) < MAX_WARNINGS:
                warnings.append(unknown(name, kind.__struct_fields__))
        elif inner.rstrip("]"):
            plain[name] = {**_object(plain.get(name)), inner.rstrip("]"): values[-1]}
        else:
            plain[name] = _value(name, values)
    if plain.get("response_format") == "diarized_json":
        raise _unsupported("response_format", "diarized_json is not made: speakers are not distinguished")
    request = typed(plain, kind)
    if isinstance(request, TranscriptionRequest):
        _check(request)
    return request, warnings


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _value(name: str, values: Sequence[str]) -> Any:
    """Return a form's text as the type that a field has."""
    text = values[-1]
    if name in _LISTS:
        return [*values]
    if name == "stream":
        return _FLAGS.get(text.lower(), text)
    if name == "temperature":
        try:
            return float(text)
        except ValueError:
            return text
    if name == "chunking_strategy" and text.startswith("{"):
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return text
    return text


def _check(request: TranscriptionRequest) -> None:
    """Refuse fields that contradict each other, and what is not built."""
    shape = request.response_format or "json"
    if request.timestamp_granularities and shape != "verbose_json":
        raise Refused(
            400,
            f"timestamp_granularities needs response_format verbose_json; it is {shape}",
            param="timestamp_granularities",
            code="invalid_value",
        )
    if request.stream and shape not in ("json", "text"):
        raise Refused(
            400,
            f"stream returns only text, but response_format is {shape}; expected json or text, or no stream",
            param="stream",
            code="invalid_value",
        )
    if request.include:
        raise _unsupported(
            "include",
            f"{request.include[0][:60]!r} is not kept; verbose_json has avg_logprob of each segment",
        )
    strategy = request.chunking_strategy
    kind = strategy.get("type") if isinstance(strategy, dict) else strategy
    if kind not in (None, "auto", "server_vad"):
        raise Refused(
            400,
            f"chunking_strategy is {str(kind)[:60]!r}; expected auto or server_vad",
            param="chunking_strategy",
            code="invalid_value",
        )
    if isinstance(strategy, dict) and (fixed := sorted(strategy.keys() - {"type"})):
        raise _unsupported("chunking_strategy", f"{fixed[0][:60]} cannot be set: send only type")


def _unsupported(name: str, why: str) -> Refused:
    return Refused(
        400, f"{name} is not supported by this server: {why}", param=name, code="unsupported_parameter"
    )


def _job(call: HttpCall, request: TranslationRequest, task: Literal["transcribe", "translate"]) -> SpeechJob:
    more = request if isinstance(request, TranscriptionRequest) else None
    return SpeechJob(
        language=(more.language or "").lower() if more else "",
        task=task,
        prompt=request.prompt or "",
        words="word" in (more.timestamp_granularities or ()) if more else False,
        temperature=request.temperature or None,
        times=(request.response_format or "json") in TIMED,
        most_s=call.server.limits.sound_s,
        soon=bool(more and more.stream),
        tenant=call.tenant,
        client=call.caller,
    )


# --- the transcript ------------------------------------------------------------------------------------

Sink = Callable[[SpeechPart], Awaitable[None]]


class Transcribing:
    """One request from its recording to its answer."""

    def __init__(
        self,
        call: HttpCall,
        request: TranslationRequest,
        recording: SpooledRecording,
        job: SpeechJob,
        warnings: Sequence[str],
    ) -> None:
        self._call, self._request, self._recording, self._job = call, request, recording, job
        self._warnings = warnings
        self._facts = SpeechFacts(0.0, 0.0, 0)
        self._segments: list[Segment] = []
        self._starts: list[float] = []  # of the chunks that were heard
        self._language = job.language
        self._model = request.model  # which answers
        self._first_s: float | None = None

    async def whole(self) -> None:
        """Answer once all is heard."""

        async def keep(part: SpeechPart) -> None:
            pass

        call = self._call
        await call.while_here(self._hear(keep))
        kind, write = self._shape()
        size = SEGMENT * len(self._segments)
        call.hold(size)
        await call.answer(await call.apart(write, size=size), kind=kind)

    async def stream(self) -> None:
        """Send each part's text as an event; the last event has the whole text."""
        call = self._call
        async with EventStream(call) as events:

            async def send(part: SpeechPart) -> None:
                before = len(self._segments) - len(part.segments)
                data = b"".join(
                    _event("transcript.text.delta", delta=f" {each.text}" if i else each.text, **_times(each))
                    for i, each in enumerate(part.segments, before)
                )
                if data:
                    await events.send(data)

            try:
                await call.while_here(self._hear(send))
                last = _event("transcript.text.done", text=self._transcript.text, **self._ending())
            except Gone:
                raise
            except Exception as e:
                if not events.begun:
                    raise
                last = b"data: " + openai_error(call.problem(e)) + b"\n\n"
            await events.send(last + DONE, more=False)

    async def _hear(self, sink: Sink) -> None:
        """Have the recording heard; what ends it early is counted in the metrics."""
        call, request = self._call, self._request
        keep_alive = seconds(request.keep_alive)
        served = await call.models.use(request.model, keep_alive)
        if not served.info.can_hear:
            raise _deaf(call, served)
        record = call.server.metrics.of(served.name)
        try:
            await self._follow(served, keep_alive, record, sink)
        except asyncio.CancelledError:
            record.reasons["abort"] += 1
            raise
        except Overloaded:
            record.rejected["queue_full"] += 1
            raise
        except Exception as e:
            if isinstance(e, SlowReader) or problem(e).status >= 500:
                record.reasons["error"] += 1
            raise
        record.reasons["stop"] += 1
        record.whole.observe(call.passed_s)

    async def _follow(
        self, served: ModelHandle, keep_alive: float | None, record: PerModel, sink: Sink
    ) -> None:
        call, work = self._call, self._call.work
        stream = await served.hear(self._job, self._recording, keep_alive)
        try:
            facts = self._facts = stream.facts
            work.sound_s = facts.duration_s, facts.speech_s
            work.answers = 1
            record.opened(facts.duration_s, facts.speech_s)
            async for part in stream:
                if self._first_s is None:
                    self._first_s = call.passed_s
                    record.first.observe(self._first_s)
                work.came(part.tokens, call.passed_s)
                self._segments += part.segments
                self._starts += part.starts
                self._language = part.language
                self._model = part.model or self._model
                await sink(part)
        finally:
            await stream.aclose()

    # --- what is sent ----------------------------------------------------------------------------------

    @property
    def _transcript(self) -> Transcript:
        return Transcript(
            " ".join(segment.text for segment in self._segments),
            tuple(self._segments),
            self._language,
            self._facts.duration_s,
            self._facts.speech_s,
        )

    def _shape(self) -> tuple[bytes, Callable[[], bytes]]:
        """Return the content type of the whole answer, and what writes it."""
        shapes: Mapping[str, tuple[bytes, Callable[[], bytes]]] = {
            "json": (b"application/json", lambda: self._json({})),
            "verbose_json": (b"application/json", lambda: self._json(self._verbose())),
            "text": (PLAIN, lambda: f"{self._transcript.text}\n".encode()),
            "srt": (PLAIN, lambda: as_srt(self._transcript).encode()),
            "vtt": (PLAIN, lambda: as_vtt(self._transcript).encode()),
        }
        return shapes[self._request.response_format or "json"]

    def _json(self, more: dict[str, Any]) -> bytes:
        return msgspec.json.encode({**more, "text": self._transcript.text, **self._ending()})

    def _ending(self) -> dict[str, Any]:
        """Return what is billed, and the receipt."""
        first = {} if self._first_s is None else {"first_s": round(self._first_s, 6)}
        receipt = {
            "model": self._model,
            "language": self._language,
            "duration_s": round(self._facts.duration_s, 3),
            "speech_s": round(self._facts.speech_s, 3),
            "chunks": self._facts.chunks,
            "timings": {**first, "total_s": round(self._call.passed_s, 6)},
            "warnings": self._warnings,
        }
        usage = {"type": "duration", "seconds": math.ceil(self._facts.duration_s)}
        return {"usage": usage, "freehold": receipt}

    def _verbose(self) -> dict[str, Any]:
        granularities = getattr(self._request, "timestamp_granularities", None) or ["segment"]
        translated = self._job.task == "translate"
        more: dict[str, Any] = {
            "task": self._job.task,
            "language": language_name("en" if translated else self._language),
            "duration": round(self._facts.duration_s, 3),
        }
        if "segment" in granularities:
            more["segments"] = [self._segment(i, each) for i, each in enumerate(self._segments)]
        if "word" in granularities:
            more["words"] = [
                {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
                for segment in self._segments
                for word in segment.words
            ]
        return more

    def _segment(self, number: int, segment: Segment) -> dict[str, Any]:
        """Return a segment; `seek`: hundredths of a second at which the chunk begins that it was heard in.

        Its text begins with a space, as OpenAI's do: joined they are the whole text.
        """
        chunk = bisect.bisect_right(self._starts, segment.start) - 1
        return {
            "id": number,
            "seek": math.floor(100 * self._starts[max(chunk, 0)] + 1e-6),  # never after its start
            "start": round(segment.start, 3),
            "end": round(segment.end, 3),
            "text": f" {segment.text}",
            "tokens": segment.tokens,
            "temperature": segment.temperature,
            "avg_logprob": segment.mean_logprob,
            "compression_ratio": segment.compression_ratio,
            "no_speech_prob": segment.no_speech_prob,
        }


def _times(segment: Segment) -> dict[str, float]:
    """Return where a segment is in its recording: of our own, beside OpenAI's fields."""
    return {"start": round(segment.start, 3), "end": round(segment.end, 3)}


def _event(kind: str, **fields: Any) -> bytes:
    return b"data: " + msgspec.json.encode({"type": kind, **fields}) + b"\n\n"


def _deaf(call: HttpCall, served: ModelHandle) -> Refused:
    names = hearing(call)
    who = f"; of the models in memory, {', '.join(names)} can" if names else ""
    message = f"{served.name} cannot transcribe recordings{who}: use a speech model, such as Whisper"
    return Refused(400, message, param="model", code="unsupported_model")


# --- names of languages ----------------------------------------------------------------------------

_NAMES = """
af afrikaans, am amharic, ar arabic, as assamese, az azerbaijani, ba bashkir, be belarusian, bg bulgarian, bn bengali,
bo tibetan, br breton, bs bosnian, ca catalan, cs czech, cy welsh, da danish, de german, el greek, en english,
es spanish, et estonian, eu basque, fa persian, fi finnish, fo faroese, fr french, gl galician, gu gujarati, ha hausa,
haw hawaiian, he hebrew, hi hindi, hr croatian, ht haitian creole, hu hungarian, hy armenian, id indonesian,
is icelandic, it italian, ja japanese, jw javanese, ka georgian, kk kazakh, km khmer, kn kannada, ko korean, la latin,
lb luxembourgish, ln lingala, lo lao, lt lithuanian, lv latvian, mg malagasy, mi maori, mk macedonian, ml malayalam,
mn mongolian, mr marathi, ms malay, mt maltese, my myanmar, ne nepali, nl dutch, nn nynorsk, no norwegian, oc occitan,
pa punjabi, pl polish, ps pashto, pt portuguese, ro romanian, ru russian, sa sanskrit, sd sindhi, si sinhala, sk slovak,
sl slovenian, sn shona, so somali, sq albanian, sr serbian, su sundanese, sv swedish, sw swahili, ta tamil, te telugu,
tg tajik, th thai, tk turkmen, tl tagalog, tr turkish, tt tatar, uk ukrainian, ur urdu, uz uzbek, vi vietnamese,
yi yiddish, yo yoruba, yue cantonese, zh chinese
"""
LANGUAGES = {
    code: name
    for code, _, name in (each.strip().partition(" ") for each in _NAMES.replace("\n", " ").split(","))
}


def language_name(code: str) -> str:
    """Return a language's English name; anything but a known code, such as a name, is returned unchanged."""
    return LANGUAGES.get(code.lower(), code)
