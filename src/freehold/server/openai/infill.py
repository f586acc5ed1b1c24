"""POST /infill in llama.cpp's shapes: what belongs between the text before a cursor and the text behind it.

llama.vim and llama.vscode ask it. Knows the route, where an editor's answer ends, and the answer's fields.
Path: Gate -> infill -> infill_job -> Answering -> InfillShape
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from freehold.server.core import sse
from freehold.server.core.answering import Answering, Choice
from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.problems import Problem, openai_error
from freehold.server.core.receipt import Tally
from freehold.server.openai.fields.infill import InfillRequest, infill_job
from freehold.server.openai.fields.unknown import unknown_fields
from freehold.server.openai.tokens import model_name
from freehold.serving import Begin, Job, ModelHandle
from freehold.types import Chunk

_STOPS = {"length": "limit"}  # finish_reason -> stop_type
encode = msgspec.json.encode


async def infill(call: HttpCall) -> None:
    """Fill the gap between a prefix and a suffix."""
    request, raw = await call.struct(InfillRequest)
    warnings = await call.apart(unknown_fields, raw, InfillRequest)
    job = await call.apart(infill_job, request, call.tenant)
    name = model_name(call, request.model)
    end = AnswerEnd(request.n_indent or 0, (request.t_max_predict_ms or 0) / 1000)
    answering = Answering(
        call,
        InfillShape(job, request),
        [job],
        keep_alive=seconds(request.keep_alive),
        warnings=warnings,
        cut=end.cut,
    )
    await (answering.stream if request.stream else answering.whole)(name)


class AnswerEnd:
    """Where an editor's answer ends early: before a line that is indented less, or after a time, once it has a line."""

    def __init__(self, indent: int, limit_s: float) -> None:
        self._indent, self._limit_s = indent, limit_s
        self._first = 0.0  # when the first chunk came
        self._lines = False  # whether a line has ended
        self._held = ""  # a line's end, and the blanks since: the next line may be indented less

    def cut(self, chunk: Chunk) -> tuple[Chunk, bool]:
        """Return what is kept of a chunk, and whether the answer ends with it."""
        now = time.monotonic()
        self._first = self._first or now
        self._lines = self._lines or "\n" in chunk.text
        text, enough = self._within(chunk.text) if self._indent else (chunk.text, False)
        if chunk.finish_reason is not None and not enough:
            text += self._held
        late = bool(self._limit_s) and self._lines and now - self._first > self._limit_s
        return replace(chunk, text=text), enough or late

    def _within(self, text: str) -> tuple[str, bool]:
        """Return the text before the first line that is indented less, and whether there is one."""
        kept: list[str] = []
        for letter in text:
            if letter == "\n" or (self._held and letter in " \t"):
                self._held += letter
                continue
            if self._held and len(self._held) - self._held.rfind("\n") - 1 < self._indent:
                return "".join(kept), True
            kept.append(self._held + letter)
            self._held = ""
        return "".join(kept), False


class InfillShape:
    """llama.cpp's answer to /infill, whole or as events; the last event is the whole one without its text."""

    content_type = sse.CONTENT_TYPE
    keep = None

    def __init__(self, job: Job, request: InfillRequest) -> None:
        self._job, self._only = job, request.response_fields
        self._none = request.n_predict == 0  # only the prompt was asked for
        self._model = ""
        self._stop = ""
        self._made = 0
        self._lines = False

    def bind(self, model: str, answer_id: str, tally: Tally) -> None:
        self._model, self._tally = model, tally

    async def begun(self, served: ModelHandle, job: int, choices: range, begin: Begin) -> None:
        self._model = begin.model or self._model

    def opened(self, choice: int, begin: Begin) -> bytes:
        return b""

    def piece(self, choice: int, chunk: Chunk) -> bytes:
        text = self._text(chunk)
        if not text:
            return b""
        event = {"index": 0, "content": text, "tokens": chunk.token_ids, "stop": False, "id_slot": -1}
        counts = {"tokens_predicted": self._made, "tokens_evaluated": self._tally.prompt_tokens}
        return b"data: " + encode(event | counts) + b"\n\n"

    def end(self, choice: int, reason: str, last: bool) -> bytes:
        return b"data: " + encode(self._whole("", reason)) + b"\n\n"

    def closing(self) -> bytes:
        return b""

    def failed(self, trouble: Problem) -> bytes:
        return b"data: " + openai_error(trouble) + b"\n\n"

    def beat(self) -> bytes:
        return sse.COMMENT

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        (choice,) = choices
        text = "".join(self._text(chunk) for chunk in choice.chunks)
        whole = self._whole(text, choice.reason or "")
        return whole if self._only is None else _only(whole, self._only)

    def _text(self, chunk: Chunk) -> str:
        self._made += len(chunk.token_ids)
        self._stop = chunk.stop or self._stop
        self._lines = self._lines or "\n" in chunk.text
        return "" if self._none else chunk.text

    def _whole(self, text: str, reason: str) -> dict[str, Any]:
        receipt = self._tally.receipt()
        return {
            "index": 0,
            "content": text,
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self._model,
            "tokens_predicted": self._tally.completion_tokens,
            "tokens_evaluated": self._tally.prompt_tokens,
            "generation_settings": {**receipt["sampling"], "n_predict": self._job.max_tokens},
            "has_new_line": self._lines,
            "truncated": False,
            "stop_type": "word" if self._stop else _STOPS.get(reason, "eos"),
            "stopping_word": self._stop,
            "tokens_cached": self._tally.cached_tokens,
            "timings": self._timings(receipt["timings"]),
            "freehold": receipt,
        }

    def _timings(self, taken: dict[str, Any]) -> dict[str, float]:
        read = self._tally.prompt_tokens - self._tally.cached_tokens
        return {
            "cache_n": self._tally.cached_tokens,
            **_speed("prompt", read, taken["prefill_s"]),
            **_speed("predicted", self._tally.completion_tokens, taken["decode_s"]),
        }


def _speed(name: str, tokens: int, taken_s: float) -> dict[str, float]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": taken_s * 1000,
        f"{name}_per_token_ms": taken_s * 1000 / tokens if tokens else 0.0,
        f"{name}_per_second": tokens / taken_s if taken_s else 0.0,
    }


def _only(whole: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return some fields; one of an inner object keeps its path as its name, as llama.cpp has it."""
    fields: dict[str, Any] = {}
    for name in names:
        value: Any = whole
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            fields[name] = value
    return fields
