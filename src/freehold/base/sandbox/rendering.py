"""Renders untrusted templates in a process that can be killed, and reports each result.

Knows the child's protocol, its limits and how it died; knows no Jinja and no chat. Processes are started when first
needed, shared by all threads and kept; one that a template killed is replaced by the next call.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from freehold.base.errors import BadTemplate, CapacityExceeded
from freehold.base.sandbox.children import KILLED, START_S, receive, send, spawn_on_socket, watched
from freehold.base.sandbox.limits import HINT, MAX_SECONDS, MAX_SOURCE, MAX_TEXT, TOO_LARGE, allowed_memory

COMMAND = (sys.executable, "-P", "-m", "freehold.base.sandbox.renderer")
MOST = 2  # processes: a long chat, or a template that runs to its limit, holds up none but one
# The child's clock counts processor time. This one counts all time and only ends a child that does not run at all.
WALL_FACTOR, WALL_S = 4.0, 5.0


@dataclass(frozen=True, slots=True)
class RenderJob:
    """A template and the variables of each render."""

    source: str
    renders: Sequence[Mapping[str, Any]]
    now: datetime
    seconds: float = MAX_SECONDS  # of processor for all of them
    text: int = MAX_TEXT  # characters of one string

    def encode(self) -> bytes:
        """Write it as the child reads it. Raises BadTemplate for a source that is too long and variables too deep."""
        if len(self.source) > MAX_SOURCE:
            raise BadTemplate(
                f"the chat template has {len(self.source):,} characters; the limit is {MAX_SOURCE:,}"
            )
        job = {
            "source": self.source, "renders": self.renders, "seconds": self.seconds,
            "text": self.text, "now": self.now.isoformat(),
        }  # fmt: skip
        try:
            return json.dumps(job, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except RecursionError as e:
            raise BadTemplate("the messages are nested too deeply for a chat template") from e


Result = str | BadTemplate


class Renderers:
    """The rendering processes of this one. Safe from many threads, and after a fork."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._slots = threading.BoundedSemaphore(self._most)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []

    def run(self, work: RenderJob) -> list[Result]:
        """Return a text or the reason for none for each render, in order.

        Raises BadTemplate if the source does not compile, time or memory does not suffice, or the process died of it;
        CapacityExceeded where the machine lets no process live.
        """
        if self._pid != os.getpid():  # the parent's children answer the parent
            self._forget()
        job = work.encode()
        with self._slots:
            results = self._tried(work, job)
            if results is None:
                results = self._tried(work, job)
        if results is None:
            raise CapacityExceeded(
                "the process that renders chat templates ended twice, but not at a limit",
                "the kernel kills processes when memory runs out",
            )
        if isinstance(results, BadTemplate):
            raise results
        return results

    def check(self, source: str) -> None:
        """Compile a template. Raises BadTemplate if that fails."""
        self.run(RenderJob(source, (), datetime.now()))

    def close(self) -> None:
        """End the processes that wait for work; the next job starts another."""
        if self._pid != os.getpid():
            return
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end(at_once=True)

    def _tried(self, work: RenderJob, job: bytes) -> list[Result] | BadTemplate | None:
        """Let a child try it; None if it ended for a reason that is not the template's."""
        child = self._take()
        try:
            results = child.answer(job, work)
        except _Gone as gone:
            code = child.end()
            if child.greeted and (gone.late or -code not in (0, *KILLED)):
                raise _blamed(code, gone.late, work) from None
            return None
        except BaseException:  # of ours, or an interrupt: its next answer would be this one's
            child.end()
            raise
        if child.is_done:
            child.end(at_once=True)
        else:
            with self._lock:
                self._idle.append(child)
        return results

    def _take(self) -> _Child:
        """Return a child that waits for work, or a new one; those that left meanwhile are put away."""
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.is_there():
                    return child
                child.end()
        return _Child()


class _Gone(Exception):
    """The child is not there any more, or is `late` and has to go."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late = late


class _Child:
    """One process and the socket to it; one job at a time."""

    def __init__(self) -> None:
        """Start it. Raises CapacityExceeded where no process can be started."""
        try:
            self._sock, theirs = socket.socketpair()
            with theirs:
                self._process = spawn_on_socket(COMMAND, self._sock, theirs)
        except OSError as e:
            raise CapacityExceeded(
                f"no process could be started to render the chat template: {e.strerror}"
            ) from e
        self.greeted = self.is_done = False

    def answer(self, job: bytes, work: RenderJob) -> list[Result] | BadTemplate:
        """Have it do a job; one error may answer for all of it. Raises _Gone, BadTemplate for too much memory."""
        with watched(self._process, allowed_memory(len(job))) as watch:
            try:
                reply = self._reply(job, work)
            except _Gone:
                if watch.exceeded:
                    raise BadTemplate(TOO_LARGE, HINT) from None
                raise
        response = json.loads(reply.decode("utf-8", "surrogatepass"))
        self.is_done = response["last"]
        return [_read(each) for each in response["results"]] if "results" in response else _refused(response)

    def _reply(self, job: bytes, work: RenderJob) -> bytes:
        try:
            if not self.greeted:
                self._sock.settimeout(START_S)
                self.greeted = bool(self._sock.recv(1))
            self._sock.settimeout(WALL_FACTOR * work.seconds + WALL_S)
            send(self._sock, job)
            reply = receive(self._sock, most=_most_bytes(work))
        except TimeoutError:
            raise _Gone(late=True) from None
        except OSError:
            raise _Gone from None
        if not reply:
            raise _Gone
        return reply

    def is_there(self) -> bool:
        """Tell whether it has not ended."""
        return self._process.poll() is None

    def end(self, at_once: bool = False) -> int:
        """Kill it if it runs, and return how it ended."""
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(0.0 if at_once else 0.2)  # one that died may not be taken down yet
        self._process.kill()
        return self._process.wait()


def _most_bytes(work: RenderJob) -> int:
    """Bound a reply: each text in UTF-8 and JSON, where a control character takes six bytes."""
    return len(work.renders) * 6 * work.text + (1 << 16)


def _read(result: Mapping[str, str]) -> Result:
    return result["text"] if "text" in result else _refused(result)


def _refused(result: Mapping[str, str]) -> BadTemplate:
    return BadTemplate(result["error"], result["hint"])


def _blamed(code: int, late: bool, work: RenderJob) -> BadTemplate:
    if late or -code == signal.SIGPROF:
        return BadTemplate(f"the chat template ran longer than {work.seconds:g} s", HINT)
    how = f"status {code}" if code > 0 else signal.Signals(-code).name
    return BadTemplate(f"the chat template ended the process that rendered it ({how})", HINT)


shared = Renderers()  # for the templates of files
requested = Renderers(most=1)  # for those of requests, which may run to their limits again and again
for _renderers in (shared, requested):
    atexit.register(_renderers.close)
