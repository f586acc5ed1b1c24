"""Calls and values between a test and the code that it tests, which run in two processes that share no memory.

The test sees the code's functions, classes and objects as `Remote`s: what it does with one is asked of the other
process. Numbers, texts, lists, dicts and other plain values are copied; a list that the test passes holds afterwards
what the code made of it. Only such values and exceptions of known classes cross, as JSON: no code, and nothing that is
called while it is read. The code never learns what a result is compared with (remote.py). What it prints
and reads goes to and comes from the test's standard streams.

Knows messages and two pipes; knows no limits and no verdict.
"""

from __future__ import annotations

import builtins
import io
import json
import operator
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from freehold.base.sandbox.remote import (
    LENT,
    OPERATIONS,
    Remote,
    RemoteCallable,
    ValuePacker,
    ValueReader,
    awaited,
    class_of,
    deep,
    described,
    error_class,
)

_LENGTH = 4  # bytes before a message
_MOST = 16 << 20  # bytes of a message
_MOST_PRINTED = 1 << 16  # characters that wait for the next message
_SEEN = 8  # attributes whose lists and dicts may be changed in place,
_MOST_SEEN = 1000  # of as many items and containers
_ENDING = ("next", "send", "throw")  # operations that may end an iteration
_LENT_NAMES = (
    "__aiter__",
    "__anext__",
    "__aenter__",
    "__aexit__",
    "__name__",
    "__qualname__",
    "__doc__",
    "__module__",
    "__enter__",
    "__exit__",
    "__class__",
)
_INNER = (types.ModuleType, types.FrameType, types.CodeType, types.TracebackType)  # by which all could be had
_OWN_CONTROL = ("unittest", "doctest", "bdb")  # their exceptions would end a test without an error


class BrokenPeer(BaseException):
    """The other process has ended, or wrote something other than a message: nothing it says can be believed."""


# --- the standard streams of the code ------------------------------------------------------------------


class _CodeOutput(io.TextIOBase):
    """sys.stdout of the code: what is printed reaches the test's before the next answer does."""

    def __init__(self, peer: Peer, name: str) -> None:
        self._peer, self._name, self._size = peer, name, 0
        self._texts: list[str] = []

    def write(self, text: str) -> int:
        """Keep a text until the code answers, or has written much."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._texts.append(text)
        self._size += len(text)
        if self._size > _MOST_PRINTED:
            self.pass_on()
        return len(text)

    def pass_on(self) -> None:
        """Send what was kept."""
        if self._texts:
            text, self._texts, self._size = "".join(self._texts), [], 0
            self._peer.ask("print", self._name, text)


class _CodeInput(io.TextIOBase):
    """sys.stdin of the code: it reads the test's."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def readline(self, size: int = -1) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the next line."""
        return self._peer.ask("typed", "readline", size)

    def read(self, size: int | None = -1) -> str:
        """Return the text that is left."""
        return self._peer.ask("typed", "read", -1 if size is None else size)


# --- the two sides -------------------------------------------------------------------------------------


class Peer:
    """One side. `trusts`: whether the other side's objects meet and are compared with values of this one."""

    def __init__(
        self,
        reads: int,
        writes: int,
        names: dict[str, Any] | None = None,
        is_own: Callable[[Any], bool] = lambda value: True,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        """`names`: what the other side may ask for by name, which may then look into everything.

        Without them it may read the public attributes of objects that it was passed, and set those of `is_own`.
        `broken` is called before BrokenPeer is raised, which code might catch.
        """
        self._reads, self._writes, self._names, self._is_own = reads, writes, names, is_own
        self.trusts = names is not None
        self._tell_broken = broken
        self._printed: list[_CodeOutput] = []
        self._shown, self._seen = _Latest(), _Latest()
        self._objects: list[Any] = []  # what the other side may name, by number
        self._numbers: dict[int, int] = {}
        self._remotes: dict[int, Any] = {}  # what the other side lent, by its number
        self._classes: dict[Any, Any] = {}  # of Remotes
        self._stand_ins: dict[type, int] = {}  # our classes for its exceptions

    def ask(self, *request: Any) -> Any:
        """Have the other side do something, answer its own requests meanwhile, and return or raise what it answers.

        Raises BrokenPeer.
        """
        self._pass_on(request)
        self._refill()
        packer = ValuePacker(self, {})
        with deep():
            self._write(["ask", *packer.each(request)])
        try:
            return self._answered(packer.containers)
        except StopIteration as e:
            if request[0] == "op" and request[1] in _ENDING:
                raise
            # It would end a loop of the test's.
            raise RuntimeError("StopIteration outside of an iterator") from e

    def take_streams(self) -> None:
        """Let this process print to, and read from, the other's standard streams, whatever they are there."""
        sys.stdin = _CodeInput(self)
        self._printed = [_CodeOutput(self, "stdout"), _CodeOutput(self, "stderr")]
        sys.stdout, sys.stderr = self._printed
        builtins.input = lambda prompt="", /: self.ask("typed", "input", prompt)

    def _pass_on(self, request: tuple[Any, ...] = ()) -> None:
        if not request or request[0] != "print":
            for each in self._printed:
                each.pass_on()

    def start(self) -> Any:
        """Return what the other side says first. Raises as `ask` does."""
        return self._answered([])

    def tell(self, value: Any) -> None:
        """Say the first thing."""
        self._pass_on()
        self._write(["value", ValuePacker(self, {}).packed(value), [], False])

    def tell_raised(self, error: BaseException) -> None:
        """Say that the first thing is an error."""
        self._write(self._raised(error))

    def serve(self) -> None:
        """Answer the other side until it ends. Raises BrokenPeer then."""
        while True:
            message = self._read()
            self._serve(message)

    def _refill(self) -> None:
        """Have the other side's attributes hold what this side made of the lists and dicts that it read from them."""
        for number, seen in self._seen.items():
            places = [place for place, each in enumerate(seen) if each.has_changed()]
            if not places:
                continue
            with deep():
                packer = ValuePacker(self, {id(each.container): place for place, each in enumerate(seen)})
                contents = [[place, packer.contents(seen[place].container)] for place in places]
                self._write(["refill", number, contents])
            for place in places:
                seen[place] = _Seen(seen[place].container)

    def _refilled(self, number: Any = None, contents: Any = ()) -> None:
        try:
            with deep():
                shown = self._shown[number]
                reader = ValueReader(self, shown)
                for place, each in contents:
                    reader.fill(shown[place], each)
        except Exception as e:
            raise self._broken() from e

    def _answered(self, lent: list[Any]) -> Any:
        while True:
            message = self._read()
            if message[0] == "ask":
                self._serve(message)
                continue
            reader = ValueReader(self, lent)
            try:
                with deep():
                    if message[0] == "raised":
                        error = reader.read(message[1])
                        if not isinstance(error, BaseException):
                            raise ValueError
                        break
                    _, value, changed, is_shown = message
                    value_read = reader.read(value)
                    for place, contents in changed:
                        reader.fill(lent[place], contents)
                    if is_shown:
                        self._seen.put([_Seen(each) for each in reader.containers])
                return value_read
            except Exception as e:
                raise self._broken() from e
        raise error

    def _serve(self, message: list[Any]) -> None:
        """Do what one message asks, and answer."""
        try:
            with deep():
                reader = ValueReader(self, [])
                action, *args = (reader.read(each) for each in message[1:])
        except Exception as e:
            raise self._broken() from e
        before = [(each, _snapshot(each)) for each in reader.containers]
        try:
            value = self._done(action, args)
            self._pass_on()
            self._refill()
            with deep():
                packer = ValuePacker(self, {id(each): place for place, each in enumerate(reader.containers)})
                packed = packer.packed(value)
                changed = [
                    [place, packer.contents(each)]
                    for place, (each, old) in enumerate(before)
                    if not _alike(_snapshot(each), old)
                ]
                shows = action in ("attr", "name") or (action == "op" and args[0] == "getitem")
                is_shown = shows and bool(packer.containers)
                self._write(["value", packed, changed, is_shown])
                if is_shown:
                    self._shown.put(packer.containers)
        except BaseException as e:
            if isinstance(e, BrokenPeer):
                raise
            self._pass_on()
            self._write(self._raised(e))

    def _done(self, action: str, args: list[Any]) -> Any:
        if action == "name" and self._names is not None:
            return (True, self._names[args[0]]) if args[0] in self._names else (False, None)
        if action == "call":
            function, positional, named = args
            return function(*positional, **named)
        if action == "op" and (self._names is not None or args[0] in LENT):
            return OPERATIONS[args[0]](*args[1:])
        if action == "print" and self._names is None:
            return getattr(sys, "stdout" if args[0] == "stdout" else "stderr").write(args[1])
        if action == "typed" and self._names is None:
            how, more = args
            return builtins.input(more) if how == "input" else getattr(sys.stdin, how)(more)
        return self._attribute(action, *args)

    def _attribute(self, action: str, owner: Any, name: str, *value: Any) -> Any:
        if self._names is None:
            private = name.startswith("__") or (name.startswith("_") and not self._is_own(owner))
            if (private and name not in _LENT_NAMES) or (action == "set" and not self._is_own(owner)):
                raise AttributeError(f"{type(owner).__name__!r} object of the test lends no {name!r}")
        if action == "set":
            return setattr(owner, name, *value)
        attribute = getattr(owner, name)
        if self._names is None and isinstance(attribute, _INNER):
            raise AttributeError(f"{type(owner).__name__!r} object of the test lends no {name!r}")
        return attribute

    def lent_out(self, packer: ValuePacker, value: Any) -> Any:
        """Return how an object is named to the other side, which may hold it already."""
        if isinstance(value, Remote):
            return ["yours", value._freehold_number]
        if isinstance(value, type) and issubclass(value, BaseException):
            return self._exception_class(value)
        if isinstance(value, BaseException):
            return self._exception(packer, value)
        if isinstance(value, types.CoroutineType):
            return ["coroutine", self._numbered(value)]
        kind, has_value, shown = described(value)
        return ["ref", self._numbered(value), kind, has_value, packer.packed(shown), type(value).__name__]

    def _numbered(self, value: Any) -> int:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)  # kept: its id is its name
        return number

    def _exception_class(self, value: type) -> Any:
        if (number := self._stand_ins.get(value)) is not None:
            return ["yours", number]
        bases = [self._exception_class(base) for base in value.__bases__ if issubclass(base, BaseException)]
        return ["errors", self._numbered(value), value.__module__, value.__name__, bases]

    def _exception(self, packer: ValuePacker, error: BaseException) -> Any:
        if (remote := vars(error).get("_freehold_remote")) is not None:
            return ["yours", remote._freehold_number]
        kind = self._exception_class(type(error))
        cause = packer.packed(error.__cause__) if isinstance(error.__cause__, BaseException) else None
        number = None if kind[0] == "errors" and _is_library(kind[2]) else self._numbered(error)
        return ["exception", kind, packer.each(error.args), packer.packed(dict(vars(error))), cause, number]

    def found(self, reader: ValueReader, tag: str, packed: list[Any]) -> Any:
        """Return the object that the other side names."""
        if tag == "yours":
            number = packed[1]
            if not isinstance(number, int) or number < 0:
                raise ValueError
            return self._objects[number]
        if tag == "exception":
            return self._exception_read(reader, *packed[1:])
        if tag == "errors":
            return self._exception_class_read(reader, *packed[1:])
        if tag == "coroutine":
            return awaited(Remote(self, packed[1], False))
        if tag != "ref":
            raise ValueError
        _, number, kind, has_value, shown, name = packed
        if number not in self._remotes:
            key = (kind, str(shown), name)
            if (stand_in := self._classes.get(key)) is None:
                stand_in = self._classes[key] = class_of(kind, reader.read(shown), name)
            self._remotes[number] = stand_in(self, number, has_value)
        return self._remotes[number]

    def _exception_class_read(
        self, reader: ValueReader, number: int, module: str, name: str, bases: Any
    ) -> Any:
        known = getattr(sys.modules.get(module), name, None) if _is_library(module) else None
        if isinstance(known, type) and issubclass(known, BaseException) and _is_library(known.__module__):
            return known
        if number not in self._remotes:
            class_made = error_class(name, tuple(reader.each(bases)), RemoteCallable(self, number, False))
            self._remotes[number], self._stand_ins[class_made] = class_made, number
        return self._remotes[number]

    def _exception_read(
        self, reader: ValueReader, kind: Any, args: Any, attributes: Any, cause: Any, number: Any
    ) -> BaseException:
        made_kind, made_args = reader.read(kind), reader.each(args)
        if not issubclass(made_kind, BaseException):
            raise ValueError
        try:
            if made_kind in self._stand_ins:
                raise TypeError
            exception = made_kind(*made_args)
        except Exception:
            exception = made_kind.__new__(made_kind, *made_args)
            exception.args = tuple(made_args)
        exception.__dict__.update(reader.read(attributes))
        if cause is not None:
            exception.__cause__ = reader.read(cause)
        if number is not None:
            exception.__dict__["_freehold_remote"] = Remote(self, number, False)
        return exception

    def _raised(self, error: BaseException) -> list[Any]:
        try:
            return ["raised", ValuePacker(self, {}).packed(error)]
        except Exception:
            error_told = RuntimeError(f"{type(error).__name__} that cannot be said")
            return ["raised", ValuePacker(self, {}).packed(error_told)]

    def _write(self, message: list[Any]) -> None:
        data = json.dumps(message).encode()
        if len(data) > _MOST:
            raise MemoryError(f"a value of {len(data):,} bytes; {_MOST:,} can cross between code and test")
        data = len(data).to_bytes(_LENGTH, "little") + data
        try:
            while data:
                data = data[os.write(self._writes, data) :]
        except OSError as e:
            raise self._broken() from e

    def _read(self) -> list[Any]:
        """Return the next message that wants something of this side's."""
        while (message := self._message())[0] == "refill":
            self._refilled(*message[1:3])
        return message

    def _message(self) -> list[Any]:
        size = int.from_bytes(self._exactly(_LENGTH), "little")
        if size > _MOST:
            raise self._broken()
        try:
            with deep():
                message = json.loads(self._exactly(size))
            if message[0] not in ("ask", "value", "raised", "refill"):
                raise ValueError
        except Exception as e:
            raise self._broken() from e
        return message

    def _broken(self) -> BrokenPeer:
        self._tell_broken()
        return BrokenPeer()

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = os.read(self._reads, min(size - len(data), 1 << 20))
            except OSError as e:
                raise self._broken() from e
            if not piece:
                raise self._broken()
            data += piece
        return bytes(data)


class _Latest(dict[int, list[Any]]):
    """The containers of the last attributes that were read, by number; both sides count alike."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def put(self, containers: list[Any]) -> None:
        """Add those of one attribute, and forget the oldest."""
        self[self._count] = containers if len(containers) <= _MOST_SEEN else []
        self._count += 1
        self.pop(self._count - 1 - _SEEN, None)


class _Seen:
    """A container of the other side's, and its content when it was read."""

    def __init__(self, container: Any) -> None:
        self.container = container
        self._before = _snapshot(container) if len(container) <= _MOST_SEEN else None

    def has_changed(self) -> bool:
        """Return whether it holds something else now; large ones are not looked at."""
        return self._before is not None and not _alike(_snapshot(self.container), self._before)


def _is_library(module: str) -> bool:
    """Return whether exceptions of a module are those of the same name on both sides."""
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names and root not in _OWN_CONTROL


def _snapshot(container: Any) -> Any:
    if isinstance(container, dict):
        return [part for pair in container.items() for part in pair]
    return bytes(container) if isinstance(container, bytearray) else list(container)


def _alike(now: Any, old: Any) -> bool:
    """Return whether two snapshots have the very same objects."""
    if isinstance(now, bytes):
        return now == old
    return len(now) == len(old) and all(map(operator.is_, now, old))
