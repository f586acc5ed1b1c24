"""The processes that run a reward: one that stays, and confined children of it that score answers.

The first process imports what the reward needs, and runs no line of it. For each batch it forks a child, which closes
itself in (closing_in.py: two pipes, a limit of memory, the system calls of a computation that reads files), and only
then runs the reward: a file's `reward(prompt, answer, item)`, or the verifier of a reasoning-gym data set. The first
process watches the child's processor time, kills it when an answer takes too long, and forks another one for the next
answer. A score counts only in a message that carries the answer's own token; what is printed goes nowhere. Code that
searches the interpreter for the token could cheat, but may return any score anyway.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import random
import secrets
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from freehold.base import platforms
from freehold.base.sandbox.children import follow_parent, receive, send
from freehold.base.sandbox.closing_in import all_files, close_in

REFUSED = "refused"  # this kernel lets no process confine itself
_LOOK_S = 0.05  # between looks at a child's clock
_LENGTH = 4  # bytes before a message in a pipe
_WHY = 160  # characters of a reason
_MOST = 16 << 20  # bytes of a child's message, which may hold a data set's items
_KINDS = [
    "exception",
    "exit",
    "memory",
    "no number",
    "not finite",
    "out of range",
    REFUSED,
]  # that the child names
_TAMPERED = "wrote to the descriptor of its score"
Reward = Callable[[str, str, Any], Any]
Reply = dict[str, Any]


def main() -> None:
    """Serve the parent through the socket whose number is the first argument: a job, then batches."""
    follow_parent(int(sys.argv[2]))
    platforms.limit("RLIMIT_CORE", 0)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        job = json.loads(receive(sock) or b"null")
        if job is None:
            return
        send(sock, _encoded(_prepared(job)))
        while request := receive(sock):
            send(sock, _encoded(_batch(job, json.loads(request))))


def _prepared(job: Reply) -> Reply:
    """Import what a child could not, and load the reward once to see that it loads."""
    if job["kind"] == "rg":
        try:
            import reasoning_gym  # noqa: F401
        except ImportError as e:
            return _failed("missing", f"{e}")
    with _child(job, 1) as child:
        return child.loaded


def _batch(job: Reply, request: Reply) -> Reply:
    """Return the data set's items, or a score or a failure for each answer."""
    tasks = request.get("tasks") or [request]
    done: list[Reply] = []
    while len(done) < len(tasks):
        with _child(job, len(tasks) - len(done)) as child:
            if "ready" not in child.loaded:
                return {"results": [*done, *[child.loaded] * (len(tasks) - len(done))]}
            for task in tasks[len(done) :]:
                done.append(child.ask(task, job["seconds"], job["wall_s"]))
                if child.ended:
                    break
    return {"results": done}


# --- the first process's side of a child -------------------------------------------------------------


@contextmanager
def _child(job: Reply, calls: int) -> Iterator[_Scorer]:
    child = _Scorer(job, calls)
    try:
        yield child
    finally:
        child.end()


class _Scorer:
    """A confined process that has loaded the reward, or has failed to. `calls`: how many it may be asked for."""

    def __init__(self, job: Reply, calls: int) -> None:
        tasks, self._to = os.pipe()
        self._from, results = os.pipe()
        os.set_blocking(self._to, False)
        self.ended = False
        self._pid = platforms.fork()
        if self._pid == 0:
            _work(job, calls, tasks, results)
        os.close(tasks)
        os.close(results)
        self.loaded = self._reply("", job["load_s"], job["wall_s"] + job["load_s"])

    def ask(self, task: Reply, seconds: float, wall_s: float) -> Reply:
        """Have one answer scored, within `seconds` of processor and `wall_s` on the clock."""
        token = secrets.token_hex(16)
        return self._reply(token, seconds, wall_s, _framed({**task, "token": token}))

    def end(self) -> None:
        """Kill it if it runs, and close the pipes."""
        if not self.ended:
            self._gone("exit", "")
        os.close(self._to)
        os.close(self._from)

    def _reply(self, token: str, seconds: float, wall_s: float, message: bytes = b"") -> Reply:
        """Send a message and return the answer to it; the child may neither take it nor answer, so nothing blocks."""
        cpu, start, got = self._cpu(), time.monotonic(), b""
        while (size := _size(got)) is None or len(got) < size:
            if size is not None and size > _MOST:
                return self._gone("tampered", _TAMPERED)
            readable, writable, _ = select.select([self._from], [self._to] if message else [], [], _LOOK_S)
            if self._cpu() - cpu > seconds:
                return self._gone("time", f"took more than {seconds:g} s of processor time")
            if time.monotonic() - start > wall_s:
                return self._gone("time", f"took longer than {wall_s:g} s")
            try:
                if writable:
                    message = message[os.write(self._to, message) :]
                if readable:
                    piece = os.read(self._from, 1 << 16)
                    if not piece:
                        return self._gone("exit", "")
                    got += piece
            except OSError:  # it closed its end
                return self._gone("exit", "")
        return self._parsed(got[_LENGTH:], token)

    def _parsed(self, message: bytes, token: str) -> Reply:
        try:
            reply = json.loads(message)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict) or reply.pop("token", None) != token or not _sound(reply, bool(token)):
            return self._gone("tampered", _TAMPERED)
        return _failed(reply["failed"], reply["why"]) if "failed" in reply else reply

    def _cpu(self) -> float:
        """Return the child's processor seconds: the clock of a process, by <linux/posix-timers.h>."""
        try:
            return time.clock_gettime((~self._pid << 3) | 2)
        except OSError:
            return 0.0

    def _gone(self, kind: str, why: str) -> Reply:
        self.ended = True
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        if not why and os.WIFSIGNALED(status):
            why = f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"
        return _failed(kind, why or "ended its process")


def _sound(reply: Reply, with_token: bool) -> bool:
    """Return whether a message is one that the child's own code writes: what knows the token may write any other."""
    if set(reply) == {"failed", "why"}:
        return reply["failed"] in _KINDS and isinstance(reply["why"], str)
    if not with_token:
        return reply == {"ready": True}
    if set(reply) == {"item"}:
        return isinstance(reply["item"], list)
    return set(reply) == {"score"} and isinstance(reply["score"], int | float) and 0 <= reply["score"] <= 1


# --- the child ---------------------------------------------------------------------------------------


def _work(job: Reply, calls: int, tasks: int, results: int) -> None:
    """Confine this process, load the reward, answer the tasks; never return."""
    try:
        follow_parent(os.getppid())
        # of processor in all: the first process looks at every answer's
        seconds = math.ceil(job["load_s"] + calls * job["seconds"]) + 1
        if not close_in((tasks, results), seconds=seconds, memory=job["memory"], readable=all_files()):
            _write(results, {**_failed(REFUSED, ""), "token": ""})
            os._exit(1)
        try:
            work = _loaded(job)
        except BaseException as e:
            _write(results, {**_blamed(e), "token": ""})
            os._exit(1)
        _write(results, {"ready": True, "token": ""})
        while True:
            task = json.loads(_read(tasks))
            token = task.pop("token")
            random.seed(0)  # a batch scores alike after a restart
            _write(results, {**_called(work, task), "token": token})
    finally:
        os._exit(1)


def _loaded(job: Reply) -> Callable[[Reply], Reply]:
    """Return what answers this job's tasks."""
    if job["kind"] == "rg":
        return _gym(job)
    names: dict[str, Any] = {"__name__": "reward", "__file__": job["name"]}
    exec(compile(job["source"], job["name"], "exec"), names)
    reward = names.get("reward")
    if not callable(reward):
        raise ValueError("it defines no function reward(prompt, answer, item)")
    return lambda task: _judged(reward(task["prompt"], task["answer"], task["item"]))


def _gym(job: Reply) -> Callable[[Reply], Reply]:
    import reasoning_gym

    data = reasoning_gym.create_dataset(job["dataset"], **job["config"])

    def done(task: Reply) -> Reply:
        if "items" in task:
            first, count = task["items"]
            return {"item": [_plain(data[i]) for i in range(first, first + count)]}
        item = task["item"]
        entry = data[item["index"]] if "index" in item else item
        return _judged(data.score_answer(task["answer"], entry))

    return done


def _plain(entry: Any) -> Reply:
    return {"question": str(entry["question"]), "answer": str(entry["answer"])}


def _called(work: Callable[[Reply], Reply], task: Reply) -> Reply:
    try:
        return work(task)
    except BaseException as e:
        return _blamed(e)


def _blamed(error: BaseException) -> Reply:
    if isinstance(error, MemoryError):
        return _failed("memory", "took more memory than it may have")
    if isinstance(error, SystemExit):
        return _failed("exit", "called exit")
    try:
        why = f"{type(error).__name__}: {error}"
    except BaseException:
        why = type(error).__name__
    return _failed("exception", why)


def _judged(value: Any) -> Reply:
    """Return a score from 0 to 1, or why the value is none."""
    if not isinstance(value, numbers.Real):
        return _failed("no number", f"returned {type(value).__name__}: {value!r}")
    score = float(value)
    if not math.isfinite(score):
        return _failed("not finite", f"returned {score}")
    if not 0 <= score <= 1:
        return _failed("out of range", f"returned {score:g}; a score is 0 to 1")
    return {"score": score}


def _failed(kind: str, why: str) -> Reply:
    shown = "".join(c if c.isprintable() else " " for c in why[:_WHY])
    return {"failed": kind, "why": shown.encode("ascii", "backslashreplace").decode()}


# --- messages ----------------------------------------------------------------------------------------


def _encoded(message: Reply) -> bytes:
    return json.dumps(message).encode("utf-8", "surrogatepass")


def _framed(message: Reply) -> bytes:
    data = _encoded(message)
    return len(data).to_bytes(_LENGTH, "little") + data


def _size(got: bytes) -> int | None:
    """Return how many bytes a message has, its length included; None while that is not known."""
    return _LENGTH + int.from_bytes(got[:_LENGTH], "little") if len(got) >= _LENGTH else None


def _write(fd: int, message: Reply) -> None:
    data = _framed(message)
    while data:
        data = data[os.write(fd, data) :]


def _read(fd: int) -> bytes:
    """Return the next message. Raises EOFError at the end."""
    return _exactly(fd, int.from_bytes(_exactly(fd, _LENGTH), "little"))


def _exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(fd, min(size - len(data), 1 << 16))
        if not piece:
            raise EOFError
        data += piece
    return data


if __name__ == "__main__":
    with suppress(KeyboardInterrupt, OSError):
        main()
    os._exit(0)
