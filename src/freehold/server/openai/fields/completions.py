"""The fields of POST /v1/completions, and the jobs that they make: one for each prompt.

Knows the wire's fields and Job's; knows no route and no model. docs/reference/http.md is made from these structs.
Path: HttpCall.struct -> CompletionRequest -> completion_jobs -> Job
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from freehold.server.core.fields import TokenId, priority
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.generating import Generating, sampling, stops, tenant_of
from freehold.server.openai.fields.structured import format_of
from freehold.serving import MAX_LOGPROBS, Job

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
