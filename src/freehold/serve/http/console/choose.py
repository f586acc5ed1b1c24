"""What the Models page shows, and every question of choosing: answers are those that the command line prints.

Knows who may ask about what; knows no figure.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec

from freehold.base import errors
from freehold.base.errors import FreeholdError
from freehold.base.sandbox.children import spawn
from freehold.run.store.refs import parse_ref
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.keys import Key
from freehold.serve.http.core.problems import Refused, without_paths

MOST_WORDS = 64
VERBS = ("advise", "fit", "license", "why", "cost")
SCOPED = ("fit", "why")  # verbs that speak of one model, which a scoped key may ask about if it is its own


async def models(call: HttpCall) -> None:
    """List installed models and the catalogue, each with fit, speed, licence verdict, quality and origin.

    An earlier list is returned at once, with `newer` while a new one is computed; `newest` waits for the new one.
    """
    words = words_of(call, ("held", "newest"))
    newest = bool(words.pop("newest", None))

    async def work() -> None:
        held = questions(call)
        text, newer = (
            (await held.ask("models", words), False) if newest else await held.shown("models", words)
        )
        loaded = {each.name for each in call.models.loaded()}
        await call.answer(await call.in_thread(_seen, text, call.key, loaded, newer))

    await call.while_here(work())


async def starters(call: HttpCall) -> None:
    """List models to start with, which run well on this machine and can be downloaded."""
    words_of(call, ())

    async def work() -> None:
        await call.answer((await questions(call).ask("starters", {})).encode())

    await call.while_here(work())


async def choose(call: HttpCall) -> None:
    """Return what `freehold VERB --json` prints, byte for byte (advise, fit, license, why, cost)."""
    words = words_of(call)
    verb = "".join(words.pop("verb", ()))
    if verb not in VERBS:
        message = f"verb is {verb[:40]!r}; expected {', '.join(VERBS)}"
        raise Refused(400, message, param="verb", code="invalid_value")
    for name in words.get("model", ()):
        if not name or parse_ref(name, disk=False).kind == "path":  # a request names no file of the server
            raise Refused(404, f"there is no model {name[:200]!r}", param="model", code="model_not_found")
    if call.key is not None and call.key.models:
        _check_scope(call.key, verb, words)

    async def work() -> None:
        text = await questions(call).ask(verb, words)
        await call.answer((text if _of_the_house(call) else _pathless(text)).encode())

    await call.while_here(work())


def _of_the_house(call: HttpCall) -> bool:
    """Return whether the caller may know the paths of local files."""
    return call.owner or (call.key is not None and call.key.kind == "admin")


def _pathless(text: str) -> str:
    """Leave of each path the file's name, as in errors; the rest as the command line prints it."""

    def told(value: Any) -> Any:
        if isinstance(value, str):
            return without_paths(value)
        if isinstance(value, list):
            return [told(each) for each in value]
        return {name: told(each) for name, each in value.items()} if isinstance(value, dict) else value

    return json.dumps(told(json.loads(text)), indent=1) + "\n"


def _check_scope(key: Key, verb: str, words: dict[str, list[str]]) -> None:
    if verb not in SCOPED:
        message = f"the key {key.name} has a scope; {verb[:40]} speaks of every model"
        raise Refused(403, message, code="not_permitted")
    for name in words.get("model", ()):
        if not key.may_use(name):
            message = f"there is no model {name[:200]!r} for the key {key.name}"
            raise Refused(404, message, code="model_not_found")


def _seen(text: str, key: Key | None, loaded: Collection[str], newer: bool) -> bytes:
    """Leave the rows that a key may see, and say which are in memory."""
    report: dict[str, Any] = msgspec.json.decode(text)
    rows = [row for row in report["models"] if key is None or key.may_use(row["name"])]
    for row in rows:
        row["loaded"] = row["name"] in loaded
    return msgspec.json.encode({**report, "models": rows, "newer": newer})


def questions(call: HttpCall) -> Questions:
    """Return the server's process for questions, which its first one starts."""
    part = call.server.part(Questions)
    if part is None:
        if call.server.store is None:
            raise Refused(404, "this server has no store of models", code="no_store")
        part = call.server.parts[Questions] = Questions(call.server.store.settings.home)
    return part


def words_of(call: HttpCall, known: Collection[str] | None = None) -> dict[str, list[str]]:
    """Return the query's words; Refused (400) for one that is not `known`."""
    try:
        query = call.scope["query_string"].decode("utf-8")
        words = parse_qs(query, keep_blank_values=True, max_num_fields=MOST_WORDS, errors="strict")
    except ValueError as e:
        raise Refused(400, f"the query is malformed: {str(e)[:100]}", code="invalid_value") from None
    if known is not None and (strange := min(words.keys() - set(known), default="")):
        message = f"unknown parameter {strange[:40]!r}; expected {', '.join(known)}"
        raise Refused(400, message, code="invalid_value")
    return words


# --- questions, answered by a process that knows the engine's families; this one imports no engine --
# A process is started at the first question, answers one after the other, and ends when none came for a while
# or when the caller of the question that it works on leaves. The list of all models, which takes 20 seconds
# on a busy machine, has a process of its own: a model's details do not wait for it. Answers are kept by their
# words for as long as the store, config.toml, the catalogue, the measurements and the day stay as they are: a
# short time where they speak of this machine's free memory. What takes long is shown older than that while it
# is computed again.

COMMAND = (sys.executable, "-P", "-m", "freehold.serve.reports")
IDLE_S = 120.0  # after which the process ends; a new one takes half a second to begin
HERE_S, ELSEWHERE_S = 10.0, 3600.0  # that an answer holds: about this machine, about named hardware
KEPT = 128  # answers
WAITING = 16  # questions; beyond, 429
LONG = "models"  # the verb that has a process of its own

TRUE_BY = ("config.toml", "catalogue.toml", "models", "overlays")  # files of the home that answers hang on
NEW_BY = ("machine.json", "runs.jsonl")  # what was measured: an answer from before is only an older one

Words = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class _HeldAnswer:
    """An answer, and what it holds by."""

    until: float
    true_by: str
    new_by: str
    text: str


class _Process:
    """The process that answers some verbs: one question after the other."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.turn = asyncio.Lock()
        self.child: subprocess.Popen[bytes] | None = None
        self._ends = 0  # processes that close() ended
        self._idle: asyncio.TimerHandle | None = None

    async def answered(self, verb: str, words: Words) -> str:
        """Return its answer; only one caller at a time, which holds `turn`."""
        if self._idle is not None:
            self._idle.cancel()
        line = json.dumps([verb, words]).encode() + b"\n"
        try:
            line_read = await asyncio.to_thread(self._exchange, line, self._ends)
        except asyncio.CancelledError:  # its caller left: what it works on is wanted no more
            self.close()
            raise
        if not line_read.endswith(b"\n"):
            self.close()
            raise Refused(503, "the process that answers this ended; try again", code="no_answer")
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self.close)
        kind, text, *hint = json.loads(line_read)
        if not kind:
            return text
        raise getattr(errors, kind, FreeholdError)(text, *hint)

    def close(self) -> None:
        """End it, or the one that a question is starting."""
        self._ends += 1
        if self._idle is not None:
            self._idle.cancel()
        if self.child is not None:
            self.child.kill()
            _left(self.child)
            self.child = None

    def _exchange(self, line: bytes, ends: int) -> bytes:
        """Give the process a line and wait for its own; b"" where it was ended meanwhile."""
        child = self.child
        if child is None or child.poll() is not None:
            if child is not None:
                _left(child)
            env = {**os.environ, "FREEHOLD_HOME": str(self._home)}
            child = spawn(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
            )
            if ends != self._ends:  # its caller left while it was started
                child.kill()
                child.communicate()
                return b""
            self.child = child
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(line)
            child.stdin.flush()
            return child.stdout.readline()
        except (OSError, ValueError):
            return b""


def _left(child: subprocess.Popen[bytes]) -> None:
    """Wait for a process that ends, and close its pipes."""
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


class Questions:
    """The processes and the answers of one server."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._processes = {True: _Process(home), False: _Process(home)}  # for LONG, and for all other verbs
        self._waiting = 0
        self._again: dict[str, asyncio.Task[str]] = {}  # answers that are shown meanwhile as they were
        self._kept: OrderedDict[str, _HeldAnswer] = OrderedDict()

    async def shown(self, verb: str, words: Words) -> tuple[str, bool]:
        """Return an answer at once where one is kept, whatever its age, and whether it is being computed again."""
        key = _key(verb, words)
        kept = self._kept.get(key)
        if kept is None or kept.true_by != self._stamp(TRUE_BY) or self._known(key) is not None:
            return await self.ask(verb, words), False
        if key not in self._again:
            task = self._again[key] = asyncio.create_task(self.ask(verb, words))
            task.add_done_callback(lambda done: (self._again.pop(key), done.cancelled() or done.exception()))
        return kept.text, True

    async def ask(self, verb: str, words: Words) -> str:
        """Return the text that `freehold VERB --json` prints. Raises what the verb does, and Refused (429, 503)."""
        key = _key(verb, words)
        if (answer := self._known(key)) is not None:
            return answer
        if self._waiting >= WAITING:
            raise Refused(
                429, f"{WAITING} questions are already waiting; try again in a moment", code="overloaded"
            )
        self._waiting += 1
        try:
            async with self.process(verb).turn:
                if (answer := self._known(key)) is None:  # not asked by the one before
                    stamps = self._stamp(TRUE_BY), self._stamp(NEW_BY)
                    answer = await self._answered(verb, words)
                    holds = ELSEWHERE_S if words.get("on") or verb in ("license", "cost") else HERE_S
                    self._kept[key] = _HeldAnswer(time.monotonic() + holds, *stamps, answer)
                    while len(self._kept) > KEPT:
                        self._kept.popitem(last=False)
            return answer
        finally:
            self._waiting -= 1

    def process(self, verb: str) -> _Process:
        """Return the process that answers a verb."""
        return self._processes[verb == LONG]

    def close(self) -> None:
        """End the processes, and any that a question is starting."""
        for each in self._processes.values():
            each.close()

    def _known(self, key: str) -> str | None:
        kept = self._kept.get(key)
        if kept is None or time.monotonic() >= kept.until:
            return None
        same = (kept.true_by, kept.new_by) == (self._stamp(TRUE_BY), self._stamp(NEW_BY))
        return kept.text if same else None

    def _stamp(self, files: Sequence[str]) -> str:
        """Return what changes with the day and these files of the home."""
        times = []
        for name in files:
            with suppress(OSError):
                times.append((name, (self._home / name).stat().st_mtime_ns))
        return f"{date.today()} {times}"

    async def _answered(self, verb: str, words: Words) -> str:
        return await self.process(verb).answered(verb, words)


def _key(verb: str, words: Words) -> str:
    return json.dumps([verb, words], sort_keys=True)
