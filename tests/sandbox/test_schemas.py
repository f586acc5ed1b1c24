"""Schemas and patterns are checked in a process that is killed when a check takes long; the next check has another."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import psutil
import pytest

from freehold.adapt.evals.samples import judge
from freehold.base.errors import UsageError
from freehold.base.sandbox import schemas
from freehold.base.sandbox.schemas import BadSchema, SchemaChecks

NUMBER = {"type": "integer"}


def doubled(levels: int) -> dict[str, object]:
    """Return a schema of a kilobyte whose check takes 2 ** levels steps."""
    defs: dict[str, object] = {"d0": {"type": "object"}}
    for i in range(levels):
        defs[f"d{i + 1}"] = {"allOf": [{"$ref": f"#/$defs/d{i}"}] * 2}
    return {"$defs": defs, "$ref": f"#/$defs/d{levels}"}


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[SchemaChecks]:
    monkeypatch.setattr(schemas, "SECONDS", 0.5)
    made = SchemaChecks()
    yield made
    made.close()


def test_a_schema_without_end_is_a_fault_and_the_next_check_is_done(checks: SchemaChecks):
    """It did not end, and Ctrl-C did not end it."""
    checks.check_schema(doubled(40))
    assert "0.5 s" in (checks.fault(doubled(40), "{}") or "")
    assert checks.fault(NUMBER, "3") is None and checks.fault(NUMBER, '"3"')


def test_a_judge_marks_an_answer_failed_whose_schema_has_no_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schemas, "SECONDS", 0.5)
    mark = judge("json_schema", doubled(40)).mark("{}")
    assert not mark.passed and "0.5 s" in mark.why
    assert judge("json_schema", doubled(5)).mark("{}").passed


def test_one_process_does_all_checks(checks: SchemaChecks):
    assert checks.fault(NUMBER, "3") is None
    first = checks._process
    threads = [threading.Thread(target=checks.fault, args=(NUMBER, str(n))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert checks._process is first is not None


def test_the_process_of_checks_knows_no_secret_of_the_environment(checks: SchemaChecks, monkeypatch):
    """A stranger's schema keeps it busy; it had the whole environment."""
    monkeypatch.setenv("FREEHOLD_API_KEY", "secret")
    checks.fault(NUMBER, "3")
    assert checks._process is not None
    environment = psutil.Process(checks._process.pid).environ()
    assert "FREEHOLD_API_KEY" not in environment and "HOME" not in environment


def test_a_process_that_ended_of_idleness_is_replaced(checks: SchemaChecks):
    assert checks.fault(NUMBER, "3") is None
    assert checks._sock is not None
    checks._sock.shutdown(socket.SHUT_RDWR)  # it reads its end, as after five minutes without a check
    assert checks.fault(NUMBER, "3") is None and checks.fault(NUMBER, "a") == "is not JSON"


@pytest.mark.parametrize(
    "schema",
    [{"type": 3}, {"$ref": "https://example.org/a"}, {"pattern": "(?=a)"}, {"pattern": "(a{999}){999}"}],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: dict[str, object], checks: SchemaChecks):
    with pytest.raises(BadSchema) as refused:
        checks.check_schema(schema)
    assert refused.value.is_pattern is ("pattern" in schema)
    with pytest.raises(UsageError, match="cannot be used"):
        judge("json_schema", schema)
