"""What an answer's text must be, by every name that OpenAI's clients have for it: one Format comes out.

OpenAI's `response_format`, vLLM's `structured_outputs` and its older `guided_*`, llama.cpp's `json_schema` and
`grammar`. Knows those fields; knows no grammar, which the engine compiles and refuses in its own words.
Path: ChatRequest -> chat_job -> format_of -> Job.format
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from freehold.server.core.formats import bounded, schema_format
from freehold.server.core.problems import Refused
from freehold.types import MAX_CHOICES, MAX_FORMAT_CHARS, Format

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
            description="What the text must be: `json_object`, or `json_schema` with its `schema`, always enforced."
        ),
    ] = None
    structured_outputs: Annotated[
        StructuredOutputs | None,
        Meta(
            description="vLLM's: `json` (a schema), `json_object`, `regex`, `choice` (texts) or `grammar` (Lark)."
        ),
    ] = None
    guided_json: Annotated[
        Schema | Text | None, Meta(description="vLLM's older `structured_outputs.json`.")
    ] = None
    guided_regex: Annotated[Text | None, Meta(description="And `.regex`.")] = None
    guided_choice: Annotated[Texts | None, Meta(description="And `.choice`.")] = None
    guided_grammar: Annotated[Text | None, Meta(description="And `.grammar`.")] = None
    json_schema: Annotated[Schema | None, Meta(description="llama.cpp's: a JSON schema.")] = None
    grammar: Annotated[
        Text | None, Meta(description="A Lark grammar. llama.cpp's own kind, GBNF, is refused.")
    ] = None


def format_of(r: Structured) -> Format | None:
    """Return the format that a request asks for; 400 for two of them, one too long, or GBNF."""
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
    names = [name for name in Structured.__struct_fields__ if getattr(r, name) is not None]
    return names[-1] if names else ""  # another is allowed beside response_format if that is of type text


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
