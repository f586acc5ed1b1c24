"""The fields that all of OpenAI's generating requests share: the model, sampling, stops, streaming, priority.

A field is honoured, refused by name because leaving it out would change the answer, or named in `warnings`.
Knows the wire's fields and Job's; knows no route and no model. docs/reference/http.md is made from these structs.
"""

from __future__ import annotations

import hashlib
from operator import attrgetter
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.base.serving import MAX_BIASES, MAX_STOP_CHARS, MAX_STOPS, Job
from freehold.base.types import MAX_CHOICES, MAX_FORMAT_CHARS, MAX_SEED, Format
from freehold.serve.http.core.fields import (
    FORCED,
    Count,
    Name,
    Rank,
    Share,
    bounded,
    doc,
    priority,
    sampling_of,
    schema_format,
)
from freehold.serve.http.core.problems import Refused

# --- what an answer's text must be, by every name that OpenAI's clients have for it: one Format comes out
# OpenAI's `response_format`, vLLM's `structured_outputs` and its older `guided_*`, llama.cpp's `json_schema` and
# `grammar`.

Text = Annotated[str, Meta(max_length=MAX_FORMAT_CHARS)]
Texts = Annotated[list[str], Meta(max_length=MAX_CHOICES)]
Schema = dict[str, Any] | bool
GBNF = "::="  # what every rule of llama.cpp's grammars has, and no line of Lark outside a string


class NamedSchema(Struct, kw_only=True, forbid_unknown_fields=True):
    """A JSON schema as OpenAI wraps it. It is always enforced, whatever `strict` says."""

    schema: Schema | None = None
    name: str | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Struct, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's; `schema` beside `json_object` is llama.cpp's way to give one."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema: Schema | None = None


class StructuredOutputs(Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's: one of them."""

    json: Schema | Text | None = None
    json_object: bool | None = None
    regex: Text | None = None
    choice: Texts | None = None
    grammar: Text | None = None


class Structured(Struct, kw_only=True):
    """The fields of a request that say what the answer's text must be; one of them at most."""

    response_format: Annotated[
        ResponseFormat | None,
        Meta(
            description="Format of the answer: `json_object`, or `json_schema` with its `schema`, which is always "
            "enforced."
        ),
    ] = None
    structured_outputs: Annotated[
        StructuredOutputs | None,
        Meta(
            description="As in vLLM: `json` (a schema), `json_object`, `regex`, `choice` (texts) or `grammar` "
            "(Lark)."
        ),
    ] = None
    guided_json: Annotated[Schema | Text | None, doc("vLLM's older `structured_outputs.json`.")] = None
    guided_regex: Annotated[Text | None, doc("vLLM's older `structured_outputs.regex`.")] = None
    guided_choice: Annotated[Texts | None, doc("vLLM's older `structured_outputs.choice`.")] = None
    guided_grammar: Annotated[Text | None, doc("vLLM's older `structured_outputs.grammar`.")] = None
    json_schema: Annotated[Schema | None, doc("As in llama.cpp: a JSON schema.")] = None
    grammar: Annotated[
        Text | None, doc("A Lark grammar. GBNF, llama.cpp's own format, is not supported.")
    ] = None


_FORMATS = Structured.__struct_fields__
_formats_of = attrgetter(*_FORMATS)


def format_of(r: Structured) -> Format | None:
    """Return the format that a request asks for; 400 for two of them, one too long, or GBNF."""
    if not format_field(r):
        return None
    outputs = r.structured_outputs or StructuredOutputs()
    formats = {
        "response_format": _response_format(r.response_format),
        "structured_outputs.json": _schema(outputs.json, "structured_outputs.json"),
        "structured_outputs.json_object": Format("json") if outputs.json_object else None,
        "structured_outputs.regex": _regex(outputs.regex),
        "structured_outputs.choice": _choice(outputs.choice, "structured_outputs.choice"),
        "structured_outputs.grammar": _lark(outputs.grammar, "structured_outputs.grammar"),
        "guided_json": _schema(r.guided_json, "guided_json"),
        "guided_regex": _regex(r.guided_regex),
        "guided_choice": _choice(r.guided_choice, "guided_choice"),
        "guided_grammar": _lark(r.guided_grammar, "guided_grammar"),
        "json_schema": _schema(r.json_schema, "json_schema"),
        "grammar": _lark(r.grammar, "grammar"),
    }
    chosen = {name: format for name, format in formats.items() if format is not None}
    if len(chosen) > 1:
        raise Refused(400, f"{' and '.join(chosen)} both say what the text must be", param=list(chosen)[1])
    return next(iter(chosen.values()), None)


def format_field(r: Structured) -> str:
    """Return the name of the field that says what the text must be; "" where none does."""
    values = _formats_of(r)
    if values.count(None) == len(values):
        return ""
    names = [name for name, value in zip(_FORMATS, values, strict=True) if value is not None]
    return names[-1]  # another is allowed beside response_format if that is of type text


def _response_format(format: ResponseFormat | None) -> Format | None:
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return Format("json") if format.schema is None else schema_format(format.schema, "response_format")
    schema = format.schema if format.json_schema is None else format.json_schema.schema
    if schema is None:
        raise Refused(400, "response_format has no json_schema.schema", param="response_format")
    return schema_format(schema, "response_format")


def _schema(schema: Schema | str | None, name: str) -> Format | None:
    if isinstance(schema, str):
        return schema_format(Format("json_schema", schema).source, name)  # Format parses it
    return None if schema is None else schema_format(schema, name)


def _regex(pattern: str | None) -> Format | None:
    return None if pattern is None else Format("regex", pattern)


def _lark(grammar: str | None, name: str) -> Format | None:
    if grammar is not None and GBNF in grammar:
        raise Refused(
            400,
            f"{name} is written in GBNF; this server reads Lark grammars (name: expression, one rule a line)",
            param=name,
            code="unsupported_parameter",
        )
    return None if grammar is None else Format("lark", grammar)


def _choice(texts: list[str] | None, name: str) -> Format | None:
    return None if texts is None else Format("choice", bounded(texts, name))


# --- all other fields -------------------------------------------------------------------------------

MAX_N = 128  # answers to one prompt
Bias = Annotated[float, Meta(ge=-100, le=100)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Positive = Annotated[float, Meta(gt=0, le=100)]
Mass = Annotated[float, Meta(gt=0, le=1)]
Label = Annotated[str, Meta(max_length=512)]


class StreamOptions(Struct, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Generating(Structured, kw_only=True):
    """Fields that chats and completions share."""

    model: Annotated[Name, doc("The model's name; it is loaded if it is not in memory.")]
    stream: Annotated[bool | None, doc("Send the answer as server-sent events.")] = None
    stream_options: Annotated[
        StreamOptions | None, doc("`include_usage`: a last event with the token counts.")
    ] = None
    max_tokens: Annotated[Count | None, doc("Maximum tokens of an answer.")] = None
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=2)] | None, doc("0 is greedy. Default: the model's own.")
    ] = None
    top_p: Annotated[Share | None, doc("Sample from the most probable tokens whose sum reaches this.")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=FORCED)] | None,
        doc("Sample from this many tokens; 0 or -1: all."),
    ] = None
    min_p: Annotated[Share | None, doc("Drop tokens below this times the highest probability.")] = None
    typical_p: Annotated[Mass | None, doc("Keep the most typical mass.")] = None
    repetition_penalty: Annotated[Positive | None, doc("Divide the logits of repeated tokens.")] = None
    presence_penalty: Annotated[Penalty | None, doc("Subtract from the logits of repeated tokens.")] = None
    frequency_penalty: Annotated[Penalty | None, doc("Subtract from a logit per occurrence.")] = None
    penalty_window: Annotated[Count | None, doc("Last tokens the penalties look at; 0: all. Default 64.")] = (
        None
    )
    logit_bias: Annotated[
        Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)] | None,
        doc("Maps a token id (as text) to a number that is added to its logit."),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-MAX_SEED - 1, le=MAX_SEED)] | None,
        Meta(
            description="The same seed gives the same answer; answer i uses seed + i. -1 (default): random."
        ),
    ] = None
    n: Annotated[Annotated[int, Meta(ge=1, le=MAX_N)] | None, doc("Number of answers. Default 1.")] = None
    stop: Annotated[
        str | list[str] | None,
        Meta(
            description=f"Texts that end an answer: at most {MAX_STOPS}, each of 1 to {MAX_STOP_CHARS:,} characters."
        ),
    ] = None
    ignore_eos: Annotated[
        bool | None,
        doc("Continue to max_tokens even if the model ends the answer; for load tests."),
    ] = None
    priority: Rank = None
    timeout: Annotated[
        Annotated[float, Meta(gt=0, le=86400)] | None,
        doc("Time limit for the whole answer in seconds; then status 504 or an error event."),
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
            description="Return `token_ids` with each choice, `id` with each log-probability, and "
            "`prompt_token_ids` in a stream's first event."
        ),
    ] = None
    cache_salt: Annotated[
        Label | None,
        doc("As in vLLM: cached prompts are shared only by requests with the same salt and key."),
    ] = None
    user: Annotated[Label | None, doc("Accepted, but not used.")] = None
    service_tier: Annotated[Label | None, doc("Accepted, but not used.")] = None
    safety_identifier: Annotated[Label | None, doc("Accepted, but not used.")] = None
    prompt_cache_key: Annotated[
        Label | None, doc("Accepted, but not used: prompts are cached by their content.")
    ] = None
    prompt_cache_retention: Annotated[Label | None, doc("Accepted, but not used.")] = None


def shared_job(r: Generating, tenant: str, **its: Any) -> Job:
    """Return a job of what chats, completions and responses say in the same words, and of `its` own fields.

    At once: a copy of a job's thirty fields for each change takes 10 us.
    """
    shared = {
        "n": r.n or 1,
        "max_tokens": r.max_tokens,
        "sampling": sampling(r),
        "stop": stops(r),
        "format": format_of(r),
        "ignore_eos": bool(r.ignore_eos),
        "priority": priority(r.priority),
        "tenant": tenant_of(r, tenant),
        "timeout_s": r.timeout,
        "whole": not r.stream,
    }
    return Job(**shared | its)


def sampling(r: Generating) -> dict[str, object]:
    """Return the fields of SamplingParams that the request gives."""
    settings = sampling_of(r)
    if (seed := settings.pop("seed", -1)) != -1:  # which vLLM and llama.cpp read as no seed
        settings["seed"] = seed & MAX_SEED
    if r.top_k is not None:
        settings["top_k"] = max(r.top_k, 0)
    if biases := settings.pop("logit_bias", {}):
        settings["logit_bias"] = {_token_id(k): v for k, v in biases.items()}
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
            message = f"a stop text has {len(text):,} characters; expected 1 to {MAX_STOP_CHARS:,}"
            raise Refused(400, message, param="stop")
    return tuple(texts)


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= 10):
        raise Refused(400, f"logit_bias has the key {key[:20]!r}; expected a token id", param="logit_bias")
    return int(key)
