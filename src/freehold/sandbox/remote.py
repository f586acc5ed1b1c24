"""The objects, classes and exceptions of one process as another sees them: what is done with one is asked there.

An object of the code takes part in no comparison with a value of the test, and in sums and `in` only where the test
made it by calling a class: it could say that it equals everything. Knows what is asked; of the answers, apart.py.
Path: apart.Peer.found -> Remote -> Peer.ask
"""

from __future__ import annotations

import builtins
import copy
import math
import operator
import types
from collections.abc import Callable
from typing import Any, Protocol

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
