"""Typed metadata access: right types pass, wrong ones and missing keys are named errors."""

from __future__ import annotations

import numpy as np
import pytest

from freehold.base.errors import BadModelFile
from freehold.run.formats import Metadata

META = Metadata(
    {
        "int": 3,
        "float": 0.5,
        "bool": True,
        "str": "x",
        "array": np.array([1, 2]),
        "empty": np.array([], np.int32),
        "strings": ["a", "b"],
        "list": [1, 2.5],
        "map": {"factor": 8.0},
        "null": None,
    },
    "m.gguf",
)


def test_accessors_return_their_types() -> None:
    assert META.get_int("int") == 3 and META.get_float("float") == 0.5 and META.get_float("int") == 3.0
    assert META.get_bool("bool") is True and META.get_str("str") == "x"
    assert META.get_strings("strings") == ["a", "b"] and META.get_strings("empty") == []
    assert META.get_map("map").get_float("factor") == 8.0


def test_defaults_stand_in_for_missing_keys_and_nulls() -> None:
    assert META.get_int("absent", 7) == 7 and META.get_int("null", 7) == 7
    assert META.get_str("absent", None) is None and META.get_map("absent", None) is None


@pytest.mark.parametrize(
    "accessor", ["get_int", "get_float", "get_bool", "get_str", "get_strings", "get_map"]
)
def test_a_missing_required_key_is_named(accessor: str) -> None:
    with pytest.raises(BadModelFile, match=r"m\.gguf has no absent"):
        getattr(META, accessor)("absent")


@pytest.mark.parametrize(
    "accessor, key, found",
    [
        ("get_int", "bool", "bool True"),
        ("get_int", "float", "float 0.5"),
        ("get_float", "str", "str 'x'"),
        ("get_float", "bool", "bool"),
        ("get_bool", "int", "int 3"),
        ("get_str", "array", "array of 2 int64"),
        ("get_strings", "array", "array of 2"),
        ("get_map", "list", "list of 2"),
    ],
)
def test_a_wrong_type_names_key_and_found_type(accessor: str, key: str, found: str) -> None:
    with pytest.raises(BadModelFile, match=f"m.gguf: {key} .*{found}"):
        getattr(META, accessor)(key, None)
