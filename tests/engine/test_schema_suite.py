"""The JSON Schema Test Suite, as far as our grammars speak it: what fits may be written, what does not may not.

tests/vectors/make_schemas.py made the extract; what it says of each instance is held here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from freehold.base.errors import UsageError
from freehold.base.types import Format
from freehold.run.engine.constrain.grammar import Grammars
from freehold.run.tokenizer import tokenizer_from_gguf
from tests.engine.instances import accepts
from tests.tokenizer.toys import byte_level

SUITE = json.loads((Path(__file__).parents[1] / "vectors/schemas/suite.json").read_text(encoding="utf-8"))
FILES = sorted({entry["file"] for entry in SUITE["kept"]})
TOKENIZER = tokenizer_from_gguf(byte_level())
GRAMMARS = Grammars(TOKENIZER)


def taken(entry: dict[str, Any], name: str) -> list[Any]:
    grammar = GRAMMARS.grammar(Format("json_schema", json.dumps(entry["schema"])))
    return [value for value in entry[name] if accepts(grammar, TOKENIZER, value)]


@pytest.mark.parametrize("file", FILES)
def test_instances_that_fit_go_through_and_others_do_not(file: str):
    for entry in (e for e in SUITE["kept"] if e["file"] == file):
        assert taken(entry, "valid") == entry["valid"]
        assert taken(entry, "invalid") == []


def test_nothing_wrong_is_taken_but_days_and_seconds_that_no_calendar_has():
    wrong = {e["file"]: taken(e, "taken") for e in SUITE["kept"] if e["taken"]}
    assert wrong == {e["file"]: e["taken"] for e in SUITE["kept"] if e["taken"]}
    assert wrong.keys() == {"format/date", "format/date-time", "format/time"}
    assert all("-02-29" in day for day in wrong["format/date"])
    assert all(":60" in time for time in wrong["format/date-time"] + wrong["format/time"])


def test_nothing_right_is_refused_but_a_number_in_another_spelling_and_what_formats_leave_open():
    for entry in (e for e in SUITE["kept"] if e["refused"]):
        assert taken(entry, "refused") == []
        if entry["file"] in ("const", "enum", "type"):
            numbers = [v[0] if isinstance(v, list) else v for v in entry["refused"]]
            assert all(isinstance(n, float) and n.is_integer() for n in numbers)  # 1.0, where 1 is written
        else:  # a format is enforced here and no more than a remark in the suite; rare forms are left out
            assert "format" in entry["file"]


def test_what_the_suite_has_beyond_is_refused_by_name():
    for schema, word in (({"uniqueItems": True}, "uniqueItems"), ({"not": {}}, "not"), ({"if": {}}, "if")):
        with pytest.raises(UsageError, match=word) as e:
            GRAMMARS.grammar(Format("json_schema", json.dumps(schema)))
        assert "x-guidance" in e.value.hint
