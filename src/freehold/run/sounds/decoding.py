"""Compressed recordings, decoded by PyAV in a process that is started for each and can be killed (child.py).

What it answers is checked as the stranger's that it may have become. Knows limits, sockets and how a process ended;
imports no PyAV.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import CapacityExceeded, FreeholdError, UsageError
from freehold.base.sandbox.children import LENGTH, ChildEnded, TimedTalk, spawn_on_socket, watched
from freehold.run.sounds import limits
from freehold.run.sounds.limits import MAX_PIECE, NO_DECODER, OUT_OF_MEMORY, SAMPLES, WORDS
from freehold.run.sounds.pcm import MAX_CHANNELS, MAX_RATE, MIN_RATE, Recording

F32 = NDArray[np.float32]

COMMAND = (sys.executable, "-P", "-m", "freehold.run.sounds.child")
HINT = "convert it to FLAC or WAV, or cut it into several"
GARBLED = "the recording's decoder answered with something else: the file may be an attack on it"
# A thread that NumPy starts before the process is closed in would not be.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_END_S = 5.0  # for a process that has closed its end to be gone
_MOST_WORDS, _MOST_CHARS = 1 << 16, 300  # of a message, of a text in one


def open_compressed(data: bytes, form: str) -> Recording:
    """Return a recording in a form of limits.DEMUXERS, decoded in a process of its own as its pieces are read.

    The process ends when the pieces end or are closed. Raises UsageError for what is damaged, has no sound or takes
    too much time or memory, and where PyAV is missing; CapacityExceeded where no process can be started or live. Its
    pieces raise the same.
    """
    if importlib.util.find_spec("av") is None:
        raise _without_pyav(form)
    answers = _answers(data, form)
    try:
        header = next(answers)
        assert isinstance(header, dict)
        rate, channels = header.get("rate"), header.get("channels")
        if type(rate) is not int or type(channels) is not int or not 1 <= channels <= MAX_CHANNELS:
            raise UsageError(GARBLED)
        if not MIN_RATE <= rate <= MAX_RATE:
            raise UsageError(f"the {form} file has {rate:,} Hz; read are {MIN_RATE:,} to {MAX_RATE:,} Hz")
    except BaseException:
        answers.close()
        raise
    return Recording(form, rate, channels, None, _samples(answers))


def _samples(answers: Generator[dict[str, Any] | F32, None, None]) -> Generator[F32, None, None]:
    with closing(answers):
        for answer in answers:
            if not isinstance(answer, dict):
                yield answer


def _answers(data: bytes, form: str) -> Generator[dict[str, Any] | F32, None, None]:
    """Yield the header, and then arrays of samples."""
    seconds = limits.seconds_for(len(data))
    memory = limits.MEMORY + 2 * len(data)  # its own, and a copy on the way
    with _started(memory) as (sock, process, has_exceeded):
        talk = _Talk(sock, limits.START_S + limits.WALL * seconds)
        try:
            request = {"form": form, "bytes": len(data), "seconds": seconds, "memory": memory}
            talk.send(json.dumps(request).encode())
            talk.send_bytes(data)
            header = talk.receive()
            while isinstance(header, dict) and "error" not in header:
                yield header
                if "faults" in header:
                    return
                while not isinstance(header := talk.receive(), dict):
                    yield header
        except ChildEnded as ended:
            raise _reason(form, process, ended.late, has_exceeded(), seconds, memory) from None
        if not isinstance(header, dict):
            raise UsageError(GARBLED)
        raise UsageError(_plain(header["error"]), _plain(header.get("hint", "")))


@contextmanager
def _started(memory: int) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes], Any]]:
    """Give a process, our end of its socket, and what tells whether it was ended for its memory; end it after."""
    try:
        ours, theirs = socket.socketpair()
        with theirs:
            process = spawn_on_socket(
                COMMAND, ours, theirs, env=_ONE_THREAD, stderr=subprocess.DEVNULL, cwd="/"
            )
    except OSError as e:
        raise CapacityExceeded(f"no process could be started to decode the recording: {e.strerror}") from e
    with ours, watched(process, memory) as watch:
        try:
            yield ours, process, lambda: watch.exceeded
        finally:
            process.kill()
            process.wait()


class _Talk(TimedTalk):
    """What is said with the process. Every method raises ChildEnded."""

    def receive(self) -> dict[str, Any] | F32:
        """Return the next message. Raises UsageError for anything but an object in JSON, or samples."""
        size = int.from_bytes(self.read(LENGTH), "little")
        kind = bytes(self.read(1))
        if kind == SAMPLES and (size - 1) % 4 == 0 and size - 1 <= 4 * MAX_PIECE:
            samples = np.frombuffer(self.read(size - 1), np.float32)
            if not np.isfinite(samples).all():
                raise UsageError(GARBLED)
            return samples
        if kind != WORDS or not 1 < size <= _MOST_WORDS:
            raise UsageError(GARBLED)
        try:
            message = json.loads(self.read(size - 1))
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise UsageError(GARBLED)
        return message


def _reason(
    form: str, process: subprocess.Popen[bytes], late: bool, exceeded: bool, seconds: float, memory: int
) -> FreeholdError:
    """Return what the end of a process says of its recording."""
    if late:
        return UsageError(f"the {form} file takes longer than {limits.WALL * seconds:g} s to decode", HINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    code = process.poll() or 0
    if code == NO_DECODER:
        return _without_pyav(form)
    if -code in (signal.SIGPROF, signal.SIGXCPU):
        return UsageError(f"the {form} file takes more than {seconds:g} s of processor to decode", HINT)
    if code == OUT_OF_MEMORY or exceeded:
        return UsageError(f"the {form} file takes more than {memory >> 20:,} MiB of memory to decode", HINT)
    if -code == signal.SIGKILL:
        return CapacityExceeded(
            "the process that decoded the recording was killed",
            "the kernel kills processes when memory runs out",
        )
    how = f"status {code}" if code >= 0 else signal.Signals(-code).name
    return UsageError(f"the {form} file ended the process that decoded it ({how})", HINT)


def _without_pyav(form: str) -> UsageError:
    return UsageError(
        f"the recording is {form}, which needs PyAV, and that is not installed",
        'pip install "freehold[audio]"',
    )


def _plain(text: Any) -> str:
    """Return a text of the decoder's without what a terminal obeys, and not for ever."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:_MOST_CHARS])
