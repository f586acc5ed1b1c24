"""A transcript as text, as subtitles of both forms, and as plain values.

Sources: the SubRip format as players read it; W3C WebVTT, 2019-04.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from freehold.base.types import Segment, Transcript


def as_text(transcript: Transcript) -> str:
    """Return a line a segment."""
    return "".join(f"{segment.text}\n" for segment in transcript.segments)


def as_srt(transcript: Transcript) -> str:
    """Return SubRip subtitles."""
    return "\n".join(
        f"{n}\n{clock(s.start, ',')} --> {clock(s.end, ',')}\n{_plain(s.text)}\n"
        for n, s in enumerate(transcript.segments, 1)
    )


def as_vtt(transcript: Transcript) -> str:
    """Return WebVTT subtitles."""
    cues = [
        f"{clock(s.start, '.')} --> {clock(s.end, '.')}\n{_escaped(s.text)}\n" for s in transcript.segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def clock(seconds: float, point: str) -> str:
    """Return hours, minutes, seconds and milliseconds."""
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def transcript_json(transcript: Transcript) -> dict[str, Any]:
    """Return a transcript as plain values, times in seconds."""
    return {
        "text": transcript.text,
        "language": transcript.language,
        "duration_s": round(transcript.duration_s, 3),
        "speech_s": round(transcript.speech_s, 3),
        "segments": [segment_json(segment) for segment in transcript.segments],
    }


def segment_json(segment: Segment) -> dict[str, Any]:
    """Return a segment as plain values; words where there are any."""
    told: dict[str, Any] = {
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "temperature": segment.temperature,
        "mean_logprob": round(segment.mean_logprob, 4),
        "compression_ratio": round(segment.compression_ratio, 4),
        "no_speech_prob": round(segment.no_speech_prob, 6),
    }
    if segment.words:
        told["words"] = [
            {"text": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
            for word in segment.words
        ]
    return told


FORMS: Mapping[str, Callable[[Transcript], str]] = {"text": as_text, "srt": as_srt, "vtt": as_vtt}


def _plain(text: str) -> str:
    """Keep an arrow in a text from being read as one of times."""
    return text.replace("-->", "→")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
