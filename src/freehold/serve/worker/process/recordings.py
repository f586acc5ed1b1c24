"""The recordings that an engine process has open, by the server's numbers; each call has one reply.

Knows calls, bytes and threads; knows no form of sound. Bytes are taken in by the reader thread, in order; opening and
transcribing run in threads of their own. A call that is cancelled stops within a piece of its work.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from freehold.base.errors import UsageError
from freehold.base.serving import reads_text
from freehold.base.stopping import check_stopped
from freehold.serve.worker.process.jobs import HostedHearing, HostedModel, Listener
from freehold.serve.worker.wire import MAX_RECORDING_BYTES, HearBegin, HearBytes, HearReply, read

MOST = 16  # recordings that have begun and not ended: a server opens fewer
BEAT_S = 1.0  # between signs of life while there is no step
OPENING_S = 1800.0  # in which a recording is opened, at most; then a process without a sign counts as hung


@dataclass(slots=True)
class HeldRecording:
    """One of them: its bytes as they come, and then what hears it."""

    begin: HearBegin
    data: BytesIO = field(default_factory=BytesIO)  # whose bytes are taken out without a copy
    size: int = 0  # of those that came
    hearing: HostedHearing | None = None


class Recordings:
    """All of them. `alive` tells the server that the process works, between its replies."""

    def __init__(self, model: HostedModel, alive: Callable[[], None]) -> None:
        self._model, self._alive = model, alive
        self._held: dict[int, HeldRecording] = {}
        self._told = 0.0

    # --- quick calls, in the reader thread -----------------------------------------------------------

    def call(self, method: str, args: list[Any]) -> Any:
        """Answer hear_begin, hear_bytes or hear_end. Raises UsageError for what no server sends."""
        match method:
            case "hear_begin":
                return self._begin(read(args[0], HearBegin))
            case "hear_bytes":
                return self._bytes(read(args[0], HearBytes))
        return self._end(read(args[0], int))

    def _begin(self, begin: HearBegin) -> int:
        if not isinstance(self._model, Listener):
            raise reads_text(self._model.info.name)
        if not 0 < begin.size <= MAX_RECORDING_BYTES:
            raise UsageError(
                f"the recording has {begin.size:,} bytes; expected 1 to {MAX_RECORDING_BYTES:,}",
                "cut it into several",
                "file",
            )
        if begin.recording not in self._held and len(self._held) >= MOST:
            raise UsageError(f"{len(self._held)} recordings are open; the limit is {MOST}")
        self._end(begin.recording)
        self._held[begin.recording] = HeldRecording(begin)
        return 0

    def _bytes(self, piece: HearBytes) -> int | None:
        held = self._held.get(piece.recording)
        if held is None:
            return None
        if piece.at != held.size or held.size + len(piece.data) > held.begin.size:
            raise UsageError(
                f"bytes {piece.at:,} to {piece.at + len(piece.data):,} of a recording came where {held.size:,} of "
                f"{held.begin.size:,} are there"
            )
        held.data.write(piece.data)
        held.size += len(piece.data)
        return held.size

    def _end(self, recording: int) -> int:
        held = self._held.pop(recording, None)
        if held is not None and held.hearing is not None:
            held.hearing.close()
        return 0

    # --- work, in threads of its own -----------------------------------------------------------------

    def next(self, recording: int) -> HearReply | None:
        """Open a recording, the first time; then transcribe its next chunks. None for one that is not here."""
        held = self._held.get(recording)
        if held is None:
            return None
        if held.hearing is not None:
            return HearReply(part=held.hearing.part(self._pause))
        if held.size < held.begin.size:
            raise UsageError(f"{held.size:,} of a recording's {held.begin.size:,} bytes are there")
        assert isinstance(self._model, Listener), "begin refused it"
        taken, held.data = held.data, BytesIO()
        with self._living(self._model):
            hearing = self._model.listen(taken.getvalue(), held.begin.job, held.begin.skip)
        taken.close()
        held.hearing = hearing  # before the look: who ends it afterwards closes it
        if self._held.get(recording) is not held:  # it ended meanwhile
            hearing.close()
            return None
        return HearReply(facts=hearing.facts)

    def _pause(self) -> None:
        check_stopped()
        if time.monotonic() - self._told >= BEAT_S:
            self._told = time.monotonic()
            self._alive()

    @contextmanager
    def _living(self, listener: Listener) -> Iterator[None]:
        """Tell the server each BEAT_S that a recording is being opened, which has no pauses."""
        over, until = threading.Event(), time.monotonic() + OPENING_S

        def beat() -> None:
            while not over.wait(BEAT_S) and time.monotonic() < until:
                listener.beat()
                self._alive()

        threading.Thread(target=beat, name="freehold-beat", daemon=True).start()
        try:
            yield
        finally:
            over.set()
