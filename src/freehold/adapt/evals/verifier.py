"""A verifier of answers: a user's `reward(prompt, answer, item)`, or that of a reasoning-gym data set.

Either runs in processes of its own (sandbox/verifier.py): no network, no environment, files to read only, a second of
processor an answer, 512 MiB. Everything but a number from 0 to 1 is a failure of a named kind and counts 0. Knows the
child's protocol; knows no model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from freehold.base.errors import CapacityExceeded, UsageError
from freehold.base.platforms import can_confine
from freehold.base.regular import read_bounded
from freehold.base.sandbox.children import receive, send, spawn_on_socket
from freehold.base.sandbox.verifier import REFUSED

COMMAND = (sys.executable, "-P", "-m", "freehold.base.sandbox.verifier")
SECONDS = 1.0  # of processor, an answer
WALL_S = 30.0  # on the clock: a busy machine takes longer, a reward that sleeps does not end
LOAD_S = 10.0  # of processor, to load the reward
MEMORY = 512 << 20
MOST_SOURCE = 1 << 20  # bytes of a reward's file
FAILURES = (
    *("exception", "exit", "time", "memory"),
    *("no number", "not finite", "out of range", "tampered"),
)
GYM = "rg:"
PACKAGE = "reasoning-gym"
ENDLESS = 1 << 20  # items of a data set: each is made from its number, when it is asked for
_FIXED = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class RewardScore:
    """The score of one answer, from 0 to 1. `failed`: the kind of failure that made it 0, "" for none."""

    value: float
    failed: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class GymItem:
    """One item of a reasoning-gym data set, by its index."""

    index: int
    question: str
    answer: str


class Verifier:
    """One verifier and its process. Close it, or use it in a `with`."""

    def __init__(self, spec: str, *, size: int = ENDLESS) -> None:
        """`spec`: the path of a Python file, or rg:DATASET[:name=value,...] of `size` items where it names none.

        Raises UsageError for a file that cannot be read or loaded, a data set that there is not, and where this
        system cannot confine a process.
        """
        if not can_confine():
            raise UsageError(
                "verifiers run on Linux only, with a kernel that confines processes (Landlock, Linux 5.13)",
                "use Linux for this, a container will do",
            )
        self.spec = spec
        self._job, self.digest = _gym_job(spec, size) if spec.startswith(GYM) else _file_job(Path(spec))
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        loaded = self._ask(None)
        if "ready" not in loaded:
            self.close()
            raise _unusable(spec, loaded)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def is_gym(self) -> bool:
        """Whether it is a data set's, which has items of its own."""
        return self.spec.startswith(GYM)

    def score(self, tasks: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[RewardScore]:
        """Score (prompt, answer, item) of each; a failure is a score of 0."""
        if not tasks:
            return []
        told = [{"prompt": prompt, "answer": answer, "item": dict(item)} for prompt, answer, item in tasks]
        return [_scored(each) for each in self._ask({"tasks": told})["results"]]

    def items(self, first: int, count: int) -> list[GymItem]:
        """Return items of a data set. Raises UsageError where it cannot make them."""
        response = self._ask({"items": [first, count]})["results"][0]
        if "item" not in response:
            raise UsageError(
                f"{self.spec} produces no items: {response['why']}", "use another data set or settings"
            )
        return [
            GymItem(first + i, each["question"], each["answer"]) for i, each in enumerate(response["item"])
        ]

    def close(self) -> None:
        """End its process; safe to call twice."""
        if self._sock is not None:
            self._sock.close()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process.kill()
            self._process.wait()
        self._process = self._sock = None

    def _ask(self, message: Mapping[str, Any] | None) -> dict[str, Any]:
        """Send a message, or none to a process that starts, and return the reply.

        A process that the kernel killed meanwhile is replaced once. Raises CapacityExceeded.
        """
        for _ in range(2):
            try:
                loaded = self._started() if self._sock is None else None
                if message is None and loaded is not None:
                    return loaded
                assert self._sock is not None
                send(self._sock, _encoded(message))
                if reply := receive(self._sock):
                    return json.loads(reply)
            except OSError:
                pass
            self.close()
        raise CapacityExceeded(
            "the process that runs rewards ended twice, but not at a limit",
            "the kernel kills processes when memory runs out",
        )

    def _started(self) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        self._sock = ours
        with theirs:
            self._process = spawn_on_socket(
                COMMAND, ours, theirs, env=_FIXED, stderr=subprocess.DEVNULL, cwd="/"
            )
        limits = {"seconds": SECONDS, "wall_s": WALL_S, "load_s": LOAD_S, "memory": MEMORY}
        send(ours, _encoded({**self._job, **limits}))
        reply = receive(ours)
        if not reply:
            raise OSError
        return json.loads(reply)


def gym_options(text: str) -> dict[str, Any]:
    """Return the options written after a data set: k=v[,k=v...], values as JSON or as text. Raises UsageError."""
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"{part!r} is not an option", "write rg:DATASET:key=value,key=value")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _encoded(message: Any) -> bytes:
    return json.dumps(message).encode("utf-8", "surrogatepass")


def _scored(reply: Mapping[str, Any]) -> RewardScore:
    if "score" in reply:
        return RewardScore(float(reply["score"]))
    if "failed" in reply:
        return RewardScore(0.0, reply["failed"], reply["why"])
    return RewardScore(0.0, "tampered", "answered what it was not asked")


def _file_job(path: Path) -> tuple[dict[str, Any], str]:
    """Return the job of a reward's file, and its digest."""
    try:
        raw = read_bounded(path, MOST_SOURCE)
        source = raw.decode()
    except OSError as e:
        raise UsageError(
            f"{path}: {e.strerror}", "a verifier is a Python file, or rg:DATASET of reasoning-gym"
        ) from e
    except UnicodeDecodeError as e:
        raise UsageError(f"{path} is not UTF-8 text", "a verifier is a Python file") from e
    return {"kind": "file", "name": path.name, "source": source}, hashlib.sha256(raw).hexdigest()


def _gym_job(spec: str, size: int) -> tuple[dict[str, Any], str]:
    """Return the job of rg:DATASET[:name=value,...], and a digest of data set, settings and version."""
    dataset, _, rest = spec.removeprefix(GYM).partition(":")
    config = {"seed": 0, "size": size, **gym_options(rest)}
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            f"{spec} needs {PACKAGE}, which is not installed", f"install it: pip install {PACKAGE}"
        ) from None
    told = json.dumps([dataset, config, version], sort_keys=True)
    return {"kind": "rg", "dataset": dataset, "config": config}, hashlib.sha256(told.encode()).hexdigest()


def _unusable(spec: str, reply: Mapping[str, Any]) -> UsageError:
    if reply["failed"] == REFUSED:
        return UsageError("this kernel lets no process confine itself", "rewards cannot run here")
    if spec.startswith(GYM):
        return UsageError(f"{spec} cannot be used: {reply['why']}", "rg:DATASET names one of reasoning-gym's")
    return UsageError(
        f"{spec} cannot be used: {reply['why']}", "a reward's file defines reward(prompt, answer, item)"
    )
