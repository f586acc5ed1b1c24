"""The fields that all of OpenAI's generating requests share: the model, sampling, stops, streaming, priority.

A field is honoured, refused by name because leaving it out would change the answer, or named in `warnings`.
Knows the wire's fields and Job's; knows no route and no model. docs/reference/http.md is made from these structs.
Path: ChatRequest, CompletionRequest or ResponseRequest -> sampling, stops -> Job
"""

from __future__ import annotations

import hashlib
from typing import Annotated

from msgspec import Meta, Struct

from freehold.server.core.fields import FORCED, LEAST_MASS, MAX_SEED, Count, Name, Rank, Share
from freehold.server.core.problems import Refused
from freehold.server.openai.fields.structured import Structured
from freehold.serving import MAX_BIASES, MAX_STOP_CHARS, MAX_STOPS

MAX_N = 128  # answers to one prompt

Bias = Annotated[float, Meta(ge=-100, le=100)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[float, Meta(gt=0, le=100)]
Mass = Annotated[float, Meta(gt=0, le=1)]
Label = Annotated[str, Meta(max_length=512)]

_SAMPLING = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalty_window",
)


class StreamOptions(Struct, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Generating(Structured, kw_only=True):
    """Fields that chats and completions share."""

    model: Annotated[Name, Meta(description="The model's name; it is loaded if it is not in memory.")]
    stream: Annotated[bool | None, Meta(description="Send the answer as server-sent events.")] = None
    stream_options: Annotated[
        StreamOptions | None, Meta(description="`include_usage`: a last event with the token counts.")
    ] = None
    max_tokens: Annotated[Count | None, Meta(description="Most tokens of an answer.")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None,
        Meta(description="0 is greedy. Default: the model's own."),
    ] = None
    top_p: Annotated[
        Share | None, Meta(description="Sample from the most probable tokens whose sum reaches this.")
    ] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=FORCED)] | None,
        Meta(description="Sample from this many tokens; 0 or -1: all."),
    ] = None
    min_p: Annotated[
        Share | None, Meta(description="Drop tokens below this times the highest probability.")
    ] = None
    typical_p: Annotated[Mass | None, Meta(description="Keep the most typical mass.")] = None
    repetition_penalty: Annotated[
        Positive | None, Meta(description="Divide the logits of repeated tokens.")
    ] = None
    presence_penalty: Annotated[
        Penalty | None, Meta(description="Subtract from the logits of repeated tokens.")
    ] = None
    frequency_penalty: Annotated[
        Penalty | None, Meta(description="Subtract from a logit per occurrence.")
    ] = None
    penalty_window: Annotated[
        Count | None, Meta(description="Last tokens the penalties look at; 0: all. Default 64.")
    ] = None
    logit_bias: Annotated[
        Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)] | None,
        Meta(description="Token id, as text, to what is added to its logit."),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-MAX_SEED - 1, le=MAX_SEED)] | None,
        Meta(
            description="The same seed gives the same answer; answer i uses seed + i. Default, and -1: random."
        ),
    ] = None
    n: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_N)] | None, Meta(description="Answers to give. Default 1.")
    ] = None
    stop: Annotated[
        str | list[str] | None,
        Meta(
            description=f"Texts that end an answer: at most {MAX_STOPS}, each of 1 to {MAX_STOP_CHARS:,} characters."
        ),
    ] = None
    ignore_eos: Annotated[
        bool | None,
        Meta(description="Continue after the model's own end, to max_tokens: for load generators."),
    ] = None
    priority: Rank = None
    timeout: Annotated[
        Annotated[float, Meta(gt=0, le=86400)] | None,
        Meta(description="Seconds the whole answer may take; then status 504 or an error event."),
    ] = None
    keep_alive: Annotated[
        float | str | None,
        Meta(
            description="How long the model stays in memory afterwards: seconds or `10m`; negative: no limit."
        ),
    ] = None
    return_token_ids: Annotated[
        bool | None,
        Meta(
            description="Give `token_ids` with each choice, `id` with each log-probability, and in a stream's first "
            "event `prompt_token_ids`."
        ),
    ] = None
    cache_salt: Annotated[
        Label | None,
        Meta(description="vLLM's: cached prompts are shared among requests of one key with the same salt."),
    ] = None
    user: Annotated[Label | None, Meta(description="Accepted and not used.")] = None
    service_tier: Annotated[Label | None, Meta(description="Accepted and not used.")] = None
    safety_identifier: Annotated[Label | None, Meta(description="Accepted and not used.")] = None
    prompt_cache_key: Annotated[
        Label | None, Meta(description="Accepted and not used: prompts are cached by what they hold.")
    ] = None
    prompt_cache_retention: Annotated[Label | None, Meta(description="Accepted and not used.")] = None


def sampling(r: Generating) -> dict[str, object]:
    """Return the fields of SamplingParams that the request gives."""
    settings: dict[str, object] = {k: v for k in _SAMPLING if (v := getattr(r, k)) is not None}
    if r.seed not in (None, -1):  # which vLLM and llama.cpp read as no seed
        settings["seed"] = r.seed & MAX_SEED
    if r.top_p == 0:
        settings["top_p"] = LEAST_MASS
    if r.top_k is not None:
        settings["top_k"] = max(r.top_k, 0)
    if r.logit_bias:
        settings["logit_bias"] = {_token_id(k): v for k, v in r.logit_bias.items()}
    return settings


def tenant_of(r: Generating, tenant: str) -> str:
    """Return whose cached prefixes a request may see: its key's, or those of one salt of the key."""
    return f"{tenant}|{hashlib.sha256(r.cache_salt.encode()).hexdigest()[:32]}" if r.cache_salt else tenant


def stops(r: Generating) -> tuple[str, ...]:
    """Return the stop texts; 400 for too many, an empty one or one too long."""
    texts = [r.stop] if isinstance(r.stop, str) else r.stop or []
    if len(texts) > MAX_STOPS:
        raise Refused(400, f"stop has {len(texts)} texts; expected at most {MAX_STOPS}", param="stop")
    for text in texts:
        if not 0 < len(text) <= MAX_STOP_CHARS:
            raise Refused(
                400,
                f"a stop text has {len(text):,} characters; expected 1 to {MAX_STOP_CHARS:,}",
                param="stop",
            )
    return tuple(texts)


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise Refused(400, f"logit_bias has the key {key[:20]!r}; expected a token id", param="logit_bias")
    return int(key)
