"""The engine process's sending end of the socket, shared by its threads.

Knows frames and one lock; knows no job. Path: LiveJobs.deliver or Intake -> Channel.send_events -> socket
"""

from __future__ import annotations

import os
import socket
import threading
from typing import NoReturn

from freehold.errors import DamagedPack, UsageError
from freehold.serving import EngineStats
from freehold.worker.wire import Event, Failed, Frame, WireMessage, Writer


class Channel:
    """Sends messages, one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._writer, self._lock = sock, Writer(), threading.Lock()

    def give_up(self, error: DamagedPack) -> NoReturn:
        """End the process, whose weights are not the model's; the next one packs them anew and takes the jobs over."""
        self.send(Failed.of(0, error))
        os._exit(1)

    def send(self, message: WireMessage) -> None:
        """Send one message. Raises UsageError for one too large; a server that is gone ends the process."""
        with self._lock:
            frame = self._writer.frame(message)
            try:
                self._sock.sendall(frame)
            except OSError:
                os._exit(0)

    def send_events(self, events: list[Event], stats: EngineStats | None) -> None:
        """Send one frame, or one for each event if that would be too large."""
        try:
            self.send(Frame(events, stats))
        except UsageError as e:
            if len(events) == 1:
                return self.send(Frame([Failed.of(events[0].id, e)], stats))
            for event in events:
                self.send_events([event], stats)
