"""POST /infill in llama.cpp's shapes: what belongs between the text before a cursor and the text behind it.

llama.vim and llama.vscode ask it. Knows the route, where an editor's answer ends, and the answer's fields.
Path: Gate -> infill -> infill_job -> Answering -> InfillShape
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from freehold.server.core import sse
from freehold.server.core.answering import Answering, Choice
from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.fields import Name, priority
from freehold.server.core.problems import Problem, openai_error
from freehold.server.core.receipt import Tally
from freehold.server.openai.fields.generating import Generating, Positive, sampling, stops, tenant_of
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


# --- the fields of POST /infill ---------------------------------------------------------------------
# The route of llama.cpp's server for completion in an editor, and the job that they make.
# docs/reference/http.md is made from these structs.

TOKENS = 128  # of an answer whose length is not given: an editor shows some lines
MAX_FILES = 256  # beside the one that is edited

Milliseconds = Annotated[float, Meta(ge=0, le=86_400_000)]


class InfillFile(Struct, kw_only=True):
    """Text of another file."""

    text: str
    filename: str = ""


class InfillRequest(Generating, kw_only=True):
    """POST /infill: the text between a prefix and a suffix, as llama.cpp's server has it."""

    model: Annotated[
        Name, Meta(description="Default: the model this server was started with, or the only one in memory.")
    ] = ""
    input_prefix: Annotated[str, Meta(description="The text before the cursor's line.")] = ""
    input_suffix: Annotated[str, Meta(description="The text after the cursor.")] = ""
    input_extra: Annotated[
        Annotated[list[InfillFile], Meta(max_length=MAX_FILES)] | None,
        Meta(
            description="Parts of other files, the most relevant last; what the context cannot hold is dropped."
        ),
    ] = None
    prompt: Annotated[str, Meta(description="The beginning of the cursor's line; follows input_prefix.")] = ""
    n_predict: Annotated[
        Annotated[int, Meta(ge=-1, le=1 << 20)] | None,
        Meta(
            description=f"Most tokens of the answer; 0 only computes the prompt. Default, and -1: {TOKENS}."
        ),
    ] = None
    n_indent: Annotated[
        Annotated[int, Meta(ge=0, le=10_000)] | None,
        Meta(description="End the answer before a line that is indented by fewer characters."),
    ] = None
    t_max_predict_ms: Annotated[
        Milliseconds | None,
        Meta(description="End the answer after this time from its first token, once it has a line."),
    ] = None
    t_max_prompt_ms: Annotated[Milliseconds | None, Meta(description="Accepted and not used.")] = None
    repeat_penalty: Annotated[Positive | None, Meta(description="As repetition_penalty.")] = None
    repeat_last_n: Annotated[
        Annotated[int, Meta(ge=-1, le=1 << 20)] | None, Meta(description="As penalty_window.")
    ] = None
    response_fields: Annotated[
        Annotated[list[str], Meta(max_length=256)] | None,
        Meta(
            description="Only these fields in a whole answer; `timings/prompt_ms` is one of an inner object."
        ),
    ] = None
    samplers: Annotated[
        str | list[str] | None, Meta(description="Accepted and not used: the order here is fixed.")
    ] = None
    cache_prompt: Annotated[bool | None, Meta(description="Accepted and not used: prompts are cached.")] = (
        None
    )
    id_slot: Annotated[int | None, Meta(description="Accepted and not used: there are no slots.")] = None


def infill_job(r: InfillRequest, tenant: str) -> Job:
    """Return the job. Without a temperature it is greedy: an editor wants the most probable text."""
    if r.repetition_penalty is None:
        r.repetition_penalty = r.repeat_penalty
    if r.penalty_window is None and r.repeat_last_n is not None:
        r.penalty_window = max(r.repeat_last_n, 0)
    wanted = r.max_tokens if r.n_predict is None else r.n_predict
    limit = TOKENS if wanted in (None, -1) else wanted
    return Job(
        prompt=r.input_prefix + r.prompt,
        suffix=r.input_suffix,
        beside=tuple((each.filename, each.text) for each in r.input_extra or ()),
        max_tokens=max(limit or 0, 1),  # a prompt is computed for a token
        sampling={"temperature": 0.0, **sampling(r)},
        stop=stops(r),
        priority=priority(r.priority),
        tenant=tenant_of(r, tenant),
        timeout_s=r.timeout,
        whole=not r.stream,
    )
