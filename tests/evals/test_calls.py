"""Calls are compared by BFCL's rules, each with a call that they accept and one that they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.adapt.evals.tasks.bfcl import calls_fault, text_calls

FUNCTION: dict[str, Any] = {
    "name": "trip.plan",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "budget": {"type": "float"},
            "stops": {"type": "array", "items": {"type": "string"}},
            "hotel": {"type": "dict", "properties": {}},
            "guests": {"type": "array", "items": {"type": "dict"}},
            "seat": {"type": "any"},
        },
        "required": ["city"],
    },
}
WANTED = {
    "city": ["New York, NY", "NYC"],
    "days": [3],
    "budget": ["", 100.0],
    "stops": ["", ["Old Town", "Zoo"]],
    "hotel": ["", {"name": ["Ritz"], "stars": [5, ""]}],
    "guests": ["", [{"name": ["Ann"]}, {"name": ["Bob"]}]],
    "seat": ["", None, 7],
}
BASE = {"city": "NYC", "days": 3}


def fault(name: str = "trip.plan", **arguments: Any) -> str:
    return calls_fault([(name, arguments)], [FUNCTION], [{"trip.plan": WANTED}])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"city": "new york ny"},  # case, blanks and commas count for nothing
        {"budget": 100},  # an integer may stand for a float
        {"stops": ["old-town", "ZOO"]},
        {"hotel": {"name": "RITZ"}},
        {"guests": [{"name": "ann"}, {"name": "bob"}]},
        {"seat": None},
    ],
)
def test_call_that_the_rules_allow_has_no_fault(more: dict[str, Any]):
    assert fault(**{**BASE, **more}) == ""


@pytest.mark.parametrize(
    "more",
    [
        {"city": "Boston"},
        {"days": "3"},
        {"days": 3.0},  # a float may not stand for an integer
        {"days": True},
        {"stops": ["Zoo", "Old Town"]},  # the order of a list counts
        {"hotel": {"name": "Ritz", "pool": True}},
        {"hotel": {"stars": 5}},
        {"guests": [{"name": "Ann"}]},
        {"colour": "red"},
    ],
)
def test_call_that_the_rules_refuse_has_a_fault(more: dict[str, Any]):
    assert fault(**{**BASE, **more})


def test_another_function_a_missing_parameter_and_no_call_are_faults():
    assert "calls 'trip'" in fault("trip", **BASE)
    assert fault(days=3) == "city is missing" and fault(city="NYC") == "days is missing"
    assert calls_fault([], [FUNCTION], [{"trip.plan": WANTED}]) == "0 calls instead of 1"


def test_parallel_calls_may_come_in_any_order_but_each_once():
    wanted = [{"trip.plan": {"city": ["Rome"]}}, {"trip.plan": {"city": ["Oslo"]}}]
    oslo, rome = ("trip.plan", {"city": "oslo"}), ("trip.plan", {"city": "rome"})
    assert calls_fault([oslo, rome], [FUNCTION], wanted) == ""
    assert calls_fault([rome, rome], [FUNCTION], wanted) == "city = 'rome'"


def test_calls_are_read_from_python_in_a_text():
    assert text_calls('```python\n[a.b(x=1, y=["z"]), c()]\n```') == [
        ("a.b", {"x": 1, "y": ["z"]}),
        ("c", {}),
    ]
    assert text_calls("f(x=-2.5, y=other)") == [("f", {"x": -2.5, "y": "other"})]


@pytest.mark.parametrize("text", ["I cannot do that.", "f(1)", "[1, 2]", "f(**x)", "x = f()"])
def test_text_that_is_no_list_of_calls_is_refused(text: str):
    with pytest.raises(ValueError):
        text_calls(text)


@pytest.mark.parametrize(
    "deep", ["a." * 500 + "x", "-" * 500 + "1", "lambda:" * 500 + "1", "a" + "[0]" * 500]
)
def test_an_answer_that_nests_deep_is_no_list_of_calls(deep: str):
    for text in (f"f(x={deep})", f"{deep}(x=1)"):
        with pytest.raises(ValueError):
            text_calls(text)
