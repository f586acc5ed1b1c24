"""A model file's key-value metadata, and checked reads from it: GGUF keys and config.json alike.

Knows names, types, limits and the file's name for its errors; knows no architecture. Whether a value makes sense is for
the tokenizer and the models to say. Every value is untrusted: it is there, of its type and inside its limits, or the
error names the key, what was found and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar, cast, overload

import numpy as np

from freehold._native import Strings
from freehold.base.errors import BadModelFile, UnsupportedModel

# --- metadata --------------------------------------------------------------------------------------

D = TypeVar("D")
_REQUIRED: Any = object()  # no default given: the key must be there


class Metadata(Mapping[str, object]):
    """A read-only mapping whose accessors check the type; a missing key without a default is BadModelFile.

    Values are bool, int, float, str, read-only 1-D arrays and lists, long ones of strings as
    native.Strings (GGUF), or what JSON holds (config.json).
    """

    __slots__ = ("_source", "_values")

    def __init__(self, values: Mapping[str, object], source: str) -> None:
        self._values = values
        self._source = source

    def __getitem__(self, key: str) -> object:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Metadata({len(self)} keys of {self._source})"

    @overload
    def get_int(self, key: str) -> int: ...
    @overload
    def get_int(self, key: str, default: D) -> int | D: ...
    def get_int(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return an integer of any width; a bool is none."""
        value = self._find(key, default)
        if value is default or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong_type(key, "an integer", value)

    @overload
    def get_float(self, key: str) -> float: ...
    @overload
    def get_float(self, key: str, default: D) -> float | D: ...
    def get_float(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a number as float; integers are widened."""
        value = self._find(key, default)
        if value is default:
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise BadModelFile(f"{self._source}: {key} is an integer beyond any float") from None
        raise self._wrong_type(key, "a number", value)

    @overload
    def get_bool(self, key: str) -> bool: ...
    @overload
    def get_bool(self, key: str, default: D) -> bool | D: ...
    def get_bool(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a bool."""
        value = self._find(key, default)
        if value is default or isinstance(value, bool):
            return value
        raise self._wrong_type(key, "a bool", value)

    @overload
    def get_str(self, key: str) -> str: ...
    @overload
    def get_str(self, key: str, default: D) -> str | D: ...
    def get_str(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a string."""
        value = self._find(key, default)
        if value is default or isinstance(value, str):
            return value
        raise self._wrong_type(key, "a string", value)

    @overload
    def get_strings(self, key: str) -> list[str]: ...
    @overload
    def get_strings(self, key: str, default: D) -> list[str] | D: ...
    def get_strings(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return an array of strings; an empty array of anything counts."""
        value = self._find(key, default)
        if value is default:
            return value
        if isinstance(value, Strings) or (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            return list(value)
        if isinstance(value, np.ndarray) and value.size == 0:
            return []
        raise self._wrong_type(key, "an array of strings", value)

    @overload
    def get_map(self, key: str) -> Metadata: ...
    @overload
    def get_map(self, key: str, default: D) -> Metadata | D: ...
    def get_map(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return a nested JSON object (`rope_scaling`, ...) with the same accessors."""
        value = self._find(key, default)
        if value is default:
            return value
        if isinstance(value, Mapping):
            return Metadata(cast("Mapping[str, object]", value), f"{self._source}: {key}")
        raise self._wrong_type(key, "an object", value)

    def _find(self, key: str, default: Any) -> Any:
        """Look `key` up; a JSON null counts as absent."""
        value = self._values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise BadModelFile(
                f"{self._source} has no {key}", "the file is incomplete or was converted for something else"
            )
        return default

    def _wrong_type(self, key: str, wanted: str, value: object) -> BadModelFile:
        return BadModelFile(f"{self._source}: {key} should be {wanted} and is {_describe(value)}")


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.size} {value.dtype}"
    if isinstance(value, (list, Strings, Mapping)):
        return f"a {'map' if isinstance(value, Mapping) else 'list'} of {len(value)}"
    shown = repr(value)
    return f"the {type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"


# --- checked reads ---------------------------------------------------------------------------------

MAX_LAYERS = 1024
MAX_HEADS = 1 << 14
MAX_WIDTH = 1 << 20  # hidden, intermediate and head widths: eight times the widest published model
MAX_VOCAB = 1 << 24
MAX_CONTEXT = 1 << 30  # positions are int32 in a step

_MISSING: Any = object()


class Fields:
    """A view of metadata under `prefix` ("llama." in a GGUF, empty in config.json)."""

    def __init__(
        self, values: Mapping[str, Any], prefix: str = "", called: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self.values = values
        self._prefix = prefix
        self._called = called
        self._read: set[str] = set()  # full keys that were read, of all views together

    def name(self, key: str) -> str:
        """Return the full key, as the file has it and an error shows it."""
        return self._prefix + self._called.get(key, key)

    def called(self, names: Mapping[str, str]) -> Fields:
        """Return a view whose keys the file calls by other names, where it has those and not the keys themselves."""
        own = {
            key: name for key, name in names.items() if self.get(key) is None and self.get(name) is not None
        }
        return self._view(self.values, own)

    def without(self, *keys: str) -> Fields:
        """Return a view that lacks some keys."""
        hidden = {self.name(key) for key in keys}
        return self._view({k: v for k, v in self.values.items() if k not in hidden}, self._called)

    def assuming(self, **values: Any) -> Fields:
        """Return a view that has these values where keys are absent or null."""
        assumed = {self.name(key): value for key, value in values.items() if self.get(key) is None}
        return self._view({**self.values, **assumed}, self._called)

    def cut(self, keys: Iterable[str], counted: int, length: int) -> Fields:
        """Return a view whose lists of `counted` values, under these keys, end after the first `length`."""
        names = {self.name(key) for key in keys}

        def own(key: str, value: Any) -> Any:
            listed = key in names and isinstance(value, list | tuple | np.ndarray)
            return value[:length] if listed and len(value) == counted else value

        return self._view({key: own(key, value) for key, value in self.values.items()}, self._called)

    def _view(self, values: Mapping[str, Any], called: Mapping[str, str]) -> Fields:
        view = Fields(values, self._prefix, called)
        view._read = self._read
        return view

    def get(self, key: str) -> Any:
        """Return the raw value, None when absent or null."""
        name = self.name(key)
        self._read.add(name)
        return self.values.get(name)

    def refuse_unread(self, neutral: Mapping[str, float]) -> None:
        """Raise UnsupportedModel when a key of `neutral` has another value than that or 0, and was not read."""
        for key, value in neutral.items():
            if self.name(key) not in self._read and _plain(self.get(key)) not in (None, 0, "", [], value):
                raise UnsupportedModel(
                    f"{self.name(key)} is {_show(self.get(key))}: models of this architecture are computed without it"
                )

    def integer(self, key: str, low: int, high: int, default: int = _MISSING) -> int:
        """Read an integer in [low, high]; a list whose values are all equal counts as that value."""
        value = self._uniform(key, self.get(key))
        if value is None:
            return self._default(key, default, f"an integer from {low} to {high}")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._bad(key, value, f"an integer from {low} to {high}")
        return value

    def each(
        self, key: str, layers: int, low: int, high: int, default: int | tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        """Read an integer in [low, high] for each layer: a list of one a layer, or one value for all."""
        values = _plain(self.get(key))
        if values is None and isinstance(default, tuple):
            return default
        if not isinstance(values, list):
            one = default if isinstance(default, int) else _MISSING
            return (self.integer(key, low, high, one),) * layers
        if len(values) != layers:
            raise self._bad(key, values, f"{layers} values, one a layer")
        for item in values:
            if isinstance(item, bool) or not isinstance(item, int) or not low <= item <= high:
                raise self._bad(key, item, f"an integer from {low} to {high}")
        return tuple(values)

    def number(self, key: str, low: float, high: float, default: float = _MISSING) -> float:
        """Read a finite number with low <= value <= high."""
        value = self._uniform(key, self.get(key))
        if value is None:
            return self._default(key, default, f"a number from {low:g} to {high:g}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._bad(key, value, "a finite number")
        if isinstance(value, float) and not math.isfinite(value):  # an integer may be too long for a float
            raise self._bad(key, value, "a finite number")
        if not low <= value <= high:
            raise self._bad(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def numbers(
        self, key: str, layers: int, low: float, high: float, default: float = _MISSING
    ) -> tuple[float, ...]:
        """Read a number in [low, high] for each layer, as `each` does; null, alone or in a list, is the default."""
        values = _plain(self.get(key))
        if not isinstance(values, list):
            return (self.number(key, low, high, default),) * layers
        if len(values) != layers:
            raise self._bad(key, values, f"{layers} values, one a layer")
        numbers = []
        for item in values:
            if item is None and default is not _MISSING:
                item = default
            if isinstance(item, bool) or not isinstance(item, int | float):
                raise self._bad(key, item, "a finite number")
            if not low <= item <= high:  # so is what is not finite
                raise self._bad(key, item, f"a number from {low:g} to {high:g}")
            numbers.append(float(item))
        return tuple(numbers)

    def text(self, key: str, default: str = _MISSING) -> str:
        """Read a string."""
        value = self.get(key)
        if value is None:
            return self._default(key, default, "a text")
        if not isinstance(value, str):
            raise self._bad(key, value, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Read a boolean."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._bad(key, value, "true or false")
        return value

    def section(self, key: str) -> Fields | None:
        """Return the object under `key` as Fields, None when absent or null."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._bad(key, value, "an object")
        return Fields(value)

    def texts(self, key: str, count: int) -> list[str] | None:
        """Read a list of `count` strings, None when absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
            raise self._bad(key, value, f"a list of {count} texts")
        if not all(isinstance(item, str) for item in value):
            raise self._bad(key, value, f"a list of {count} texts")
        return list(value)

    def refuse(self, key: str, meaning: str) -> None:
        """Raise UnsupportedModel when `key` is set to anything but null, false, zero or empty."""
        value = _plain(self.get(key))
        if value not in (None, 0, "", []):
            raise UnsupportedModel(f"{self.name(key)} is {_show(value)}: {meaning} is not supported")

    def require(self, key: str, allowed: Sequence[str], default: str) -> str:
        """Read a string that must be one of `allowed`; UnsupportedModel otherwise."""
        value = self.text(key, default)
        if value not in allowed:
            raise UnsupportedModel(f"{self.name(key)} is {_show(value)}; supported: {', '.join(allowed)}")
        return value

    def _uniform(self, key: str, value: Any) -> Any:
        """Reduce a per-layer list to its one value; layers that differ are another architecture."""
        value = _plain(value)
        if not isinstance(value, list):
            return value
        if not 1 <= len(value) <= MAX_LAYERS:
            raise self._bad(key, value, f"1 to {MAX_LAYERS} values")
        if any(item != value[0] for item in value):
            raise UnsupportedModel(f"{self.name(key)} differs from layer to layer, which is not supported")
        return value[0]

    def _default(self, key: str, default: Any, expected: str) -> Any:
        if default is _MISSING:
            raise BadModelFile(f"{self.name(key)} is missing; expected {expected}")
        return default

    def _bad(self, key: str, value: object, expected: str) -> BadModelFile:
        return BadModelFile(f"{self.name(key)} is {_show(value)}; expected {expected}")


def _plain(value: Any) -> Any:
    """Return an array as a list, which compares to one truth."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
