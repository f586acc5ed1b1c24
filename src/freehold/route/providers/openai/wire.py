"""OpenAI's chat completions and embeddings: a job becomes a request, answers and errors become chunks and causes.

events.py reads the answers. What a model does not take is refused or in the warnings; where providers that speak the
same wire differ, their wires override a method.
Written from platform.openai.com/docs and the types of the vendor's own client.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np

from freehold.base.serving import EmbedJob, Job, Vectors
from freehold.base.types import Format, Image, Message, Tool
from freehold.route.providers.contract import (
    Cause,
    Demands,
    Outgoing,
    RemoteModel,
    Secret,
    UpstreamFault,
    WholeAnswer,
    cannot,
    texts_of,
)
from freehold.route.providers.faults import STATUSES, decoded, invalid, plain, retry_after_s, unit_vectors
from freehold.route.providers.openai.events import CompletionReader, WireError


# Writes a chat as a request of OpenAI's chat completions: messages, tools, formats, pictures.
# Where providers differ, their wires override a method.
class ChatAsker:
    """Writes one chat. `warn` of the demands collects what the provider will not see."""

    tool_names = False  # whether a tool's result says which tool was called
    thinks_back = False  # whether the reasoning of earlier turns is sent

    def __init__(self, demands: Demands) -> None:
        self.demands = demands

    @property
    def job(self) -> Job:
        """The job that is asked for."""
        return self.demands.job

    def message(self, message: Message) -> dict[str, Any]:
        """Write one turn."""
        turn: dict[str, Any] = {"role": message.role, "content": self.content(message)}
        if message.tool_calls:
            called = ((c.id, {"name": c.name, "arguments": c.arguments}) for c in message.tool_calls)
            turn["tool_calls"] = [
                {"id": self.call_id(id), "type": "function", "function": function} for id, function in called
            ]
            turn["content"] = turn["content"] or None
        if message.role == "tool":
            turn["tool_call_id"] = self.call_id(message.tool_call_id)
            if self.tool_names and message.name:
                turn["name"] = message.name
            if message.failed:
                why = "its result says so, or nothing does"
                self.demands.warn(f"this provider has no field for a tool that failed: {why}")
        if message.role == "assistant" and (message.thinking or message.signed):
            self.thoughts(message, turn)
        return turn

    def call_id(self, id: str) -> str:
        """Return a call's id as the provider takes it."""
        return id

    def thoughts(self, message: Message, turn: dict[str, Any]) -> None:
        """Put an earlier turn's reasoning into what is said, or warn."""
        if self.thinks_back and message.thinking:
            turn["reasoning_content"] = message.thinking
        else:
            self.demands.warn("the reasoning of earlier turns is not sent to this provider")

    def content(self, message: Message) -> Any:
        """Return the content of a turn: a text, or parts where there are pictures."""
        if not any(isinstance(part, Image) for part in message.parts):
            return message.content
        if message.role != "user":
            what = f"does not accept pictures in a turn of role {message.role}"
            self.demands.lacks(what, "put them into the user's")
        parts = message.parts
        return [self.picture(p) if isinstance(p, Image) else {"type": "text", "text": p} for p in parts]

    def picture(self, image: Image) -> dict[str, Any]:
        """Write a picture; an address is the provider's to fetch, never ours."""
        picture = {"url": image.url or f"data:{image.media_type};base64,{image.data}"}
        if image.detail:
            picture["detail"] = image.detail
        return {"type": "image_url", "image_url": picture}

    def tools(self) -> dict[str, Any]:
        """Write the tools, and how they are chosen."""
        job = self.job
        if not job.tools:
            return {}
        body: dict[str, Any] = {"tools": [self.tool(tool) for tool in job.tools]}
        if job.tool_name:
            body["tool_choice"] = {"type": "function", "function": {"name": job.tool_name}}
        elif job.tool_choice != "auto":
            body["tool_choice"] = self.choice(job.tool_choice)
        if not job.parallel_tool_calls:
            body["parallel_tool_calls"] = False
        return body

    def choice(self, choice: str) -> str:
        """Return the word for a choice of tools."""
        return choice

    def tool(self, tool: Tool) -> dict[str, Any]:
        """Write one tool."""
        function: dict[str, Any] = {"name": tool.name, "description": tool.description}
        function = {key: value for key, value in function.items() if value}
        function["parameters"] = dict(tool.parameters) or {"type": "object", "properties": {}}
        if tool.strict:
            function["strict"] = True
        return {"type": "function", "function": function}

    def format(self, format: Format | None) -> dict[str, Any]:
        """Write what the answer's text must be."""
        if format is None:
            return {}
        if format.kind == "json":
            return {"response_format": {"type": "json_object"}}
        schema: Mapping[str, Any] = {"name": "answer", "schema": format.source, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}


SAMPLING = {name: name for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")}
_CAUSES: dict[int, Cause] = {**STATUSES, 402: "auth", 529: "rate"}
_CONTEXT_CODES = {"context_length_exceeded", "exceed_context_size_error", "context_window_exceeded"}
# How those without a code say that a prompt is too long: vLLM, Mistral and DeepSeek, llama.cpp, Ollama.
_CONTEXT_WORDS = re.compile(
    r"maximum context length"
    r"|context (?:length|window|size) .{0,40}exceed"
    r"|exceeds? .{0,40}context (?:length|window|size)"
    r"|prompt (?:is )?too long"
    r"|longer than the (?:maximum )?(?:model length|context)"
    r"|too large for model with \d+ maximum",
    re.IGNORECASE,
)
# o1, o3 ..., gpt-5 and later think before they answer, and take no sampling; their chat variants do not think.
_REASONS = re.compile(r"^(?:o\d|gpt-(?:[5-9]|\d\d))(?!.*-chat)", re.IGNORECASE)


def _least_effort(name: str) -> str:
    """Return the least effort that a model that thinks takes; "" for those that take one only.

    gpt-5 has minimal, and later ones have none in its place; codex models, o1, o3 and o4 have low.
    """
    if "-pro" in name:
        return ""
    if "codex" in name or not name.startswith("gpt-"):
        return "low"
    return "minimal" if re.match(r"gpt-5(?!\.)", name) else "none"


class _ErrorAnswer(msgspec.Struct, gc=False):
    """The bodies of errors: OpenAI's, and those of servers that put the same on top."""

    error: WireError | str | None = None
    message: str | dict[str, Any] | list[Any] | None = None
    detail: str | dict[str, Any] | list[Any] | None = None
    type: str | None = None
    code: str | int | None = None


_ERROR = msgspec.json.Decoder(_ErrorAnswer)


class OpenAIWire:
    """Implements contract.Wire, which says what each method does."""

    asker: type[ChatAsker] = ChatAsker
    demands: type[Demands] = Demands
    formats: Collection[str] = ("json", "json_schema")
    sampling: Mapping[str, str] = SAMPLING
    most_field = "max_completion_tokens"
    max_stops: int | None = 4  # None: however many
    without_sampling: re.Pattern[str] | None = _REASONS  # names of models that think, and take no sampling
    seed_field = "seed"
    asks_usage = True  # a stream tells its usage only when asked

    def authorized(self, key: Secret) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {key.value}"}

    def request(self, model: RemoteModel, job: Job, *, stream: bool) -> Outgoing:
        demands = self.demands(model, job)
        messages = demands.chat(self.formats)
        demands.sells_no_cache()
        asker = self.asker(demands)
        body: dict[str, Any] = {"model": model.model, "messages": [asker.message(m) for m in messages]}
        self.end_of(messages, body, demands)
        self.limits(body, demands, stream=stream)
        body |= asker.tools()
        body |= asker.format(job.format)
        self.think(body, demands)
        return Outgoing("/chat/completions", msgspec.json.encode(body), warnings=demands.warnings)

    def end_of(self, messages: Any, body: dict[str, Any], demands: Demands) -> None:
        """Write how the prompt ends."""
        if demands.job.turn == "continue":
            demands.lacks("does not continue an assistant's turn", "end the chat with the user's turn")

    def limits(self, body: dict[str, Any], demands: Demands, *, stream: bool) -> None:
        """Write how long the answer may be, how it is drawn, and what ends it."""
        job = demands.job
        if job.max_tokens is not None:
            body[self.most_field] = job.max_tokens
        if job.n > 1:
            body["n"] = job.n
        seed = {"seed": self.seed_field} if self.takes_seed(demands) else {}
        limits = demands.sampling({**self.sampling, **seed})
        if self.thinks(demands.model):
            for name in limits.keys() & SAMPLING.keys():
                demands.unused(name, f"{demands.model.model} thinks, and does not support sampling settings")
                del limits[name]
        body |= limits
        if job.stop:
            body["stop"] = self.stops(demands)
        if job.logprobs is not None:
            if self.thinks(demands.model):
                demands.lacks("returns no log-probabilities, because it thinks")
            body["logprobs"] = True
            if job.logprobs:
                body["top_logprobs"] = job.logprobs
        if stream:
            body["stream"] = True
            if self.asks_usage:
                body["stream_options"] = {"include_usage": True}

    def takes_seed(self, demands: Demands) -> bool:
        """Whether a seed is sent."""
        return demands.model.abilities.seed

    def stops(self, demands: Demands) -> list[str]:
        """Return the stop strings that the job has."""
        if self.max_stops is not None and len(demands.job.stop) > self.max_stops:
            demands.lacks(f"accepts {self.max_stops} stop strings, not {len(demands.job.stop)}")
        if self.thinks(demands.model):
            demands.lacks("accepts no stop strings, because it thinks")
        return list(demands.job.stop)

    def thinks(self, model: RemoteModel) -> bool:
        """Whether a model thinks before it answers and takes no sampling, by its name."""
        return self.without_sampling is not None and self.without_sampling.match(model.model) is not None

    def think(self, body: dict[str, Any], demands: Demands) -> None:
        """Write whether and how much the model thinks."""
        job = demands.job
        if self.thinks(demands.model):
            if job.effort:
                body["reasoning_effort"] = job.effort
            elif job.think is False:
                least = _least_effort(demands.model.model)
                if least:
                    body["reasoning_effort"] = least
                if least != "none":
                    effort = f"it was asked for {least or 'its usual'} effort"
                    demands.warn(f"{demands.model.model} always thinks; {effort}")
        elif job.effort or job.think:
            demands.unused("effort" if job.effort else "think", f"{demands.model.model} does not think")
        if job.think_tokens is not None:
            demands.unused("think_tokens", "the provider limits reasoning only by effort")

    def reader(self, job: Job) -> CompletionReader:
        return CompletionReader(job.n)

    def whole(self, body: bytes, job: Job) -> WholeAnswer:
        return CompletionReader(job.n).whole(body)

    def fault(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamFault:
        message_sent, code = _error(body)
        cause = _CAUSES.get(status, "server" if status >= 500 else "request")
        if code == "insufficient_quota":
            cause = "auth"  # the account is empty: waiting does not help
        if status in (400, 413, 422) and (code in _CONTEXT_CODES or _CONTEXT_WORDS.search(message_sent)):
            cause = "context"
        message = f"the provider answered {status}" + (f": {plain(message_sent)}" if message_sent else "")
        return UpstreamFault(cause, message, status=status, retry_after_s=retry_after_s(headers))

    def embed(self, model: RemoteModel, job: EmbedJob) -> Outgoing:
        return Outgoing("/embeddings", msgspec.json.encode(embed_body(model, job)))

    def vectors(self, body: bytes, job: EmbedJob) -> Vectors:
        rows = decoded(_ROWS, body, "embeddings that cannot be read")
        if sorted(row.index for row in rows.data) != [*range(len(job.texts))]:
            raise invalid(f"{len(rows.data)} embeddings for {len(job.texts)} texts")
        vectors = [_vector(row.embedding) for row in sorted(rows.data, key=lambda row: row.index)]
        return unit_vectors(vectors, rows.usage.prompt_tokens, job)

    def count(self, model: RemoteModel, job: Job) -> Outgoing | None:
        """Return None: chat completions have no door that counts."""
        return None

    def counted(self, body: bytes) -> int:
        """Raise: nothing was asked."""
        raise UpstreamFault("invalid", "the provider counts no tokens")


def _error(body: bytes) -> tuple[str, str]:
    """Return an error's text and its code, of whatever shape; nothing of a page of some proxy's."""
    try:
        read = _ERROR.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", ""
    error = read.error
    if isinstance(error, str):
        return error, str(read.code or "")
    if error is None:
        error = WireError(read.message or read.detail, read.type, read.code)
    message = error.message
    text = message if isinstance(message, str) else msgspec.json.encode(message).decode() if message else ""
    code = error.code if isinstance(error.code, str) else error.type
    return text, code or ""


# --- embeddings on OpenAI's wire: texts to a request, base64 or numbers to unit vectors -------------


class _VectorRow(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0


class _EmbedCounts(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0


class _VectorRows(msgspec.Struct):
    data: list[_VectorRow]
    usage: _EmbedCounts = _EmbedCounts()


_ROWS = msgspec.json.Decoder(_VectorRows)


def embed_body(model: RemoteModel, job: EmbedJob, *, packed: bool = True) -> dict[str, Any]:
    """Write a request. Raises UnsupportedModel for what no provider's embeddings can do."""
    if not model.abilities.embeddings:
        raise cannot(model, "has no embeddings")
    if job.pooling is not None or job.adapter:
        raise cannot(model, "does not let requests choose the pooling, and has no adapters")
    body: dict[str, Any] = {"model": model.model, "input": texts_of(job)}
    if job.dimensions is not None:
        body["dimensions"] = job.dimensions
    if packed:
        body["encoding_format"] = "base64"
    return body


def _vector(sent: str | list[float]) -> np.ndarray:
    if isinstance(sent, list):
        return np.array(sent, dtype=np.float32)
    try:
        return np.frombuffer(b64decode(sent, validate=True), dtype="<f4")
    except (binascii.Error, ValueError):
        raise invalid("an embedding that is not base64 of float32") from None
