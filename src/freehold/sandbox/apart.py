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
import json
import operator
import os
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

_LENGTH = 4  # bytes before a message
_MOST = 16 << 20  # bytes of a message
_WORD = 1 << 63  # numbers beyond are written in hexadecimal, which takes linear time
_TYPES = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, object)
# A Remote of a subclass of these has a value.
_BASES = (int, float, str, bytes, tuple, list, dict, set, frozenset)
_ADDRESSES = ("__array_interface__", "__array_struct__")  # by which numpy would read any place of memory
_UNARY = ("neg", "pos", "abs", "invert", "index")
_BINARY = (
    *("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("and_", "or_", "xor", "lshift", "rshift"),
)
_DICTS: dict[str, type] = {"dict": dict, "counter": Counter, "ordered": OrderedDict, "default": defaultdict}


class BrokenPeer(BaseException):
    """The other process has ended, or wrote something other than a message: nothing it says can be believed."""


# --- the code's objects, as the test sees them ---------------------------------------------------------


class Remote:
    """An object of the other process. `_freehold_value`: whether it is a subclass of a plain type."""

    __slots__ = ("__weakref__", "_freehold_number", "_freehold_peer", "_freehold_value")

    def __init__(self, peer: Peer, number: int, has_value: bool) -> None:
        object.__setattr__(self, "_freehold_peer", peer)
        object.__setattr__(self, "_freehold_number", number)
        object.__setattr__(self, "_freehold_value", has_value)

    def __getattr__(self, name: str) -> Any:
        if name in _ADDRESSES:
            raise AttributeError(name)
        return _asked(self, "attr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _asked(self, "set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _asked(self, "op", "delattr", self, name)

    def __contains__(self, value: Any) -> bool:
        if self._freehold_value:
            return value in _value(self)
        return any(value is each or value == each for each in self)  # not the code's word: it would say yes

    def __instancecheck__(self, value: Any) -> bool:
        return _asked(self, "op", "isinstance", value, self) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return _asked(self, "op", "issubclass", value, self) is True

    def __enter__(self) -> Any:
        return self.__getattr__("__enter__")()

    def __exit__(self, *exc: Any) -> Any:
        return self.__getattr__("__exit__")(*(None, None, None))

    def __iter__(self) -> Any:
        return iter(_value(self)) if self._freehold_value else _asked(self, "op", "iter", self)

    def __deepcopy__(self, memo: Any) -> Any:
        return _asked(self, "op", "deepcopy", self)


class RemoteCallable(Remote):
    """A function, class or method of the other process."""

    __slots__ = ()

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _asked(self, "call", self, list(args), options)


def _asked(remote: Remote, *request: Any) -> Any:
    return remote._freehold_peer.ask(*request)


def _value(remote: Remote) -> Any:
    """Return the plain value of an object whose class is a subclass of a plain type."""
    return _asked(remote, "op", "value", remote)


def _operated(name: str, one: Any, other: Any) -> Any:
    """Have the other process combine two of its objects; its object and a value of ours meet here, by its value."""
    if isinstance(one, Remote) and isinstance(other, Remote):
        return (one if isinstance(one, Remote) else other)._freehold_peer.ask("op", name, one, other)
    sides = []
    for side in (one, other):
        if isinstance(side, Remote):
            if not side._freehold_value:
                return NotImplemented
            side = _value(side)
        sides.append(side)
    return getattr(operator, name)(*sides)


def _of_one(name: str) -> Callable[..., Any]:
    return lambda self, *args: _asked(self, "op", name, self, *args)


def _of_two(name: str, swapped: bool) -> Callable[[Any, Any], Any]:
    if swapped:
        return lambda self, other: _operated(name, other, self)
    return lambda self, other: _operated(name, self, other)


def _give_operators() -> None:
    plain = "len next repr str bool hash int float round reversed format copy getitem setitem delitem"
    for name in (*plain.split(), *_UNARY):
        setattr(Remote, f"__{name}__", _of_one(name))
    for name in _BINARY:
        bare = name.strip("_")
        setattr(Remote, f"__{bare}__", _of_two(name, False))
        if _BINARY.index(name) > 5:  # a comparison is its own reflection
            setattr(Remote, f"__r{bare}__", _of_two(name, True))


_give_operators()


def _plain_value(value: Any) -> Any:
    kind: Any = next(base for base in _BASES if isinstance(value, base))
    return kind(value)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(builtins, name)
        for name in ("len", "next", "iter", "repr", "str", "bool", "hash", "int")
    },
    **{name: getattr(builtins, name) for name in ("float", "round", "reversed", "format", "delattr")},
    **{name: getattr(builtins, name) for name in ("isinstance", "issubclass")},
    **{name: getattr(operator, name) for name in (*_UNARY, *_BINARY, "getitem", "setitem", "delitem")},
    "value": _plain_value,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
_LENT = frozenset(_OPERATIONS) - {"delattr", "value", "copy", "deepcopy"}  # of the test's objects


# --- values as JSON ------------------------------------------------------------------------------------


class _Packer:
    """Writes the values of one message. `lent`: id -> place of containers that the other side passed."""

    def __init__(self, peer: Peer, lent: dict[int, int]) -> None:
        self._peer, self._lent = peer, lent
        self._places: dict[int, int] = {}
        self.containers: list[Any] = []

    def packed(self, value: Any) -> Any:
        """Return `value` as JSON has it."""
        kind = type(value)
        if value is None or kind is str or kind is bool or kind is float:
            return value
        if kind is int:
            return value if -_WORD < value < _WORD else ["int", hex(value)]
        if (write := _WRITERS.get(kind)) is not None:
            return write(self, value)
        if kind in _MUTABLE:
            return self._container(kind, value)
        return _special(value) or self._peer.lent_out(value)

    def each(self, values: Iterable[Any]) -> list[Any]:
        """Return several values."""
        return [self.packed(value) for value in values]

    def contents(self, value: Any) -> Any:
        """Return what a container holds."""
        if isinstance(value, dict):
            return [[self.packed(key), self.packed(each)] for key, each in value.items()]
        return value.decode("latin1") if isinstance(value, bytearray) else self.each(value)

    def _container(self, kind: type, value: Any) -> Any:
        if (place := self._lent.get(id(value))) is not None:
            return ["lent", place]
        if (place := self._places.get(id(value))) is not None:
            return ["same", place]
        self._places[id(value)] = len(self.containers)
        self.containers.append(value)
        return [_MUTABLE[kind], self.contents(value)]


class _Reader:
    """Reads the values of one message. `lent`: the containers that this side passed."""

    def __init__(self, peer: Peer, lent: list[Any]) -> None:
        self._peer, self._lent = peer, lent
        self.containers: list[Any] = []

    def read(self, packed: Any) -> Any:
        """Return the value of what is written so. Raises what a damaged text raises."""
        if type(packed) is not list:
            if type(packed) is dict:
                raise ValueError
            return packed
        tag = packed[0]
        if tag in _EMPTY:
            made = _EMPTY[tag]()
            self.containers.append(made)
            self.fill(made, packed[1])
            return made
        if tag == "lent":
            return self._lent[packed[1]]
        if tag == "same":
            return self.containers[packed[1]]
        if tag in _READERS:
            return _READERS[tag](self, *packed[1:])
        return self._peer.found(self, tag, packed)

    def each(self, packed: list[Any]) -> list[Any]:
        """Return several values."""
        return [self.read(each) for each in packed]

    def fill(self, made: Any, contents: Any) -> None:
        """Put what a message holds into a container in place of what is there."""
        made.clear()
        if isinstance(made, dict):
            for key, value in contents:
                made[self.read(key)] = self.read(value)
        elif isinstance(made, set):
            made.update(self.each(contents))
        else:
            made.extend(contents.encode("latin1") if isinstance(made, bytearray) else self.each(contents))


_MUTABLE: dict[type, str] = {
    list: "list",
    set: "set",
    bytearray: "bytearray",
    deque: "deque",
    **{kind: name for name, kind in _DICTS.items()},
}
_EMPTY: dict[str, Callable[[], Any]] = {name: kind for kind, name in _MUTABLE.items()}
_WRITERS: dict[type, Callable[[_Packer, Any], Any]] = {
    tuple: lambda p, value: ["tuple", p.each(value)],
    frozenset: lambda p, value: ["frozenset", p.each(value)],
    bytes: lambda p, value: ["bytes", value.decode("latin1")],
    complex: lambda p, value: ["complex", value.real, value.imag],
    range: lambda p, value: ["range", *p.each((value.start, value.stop, value.step))],
}
_READERS: dict[str, Callable[..., Any]] = {
    "int": lambda r, digits: int(digits, 16),
    "tuple": lambda r, packed: tuple(r.each(packed)),
    "frozenset": lambda r, packed: frozenset(r.each(packed)),
    "bytes": lambda r, text: text.encode("latin1"),
    "complex": lambda r, real, imaginary: complex(real, imaginary),
    "range": lambda r, *ends: range(*r.each(ends)),
    "type": lambda r, number: _TYPES[number],
    "decimal": lambda r, text: _module("decimal").Decimal(text),
    "fraction": lambda r, over, under: _module("fractions").Fraction(int(over, 16), int(under, 16)),
    "timedelta": lambda r, *parts: _module("datetime").timedelta(*parts),
    **{
        name: lambda r, text, name=name: getattr(_module("datetime"), name).fromisoformat(text)
        for name in ("date", "time", "datetime")
    },
    "numpy": lambda r, *parts: _array(*parts),
}


def _module(name: str) -> Any:
    return __import__(name)


def _special(value: Any) -> Any:
    """Return a plain type, or a value of the library's own types, as JSON; None for other objects."""
    kind = type(value)
    if kind is type and value in _TYPES:
        return ["type", _TYPES.index(value)]
    if kind.__module__ == "decimal" and kind.__name__ == "Decimal":
        return ["decimal", str(value)]
    if kind.__module__ == "fractions" and kind.__name__ == "Fraction":
        return ["fraction", hex(value.numerator), hex(value.denominator)]
    if kind.__module__ == "datetime" and kind.__name__ in ("date", "time", "datetime"):
        return [kind.__name__, value.isoformat()]
    if kind.__module__ == "datetime" and kind.__name__ == "timedelta":
        return ["timedelta", value.days, value.seconds, value.microseconds]
    numpy = sys.modules.get("numpy")
    if (
        numpy is not None
        and isinstance(value, numpy.ndarray | numpy.generic)
        and value.dtype.kind in "biufcSUmM"
    ):
        shape = list(value.shape)
        return [
            "numpy",
            value.dtype.str,
            shape,
            value.tobytes().decode("latin1"),
            isinstance(value, numpy.generic),
        ]
    return None


def _array(dtype: str, shape: list[int], data: str, scalar: bool) -> Any:
    numpy = _module("numpy")
    kind = numpy.dtype(dtype)
    if kind.kind not in "biufcSUmM":
        raise ValueError
    made = numpy.empty(shape, kind)
    made.reshape(-1)[:] = numpy.frombuffer(data.encode("latin1"), kind) if data else ()
    return made[()] if scalar else made


# --- the two sides -------------------------------------------------------------------------------------


class Peer:
    """One side. `lends`: whether the other side may read attributes of an object that it was passed."""

    def __init__(
        self,
        reads: int,
        writes: int,
        names: dict[str, Any] | None = None,
        lends: Callable[[Any], bool] = lambda value: True,
        broken: Callable[[], None] = lambda: None,
    ) -> None:
        """`names`: what the other side may ask for by name, which may then look into everything.

        `broken` is called before BrokenPeer is raised, which code might catch.
        """
        self._reads, self._writes, self._names, self._lends = reads, writes, names, lends
        self._tell_broken = broken
        self._objects: list[Any] = []  # what the other side may name, by number
        self._numbers: dict[int, int] = {}
        self._remotes: dict[int, Any] = {}  # what the other side lent, by its number
        self._stand_ins: dict[type, int] = {}  # our classes for its exceptions

    def ask(self, *request: Any) -> Any:
        """Have the other side do something, answer its own requests meanwhile, and return or raise what it answers.

        Raises BrokenPeer.
        """
        packer = _Packer(self, {})
        self._write(["ask", *packer.each(request)])
        try:
            return self._answered(packer.containers)
        except StopIteration as e:
            if request[:2] == ("op", "next"):
                raise
            raise RuntimeError(
                "StopIteration outside of an iterator"
            ) from e  # it would end a loop of the test's

    def start(self) -> Any:
        """Return what the other side says first. Raises as `ask` does."""
        return self._answered([])

    def tell(self, value: Any) -> None:
        """Say the first thing."""
        self._write(["value", _Packer(self, {}).packed(value), []])

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
            reader = _Reader(self, lent)
            try:
                if message[0] == "raised":
                    error = self._error(reader, *message[1:])
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
            reader = _Reader(self, [])
            action, *args = (reader.read(each) for each in message[1:])
        except Exception as e:
            raise self._broken() from e
        before = [(each, _snapshot(each)) for each in reader.containers]
        try:
            value = self._done(action, args)
            packer = _Packer(self, {id(each): place for place, each in enumerate(reader.containers)})
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
            self._write(self._raised(e))

    def _done(self, action: str, args: list[Any]) -> Any:
        if action == "name" and self._names is not None:
            return (True, self._names[args[0]]) if args[0] in self._names else (False, None)
        if action == "call":
            function, positional, named = args
            return function(*positional, **named)
        if action == "op" and (self._names is not None or args[0] in _LENT):
            return _OPERATIONS[args[0]](*args[1:])
        owner, name = args[:2]
        if not self._lends(owner) or (name.startswith("_") and self._names is None):
            raise AttributeError(f"{type(owner).__name__!r} object of the test lends no {name!r}")
        return getattr(owner, name) if action == "attr" else setattr(owner, name, args[2])

    def lent_out(self, value: Any) -> Any:
        """Return how an object is named to the other side, which may hold it already."""
        if isinstance(value, Remote):
            return ["yours", value._freehold_number]
        if isinstance(value, type) and issubclass(value, BaseException):
            return self._exception_class(value)
        number = self._numbered(value)
        return ["ref", number, callable(value), isinstance(value, _BASES)]

    def _numbered(self, value: Any) -> int:
        number = self._numbers.setdefault(id(value), len(self._objects))
        if number == len(self._objects):
            self._objects.append(value)  # kept: its id is its name
        return number

    def _exception_class(self, value: type) -> Any:
        if (number := self._stand_ins.get(value)) is not None:
            return ["yours", number]
        if getattr(builtins, value.__name__, None) is value:
            return ["error", value.__name__]
        bases = [self._exception_class(base) for base in value.__bases__ if issubclass(base, BaseException)]
        return ["errors", self._numbered(value), value.__name__, bases]

    def found(self, reader: _Reader, tag: str, packed: list[Any]) -> Any:
        """Return the object that the other side names."""
        if tag == "yours":
            number = packed[1]
            if not isinstance(number, int) or number < 0:
                raise ValueError
            return self._objects[number]
        if tag == "error":
            kind = getattr(builtins, packed[1])
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise ValueError
            return kind
        _, number, *rest = packed
        if number not in self._remotes:
            if tag == "errors":
                made = type(rest[0], tuple(reader.each(rest[1])) or (Exception,), {"__module__": "answer"})
                self._stand_ins[made] = number
            elif tag == "ref":
                made = (RemoteCallable if rest[0] else Remote)(self, number, rest[1])
            else:
                raise ValueError
            self._remotes[number] = made
        return self._remotes[number]

    def _raised(self, error: BaseException) -> list[Any]:
        packer = _Packer(self, {})
        try:
            return [
                "raised",
                self._exception_class(type(error)),
                packer.each(error.args),
                packer.packed(vars(error)),
            ]
        except Exception:
            return ["raised", ["error", "RuntimeError"], ["an error that cannot be said"], ["dict", []]]

    def _error(self, reader: _Reader, kind: Any, args: Any, attributes: Any) -> BaseException:
        made_kind, made_args = reader.read(kind), reader.each(args)
        if not issubclass(made_kind, BaseException):
            raise ValueError
        try:
            made = made_kind(*made_args)
        except Exception:
            made = RuntimeError(f"{made_kind.__name__}: {made_args}"[:200])
        made.__dict__.update(reader.read(attributes))
        return made

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


def _snapshot(container: Any) -> Any:
    if isinstance(container, dict):
        return [part for pair in container.items() for part in pair]
    return bytes(container) if isinstance(container, bytearray) else list(container)


def _alike(now: Any, old: Any) -> bool:
    """Return whether a container holds the very objects that it held."""
    if isinstance(now, bytes):
        return now == old
    return len(now) == len(old) and all(map(operator.is_, now, old))
