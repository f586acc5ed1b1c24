"""Checks values against JSON schemas and patterns in a process that can be killed, and is when a check takes long.

The validator is compiled code: a schema of a few lines may keep it busy for ever, and nothing inside the process could
stop it. So it runs in a process of its own, which keeps what it compiled for the next value. No schema fetches
another. Knows schemas; knows no case.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import lru_cache
from typing import Any

from freehold.base import platforms
from freehold.base.errors import CapacityExceeded
from freehold.base.sandbox.children import follow_parent, receive, send, spawn_on_socket, waits

COMMAND = (sys.executable, "-P", "-m", "freehold.base.sandbox.schemas")
SECONDS = 2.0  # of processor, a check
WALL_S = 60.0  # on the clock: a busy machine takes longer
MEMORY = 1 << 30
_PATTERN_BYTES = 1 << 20  # of a compiled pattern
_WHY = 160  # characters of a reason
_ENDING_S = 1.0  # for a process whose socket is closed to end
_IDLE_S = 300.0  # without a check the process ends; the next check starts another


class BadSchema(ValueError):
    """A schema that the validator refuses. `is_pattern`: for a pattern in it."""

    def __init__(self, why: str, is_pattern: bool) -> None:
        super().__init__(why)
        self.is_pattern = is_pattern


class SchemaChecks:
    """The process, started with the first check. Threads may share it: it does one check at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None

    def check_schema(self, schema: Any) -> None:
        """Raise BadSchema for a schema that cannot be used, or takes too long to compile."""
        response = self._response({"schema": schema})
        if response is None:
            raise BadSchema(f"takes more than {SECONDS:g} s to compile", False)

    def fault(self, schema: Any, text: str) -> str | None:
        """Return what is wrong with the JSON value `text`, or None. A check that takes too long is a fault."""
        response = self._response({"schema": schema, "text": text})
        return f"takes more than {SECONDS:g} s to check" if response is None else response["fault"]

    def close(self) -> None:
        """End the process; a later check starts another."""
        if self._sock is not None:
            self._sock.close()
        self._end()

    def _response(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer, None for a check that was ended. Raises BadSchema, CapacityExceeded."""
        message = json.dumps({**request, "seconds": SECONDS}).encode()
        with self._lock:
            reply = self._exchanged(message)
            if reply is None:
                reply = self._exchanged(message)
        if not reply:
            return None
        answer = json.loads(reply)
        if "bad" in answer:
            raise BadSchema(answer["bad"], answer["is_pattern"])
        return answer

    def _exchanged(self, message: bytes) -> bytes | None:
        """Return the answer; empty if the check was ended, None if the process had ended before, of idleness."""
        reply = b""
        try:
            sock = self._sock or self._started()
            send(sock, message)
            reply = receive(sock)
        except TimeoutError:
            return b""
        except OSError as e:
            if self._process is None:
                raise CapacityExceeded(f"no process can be started for the check: {e.strerror}") from e
        finally:
            ended = None
            if not reply:
                ended = self._end()
        return None if ended == 0 else reply

    def _end(self) -> int | None:
        """Kill the process; return 0 if it had ended by itself."""
        ended = None
        if self._process is not None:
            try:
                ended = self._process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._sock is not None:
            self._sock.close()
        self._process = self._sock = None
        return ended

    def _started(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(WALL_S)
        self._sock = ours
        with theirs:
            self._process = spawn_on_socket(COMMAND, ours, theirs, stderr=subprocess.DEVNULL, cwd="/")
        return ours


def main() -> None:
    """Answer what comes through the socket whose number is the first argument; end by SIGPROF when a check is long."""
    follow_parent(int(sys.argv[2]))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    platforms.limit("RLIMIT_CORE", 0)
    platforms.limit("RLIMIT_AS", MEMORY)
    _validator("true")  # imports
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        while waits(sock, _IDLE_S):
            request = receive(sock)
            if not request:
                return
            job = json.loads(request)
            signal.setitimer(signal.ITIMER_PROF, job["seconds"])
            answer = _checked(job)
            signal.setitimer(signal.ITIMER_PROF, 0)
            send(sock, json.dumps(answer).encode())


def _checked(job: dict[str, Any]) -> dict[str, Any]:
    validator = _validator(json.dumps(job["schema"]))
    if isinstance(validator, str):
        return {"bad": validator, "is_pattern": "regex" in validator}
    if "text" not in job:
        return {"fault": None}
    try:
        value = json.loads(job["text"])
    except (ValueError, RecursionError):
        return {"fault": "is not JSON"}
    try:
        validator.validate(value)
    except ValueError as e:
        return {"fault": _first_line(getattr(e, "message", e))}
    return {"fault": None}


@lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    """Return a schema's validator, or in a few words why there is none."""
    import jsonschema_rs as rust

    options = rust.RegexOptions(size_limit=_PATTERN_BYTES)
    try:
        return rust.validator_for(json.loads(schema), pattern_options=options, retriever=_refuse)
    except (ValueError, rust.ReferencingError) as e:
        return _first_line(e)


def _first_line(error: object) -> str:
    return (str(error).splitlines() or [""])[0][:_WHY]


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri} is not fetched: schemas are whole")


if __name__ == "__main__":
    main()
    os._exit(0)
