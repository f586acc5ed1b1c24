"""Anthropic's Messages API: a job becomes a request, answers and errors become chunks and causes.

events.py knows the answers; there are no embeddings. What a model does not take is refused or in the warnings. Written
from platform.claude.com/docs and the types of the vendor's own client.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NoReturn

import msgspec

from freehold.base.errors import UsageError
from freehold.base.serving import EmbedJob, Job, Vectors
from freehold.base.types import CacheTime, Format, Image, Message, Tool
from freehold.route.providers.anthropic.events import BODY, ERROR, MessageReader, cause_of
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
)
from freehold.route.providers.faults import STATUSES, decoded, invalid, plain, retry_after_s

VERSION = "2023-06-01"
# max_tokens where neither the request nor gateway.toml says one; every Claude since 3.5 has it.
UNKNOWN_OUTPUT = 8192
LEAST_BUDGET = 1024  # of thinking
_BUDGETS = {"low": 1024, "medium": 4096, "high": 16384}
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
_CAUSES: dict[int, Cause] = {**STATUSES, 402: "auth", 413: "context", 529: "rate"}


class _ClaudeCount(msgspec.Struct):
    input_tokens: int


_COUNTED = msgspec.json.Decoder(_ClaudeCount)


class AnthropicWire:
    """Implements contract.Wire, which says what each method does."""

    def authorized(self, key: Secret) -> Mapping[str, str]:
        return {"x-api-key": key.value}

    def request(self, model: RemoteModel, job: Job, *, stream: bool) -> Outgoing:
        demands, claude = Demands(model, job), claude_of(model.model)
        body, writer = _prompt(demands, claude)
        body["max_tokens"] = demands.max_tokens(UNKNOWN_OUTPUT)
        _think(body, demands, claude, writer)
        _sample(body, demands, claude)
        if job.stop:
            if not all(text.strip() for text in job.stop):
                demands.lacks("does not accept a blank stop string", "leave it out")
            body["stop_sequences"] = job.stop
        if stream:
            body["stream"] = True
        return _outgoing("/messages", body, demands)

    def reader(self, job: Job) -> MessageReader:
        return MessageReader()

    def whole(self, body: bytes, job: Job) -> WholeAnswer:
        message = decoded(BODY, body, "an answer other than a message")
        if message.type != "message":
            raise invalid("an answer other than a message")
        reader = MessageReader()
        pieces = reader.whole(message)
        return WholeAnswer(reader.answer_id, tuple(pieces))

    def fault(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamFault:
        cause = _CAUSES.get(status, "server" if status >= 500 else "redirect" if status < 400 else "request")
        detail = ""
        try:
            error = ERROR.decode(body).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # a page of some proxy's
        else:
            detail = f": {error.type}: {plain(error.message)}"
            cause = cause_of(error, cause) if cause == "request" else cause
        wait = retry_after_s(headers)
        message = f"the provider answered {status}{detail}"
        return UpstreamFault(cause, message, status=status, retry_after_s=wait)

    def embed(self, model: RemoteModel, job: EmbedJob) -> NoReturn:
        """Refuse: Anthropic has no embeddings."""
        raise cannot(model, "has no embeddings")

    def vectors(self, body: bytes, job: EmbedJob) -> Vectors:
        """Refuse: nothing was asked."""
        raise invalid("embeddings, which Anthropic does not make")

    def count(self, model: RemoteModel, job: Job) -> Outgoing:
        """Return the request that counts a chat's tokens, with its tools and pictures."""
        demands, claude = Demands(model, job), claude_of(model.model)
        body, _ = _prompt(demands, claude)
        return _outgoing("/messages/count_tokens", body, demands)

    def counted(self, body: bytes) -> int:
        return decoded(_COUNTED, body, "an answer other than a count").input_tokens


def _outgoing(path: str, body: dict[str, Any], demands: Demands) -> Outgoing:
    headers = {"content-type": "application/json", "anthropic-version": VERSION}
    return Outgoing(path, msgspec.json.encode(body), headers, demands.warnings)


def _prompt(demands: Demands, claude: Claude) -> tuple[dict[str, Any], MessagesWriter]:
    """Return what the prompt is made of, and the chat's writer."""
    job = demands.job
    messages = demands.chat(("json_schema",) if claude.schemas else ())
    if job.turn == "continue":
        if not claude.prefill:
            demands.lacks("does not continue an assistant's turn", "end the chat with the user's turn")
        if job.format is not None:
            demands.lacks("cannot continue an answer in a response format")
    writer, tools = MessagesWriter(demands), [_tool(tool, demands, claude) for tool in job.tools]
    writer.mark(tools, job.cache_tools)  # before the chat's breakpoints, as tools come first in the prompt
    writer.write(messages)
    body: dict[str, Any] = {"model": demands.model.model, "messages": writer.turns}
    if writer.system:
        plain_text = len(writer.system) == 1 and "cache_control" not in writer.system[0]
        body["system"] = writer.system[0]["text"] if plain_text else writer.system
    if tools:
        body["tools"] = tools
        _choose(body, demands, claude)
    if job.format is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": _schema(job.format, demands)}}
    return body, writer


def _tool(tool: Tool, demands: Demands, claude: Claude) -> dict[str, Any]:
    schema = dict(tool.parameters) or {"type": "object", "properties": {}}
    declared: dict[str, Any] = {"name": tool.name, "input_schema": {"type": "object", **schema}}
    if tool.description:
        declared["description"] = tool.description
    if not tool.strict:
        return declared
    if not claude.schemas:
        demands.unused("strict of a tool")
        return declared
    free: list[None] = []
    strict, loose = fitted(declared["input_schema"], lambda: free.append(None))
    if loose or (free and schema.get("properties")):
        demands.unused("strict of a tool", f"its schema has what {demands.model.model} does not enforce")
        return declared
    return {**declared, "input_schema": strict, "strict": True}


def _choose(body: dict[str, Any], demands: Demands, claude: Claude) -> None:
    job = demands.job
    choice: dict[str, Any] = {"type": "any" if job.tool_choice == "required" else job.tool_choice}
    if job.tool_choice == "required":
        if not claude.forced_tools:
            demands.lacks("cannot be forced to call a tool", "set tool_choice to auto")
        if job.tool_name:
            choice = {"type": "tool", "name": job.tool_name}
    if not job.parallel_tool_calls and job.tool_choice != "none":
        choice["disable_parallel_tool_use"] = True
    if choice != {"type": "auto"}:
        body["tool_choice"] = choice


def _schema(format: Format, demands: Demands) -> dict[str, Any]:
    def free() -> None:
        demands.lacks("does not support objects with arbitrary keys", "list the properties in the schema")

    if not isinstance(format.source, Mapping):
        demands.lacks("accepts only JSON schemas of objects")
    schema, loose = fitted(format.source, free)
    demands.loose(loose)
    return schema


def _think(body: dict[str, Any], demands: Demands, claude: Claude, writer: MessagesWriter) -> None:
    """Set thinking and effort. Calls that are forced, or that began without reasoning of this model, exclude it."""
    job = demands.job
    forced = body.get("tool_choice", {}).get("type") in ("any", "tool")
    thinks = demands.thinks
    if thinks and (claude.thinks == "no" or not demands.model.abilities.thinking):
        demands.unused("thinking", f"{demands.model.model} does not think before it answers")
        return
    if forced and thinks:
        demands.unused("thinking", "a call of a tool is forced")
        thinks = False
    if claude.thinks == "adaptive":
        _adapt(body, demands, claude, thinks=thinks, off=forced or job.think is False)
    elif thinks and not writer.thinks_first:
        demands.unused("thinking", "the reasoning before these calls of tools is not this model's")
    elif thinks:
        _budget(body, demands)
    if job.effort and claude.efforts and job.think is not False:
        body["output_config"] = {**body.get("output_config", {}), "effort": job.effort}


def _adapt(body: dict[str, Any], demands: Demands, claude: Claude, *, thinks: bool, off: bool) -> None:
    """The model decides how much it thinks; the newest do so unless the request says otherwise."""
    if demands.job.think_tokens is not None and thinks:
        demands.unused("the budget of thinking", f"{demands.model.model} takes an effort instead")
    if thinks:
        body["thinking"] = {"type": "adaptive", "display": "summarized"}
    elif off and claude.off == "never":
        demands.warn(f"thinking could not be switched off: {demands.model.model} always thinks")
    elif off and claude.off:
        body["thinking"] = {"type": claude.off}


def _budget(body: dict[str, Any], demands: Demands) -> None:
    """Thinking has a budget of its own within max_tokens."""
    job, most = demands.job, body["max_tokens"]
    budget = job.think_tokens or min(_BUDGETS.get(job.effort or "medium", _BUDGETS["high"]), most // 2)
    fit = max(min(budget, most - 1), LEAST_BUDGET)
    if fit >= most:
        demands.unused("thinking", f"max_tokens is {most:,}, and a budget has at least {LEAST_BUDGET:,}")
        return
    if job.think_tokens and fit != job.think_tokens:
        demands.warn(f"the budget of thinking is {fit:,} tokens, not {job.think_tokens:,}")
    body["thinking"] = {"type": "enabled", "budget_tokens": fit}


def _sample(body: dict[str, Any], demands: Demands, claude: Claude) -> None:
    sampling = demands.sampling(_SAMPLING)
    thinks = body.get("thinking", {}).get("type") in ("enabled", "adaptive")
    if not claude.sampling or thinks:
        itself = f"{demands.model.model} chooses its tokens itself"
        why = "with thinking it has its own" if claude.sampling else itself
        for name, value in sampling.items():
            if (name, value) != ("temperature", 1):
                demands.unused(name, why)
        return
    if sampling.get("temperature", 0) > 1:
        demands.warn(f"temperature is {sampling['temperature']}; {demands.model.model} takes at most 1")
        sampling["temperature"] = 1.0
    if not claude.both and "temperature" in sampling and "top_p" in sampling:
        demands.unused("top_p", f"{demands.model.model} takes temperature or top_p, not both")
        del sampling["top_p"]
    body.update(sampling)


# --- fits a JSON schema to what Anthropic's constrained output takes; says what is then not enforced
# Objects must be closed there, and bounds of numbers, lengths and counts are not known: as the vendor's own
# client does, they are put into the description, where the model may follow them (platform.claude.com/docs,
# structured outputs).

_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")
)
_KEPT = ("$ref", "enum", "const", "type", "title", "description", "default", "required")
_MANY = ("anyOf", "allOf", "oneOf")
_NAMED = ("properties", "$defs", "definitions")
MOST_DEPTH = 100


def fitted(schema: Mapping[str, Any], free: Callable[[], None]) -> tuple[dict[str, Any], set[str]]:
    """Return the schema and the keywords that are not enforced. `free` is called for an object of unnamed keys."""
    loose: set[str] = set()
    return _fitted(schema, free, loose, 0), loose


def _fitted(schema: Any, free: Callable[[], None], loose: set[str], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > MOST_DEPTH:
        return schema
    fitted_schema: dict[str, Any] = {name: schema[name] for name in _KEPT if name in schema}

    def fit(part: Any) -> Any:
        return _fitted(part, free, loose, depth + 1)

    if "items" in schema:
        fitted_schema["items"] = fit(schema["items"])
    for name in _MANY:
        if isinstance(parts := schema.get(name), list):
            fitted_schema["allOf" if name == "allOf" else "anyOf"] = [fit(part) for part in parts]
    for name in _NAMED:
        if isinstance(parts := schema.get(name), Mapping):
            fitted_schema[name] = {key: fit(part) for key, part in parts.items()}
    kind = schema.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in schema:
        if isinstance(schema.get("additionalProperties"), Mapping) or not schema.get("properties"):
            free()
        fitted_schema["additionalProperties"] = False
    if left := _left(schema, fitted_schema):
        fitted_schema["description"] = described(schema, left)
    loose.update(left, {"oneOf"} & schema.keys())
    return fitted_schema


def _left(schema: Mapping[str, Any], fitted_schema: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords that have no place; put the few that have one under a condition into `fitted_schema`."""
    known = {*_KEPT, "items", *_MANY, *_NAMED, "additionalProperties", "$schema", "$id", "examples"}
    left = {name: value for name, value in schema.items() if name not in known}
    if left.get("format") in _FORMATS:
        fitted_schema["format"] = left.pop("format")
    if left.get("minItems") in (0, 1):
        fitted_schema["minItems"] = left.pop("minItems")
    return left


# --- what each generation of Claude takes and refuses, by the version in its name -------------------
# From Anthropic's model pages and migration guides (platform.claude.com/docs, read 2026-11-27). A name
# without a version is taken for the newest.

Thinks = Literal["no", "budget", "adaptive"]
_NAME = re.compile(r"claude-(?:(opus|sonnet|haiku|fable|mythos)-)?(\d{1,2})(?:[-.](\d{1,2})(?!\d))?(?!\d)")
_NEWEST = (5, 5)


@dataclass(frozen=True, slots=True)
class Claude:
    """What a model does. `off`: how its thinking is switched off; "" where it is off unless asked for."""

    thinks: Thinks
    off: Literal["", "disabled", "between_tools", "never"]
    efforts: bool  # output_config.effort
    sampling: bool  # temperature, top_p, top_k
    both: bool  # temperature and top_p together
    prefill: bool  # continues an assistant's turn
    forced_tools: bool  # tool_choice any and tool
    schemas: bool  # output_config.format, and strict tools


@lru_cache(maxsize=256)
def claude_of(name: str) -> Claude:
    """Return what a model of this name does."""
    family, version = _version(name)
    return Claude(
        thinks="no" if version < (3, 7) else "budget" if version < (4, 6) else "adaptive",
        off=_off(family, version),
        efforts=version >= (4, 6) or (family == "opus" and version == (4, 5)),
        sampling=version < (4, 7),
        both=version < (4, 1),
        prefill=version < (4, 6),
        forced_tools=version < (5, 1),
        schemas=version >= (4, 5) or (family == "opus" and version == (4, 1)),
    )


def _off(family: str, version: tuple[int, int]) -> Literal["", "disabled", "between_tools", "never"]:
    if version < (5, 0):
        return ""
    if family in ("fable", "mythos") or (family == "opus" and version >= (5, 5)):
        return "never"
    return "disabled" if version < (5, 5) else "between_tools"


def _version(name: str) -> tuple[str, tuple[int, int]]:
    match = _NAME.search(name)
    return ("", _NEWEST) if match is None else (match[1] or "", (int(match[2]), int(match[3] or 0)))


# --- writes a chat in Anthropic's blocks ------------------------------------------------------------
# System, turns of users with results of tools first, turns of assistants.
# A blank text becomes no block there. Reasoning goes back only as the provider signed it, and where it was.

BREAKPOINTS = 4  # of the cache, in one request
_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_MEDIA = ("image/jpeg", "image/png", "image/gif", "image/webp")

Item = dict[str, Any]


class MessagesWriter:
    """One request's chat. After `write`, `system` and `turns` are what the wire sends."""

    def __init__(self, demands: Demands) -> None:
        self._demands = demands
        self.system: list[Item] = []
        self.turns: list[Item] = []
        self._marked: list[Item] = []  # blocks with a breakpoint, in order
        self._results = 0  # blocks of the open user's turn that are results of tools

    def write(self, messages: Sequence[Message]) -> None:
        """Write all messages. Raises UsageError or UnsupportedModel."""
        for message in messages:
            if message.role == "system":
                self._system(message)
            elif message.role == "assistant":
                self._assistant(message)
            else:
                self._user(message)
        if not self.turns or self.turns[0]["role"] != "user":
            self._demands.lacks("only accepts chats that start with a user turn")
        for block in self._marked[:-BREAKPOINTS]:
            del block["cache_control"]
            self._demands.warn(f"cache: of {len(self._marked)} breakpoints the last {BREAKPOINTS} were kept")
        for turn in self.turns:
            if not turn["content"]:
                raise UsageError("a turn of the chat is empty", field="messages")

    @property
    def thinks_first(self) -> bool:
        """Whether thinking may be on: calls of tools that now get their results began with signed reasoning."""
        if not self._results:
            return True
        last_turn = next((turn for turn in reversed(self.turns) if turn["role"] == "assistant"), None)
        return last_turn is None or last_turn["content"][0]["type"] in ("thinking", "redacted_thinking")

    def _turn(self, role: str) -> list[Any]:
        if not self.turns or self.turns[-1]["role"] != role:
            self.turns.append({"role": role, "content": []})
            self._results = 0
        return self.turns[-1]["content"]

    def _system(self, message: Message) -> None:
        self._demands.no_pictures(message, "a system message")
        if not message.content.strip():
            return
        if not self.turns:
            self.system.append({"type": "text", "text": message.content})
            self.mark(self.system, message.cache)
            return
        self._demands.warn("a system message within the chat was sent as a part of the user's turn")
        content = self._turn("user")
        content.append({"type": "text", "text": reminder(message.content)})
        self.mark(content, message.cache)

    def _user(self, message: Message) -> None:
        content = self._turn("user")
        if message.role == "tool":
            block = self._result(message)
            content.insert(self._results, block)  # a text before them is refused
            self._results += 1
            self.mark([block], message.cache)
            return
        content += self._parts(message)
        self.mark(content, message.cache)

    def _result(self, message: Message) -> Item:
        block: Item = {"type": "tool_result", "tool_use_id": _safe(message.tool_call_id)}
        parts = self._parts(message)
        if parts:
            block["content"] = message.content if not message.parts else parts
        if message.failed:
            block["is_error"] = True
        return block

    def _parts(self, message: Message) -> list[Item]:
        parts = message.parts or (message.content,)
        parts = [part for part in parts if not isinstance(part, str) or part.strip()]
        return [self._image(p) if isinstance(p, Image) else {"type": "text", "text": p} for p in parts]

    def _image(self, image: Image) -> Item:
        if image.detail not in ("", "auto"):
            self._demands.unused("detail of a picture")
        if image.url:
            return {"type": "image", "source": {"type": "url", "url": image.url}}
        self._demands.check_media(image, _MEDIA)
        source = {"type": "base64", "media_type": image.media_type, "data": image.data}
        return {"type": "image", "source": source}

    def _assistant(self, message: Message) -> None:
        self._demands.no_pictures(message, "an assistant's turn")
        if message.thinking and not message.signed:
            self._demands.warn("reasoning of earlier answers that this provider did not sign was left out")
        if blocks := [*_blocks(message)]:
            content = self._turn("assistant")
            content += blocks
            self.mark(content, message.cache)

    def mark(self, blocks: list[Item], cache: CacheTime) -> None:
        """Put a breakpoint of the cache on the last block, or tool, that can have one."""
        if not cache:
            return
        thoughts = ("thinking", "redacted_thinking")
        block = next((b for b in reversed(blocks) if b.get("type") not in thoughts), None)
        if block is None:
            return
        if "cache_control" not in block:
            self._marked.append(block)
        block["cache_control"] = {"type": "ephemeral"} | ({} if cache == "5m" else {"ttl": cache})


def _blocks(message: Message) -> Iterator[Item]:
    """Yield an assistant's blocks: its text cut where reasoning was, then its calls, with reasoning between them."""
    text, at, calls = message.content, 0, 0

    def signed_at(until: int) -> Iterator[Item]:
        nonlocal at
        if text[at:until].strip():
            yield {"type": "text", "text": text[at:until]}
        at = max(at, until)

    def called(until: int) -> Iterator[Item]:
        nonlocal calls
        if until > calls:
            yield from signed_at(len(text))
        for call in message.tool_calls[calls:until]:
            yield {"type": "tool_use", "id": _safe(call.id), "name": call.name, "input": object_text(call)}
        calls = max(calls, until)

    for block in message.signed:
        yield from signed_at(block.text_before)
        yield from called(block.calls_before)
        if block.redacted:
            yield {"type": "redacted_thinking", "data": block.redacted}
        else:
            yield {"type": "thinking", "thinking": block.text, "signature": block.signature}
    yield from signed_at(len(text))
    yield from called(len(message.tool_calls))


def _safe(id: str) -> str:
    """Return the id of a call in the letters that this API takes, the same for its result."""
    if _ID.fullmatch(id):
        return id
    return f"toolu_{hashlib.sha256(id.encode()).hexdigest()[:24]}"
