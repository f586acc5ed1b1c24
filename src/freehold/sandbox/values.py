"""Values of Python as JSON, for two processes of which neither believes the other.

Numbers, texts, containers and other plain values are copied. A message holds each container once: what refers to one
container twice, or to itself, does so when it was read. What a message says is made of the types listed here; nothing
that a process defined is called while a message of the other is read. Knows types; of all other objects, apart.py.
Path: apart.Peer -> ValuePacker.packed -> ValueReader.read
"""

from __future__ import annotations

import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

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
