"""A model file's key-value metadata with typed access.

Knows keys, types and the file's name for its errors; knows no meaning of any key: whether a value
makes sense is for the tokenizer and the models to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast, overload

import numpy as np

from freehold._native import Strings
from freehold.base.errors import BadModelFile

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
