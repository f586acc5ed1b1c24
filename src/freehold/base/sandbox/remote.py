"""Values, objects, classes and exceptions of one process as another sees them.

What is done with an object is asked of its process; plain values are copied.

An object of the code takes part in no comparison with a value of the test, and in sums and `in` only where the test
made it by calling a class: it could say that it equals everything. Knows what is asked; of the answers, apart.py.
"""

from __future__ import annotations

import builtins
import copy
import math
import operator
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

# Values of Python as JSON, for two processes of which neither believes the other.
# Numbers, texts, containers and other plain values are copied. A message holds each container once: what
# refers to one container twice, or to itself, does so when it was read. What a message says is made of the
# types listed here; nothing that a process defined is called while a message of the other is read.
_WORD = 1 << 63  # numbers beyond are written in hexadecimal, which takes linear time
_DEEP = 10_000  # frames: a list in a list takes four, and eight megabytes of stack hold as many
_TYPES = (
    *(bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, object),
    *(types.NoneType, types.FunctionType, types.BuiltinFunctionType, types.GeneratorType, property, type),
)
_SINGLE = (Ellipsis, NotImplemented)
_ARRAYS = "biufcSUmM"  # kinds of numpy whose items are plain
_PATHS = ("PurePath", "PurePosixPath", "PureWindowsPath", "PosixPath")


class LentObjects(Protocol):
    """Names the objects that are not copied."""

    def lent_out(self, packer: ValuePacker, value: Any) -> Any:
        """Return how an object is named to the other side."""
        ...

    def found(self, reader: ValueReader, tag: str, packed: list[Any]) -> Any:
        """Return the object that the other side names."""
        ...


@contextmanager
def deep() -> Iterator[None]:
    """Let values nest deeper than calls may."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + _DEEP)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class ValuePacker:
    """Writes the values of one message. `lent`: id -> place of containers that the other side passed."""

    def __init__(self, others: LentObjects, lent: dict[int, int]) -> None:
        self._others, self._lent = others, lent
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
        if kind is type and value in _TYPES:
            return ["type", _TYPES.index(value)]
        if (write := _LIBRARY.get((kind.__module__, kind.__name__))) is not None:
            return write(self, value)
        return _array_packed(value) or self._others.lent_out(self, value)

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
        extra = value.default_factory if kind is defaultdict else value.maxlen if kind is deque else None
        return [_MUTABLE[kind], self.contents(value), self.packed(extra)]


class ValueReader:
    """Reads the values of one message. `lent`: the containers that this side passed."""

    def __init__(self, others: LentObjects, lent: list[Any]) -> None:
        self._others, self._lent = others, lent
        self.containers: list[Any] = []

    def read(self, packed: Any) -> Any:
        """Return the value of what is written so. Raises what a damaged text raises."""
        if type(packed) is not list:
            if type(packed) is dict:
                raise ValueError
            return packed
        tag = packed[0]
        if tag in _EMPTY:
            _, contents, extra = packed
            container = _EMPTY[tag](self.read(extra))
            self.containers.append(container)
            self.fill(container, contents)
            return container
        if tag == "lent":
            return self._lent[packed[1]]
        if tag == "same":
            return self.containers[packed[1]]
        if tag in _READERS:
            return _READERS[tag](self, *packed[1:])
        return self._others.found(self, tag, packed)

    def each(self, packed: list[Any]) -> list[Any]:
        """Return several values."""
        return [self.read(each) for each in packed]

    def fill(self, container: Any, contents: Any) -> None:
        """Put what a message holds into a container in place of what is there."""
        container.clear()
        if isinstance(container, dict):
            for key, value in contents:
                container[self.read(key)] = self.read(value)
        elif isinstance(container, set):
            container.update(self.each(contents))
        else:
            container.extend(
                contents.encode("latin1") if isinstance(container, bytearray) else self.each(contents)
            )


_MUTABLE: dict[type, str] = {
    **{kind: kind.__name__ for kind in (list, set, bytearray, dict, deque)},
    Counter: "counter",
    OrderedDict: "ordered",
    defaultdict: "default",
}
_EMPTY: dict[str, Callable[[Any], Any]] = {
    **{name: lambda _, kind=kind: kind() for kind, name in _MUTABLE.items()},
    "deque": lambda most: deque(maxlen=most),
    "default": defaultdict,
}
_WRITERS: dict[type, Callable[[ValuePacker, Any], Any]] = {
    tuple: lambda p, value: ["tuple", p.each(value)],
    frozenset: lambda p, value: ["frozenset", p.each(value)],
    bytes: lambda p, value: ["bytes", value.decode("latin1")],
    complex: lambda p, value: ["complex", value.real, value.imag],
    range: lambda p, value: ["range", *p.each((value.start, value.stop, value.step))],
    slice: lambda p, value: ["slice", *p.each((value.start, value.stop, value.step))],
    type({}.keys()): lambda p, value: ["keys", p.each(value)],
    type({}.values()): lambda p, value: ["values", p.each(value)],
    type({}.items()): lambda p, value: ["items", p.each(value)],
    types.MappingProxyType: lambda p, value: ["proxy", p.packed(dict(value))],
    **{type(value): lambda p, value: ["single", _SINGLE.index(value)] for value in _SINGLE},
}
# By module and name: the library's modules are not imported before a value of theirs is met.
_LIBRARY: dict[tuple[str, str], Callable[[ValuePacker, Any], Any]] = {
    ("decimal", "Decimal"): lambda p, value: ["decimal", str(value)],
    ("fractions", "Fraction"): lambda p, value: ["fraction", *p.each((value.numerator, value.denominator))],
    ("datetime", "timedelta"): lambda p, value: ["timedelta", value.days, value.seconds, value.microseconds],
    ("datetime", "date"): lambda p, value: ["date", value.isoformat()],
    ("datetime", "time"): lambda p, value: ["time", *_clock(p, value)],
    ("datetime", "datetime"): lambda p, value: ["datetime", *_clock(p, value)],
    ("datetime", "timezone"): lambda p, value: ["timezone", p.each(value.__getinitargs__())],
    ("zoneinfo", "ZoneInfo"): lambda p, value: ["zone", value.key],
    ("uuid", "UUID"): lambda p, value: ["uuid", value.hex],
    ("re", "Pattern"): lambda p, value: ["pattern", p.packed(value.pattern), value.flags],
    ("array", "array"): lambda p, value: ["array", value.typecode, value.tobytes().decode("latin1")],
    **{
        ("pathlib", name): lambda p, value: ["path", _PATHS.index(type(value).__name__), str(value)]
        for name in _PATHS
    },
}
_READERS: dict[str, Callable[..., Any]] = {
    "int": lambda r, digits: int(digits, 16),
    "tuple": lambda r, packed: tuple(r.each(packed)),
    "frozenset": lambda r, packed: frozenset(r.each(packed)),
    "bytes": lambda r, text: text.encode("latin1"),
    "complex": lambda r, real, imaginary: complex(real, imaginary),
    "range": lambda r, *ends: range(*r.each(ends)),
    "slice": lambda r, *ends: slice(*r.each(ends)),
    "keys": lambda r, packed: dict.fromkeys(r.each(packed)).keys(),
    "values": lambda r, packed: dict(enumerate(r.each(packed))).values(),
    "items": lambda r, packed: dict(r.each(packed)).items(),
    "proxy": lambda r, packed: types.MappingProxyType(r.read(packed)),
    "single": lambda r, number: _SINGLE[number],
    "type": lambda r, number: _TYPES[number],
    "decimal": lambda r, text: _of("decimal.Decimal")(text),
    "fraction": lambda r, *parts: _of("fractions.Fraction")(*r.each(parts)),
    "timedelta": lambda r, *parts: _of("datetime.timedelta")(*parts),
    "date": lambda r, text: _of("datetime.date").fromisoformat(text),
    "time": lambda r, *parts: _clock_read(r, _of("datetime.time"), *parts),
    "datetime": lambda r, *parts: _clock_read(r, _of("datetime.datetime"), *parts),
    "timezone": lambda r, packed: _of("datetime.timezone")(*r.each(packed)),
    "zone": lambda r, key: _of("zoneinfo.ZoneInfo")(key),
    "uuid": lambda r, digits: _of("uuid.UUID")(digits),
    "pattern": lambda r, packed, flags: _of("re.compile")(r.read(packed), flags),
    "array": lambda r, code, data: _of("array.array")(code, data.encode("latin1")),
    "path": lambda r, number, text: _of(f"pathlib.{_PATHS[number]}")(text),
    "numpy": lambda r, *parts: _array(*parts),
}


def _of(name: str) -> Any:
    """Return what a module of the library has."""
    module, _, name = name.partition(".")
    return getattr(__import__(module), name)


def _clock(packer: ValuePacker, value: Any) -> list[Any]:
    zone, offset = value.tzinfo, value.utcoffset()
    if zone is not None and type(zone).__module__ not in ("datetime", "zoneinfo"):
        zone = None if offset is None else _of("datetime.timezone")(offset)  # the code's own class
    return [value.replace(tzinfo=None).isoformat(), value.fold, packer.packed(zone)]


def _clock_read(reader: ValueReader, kind: Any, text: str, fold: int, zone: Any) -> Any:
    return kind.fromisoformat(text).replace(fold=fold, tzinfo=reader.read(zone))


def _array_packed(value: Any) -> Any:
    """Return an array or number of numpy as JSON; None for other objects, and for arrays of objects."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.ndarray | numpy.generic):
        return None
    if value.dtype.kind not in _ARRAYS:
        return None
    data, is_number = value.tobytes().decode("latin1"), isinstance(value, numpy.generic)
    return ["numpy", value.dtype.str, list(value.shape), data, is_number]


def _array(dtype: str, shape: list[int], data: str, scalar: bool) -> Any:
    import numpy

    kind = numpy.dtype(dtype)
    if kind.kind not in _ARRAYS:
        raise ValueError
    array = numpy.empty(shape, kind)
    array.reshape(-1)[:] = numpy.frombuffer(data.encode("latin1"), kind) if data else ()
    return array[()] if scalar else array


# A Remote of a subclass of these has a value.
_BASES = (int, float, str, bytes, tuple, list, dict, set, frozenset)
_SHOWN = (types.FunctionType, types.BuiltinFunctionType, types.GeneratorType, property, type)
_ADDRESSES = ("__array_interface__", "__array_struct__")  # by which numpy would read any place of memory
_UNARY = {
    **{name: getattr(operator, name) for name in ("neg", "pos", "abs", "invert", "index")},
    **{
        name: getattr(builtins, name)
        for name in ("len", "next", "repr", "str", "bool", "hash", "int", "float")
    },
    **{name: getattr(builtins, name) for name in ("round", "reversed", "format", "complex", "bytes", "dir")},
    **{name: getattr(operator, name) for name in ("getitem", "setitem", "delitem")},
    **{name: getattr(math, name) for name in ("floor", "ceil", "trunc")},
    "copy": copy.copy,
}
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor")
_SHIFTS = ("lshift", "rshift")


_LOOPS: list[Any] = []  # of asyncio, which do not run


class RemoteSide(Protocol):
    """The way to the other process. `trusts`: whether its objects are compared with values of this one."""

    trusts: bool

    def ask(self, *request: Any) -> Any:
        """Have the other side do something, and return or raise what it answers."""
        ...


class Remote:
    # An object of the other process. No docstring: __doc__ is the object's own.
    # _freehold_value: it is a subclass of a plain type. _freehold_trusted: it may meet values of this side.
    __slots__ = ("__weakref__", "_freehold_number", "_freehold_peer", "_freehold_trusted", "_freehold_value")

    def __init__(self, peer: RemoteSide, number: int, has_value: bool) -> None:
        object.__setattr__(self, "_freehold_peer", peer)
        object.__setattr__(self, "_freehold_number", number)
        object.__setattr__(self, "_freehold_value", has_value)
        object.__setattr__(self, "_freehold_trusted", peer.trusts)

    def __getattr__(self, name: str) -> Any:
        if name in _ADDRESSES:
            raise AttributeError(name)
        if name in ("send", "throw"):
            return lambda *args: _ask_peer(self, "op", name, self, *args)
        return _ask_peer(self, "attr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask_peer(self, "set", self, name, value)

    def __delattr__(self, name: str) -> None:
        _ask_peer(self, "op", "delattr", self, name)

    def __contains__(self, value: Any) -> bool:
        if self._freehold_trusted:
            return _ask_peer(self, "op", "contains", self, value) is True
        if self._freehold_value:
            return value in _value(self)
        return any(value is each or value == each for each in self)  # not the code's word: it would say yes

    def __instancecheck__(self, value: Any) -> bool:
        return _ask_peer(self, "op", "isinstance", value, self) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return _ask_peer(self, "op", "issubclass", value, self) is True

    def __enter__(self) -> Any:
        return _ask_peer(self, "attr", self, "__enter__")()

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> Any:
        return _ask_peer(self, "attr", self, "__exit__")(kind, error, None)

    def __iter__(self) -> Any:
        return iter(_value(self)) if self._freehold_value else _ask_peer(self, "op", "iter", self)

    def __next__(self) -> Any:
        return _ask_peer(self, "op", "next", self)

    def __aiter__(self) -> Any:
        return _ask_peer(self, "attr", self, "__aiter__")()

    def __anext__(self) -> Any:
        return _awaitable(_ask_peer(self, "attr", self, "__anext__")())

    def __aenter__(self) -> Any:
        return _awaitable(_ask_peer(self, "attr", self, "__aenter__")())

    def __aexit__(self, kind: Any, error: Any, traceback: Any) -> Any:
        return _awaitable(_ask_peer(self, "attr", self, "__aexit__")(kind, error, None))

    def __deepcopy__(self, memo: Any) -> Any:
        return _ask_peer(self, "op", "deepcopy", self)

    def __mro_entries__(self, bases: Any) -> Any:
        raise TypeError("a class of the code cannot be the base of a class of the test")


class RemoteCallable(Remote):
    # A class, method or other callable of the other process.
    __slots__ = ()

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _trusted_as(self, _ask_peer(self, "call", self, list(args), options))


class RemoteFunction(RemoteCallable):
    # A Python function of the other process, which is a method where a class has it.
    __slots__ = ()

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        return self if owner is None else types.MethodType(self, owner)


def trust(remote: Any) -> None:
    """Let what a test makes of this class meet values of the test: it is the class's word that is tested then."""
    object.__setattr__(remote, "_freehold_trusted", True)


def _trusted_as(source: Remote, result: Any) -> Any:
    if source._freehold_trusted and isinstance(result, Remote):
        trust(result)
    return result


def _ask_peer(remote: Remote, *request: Any) -> Any:
    return remote._freehold_peer.ask(*request)


def _value(remote: Remote) -> Any:
    """Return the plain value of an object whose class is a subclass of a plain type."""
    return _ask_peer(remote, "op", "value", remote)


def _operated(name: str, one: Any, other: Any) -> Any:
    """Have the other process combine two of its objects; its object and a value of ours meet here, by its value.

    An object that the test made of a class meets a value there, but is not compared with it.
    """
    remote: Remote = one if isinstance(one, Remote) else other
    if isinstance(one, Remote) and isinstance(other, Remote):
        return _trusted_as(remote, _ask_peer(remote, "op", name, one, other))
    if remote._freehold_trusted and (remote._freehold_peer.trusts or name not in _COMPARISONS):
        return _trusted_as(remote, _ask_peer(remote, "op", name, one, other))
    if not remote._freehold_value or name not in vars(operator):
        return NotImplemented
    sides = [_value(side) if isinstance(side, Remote) else side for side in (one, other)]
    return getattr(operator, name)(*sides)


def _of_one(name: str) -> Callable[..., Any]:
    return lambda self, *args: _ask_peer(self, "op", name, self, *args)


def _of_two(name: str, swapped: bool = False) -> Callable[[Any, Any], Any]:
    if swapped:
        return lambda self, other: _operated(name, other, self)
    return lambda self, other: _operated(name, self, other)


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    def changed(self: Remote, other: Any) -> Any:
        if not isinstance(other, Remote) and not self._freehold_trusted:
            return NotImplemented
        return _trusted_as(self, _ask_peer(self, "op", name, self, other))

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


_give_operators()


def class_of(kind: int, shown: Any, name: str) -> Any:
    """Return a class for Remotes, with the name of their own class. `shown`: the plain type that isinstance sees."""
    names: dict[str, Any] = {"__slots__": ()}
    for each in ("__doc__", "__module__"):
        names[each] = property(lambda self, each=each: _ask_peer(self, "attr", self, each))
    if shown is not None:
        names["__class__"] = property(lambda self: shown)
    return type(name, ((Remote, RemoteCallable, RemoteFunction)[kind],), names)


def described(value: Any) -> tuple[int, bool, Any]:
    """Return which Remote an object becomes (`class_of`), whether it has a value, and what isinstance sees."""
    kind = 2 if isinstance(value, types.FunctionType) else 1 if callable(value) else 0
    base = _base(type(value))
    return kind, base is not None, base or (type(value) if type(value) in _SHOWN else None)


async def awaited(remote: Remote) -> Any:
    """Have the other process run a coroutine, or what it awaits otherwise, to its end."""
    return _ask_peer(remote, "op", "run", remote)


def _awaitable(result: Any) -> Any:
    return awaited(result) if isinstance(result, Remote) else result


def _run(awaitable: Any) -> Any:
    """Run to its end what the other process awaits, in a loop of its own: the one that runs may wait for this."""
    import asyncio

    async def waits() -> Any:
        return await awaitable

    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        loop = _LOOPS.pop() if _LOOPS else asyncio.new_event_loop()
        try:
            return loop.run_until_complete(waits())
        finally:
            _LOOPS.append(loop)
    finally:
        asyncio._set_running_loop(outer)


def _base(kind: type) -> Any:
    return next((base for base in _BASES if base in kind.__mro__), None)


OPERATIONS: dict[str, Callable[..., Any]] = {
    **_UNARY,
    **{name: getattr(builtins, name) for name in ("iter", "divmod", "isinstance", "issubclass", "delattr")},
    **{name: getattr(operator, name) for name in (*_COMPARISONS, *_ARITHMETIC, *_SHIFTS, "contains")},
    **{f"i{name.strip('_')}": getattr(operator, f"i{name.strip('_')}") for name in (*_ARITHMETIC, *_SHIFTS)},
    "send": lambda generator, value: generator.send(value),
    "throw": lambda generator, *error: generator.throw(*error),
    "value": lambda value: _base(type(value))(value),
    "deepcopy": copy.deepcopy,
    "run": _run,
}
LENT = frozenset(OPERATIONS) - {"delattr", "value"}  # of the test's objects


# --- exceptions ----------------------------------------------------------------------------------------


class _ErrorClass(type):
    """A class of exceptions of the other process. Its attributes are those of the class there."""

    _freehold_class: RemoteCallable

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._freehold_class, name)


def _error_init(self: Any, *args: Any, **options: Any) -> None:
    error = type(self)._freehold_class(*args, **options)
    self.args = error.args
    self.__dict__.update(error.__dict__)


def _error_attribute(self: Any, name: str) -> Any:
    if name.startswith("__") or "_freehold_remote" not in self.__dict__:
        raise AttributeError(name)
    return getattr(self._freehold_remote, name)


def _error_text(self: Any) -> str:
    remote = self.__dict__.get("_freehold_remote")
    return str(self.args) if remote is None else str(remote)


def error_class(name: str, bases: tuple[Any, ...], remote: RemoteCallable) -> Any:
    """Return a class of exceptions that stands for one of the other process, with its attributes and methods."""
    methods = {"__init__": _error_init, "__getattr__": _error_attribute, "__str__": _error_text}
    return _ErrorClass(
        name, bases or (Exception,), {"__module__": "answer", **methods, "_freehold_class": remote}
    )
