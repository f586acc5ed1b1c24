"""serve's log: text for people, JSON for programs, and a reader of stderr that stands still."""

from __future__ import annotations

import io
import json
import logging
import os
import threading

import pytest

from freehold.cli.serving import logs
from freehold.cli.serving.logs import LogWriter, logging_to
from freehold.serve.http.core.gate import RequestLine

REQUESTS, SERVE = logging.getLogger("freehold.requests"), logging.getLogger("freehold.serve")
FIELDS = {
    **dict.fromkeys(["key", "method", "route", "model"], "x"),
    **dict.fromkeys(["prompt_tokens", "cached_tokens", "answer_tokens"], 3),
    "request_id": "r1",
    "status": 200,
    "ttft_s": 0.25,
    "tok_s": 12.5,
    "duration_s": 1.5,
    "code": "",
    "whole": True,
}


def logged(level: str, form: logs.Form) -> list[str]:
    out = io.StringIO()
    with logging_to(out, level, form):
        SERVE.info("%s", "serving at here")
        REQUESTS.debug("%s", RequestLine(0.0, FIELDS))
        REQUESTS.info("%s", RequestLine(0.0, FIELDS))
        SERVE.error("no model")
        logging.getLogger("other.library").info("chatter")
        logging.getLogger("other.library").warning("careful")
    return out.getvalue().splitlines()


def test_text_has_a_line_a_request_and_levels_before_warnings():
    talk, line, error, other = logged("info", "text")
    assert talk == "serving at here" and error == "error: no model" and other == "warning: careful"
    assert line.endswith("x x x x 200 prompt 3 (cached 3) completion 3 first 0.250 s 12.5 tok/s 1.500 s")


def test_levels_let_through_what_they_say():
    assert len(logged("debug", "text")) == 5
    assert logged("warning", "text") == ["error: no model", "warning: careful"]
    assert logged("error", "text") == ["error: no model"]


def test_json_is_an_object_a_line():
    talk, line, error, other = map(json.loads, logged("info", "json"))
    assert talk["message"] == "serving at here" and talk["level"] == "info"
    assert {name: line[name] for name in FIELDS} == FIELDS and line["time"].endswith("Z")
    assert (error["level"], other["message"]) == ("error", "careful")


def test_reader_that_stands_still_holds_nothing_up_and_learns_what_was_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "ROOM", 20)
    reading, writing = os.pipe()
    out = os.fdopen(writing, "w")
    lines = LogWriter(out, "text")
    record = logging.LogRecord("freehold.serve", logging.INFO, "", 0, "x" * 5000, (), None)
    for _ in range(200):  # the pipe holds 64 KB
        lines.handle(record)
    with os.fdopen(reading) as source:
        closing = threading.Thread(target=lambda: (lines.close(), out.close()))
        closing.start()
        text = source.read()
        closing.join(60)
    assert "lines of the log were dropped" in text and 20 <= text.count("xxxx\n") < 100
