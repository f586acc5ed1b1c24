"""The process that decodes one compressed recording by PyAV.

Started as `python -m freehold.run.sounds.child FD PARENT` by opening.py. It is closed in (closing_in.py) after PyAV
is imported and before it reads a byte of the recording, and ends with it. Where no process can be confined, it has
limits of time and memory alone. FFmpeg gets a file in memory and the name of one demuxer: it opens no path and no
address. Video and other streams are left out. Samples leave as the mean of the channels at the file's own rate; the
parent resamples. Knows PyAV and messages; knows no model.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from freehold.base import platforms
from freehold.base.errors import UsageError
from freehold.base.sandbox.children import LENGTH, follow_parent, may_be_limited, write_all
from freehold.base.sandbox.closing_in import close_in, runtime_files
from freehold.run.sounds.limits import (
    CODECS,
    DEMUXERS,
    MAX_PIECE,
    NO_DECODER,
    OUT_OF_MEMORY,
    SAMPLES,
    WORDS,
)

if TYPE_CHECKING:
    import av.audio.frame
    import av.container

F32 = NDArray[np.float32]

OOM_SCORE = 900  # when memory runs out the kernel ends this process before the engine
_GRACE_S = 2  # of processor, beyond the timer that ends this process
_PIECE = 1 << 16  # samples of a message, about
_WHY = 160  # characters of FFmpeg's words
_MOST_FAULTS = 100  # packets that are damaged, before the recording is
_WIDTHS = {"u8": 8, "s16": 16, "s32": 32}


def main() -> int:
    """Decode the recording that comes through the socket whose number is the first argument; return the status."""
    follow_parent(int(sys.argv[2]))
    may_be_limited()
    platforms.prefer_killed(OOM_SCORE)
    fd = int(sys.argv[1])
    try:
        import av
        import av.error

        assert av.open
    except ImportError:
        return NO_DECODER
    try:
        with open(fd, "rb", closefd=False) as sent:
            request = json.loads(sent.read(int.from_bytes(sent.read(LENGTH), "little")))
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
            if platforms.can_confine():
                seconds = int(request["seconds"]) + _GRACE_S
                if not close_in((fd,), seconds=seconds, memory=request["memory"], readable=runtime_files()):
                    _say(
                        fd, {"error": "this kernel lets no process confine itself, so no recording is opened"}
                    )
                    return 0
            else:
                platforms.limit("RLIMIT_AS", request["memory"])
            data = sent.read(request["bytes"])
        _decode(fd, data, request["form"])
        return 0
    except MemoryError:
        return OUT_OF_MEMORY
    except UsageError as e:
        _say(fd, {"error": e.message, "hint": e.hint})
        return 0


def _decode(fd: int, data: bytes, form: str) -> None:
    """Send a recording's rate and channels, its samples, then how it ended. Raises UsageError, MemoryError."""
    import av.error

    faults = _Faults()
    # References to other files are off; the process could not open any.
    options = {"enable_drefs": "0"}
    try:
        with av.open(io.BytesIO(data), "r", format=DEMUXERS[form], options=options) as container:
            pieces = _pieces(container, form, faults)
            rate, channels, first = next(pieces)
            _say(fd, {"rate": rate, "channels": channels})
            _send(fd, SAMPLES + first.tobytes())
            for now, _, piece in pieces:
                if now != rate:
                    raise UsageError(f"the {form} file changes its rate from {rate:,} to {now:,} Hz")
                _send(fd, SAMPLES + piece.tobytes())
    except av.error.FFmpegError as e:
        if isinstance(e, MemoryError):
            raise
        raise UsageError(
            f"the {form} file is damaged or cut short: {str(e.strerror)[:_WHY]}", "send it whole"
        ) from e
    except StopIteration:
        why = faults.last or "no sample could be decoded"
        raise UsageError(f"the {form} file has no audio: {why}", "send it whole") from None
    _say(fd, {"faults": faults.count})


class _Faults:
    """Packets that could not be decoded."""

    def __init__(self) -> None:
        self.count, self.last = 0, ""


def _pieces(
    container: av.container.InputContainer, form: str, faults: _Faults
) -> Iterator[tuple[int, int, F32]]:
    """Yield rate, channels and the mean of the channels of about _PIECE samples at a time."""
    import av.error

    if not container.streams.audio:
        others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise UsageError(f"the {form} file has no audio, only {others}", "send a file with an audio track")
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None:
        raise UsageError(
            f"the {form} file has audio in a format that FFmpeg does not know", "convert it to FLAC"
        )
    name = context.codec.name
    if name not in CODECS and not name.startswith("pcm_"):
        raise UsageError(f"the {form} file holds {name}, which is not read", "convert it to FLAC, MP3 or Ogg")
    context.thread_count = 1  # a confined process starts none
    rate = channels = count = 0
    waiting: list[F32] = []
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as e:
            if isinstance(e, MemoryError):
                raise
            faults.count, faults.last = faults.count + 1, str(e.strerror)[:_WHY]
            if faults.count > _MOST_FAULTS:
                raise
            continue
        for frame in frames:
            if waiting and (frame.sample_rate != rate or count >= _PIECE):
                yield rate, channels, np.concatenate(waiting)
                waiting, count = [], 0
            rate, channels = frame.sample_rate, len(frame.layout.channels)
            waiting += _means(frame)
            count += frame.samples
    if waiting:
        yield rate, channels, np.concatenate(waiting)


def _means(frame: av.audio.frame.AudioFrame) -> list[F32]:
    """Return the mean of a frame's channels, from -1 to 1. What is not finite is silence."""
    raw = frame.to_ndarray()
    values = raw if frame.format.is_planar else raw.reshape(-1, len(frame.layout.channels)).T
    bits = _WIDTHS.get(frame.format.name.removesuffix("p"))
    if bits is None:
        mean = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).mean(axis=0, dtype=np.float64)
    else:
        mean = (values.mean(axis=0, dtype=np.float64) - (128 if bits == 8 else 0)) / 2 ** (bits - 1)
    return [mean.clip(-1, 1).astype(np.float32)]


def _say(fd: int, message: dict[str, Any]) -> None:
    _send(fd, WORDS + json.dumps(message).encode())


def _send(fd: int, message: bytes) -> None:
    """Write its length and all of it."""
    assert len(message) <= 4 * MAX_PIECE + 1
    write_all(fd, len(message).to_bytes(LENGTH, "little") + message)


if __name__ == "__main__":
    status = 1
    with suppress(KeyboardInterrupt, OSError):
        status = main()
    os._exit(status)
