"""Twenty JSON schemas of the kinds that applications send, each with a question and an answer that fits.

Flat records, nesting, lists, enumerations, patterns, bounds, references, recursion, unions, one with forty
properties. No schema uses what llguidance, xgrammar or outlines-core are known to lack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A question, the schema of its answer, and an answer."""

    name: str
    question: str
    schema: dict[str, Any]
    answer: Any


def record(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the schema of an object with these properties and no others, all of them required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


def each(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": schema, **more}


TEXT: dict[str, Any] = {"type": "string"}
WHOLE: dict[str, Any] = {"type": "integer"}
NUMBER: dict[str, Any] = {"type": "number"}
FLAG: dict[str, Any] = {"type": "boolean"}
SHORT: dict[str, Any] = {"type": "string", "maxLength": 40}


def _one_of(*values: Any) -> dict[str, Any]:
    return {"enum": list(values)}


CASES = (
    Case(
        "person",
        "Describe Ann, who is 31.",
        record({"name": TEXT, "age": WHOLE}),
        {"name": "Ann Smith", "age": 31},
    ),
    Case(
        "sentiment",
        "Is 'I love this phone' positive, negative or neutral?",
        record(
            {
                "label": _one_of("positive", "negative", "neutral"),
                "score": {**NUMBER, "minimum": 0, "maximum": 1},
            }
        ),
        {"label": "positive", "score": 0.97},
    ),
    Case(
        "tags",
        "Give three tags for an article about bread.",
        record({"tags": each(TEXT, minItems=1, maxItems=5)}),
        {"tags": ["baking", "bread", "sourdough starter"]},
    ),
    Case(
        "address",
        "Give the address of the White House.",
        record(
            {
                "street": SHORT,
                "city": SHORT,
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
                "country": SHORT,
            }
        ),
        {"street": "1600 Pennsylvania Avenue NW", "city": "Washington", "zip": "20500", "country": "USA"},
    ),
    Case(
        "invoice",
        "An invoice: two pens at 1.50 and a book at 12.",
        record(
            {
                "number": SHORT,
                "lines": each(record({"item": SHORT, "count": WHOLE, "price": NUMBER}), maxItems=5),
                "total": NUMBER,
            }
        ),
        {
            "number": "2026-001",
            "lines": [{"item": "pen", "count": 2, "price": 1.5}, {"item": "book", "count": 1, "price": 12}],
            "total": 15,
        },
    ),
    Case(
        "weather_call",
        "Call get_weather for Berlin in celsius.",
        record(
            {
                "name": {"const": "get_weather"},
                "arguments": record({"city": SHORT, "unit": _one_of("celsius", "fahrenheit")}),
            }
        ),
        {"name": "get_weather", "arguments": {"city": "Berlin", "unit": "celsius"}},
    ),
    Case(
        "date",
        "When did the Berlin Wall fall?",
        record({"event": SHORT, "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}}),
        {"event": "Fall of the Berlin Wall", "date": "1989-11-09"},
    ),
    Case(
        "optional",
        "Describe the film Alien.",
        {
            "type": "object",
            "properties": {"title": SHORT, "year": WHOLE, "genre": SHORT, "rating": NUMBER},
            "required": ["title"],
            "additionalProperties": False,
        },
        {"title": "Alien", "year": 1979, "rating": 8.5},
    ),
    Case(
        "nullable",
        "Who wrote Beowulf, and when?",
        record(
            {"author": {"type": ["string", "null"], "maxLength": 40}, "year": {"type": ["integer", "null"]}}
        ),
        {"author": None, "year": 1000},
    ),
    Case(
        "union",
        "Name a shape with its size.",
        record(
            {
                "shape": {
                    "anyOf": [
                        record({"kind": {"const": "circle"}, "radius": NUMBER}),
                        record({"kind": {"const": "square"}, "side": NUMBER}),
                    ]
                }
            }
        ),
        {"shape": {"kind": "square", "side": 2.5}},
    ),
    Case(
        "reference",
        "Name two points of a line.",
        record(
            {"start": {"$ref": "#/$defs/point"}, "end": {"$ref": "#/$defs/point"}},
            **{"$defs": {"point": record({"x": WHOLE, "y": WHOLE})}},
        ),
        {"start": {"x": 0, "y": 1}, "end": {"x": 10, "y": -12}},
    ),
    Case(
        "tree",
        "A small family tree: Ann has one child, Bob, who has none.",
        {
            "$ref": "#/$defs/node",
            "$defs": {
                "node": record({"name": SHORT, "children": each({"$ref": "#/$defs/node"}, maxItems=2)})
            },
        },
        {"name": "Ann", "children": [{"name": "Bob", "children": []}]},
    ),
    Case(
        "matrix",
        "Give the 2 by 2 identity matrix.",
        record({"rows": each(each(WHOLE, minItems=2, maxItems=2), minItems=2, maxItems=2)}),
        {"rows": [[1, 0], [0, 1]]},
    ),
    Case(
        "quiz",
        "A quiz question about Rome with four options.",
        record(
            {
                "question": TEXT,
                "options": each(SHORT, minItems=4, maxItems=4),
                "answer": _one_of("A", "B", "C", "D"),
            }
        ),
        {
            "question": "Who was the first emperor?",
            "options": ["Nero", "Augustus", "Titus", "Trajan"],
            "answer": "B",
        },
    ),
    Case(
        "contact",
        "A contact: Ann, ann@example.com, +1 555 0100.",
        record(
            {
                "name": SHORT,
                "email": {"type": "string", "pattern": "^[a-z0-9.]{1,20}@[a-z0-9]{1,20}\\.[a-z]{2,5}$"},
                "phone": {"type": "string", "pattern": "^\\+[0-9 ]{6,15}$"},
            }
        ),
        {"name": "Ann", "email": "ann@example.com", "phone": "+1 555 0100"},
    ),
    Case(
        "code",
        "Write a Python function that adds two numbers.",
        record({"language": _one_of("python", "c", "rust"), "code": TEXT, "explanation": TEXT}),
        {
            "language": "python",
            "code": "def add(a, b):\n    return a + b\n",
            "explanation": 'It returns the sum "a + b".',
        },
    ),
    Case(
        "settings",
        "Settings of a dark editor with tabs of 4.",
        record(
            {
                "editor": record({"theme": _one_of("dark", "light"), "tabs": _one_of(2, 4, 8), "wrap": FLAG}),
                "files": record({"trim": FLAG, "newline": FLAG}),
            }
        ),
        {"editor": {"theme": "dark", "tabs": 4, "wrap": False}, "files": {"trim": True, "newline": True}},
    ),
    Case(
        "steps",
        "How do I boil an egg? Three steps.",
        record(
            {
                "steps": each(
                    record({"number": {**WHOLE, "minimum": 1, "maximum": 9}, "text": TEXT}),
                    minItems=3,
                    maxItems=3,
                )
            }
        ),
        {
            "steps": [
                {"number": 1, "text": "Boil water."},
                {"number": 2, "text": "Add the egg."},
                {"number": 3, "text": "Wait 7 minutes."},
            ]
        },
    ),
    Case(
        "entities",
        "Find people and places in 'Ann flew to Rome'.",
        record(
            {
                "entities": each(
                    record({"text": SHORT, "kind": _one_of("person", "place", "other")}), maxItems=6
                )
            }
        ),
        {"entities": [{"text": "Ann", "kind": "person"}, {"text": "Rome", "kind": "place"}]},
    ),
    Case(
        "wide",
        "Answer forty yes-or-no questions about a cat.",
        record({f"q{i:02}": FLAG for i in range(40)}),
        {f"q{i:02}": i % 3 == 0 for i in range(40)},
    ),
)
