"""POST /v1/completions: text or token ids in, their continuation out, with echo and OpenAI's old logprobs.

lm-eval's loglikelihoods read `token_logprobs` and `top_logprobs` here: the first prompt token has null in both, and
a token that is the most probable has exactly the number of the best alternative.
Path: Gate -> completions -> completion_jobs -> Answering -> TextShape
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any

from msgspec import Meta

from freehold.server.core.answering import Answering, Choice
from freehold.server.core.call import HttpCall
from freehold.server.core.durations import seconds
from freehold.server.core.fields import TokenId, finite, priority
from freehold.server.core.longjson import SCORES, long_list
from freehold.server.core.problems import Refused
from freehold.server.openai.chat import chat_logprobs
from freehold.server.openai.fields.generating import Generating, sampling, stops, tenant_of
from freehold.server.openai.fields.structured import format_field, format_of
from freehold.server.openai.fields.unknown import unknown_fields
from freehold.server.openai.shape import OpenAIShape, encode
from freehold.serving import MAX_LOGPROBS, Begin, Job, ModelHandle, tokenizer_of
from freehold.types import Chunk, TokenLogprob

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
        self._echoes: dict[
            int, tuple[str, bytes]
        ] = {}  # choice -> its prompt, and what the first token writes
        self._offsets: dict[int, int] = {}

    async def begun(self, served: ModelHandle, job: int, choices: range, begin: Begin) -> None:
        await super().begun(served, job, choices, begin)
        if not self._echo:
            return
        prompt = self._jobs[job].prompt
        text = prompt if isinstance(prompt, str) else await tokenizer_of(served).detokenize(begin.prompt_ids)
        first = (
            b"".join(await tokenizer_of(served).token_texts(begin.prompt_ids[:1])) if self._logprobs else b""
        )
        self._echoes |= dict.fromkeys(choices, (text, first))

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
        return b'%b%d,"text":%b,"logprobs":%b,"finish_reason":%b%b}]%b}\n\n' % (
            self._head,
            choice,
            encode(text),
            logprobs,
            reason,
            more,
            tail,
        )

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
        Meta(description=f"Text, token ids, or a list of either; at most {MAX_CHOICES:,} answers in all."),
    ] = None
    suffix: Annotated[
        str | None, Meta(description="Fill in between prompt and this, where the model can.")
    ] = None
    echo: Annotated[
        bool | None, Meta(description="Begin with the prompt, with its log-probabilities if asked.")
    ] = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None,
        Meta(description="Give each token's log-probability, and those of this many alternatives."),
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
        raise Refused(
            400, f"{len(prompts):,} prompts x n {n} are more than {MAX_CHOICES:,} answers", param="prompt"
        )
    shared = {
        "suffix": r.suffix or None,
        "n": n,
        "max_tokens": limit,
        "sampling": sampling(r),
        "stop": stops(r),
        "logprobs": r.logprobs,
        "prompt_logprobs": scored,
        "format": format_of(r),
        "ignore_eos": bool(r.ignore_eos),
        "priority": priority(r.priority),
        "tenant": tenant_of(r, tenant),
        "timeout_s": r.timeout,
        "whole": not r.stream,
    }
    return [Job(prompt=p, **shared) for p in prompts]


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
