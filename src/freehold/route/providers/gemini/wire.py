"""Gemini's native API: a job becomes a request, answers and errors become chunks and causes.

events.py knows the answers. What a model does not take is refused or in the warnings. Written from ai.google.dev/api
and the types of the vendor's own client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from freehold.base.errors import UsageError
from freehold.base.serving import EmbedJob, Job, Vectors
from freehold.base.types import Image, Message, Tool
from freehold.route.providers.contract import (
    Cause,
    Demands,
    Outgoing,
    RemoteModel,
    Secret,
    UpstreamFault,
    WholeAnswer,
    cannot,
    described,
    object_text,
    reminder,
    texts_of,
)
from freehold.route.providers.faults import STATUSES, decoded, invalid, plain, retry_after_s, unit_vectors
from freehold.route.providers.gemini.events import OWN_ID, GeminiUsage, GoogleError, ResponseReader, cause_of

MAX_STOPS = 5
MAX_BATCH = 100  # texts of one request for embeddings
_BUDGETS = {"low": 1024, "medium": 8192, "high": 24576}
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "topP",
    "top_k": "topK",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
_CAUSES: dict[int, Cause] = {**STATUSES, 413: "context"}
_RETRY = "type.googleapis.com/google.rpc.RetryInfo"
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}


class _Failed(msgspec.Struct):
    error: GoogleError


class _GeminiTotal(msgspec.Struct, rename="camel"):
    total_tokens: int


class _Values(msgspec.Struct):
    values: list[float]


class _Embedded(msgspec.Struct, rename="camel"):
    embeddings: list[_Values]
    usage_metadata: GeminiUsage | None = None


_FAILED = msgspec.json.Decoder(_Failed | list[_Failed])
_COUNTED = msgspec.json.Decoder(_GeminiTotal)
_EMBEDDED = msgspec.json.Decoder(_Embedded)


class GeminiWire:
    """Implements contract.Wire, which says what each method does."""

    def authorized(self, key: Secret) -> Mapping[str, str]:
        return {"x-goog-api-key": key.value}

    def request(self, model: RemoteModel, job: Job, *, stream: bool) -> Outgoing:
        demands = Demands(model, job)
        body = _body(demands)
        door = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return _outgoing(model, door, body, demands.warnings)

    def reader(self, job: Job) -> ResponseReader:
        return ResponseReader(job.n)

    def whole(self, body: bytes, job: Job) -> WholeAnswer:
        reader = ResponseReader(job.n)
        pieces = reader.push("", body)
        if not reader.ended:
            raise invalid("an answer without its finishReason")
        return WholeAnswer(reader.answer_id, tuple(pieces))

    def fault(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamFault:
        cause = _CAUSES.get(status, "server" if status >= 500 else "redirect" if status < 400 else "request")
        detail, wait = "", retry_after_s(headers)
        try:
            failed = _FAILED.decode(body)
            error = (failed[0] if isinstance(failed, list) else failed).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError):
            pass  # a page of some proxy's
        else:
            detail = f": {error.status}: {plain(error.message)}"
            cause = cause_of(error, cause) if cause in ("request", "server") else cause
            wait = wait if wait is not None else _delay(error)
        message = f"the provider answered {status}{detail}"
        return UpstreamFault(cause, message, status=status, retry_after_s=wait)

    def embed(self, model: RemoteModel, job: EmbedJob) -> Outgoing:
        texts = texts_of(job)
        if not model.abilities.embeddings:
            raise cannot(model, "has no embeddings")
        if job.pooling:
            raise cannot(model, "does not let requests choose the pooling")
        if len(texts) > MAX_BATCH:
            raise cannot(model, f"embeds at most {MAX_BATCH} texts per request, not {len(texts):,}")
        shared: dict[str, Any] = {"model": f"models/{_name(model)}"}
        if job.dimensions:
            shared["outputDimensionality"] = job.dimensions
        requests = [{**shared, "content": {"parts": [{"text": text}]}} for text in texts]
        cut = () if job.truncate else (f"{model.model} cuts a text that is too long, and does not say so",)
        return _outgoing(model, "batchEmbedContents", {"requests": requests}, cut)

    def vectors(self, body: bytes, job: EmbedJob) -> Vectors:
        """Read the vectors. Where the answer has a sum of tokens, and no counts for each text, it is shared out."""
        answer = decoded(_EMBEDDED, body, "embeddings that cannot be read")
        total = answer.usage_metadata.prompt_token_count if answer.usage_metadata is not None else 0
        return unit_vectors([each.values for each in answer.embeddings], total, job)

    def count(self, model: RemoteModel, job: Job) -> Outgoing:
        """Return the request that counts a chat's tokens, with its tools and pictures."""
        demands = Demands(model, job)
        request = {"model": f"models/{_name(model)}", **_body(demands)}
        return _outgoing(model, "countTokens", {"generateContentRequest": request}, demands.warnings)

    def counted(self, body: bytes) -> int:
        return decoded(_COUNTED, body, "an answer other than a count").total_tokens


def _name(model: RemoteModel) -> str:
    return model.model.removeprefix("models/")


def _outgoing(model: RemoteModel, door: str, body: dict[str, Any], warnings: tuple[str, ...]) -> Outgoing:
    path = f"/models/{quote(_name(model), safe='')}:{door}"
    return Outgoing(path, msgspec.json.encode(body), {"content-type": "application/json"}, warnings)


def _delay(error: GoogleError) -> float | None:
    """Return the seconds of a RetryInfo, such as "34.07s"."""
    for detail in error.details:
        if detail.kind == _RETRY and detail.retry_delay.endswith("s"):
            try:
                return max(float(detail.retry_delay[:-1]), 0.0)
            except ValueError:
                return None
    return None


def _body(demands: Demands) -> dict[str, Any]:
    job, gemini = demands.job, gemini_of(demands.model.model)
    messages = demands.chat(("json", "json_schema", "choice"))
    if job.turn == "continue":
        demands.lacks("does not continue an assistant's turn", "end the chat with the user's turn")
    if job.format is not None and job.tools and not gemini.formats_with_tools:
        demands.lacks("does not accept tools together with a response format")
    if len(job.stop) > MAX_STOPS:
        demands.lacks(f"accepts at most {MAX_STOPS} stop strings, not {len(job.stop)}")
    writer = ContentWriter(demands, gemini)
    writer.write(messages)
    body: dict[str, Any] = {"contents": writer.contents}
    if writer.system:
        body["systemInstruction"] = {"parts": writer.system}
    if job.tools:
        body["tools"] = [{"functionDeclarations": [_declared(tool, demands) for tool in job.tools]}]
        _choose(body, demands)
    config = demands.sampling(_SAMPLING)
    if job.max_tokens is not None:
        config["maxOutputTokens"] = demands.max_tokens(0)
    if job.stop:
        config["stopSequences"] = job.stop
    if job.n > 1:
        config["candidateCount"] = job.n
    if job.logprobs is not None:
        config["responseLogprobs"], config["logprobs"] = True, job.logprobs
    _form(config, demands)
    if thinking := _thinking(demands, gemini):
        config["thinkingConfig"] = thinking
    if config:
        body["generationConfig"] = config
    return body


def _declared(tool: Tool, demands: Demands) -> dict[str, Any]:
    declared: dict[str, Any] = {"name": tool.name, "description": tool.description}
    if tool.parameters:
        declared["parametersJsonSchema"], loose = subset(tool.parameters)
        if loose:
            words = f"{', '.join(sorted(loose))} of a tool's schema"
            demands.warn(f"{demands.model.model} does not know {words}; they are in its description")
    if tool.strict:
        demands.unused("strict of a tool")
    return declared


def _choose(body: dict[str, Any], demands: Demands) -> None:
    job = demands.job
    choice: dict[str, Any] = {"mode": _MODES[job.tool_choice]}
    if job.tool_choice == "required" and job.tool_name:
        choice["allowedFunctionNames"] = [job.tool_name]
    if not job.parallel_tool_calls and job.tool_choice != "none":
        demands.unused("parallel_tool_calls", f"{demands.model.model} decides how many calls it makes")
    if choice != {"mode": "AUTO"}:
        body["toolConfig"] = {"functionCallingConfig": choice}


def _form(config: dict[str, Any], demands: Demands) -> None:
    format = demands.job.format
    if format is None:
        return
    if format.kind == "choice":
        config["responseMimeType"] = "text/x.enum"
        config["responseSchema"] = {"type": "STRING", "enum": list(format.source)}
        return
    config["responseMimeType"] = "application/json"
    if format.kind == "json":
        return
    if not isinstance(format.source, Mapping):
        demands.lacks("accepts only JSON schemas of objects")
    config["responseJsonSchema"], loose = subset(format.source)
    demands.loose(loose)


def _thinking(demands: Demands, gemini: Gemini) -> dict[str, Any] | None:
    job, name = demands.job, demands.model.model
    thinks = demands.thinks
    if thinks and (gemini.thinks == "no" or not demands.model.abilities.thinking):
        demands.unused("thinking", f"{name} does not think before it answers")
        return None
    if not thinks and (job.think is not False or gemini.thinks == "no"):
        return None
    if not thinks and gemini.least != 0:
        demands.warn(f"thinking could not be switched off: {name} thinks as little as it can")
    if gemini.thinks == "budget":
        if not thinks:
            return {"thinkingBudget": gemini.least}
        budget = job.think_tokens or (_BUDGETS.get(job.effort, _BUDGETS["high"]) if job.effort else None)
        return {"includeThoughts": True, **({"thinkingBudget": budget} if budget else {})}
    if not thinks:
        return {"thinkingLevel": gemini.least}
    if job.think_tokens is not None:
        demands.unused("the budget of thinking", f"{name} takes an effort instead")
    level = {"thinkingLevel": job.effort.upper()} if job.effort else {}
    if job.effort == "medium" and not gemini.medium:
        demands.warn(f"{name} has no medium effort; high was requested")
        level = {"thinkingLevel": "HIGH"}
    return {"includeThoughts": True, **level}


# --- keeps of a JSON schema the keywords that Gemini reads, and says which it does not --------------
# The list is that of responseJsonSchema and parametersJsonSchema (ai.google.dev/api/generate-content). Others
# go into the description, where the model may follow them.

_READ = {
    "$id", "$ref", "$anchor", "type", "format", "title", "description", "enum", "required", "minItems", "maxItems",
    "minimum", "maximum", "propertyOrdering",
}  # fmt: skip
_ONE = ("items", "additionalProperties")
_MANY = ("anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "$defs")
_SAYS_NOTHING = {"$schema", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
MOST_DEPTH = 100


def subset(schema: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return the schema in Gemini's keywords, and the keywords that are not enforced."""
    loose: set[str] = set()
    return _subset(schema, loose, 0), loose


def _subset(schema: Any, loose: set[str], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > MOST_DEPTH:
        return schema
    subset_schema: dict[str, Any] = {}
    left: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _READ:
            subset_schema[name] = value
        elif name in _ONE:
            subset_schema[name] = _subset(value, loose, depth + 1)
        elif name in _MANY and isinstance(value, list):
            subset_schema[name] = [_subset(part, loose, depth + 1) for part in value]
        elif name in _NAMED and isinstance(value, Mapping):
            subset_schema[name] = {key: _subset(part, loose, depth + 1) for key, part in value.items()}
        elif name == "const" and isinstance(value, str | int | float):
            subset_schema["enum"] = [value]
        elif name not in _SAYS_NOTHING:
            left[name] = value
    if left:
        loose.update(left)
        subset_schema["description"] = described(schema, left)
    return subset_schema


# --- writes a chat in Gemini's contents and parts, with its signatures on the parts that had them ---
# Calls of tools may have no ids there: those that were made here (OWN_ID) are not sent, and results name the
# tool. Knows parts; knows no options.

# What Google names for histories whose calls another model made (docs/thought-signatures, FAQ).
UNSIGNED = "skip_thought_signature_validator"
_MEDIA = ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif")

Part = dict[str, Any]


class ContentWriter:
    """One request's chat. After `write`, `system` and `contents` are what the wire sends."""

    def __init__(self, demands: Demands, gemini: Gemini) -> None:
        self._demands, self._gemini = demands, gemini
        self.system: list[Part] = []
        self.contents: list[Part] = []
        self._names: dict[str, str] = {}  # id of a call -> its tool

    def write(self, messages: Sequence[Message]) -> None:
        """Write all messages. Raises UsageError or UnsupportedModel."""
        self._demands.sells_no_cache()
        for message in messages:
            if message.role == "system":
                self._system(message)
            elif message.role == "assistant":
                self._assistant(message)
            elif message.role == "tool":
                self._add("user", [self._result(message)])
            elif not (parts := self._parts(message)):
                raise UsageError("a user's turn of the chat is empty", field="messages")
            else:
                self._add("user", parts)
        if not self.contents or self.contents[0]["role"] != "user":
            self._demands.lacks("only accepts chats that start with a user turn")
        if self._gemini.signs:
            self._sign_current()

    def _add(self, role: str, parts: list[Part]) -> None:
        """Add to the open turn; results of tools have a turn of their own."""
        last = self.contents[-1] if self.contents else None
        kind = "functionResponse" in parts[0]
        if last is not None and last["role"] == role and ("functionResponse" in last["parts"][0]) == kind:
            last["parts"] += parts
        else:
            self.contents.append({"role": role, "parts": parts})

    def _system(self, message: Message) -> None:
        self._demands.no_pictures(message, "a system message")
        if message.content and not self.contents:
            self.system.append({"text": message.content})
        elif message.content:
            self._demands.warn("a system message within the chat was sent as a part of the user's turn")
            self._add("user", [{"text": reminder(message.content)}])

    def _parts(self, message: Message) -> list[Part]:
        parts = message.parts or (message.content,)
        return [self._picture(p) if isinstance(p, Image) else {"text": p} for p in parts if p]

    def _picture(self, image: Image) -> Part:
        if image.detail not in ("", "auto"):
            self._demands.unused("detail of a picture")
        if image.url:
            self._demands.lacks("does not accept pictures by URL", "send the picture itself")
        self._demands.check_media(image, _MEDIA)
        return {"inlineData": {"mimeType": image.media_type, "data": image.data}}

    def _result(self, message: Message) -> Part:
        name = message.name or self._names.get(message.tool_call_id, "")
        if not name:
            raise UsageError("the result of a tool belongs to no call of the chat", field="messages")
        answer: Part = {"name": name, "response": {"error" if message.failed else "output": message.content}}
        if _is_theirs(message.tool_call_id):
            answer["id"] = message.tool_call_id
        pictures = [self._picture(part) for part in message.parts if isinstance(part, Image)]
        if pictures and not self._gemini.pictures_in_results:
            self._demands.lacks("cannot read pictures in tool results")
        if pictures:
            answer["parts"] = pictures
        return {"functionResponse": answer}

    def _assistant(self, message: Message) -> None:
        self._demands.no_pictures(message, "an assistant's turn")
        parts = [*_text_parts(message)]
        for call in message.tool_calls:
            self._names[call.id] = call.name
            function_call: Part = {"name": call.name, "args": object_text(call)}
            if _is_theirs(call.id):
                function_call["id"] = call.id
            signature = {"thoughtSignature": call.signature} if call.signature else {}
            parts.append({"functionCall": function_call, **signature})
        if parts:
            self._add("model", parts)

    def _sign_current(self) -> None:
        """Mark the calls of the current turn that another model made: their signatures cannot be had."""
        for content in reversed(self.contents):
            if content["role"] == "user" and "functionResponse" not in content["parts"][0]:
                return
            first = next((part for part in content["parts"] if "functionCall" in part), None)
            if first is not None and "thoughtSignature" not in first:
                first["thoughtSignature"] = UNSIGNED
                self._demands.warn("calls of tools that another model made were sent without its reasoning")


def _text_parts(message: Message) -> list[Part]:
    """Return an assistant's text in the parts that were signed, and its signed thoughts between them."""
    parts: list[Part] = []
    blocks = [block for block in message.signed if block.signature]  # what is redacted is another API's
    text, at = message.content, 0
    ends = [block.text_before for block in blocks[1:]] + [len(text)]
    for block, until in zip(blocks, ends, strict=False):
        if text[at : block.text_before]:
            parts.append({"text": text[at : block.text_before]})
        at = max(at, block.text_before)
        if block.text:
            parts.append({"text": block.text, "thought": True, "thoughtSignature": block.signature})
            continue
        parts.append({"text": text[at:until], "thoughtSignature": block.signature})
        at = max(at, until)
    if text[at:]:
        parts.append({"text": text[at:]})
    return parts


def _is_theirs(id: str) -> bool:
    return bool(id) and not id.startswith(OWN_ID)


# --- what each generation of Gemini takes, by the version in its name -------------------------------
# From ai.google.dev/gemini-api/docs (thinking, thought signatures, function calling; read 2026-11-27). A name
# without a version is taken for the newest.

_NAME = re.compile(r"gemini-(\d{1,2})(?:\.(\d{1,2}))?")


@dataclass(frozen=True, slots=True)
class Gemini:
    """What a model does. `least`: the least it thinks when asked not to, in tokens (2.5) or as a level."""

    thinks: Literal["no", "budget", "level"]
    least: int | str
    medium: bool  # knows the level between low and high
    signs: bool  # refuses calls of tools in the current turn whose signature is missing
    formats_with_tools: bool
    pictures_in_results: bool


@lru_cache(maxsize=256)
def gemini_of(name: str) -> Gemini:
    """Return what a model of this name does."""
    version = _version(name)
    old = version < (3, 0) or "gemini" not in name
    pro = "pro" in name
    return Gemini(
        thinks="no" if version < (2, 5) or "gemini" not in name else "budget" if old else "level",
        least=(128 if pro else 0) if old else ("LOW" if pro else "MINIMAL"),
        medium=not (pro and version == (3, 0)),
        signs=not old,
        formats_with_tools=not old,
        pictures_in_results=not old,
    )


def _version(name: str) -> tuple[int, int]:
    match = _NAME.search(name)
    return (99, 0) if match is None else (int(match[1]), int(match[2] or 0))
