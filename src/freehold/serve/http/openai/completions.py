"""POST /v1/completions and POST /infill: text or token ids in, their continuation out, or what fills a gap.

lm-eval's loglikelihoods read `token_logprobs` and `top_logprobs` here: the first prompt token has null in both, and
a token that is the most probable has exactly the number of the best alternative.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Any

from msgspec import Meta, Struct

from freehold.base.serving import MAX_LOGPROBS, Begin, Job, ModelHandle, tokenizer_of
from freehold.base.types import Chunk, TokenLogprob
from freehold.serve.http.core.answering import COMMENT, CONTENT_TYPE, Answering, Choice
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.fields import Name, TokenId, doc, finite, priority, seconds
from freehold.serve.http.core.longjson import SCORES, long_list
from freehold.serve.http.core.problems import Problem, Refused, openai_error
from freehold.serve.http.core.receipt import Tally
from freehold.serve.http.openai.chat import chat_logprobs
from freehold.serve.http.openai.fields.chat import unknown_fields
from freehold.serve.http.openai.fields.generating import (
    Generating,
    Positive,
    format_field,
    sampling,
    shared_job,
    stops,
    tenant_of,
)
from freehold.serve.http.openai.models import model_name
from freehold.serve.http.openai.shape import OpenAIShape, encode

_REASONS = {"refusal": "content_filter"}  # this protocol has no refusals


async def completions(call: HttpCall) -> None:
    """Continue one or many prompts."""
    request, raw = await call.struct(CompletionRequest)
    call.fields = {"format": format_field(request)}
    warnings = await call.apart(unknown_fields, raw, CompletionRequest)
    jobs = await call.apart(completion_jobs, request, call.tenant)
    options = request.stream_options
    shape = TextShape(
        bool(options and options.include_usage),
        jobs,
        echo=bool(request.echo),
        logprobs=request.logprobs is not None,
        ids=bool(request.return_token_ids),
    )
    answering = Answering(call, shape, jobs, keep_alive=seconds(request.keep_alive), warnings=warnings)
    await (answering.stream if request.stream else answering.whole)(request.model)


class TextShape(OpenAIShape):
    """text_completion, streamed and whole."""

    object = event = "text_completion"
    prefix = "cmpl"

    def __init__(
        self, include_usage: bool, jobs: Sequence[Job], *, echo: bool, logprobs: bool, ids: bool
    ) -> None:
        super().__init__(include_usage)
        self._jobs, self._echo, self._logprobs, self._ids = jobs, echo, logprobs, ids
        self._echoes: dict[int, tuple[str, bytes]] = {}  # choice -> its prompt; what its first token writes
        self._offsets: dict[int, int] = {}

    async def begun(self, served: ModelHandle, job: int, choices: range, begin: Begin) -> None:
        await super().begun(served, job, choices, begin)
        if not self._echo:
            return
        prompt = self._jobs[job].prompt
        text = prompt if isinstance(prompt, str) else await tokenizer_of(served).detokenize(begin.prompt_ids)
        first = await tokenizer_of(served).token_texts(begin.prompt_ids[:1]) if self._logprobs else ()
        self._echoes |= dict.fromkeys(choices, (text, b"".join(first)))

    def first(self, choice: int, begin: Begin, tail: bytes) -> bytes:
        text, _ = self._echoes.get(choice, ("", b""))
        scored = self._prompt_logprobs(choice, begin) if self._logprobs and self._echo else None
        ids = b',"prompt_token_ids":' + encode(begin.prompt_ids) if self._ids and begin.prompt_ids else b""
        return self._event(choice, text, encode(scored), b"null", tail, ids)

    def piece(self, choice: int, chunk: Chunk) -> bytes:
        scored = self._logprobs and chunk.logprobs
        ids = b',"token_ids":' + encode(chunk.token_ids) if self._ids and chunk.token_ids else b""
        text = chunk.thinking + chunk.text + chunk.refusal
        if not text and not scored and not ids:
            return b""
        logprobs = encode(self._table(choice, chunk.logprobs)) if scored else b"null"
        return self._event(choice, text, logprobs, b"null", b"", ids)

    def last(self, choice: int, reason: str, tail: bytes) -> bytes:
        return self._event(choice, "", b"null", encode(_REASONS.get(reason, reason)), tail)

    def choice(self, choice: Choice) -> dict[str, Any]:
        text, logprobs = "".join((*choice.thinking, *choice.text, *choice.refusal)), None
        if self._echo:
            text = self._echoes[choice.index][0] + text
        if self._logprobs:
            prompt_table = self._prompt_logprobs(choice.index, choice.begin) if self._echo else {}
            answer_table = self._table(choice.index, choice.logprobs)
            table = {name: prompt_table.get(name, []) + column for name, column in answer_table.items()}
            logprobs = {name: long_list(column, SCORES) for name, column in table.items()}
        out = {"index": choice.index, "text": text, "logprobs": logprobs}
        out["finish_reason"] = _REASONS.get(choice.reason or "", choice.reason)
        return {**out, "token_ids": choice.token_ids} if self._ids else out

    def _event(
        self, choice: int, text: str, logprobs: bytes, reason: bytes, tail: bytes, more: bytes = b""
    ) -> bytes:
        values = (self._head, choice, encode(text), logprobs, reason, more, tail)
        return b'%b%d,"text":%b,"logprobs":%b,"finish_reason":%b%b}]%b}\n\n' % values

    def _prompt_logprobs(self, choice: int, begin: Begin) -> dict[str, list[Any]]:
        if not begin.prompt_logprobs:
            return {}
        first = TokenLogprob(begin.prompt_ids[0], 0.0, token=self._echoes[choice][1])
        table = self._table(choice, [first, *(t for t in begin.prompt_logprobs if t is not None)])
        table["token_logprobs"][0] = table["top_logprobs"][0] = None  # nothing precedes it
        if self._ids:
            table["content"][0]["logprob"] = None
        return table

    def _table(self, choice: int, tokens: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        texts = [_text(t.token) for t in tokens]
        offsets = [*accumulate(map(len, texts), initial=self._offsets.get(choice, 0))]
        self._offsets[choice] = offsets.pop()
        table = {
            "tokens": texts,
            "token_logprobs": [finite(t.logprob) for t in tokens],
            "top_logprobs": [_alternatives(t, s) for t, s in zip(tokens, texts, strict=True)],
            "text_offset": offsets,
        }
        return {**table, "content": chat_logprobs(tokens, True)["content"]} if self._ids else table


def _alternatives(t: TokenLogprob, text: str) -> dict[str, float]:
    """Return the best alternatives and the token itself, by text; of two with the same text, the more probable."""
    out: dict[str, float] = {}
    for (_, p), s in zip(t.top, t.top_tokens, strict=True):
        out.setdefault(_text(s), finite(p))
    out.setdefault(text, finite(t.logprob))
    return out


def _text(token: bytes) -> str:
    """Return a token's text, or OpenAI's `bytes:\\x..` for a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in token)


# --- the fields of POST /v1/completions, and the jobs that they make: one for each prompt -----------
# docs/reference/http.md is made from these structs.

MAX_CHOICES = 1024  # prompts x n of one request


class CompletionRequest(Generating, kw_only=True):
    """POST /v1/completions: text to continue. `max_tokens` is 16 if it is not given, as OpenAI has it."""

    prompt: Annotated[
        str | list[str | TokenId | list[TokenId]] | None,
        doc(f"Text, token ids, or a list of either; at most {MAX_CHOICES:,} answers in all."),
    ] = None
    suffix: Annotated[str | None, doc("Fill in the text between prompt and suffix, if the model can.")] = None
    echo: Annotated[
        bool | None, doc("Return the prompt before the answer, with its log-probabilities if requested.")
    ] = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        doc("Return each token's log-probability, and those of this many alternatives."),
    ] = None


def completion_jobs(r: CompletionRequest, tenant: str) -> list[Job]:
    """Return one job for each prompt."""
    prompts = _prompts(r.prompt)
    limit = 16 if r.max_tokens is None else r.max_tokens
    scored = r.logprobs if r.echo else None
    if limit == 0 and not r.echo:
        raise Refused(400, "max_tokens is 0, which needs echo true; expected 1 or more", param="max_tokens")
    if limit == 0 and scored is None:
        scored = 0  # an engine reads a prompt for a token or for scores; these are not shown
    if r.suffix and (r.echo or not all(isinstance(p, str) for p in prompts)):
        raise Refused(400, "suffix needs a prompt that is text, and no echo", param="suffix")
    n = r.n or 1
    if len(prompts) * n > MAX_CHOICES:
        message = f"{len(prompts):,} prompts x n {n} are more than {MAX_CHOICES:,} answers"
        raise Refused(400, message, param="prompt")
    its = {"suffix": r.suffix or None, "max_tokens": limit, "logprobs": r.logprobs, "prompt_logprobs": scored}
    job = shared_job(r, tenant, prompt=prompts[0], **its)
    return [job, *(replace(job, prompt=p) for p in prompts[1:])]


def _prompts(prompt: str | list[Any] | None) -> list[str | tuple[int, ...]]:
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise Refused(400, "prompt is missing or empty", param="prompt", code="missing_required_parameter")
    kinds = {type(p) for p in prompt}
    if len(kinds) > 1:
        raise Refused(400, "prompt mixes texts, token ids and lists; expected one of them", param="prompt")
    if kinds == {int}:
        return [tuple(prompt)]
    return [p if isinstance(p, str) else tuple(p) for p in prompt]


# --- POST /infill in llama.cpp's shapes: what belongs between the text before a cursor and the text behind it
# llama.vim and llama.vscode ask it.

_STOPS = {"length": "limit"}  # finish_reason -> stop_type


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

    content_type = CONTENT_TYPE
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
        return COMMENT

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
        receipt, read = self._tally.receipt(), self._tally.prompt_tokens - self._tally.cached_tokens
        taken = receipt["timings"]
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
            "timings": {
                "cache_n": self._tally.cached_tokens,
                **_speed("prompt", read, taken["prefill_s"]),
                **_speed("predicted", self._tally.completion_tokens, taken["decode_s"]),
            },
            "freehold": receipt,
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


# --- the fields of POST /infill, and the job that they make -----------------------------------------
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
        Name, doc("Default: the model this server was started with, or the only one in memory.")
    ] = ""
    input_prefix: Annotated[str, doc("The text before the cursor's line.")] = ""
    input_suffix: Annotated[str, doc("The text after the cursor.")] = ""
    input_extra: Annotated[
        Annotated[list[InfillFile], Meta(max_length=MAX_FILES)] | None,
        Meta(
            description="Parts of other files, the most relevant last; what the context cannot hold is dropped."
        ),
    ] = None
    prompt: Annotated[str, doc("The beginning of the cursor's line; follows input_prefix.")] = ""
    n_predict: Annotated[
        Annotated[int, Meta(ge=-1, le=1 << 20)] | None,
        Meta(
            description=f"Most tokens of the answer; 0 only computes the prompt. Default, and -1: {TOKENS}."
        ),
    ] = None
    n_indent: Annotated[
        Annotated[int, Meta(ge=0, le=10_000)] | None,
        doc("End the answer before a line that is indented by fewer characters."),
    ] = None
    t_max_predict_ms: Annotated[
        Milliseconds | None,
        doc("End the answer after this time from its first token, once it has a line."),
    ] = None
    t_max_prompt_ms: Annotated[Milliseconds | None, doc("Accepted, but not used.")] = None
    repeat_penalty: Annotated[Positive | None, doc("As repetition_penalty.")] = None
    repeat_last_n: Annotated[Annotated[int, Meta(ge=-1, le=1 << 20)] | None, doc("As penalty_window.")] = None
    response_fields: Annotated[
        Annotated[list[str], Meta(max_length=256)] | None,
        Meta(
            description="Only these fields in a whole answer; `timings/prompt_ms` is one of an inner object."
        ),
    ] = None
    samplers: Annotated[str | list[str] | None, doc("Accepted and not used: the order here is fixed.")] = None
    cache_prompt: Annotated[bool | None, doc("Accepted and not used: prompts are cached.")] = None
    id_slot: Annotated[int | None, doc("Accepted and not used: there are no slots.")] = None


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
