"""Calls and values between a test and the code that it tests, which run in two processes that share no memory.

The test sees the code's functions, classes and objects as `Remote`s: what it does with one is asked of the other
process. Numbers, texts, lists, dicts and other plain values are copied; a list that the test passes holds afterwards
what the code made of it. Only such values and exceptions of known classes cross, as JSON: no code, and nothing that is
called while it is read. The code never learns what a result is compared with: a `Remote` takes part in no comparison
and no sum with a value of the test, so an object cannot say that it equals everything.

Knows values and two pipes; knows no limits and no verdict.
Path: confined -> Peer.ask, Peer.serve -> Remote
"""

from __future__ import annotations

import builtins
import copy
import io
import json
import math
import operator
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from freehold.sandbox.values import Packer, Reader, deep

_LENGTH = 4  # bytes before a message
_MOST = 16 << 20  # bytes of a message
# A Remote of a subclass of these has a value.
_BASES = (int, float, str, bytes, tuple, list, dict, set, frozenset)
_ADDRESSES = ("__array_interface__", "__array_struct__")  # by which numpy would read any place of memory
_MOST_PRINTED = 1 << 16  # characters that wait for the next message
_ENDING = ("next", "send", "throw")  # operations that may end an iteration
_UNARY = {
    **{name: getattr(operator, name) for name in ("neg", "pos", "abs", "invert", "index")},
    **{
        name: getattr(builtins, name)
        for name in ("len", "next", "repr", "str", "bool", "hash", "int", "float")
    },
    **{name: getattr(builtins, name) for name in ("round", "reversed", "format", "complex", "bytes", "dir")},
    **{name: getattr(operator, name) for name in ("getitem", "setitem", "delitem")},
    **{name: getattr(math, name) for name in ("floor", "ceil", "trunc")},
    **{name: getattr(copy, name) for name in ("copy",)},
}
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor")
_SHIFTS = ("lshift", "rshift")
_LENT_NAMES = ("__name__", "__qualname__", "__doc__", "__module__", "__enter__", "__exit__", "__class__")
_INNER = (types.ModuleType, types.FrameType, types.CodeType, types.TracebackType)  # by which all could be had
_OWN_CONTROL = ("unittest", "doctest", "bdb")  # their exceptions would end a test without an error


class BrokenPeer(BaseException):
    """The other process has ended, or wrote something other than a message: nothing it says can be believed."""


# --- the code's objects, as the test sees them ---------------------------------------------------------


class Remote:
    # An object of the other process. No docstring: __doc__ is the object's own.
    # _freehold_value: it is a subclass of a plain type. _freehold_trusted: it may meet values of this side.
    __slots__ = ("__weakref__", "_freehold_number", "_freehold_peer", "_freehold_trusted", "_freehold_value")

    def __init__(self, peer: Peer, number: int, has_value: bool) -> None:
        object.__setattr__(self, "_freehold_peer", peer)
        object.__setattr__(self, "_freehold_number", number)
        object.__setattr__(self, "_freehold_value", has_value)
        object.__setattr__(self, "_freehold_trusted", peer.trusts)

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _asked(self, "op", "class", self)

    def __getattr__(self, name: str) -> Any:
        if name in _ADDRESSES:
            raise AttributeError(name)
        if name in ("send", "throw"):
            return lambda *args: _asked(self, "op", name, self, *args)
        return _asked(self, "attr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _asked(self, "set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _asked(self, "op", "delattr", self, name)

    def __contains__(self, value: Any) -> bool:
        if self._freehold_trusted:
            return _asked(self, "op", "contains", self, value) is True
        if self._freehold_value:
            return value in _value(self)
        return any(value is each or value == each for each in self)  # not the code's word: it would say yes

    def __instancecheck__(self, value: Any) -> bool:
        return _asked(self, "op", "isinstance", value, self) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return _asked(self, "op", "issubclass", value, self) is True

    def __enter__(self) -> Any:
        return _asked(self, "attr", self, "__enter__")()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Any:
        return _asked(self, "attr", self, "__exit__")(kind, error, None)

    def __iter__(self) -> Any:
        return iter(_value(self)) if self._freehold_value else _asked(self, "op", "iter", self)

    def __next__(self) -> Any:
        return _asked(self, "op", "next", self)

    def __deepcopy__(self, memo: Any) -> Any:
        return _asked(self, "op", "deepcopy", self)

    def __mro_entries__(self, bases: Any) -> Any:
        raise TypeError("a class of the code cannot be the base of a class of the test")


class RemoteCallable(Remote):
    # A class, method or other callable of the other process.
    __slots__ = ()

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _trusted_as(self, _asked(self, "call", self, list(args), options))


class RemoteFunction(RemoteCallable):
    # A Python function of the other process, which is a method where a class has it.
    __slots__ = ()

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self if owner is None else types.MethodType(self, owner)


def trust(remote: Any) -> None:
    """Let what a test makes of this class meet values of the test: it is the class's word that is tested then."""
    object.__setattr__(remote, "_freehold_trusted", True)


def _trusted_as(source: Remote, made: Any) -> Any:
    if source._freehold_trusted and isinstance(made, Remote):
        trust(made)
    return made


def _asked(remote: Remote, *request: Any) -> Any:
    return remote._freehold_peer.ask(*request)


def _value(remote: Remote) -> Any:
    """Return the plain value of an object whose class is a subclass of a plain type."""
    return _asked(remote, "op", "value", remote)


def _operated(name: str, one: Any, other: Any) -> Any:
    """Have the other process combine two of its objects; its object and a value of ours meet here, by its value.

    An object that the test made of a class meets a value there, but is not compared with it.
    """
    remote: Remote = one if isinstance(one, Remote) else other
    if isinstance(one, Remote) and isinstance(other, Remote):
        return _trusted_as(remote, _asked(remote, "op", name, one, other))
    if remote._freehold_trusted and (remote._freehold_peer.trusts or name not in _COMPARISONS):
        return _trusted_as(remote, _asked(remote, "op", name, one, other))
    if not remote._freehold_value or name not in vars(operator):
        return NotImplemented
    sides = [_value(side) if isinstance(side, Remote) else side for side in (one, other)]
    return getattr(operator, name)(*sides)


def _of_one(name: str) -> Callable[..., Any]:
    return lambda self, *args: _asked(self, "op", name, self, *args)


def _of_two(name: str, swapped: bool = False) -> Callable[[Any, Any], Any]:
    if swapped:
        return lambda self, other: _operated(name, other, self)
    return lambda self, other: _operated(name, self, other)


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    def changed(self: Remote, other: Any) -> Any:
        if not isinstance(other, Remote) and not self._freehold_trusted:
            return NotImplemented
        return _trusted_as(self, _asked(self, "op", name, self, other))

    return changed


def _give_operators() -> None:
    for name in _UNARY:
        setattr(Remote, f"__{name}__", _of_one(name))
    for name in _COMPARISONS:  # each is its own reflection
        setattr(Remote, f"__{name}__", _of_two(name))
    for name in (*_ARITHMETIC, *_SHIFTS, "divmod"):
        bare = name.strip("_")
        setattr(Remote, f"__{bare}__", _of_two(name))
        setattr(Remote, f"__r{bare}__", _of_two(name, swapped=True))
        if name != "divmod":
            setattr(Remote, f"__i{bare}__", _in_place(f"i{bare}"))
    for name in ("__doc__", "__module__"):
        setattr(Remote, name, property(lambda self, name=name: _asked(self, "attr", self, name)))


_give_operators()


def _base(value: Any) -> Any:
    return next((base for base in _BASES if isinstance(value, base)), None)


def _class_of(value: Any) -> Any:
    """Return a value's class; of a subclass of a plain type that type, which is what isinstance asks for."""
    return _base(value) or type(value)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    **_UNARY,
    **{name: getattr(builtins, name) for name in ("iter", "divmod", "isinstance", "issubclass", "delattr")},
    **{name: getattr(operator, name) for name in (*_COMPARISONS, *_ARITHMETIC, *_SHIFTS, "contains")},
    **{f"i{name.strip('_')}": getattr(operator, f"i{name.strip('_')}") for name in (*_ARITHMETIC, *_SHIFTS)},
    "class": _class_of,
    "send": lambda generator, value: generator.send(value),
    "throw": lambda generator, *error: generator.throw(*error),
    "value": lambda value: _base(value)(value),
    "deepcopy": copy.deepcopy,
}
_LENT = frozenset(_OPERATIONS) - {"delattr", "value"}  # of the test's objects


# --- the code's exceptions, as the test sees them ------------------------------------------------------


class _ErrorClass(type):
    """A class of exceptions of the other process. Its attributes are those of the class there."""

    _freehold_class: RemoteCallable

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or "_freehold_class" not in {*vars(cls), *dir(cls)}:
            raise AttributeError(name)
        return getattr(cls._freehold_class, name)


def _error_init(self: Any, *args: Any, **options: Any) -> None:
    made = type(self)._freehold_class(*args, **options)
    self.args = made.args
    self.__dict__.update(made.__dict__)


def _error_attribute(self: Any, name: str) -> Any:
    if name.startswith("__") or "_freehold_remote" not in self.__dict__:
        raise AttributeError(name)
    return getattr(self._freehold_remote, name)


def _error_text(self: Any) -> str:
    remote = self.__dict__.get("_freehold_remote")
    return str(self.args) if remote is None else str(remote)


class _Printed(io.TextIOBase):
    """sys.stdout of the code: what is printed reaches the test's before the test goes on."""

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


class _Typed(io.TextIOBase):
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
        self._printed: list[_Printed] = []
        self._objects: list[Any] = []  # what the other side may name, by number
        self._numbers: dict[int, int] = {}
        self._remotes: dict[int, Any] = {}  # what the other side lent, by its number
        self._stand_ins: dict[type, int] = {}  # our classes for its exceptions

    def ask(self, *request: Any) -> Any:
        """Have the other side do something, answer its own requests meanwhile, and return or raise what it answers.

        Raises BrokenPeer.
        """
        self._pass_on(request)
        packer = Packer(self, {})
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
        sys.stdin = _Typed(self)
        self._printed = [_Printed(self, "stdout"), _Printed(self, "stderr")]
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
        self._write(["value", Packer(self, {}).packed(value), []])

    def tell_raised(self, error: BaseException) -> None:
        """Say that the first thing is an error."""
        self._write(self._raised(error))

    def serve(self) -> None:
        """Answer the other side until it ends. Raises BrokenPeer then."""
        while True:
            message = self._read()
            self._serve(message)

    def _answered(self, lent: list[Any]) -> Any:
        while True:
            message = self._read()
            if message[0] == "ask":
                self._serve(message)
                continue
            reader = Reader(self, lent)
            try:
                with deep():
                    if message[0] == "raised":
                        error = reader.read(message[1])
                        if not isinstance(error, BaseException):
                            raise ValueError
                        break
                    _, value, changed = message
                    made = reader.read(value)
                    for place, contents in changed:
                        reader.fill(lent[place], contents)
                return made
            except Exception as e:
                raise self._broken() from e
        raise error

    def _serve(self, message: list[Any]) -> None:
        """Do what one message asks, and answer."""
        try:
            with deep():
                reader = Reader(self, [])
                action, *args = (reader.read(each) for each in message[1:])
        except Exception as e:
            raise self._broken() from e
        before = [(each, _snapshot(each)) for each in reader.containers]
        try:
            value = self._done(action, args)
            self._pass_on()
            with deep():
                packer = Packer(self, {id(each): place for place, each in enumerate(reader.containers)})
                packed = packer.packed(value)
                changed = [
                    [place, packer.contents(each)]
                    for place, (each, old) in enumerate(before)
                    if not _alike(_snapshot(each), old)
                ]
                self._write(["value", packed, changed])
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
        if action == "op" and (self._names is not None or args[0] in _LENT):
            return _OPERATIONS[args[0]](*args[1:])
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
        found = getattr(owner, name)
        if self._names is None and isinstance(found, _INNER):
            raise AttributeError(f"{type(owner).__name__!r} object of the test lends no {name!r}")
        return found

    def lent_out(self, packer: Packer, value: Any) -> Any:
        """Return how an object is named to the other side, which may hold it already."""
        if isinstance(value, Remote):
            return ["yours", value._freehold_number]
        if isinstance(value, type) and issubclass(value, BaseException):
            return self._exception_class(value)
        if isinstance(value, BaseException):
            return self._exception(packer, value)
        kind = 2 if isinstance(value, types.FunctionType) else 1 if callable(value) else 0
        return ["ref", self._numbered(value), kind, isinstance(value, _BASES)]

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

    def _exception(self, packer: Packer, error: BaseException) -> Any:
        if (remote := vars(error).get("_freehold_remote")) is not None:
            return ["yours", remote._freehold_number]
        kind = self._exception_class(type(error))
        cause = packer.packed(error.__cause__) if isinstance(error.__cause__, BaseException) else None
        is_named = getattr(sys.modules.get(kind[2]), kind[3], None) is type(error) if len(kind) > 2 else True
        number = None if is_named else self._numbered(error)
        return ["exception", kind, packer.each(error.args), packer.packed(dict(vars(error))), cause, number]

    def found(self, reader: Reader, tag: str, packed: list[Any]) -> Any:
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
        if tag != "ref":
            raise ValueError
        _, number, kind, has_value = packed
        if number not in self._remotes:
            self._remotes[number] = (Remote, RemoteCallable, RemoteFunction)[kind](self, number, has_value)
        return self._remotes[number]

    def _exception_class_read(self, reader: Reader, number: int, module: str, name: str, bases: Any) -> Any:
        known = getattr(sys.modules.get(module), name, None) if _is_library(module) else None
        if isinstance(known, type) and issubclass(known, BaseException):
            return known
        if number not in self._remotes:
            methods = {"__init__": _error_init, "__getattr__": _error_attribute, "__str__": _error_text}
            names = {
                "__module__": "answer",
                **methods,
                "_freehold_class": RemoteCallable(self, number, False),
            }
            made = _ErrorClass(name, tuple(reader.each(bases)) or (Exception,), names)
            self._remotes[number], self._stand_ins[made] = made, number
        return self._remotes[number]

    def _exception_read(
        self, reader: Reader, kind: Any, args: Any, attributes: Any, cause: Any, number: Any
    ) -> BaseException:
        made_kind, made_args = reader.read(kind), reader.each(args)
        if not issubclass(made_kind, BaseException):
            raise ValueError
        try:
            if made_kind in self._stand_ins:
                raise TypeError
            made = made_kind(*made_args)
        except Exception:
            made = made_kind.__new__(made_kind, *made_args)
            made.args = tuple(made_args)
        made.__dict__.update(reader.read(attributes))
        if cause is not None:
            made.__cause__ = reader.read(cause)
        if number is not None:
            made.__dict__["_freehold_remote"] = Remote(self, number, False)
        return made

    def _raised(self, error: BaseException) -> list[Any]:
        try:
            return ["raised", Packer(self, {}).packed(error)]
        except Exception:
            said = RuntimeError(f"{type(error).__name__} that cannot be said")
            return ["raised", Packer(self, {}).packed(said)]

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
        size = int.from_bytes(self._exactly(_LENGTH), "little")
        if size > _MOST:
            raise self._broken()
        try:
            message = json.loads(self._exactly(size))
            if message[0] not in ("ask", "value", "raised"):
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


def _is_library(module: str) -> bool:
    """Return whether exceptions of a module are those of the same name on both sides."""
    root = module.partition(".")[0]
    return root in sys.stdlib_module_names and root not in _OWN_CONTROL


def _snapshot(container: Any) -> Any:
    if isinstance(container, dict):
        return [part for pair in container.items() for part in pair]
    return bytes(container) if isinstance(container, bytearray) else list(container)


def _alike(now: Any, old: Any) -> bool:
    """Return whether a container holds the very objects that it held."""
    if isinstance(now, bytes):
        return now == old
    return len(now) == len(old) and all(map(operator.is_, now, old))
