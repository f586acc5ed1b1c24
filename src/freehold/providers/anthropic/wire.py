"""Anthropic's Messages API: a job becomes a request, answers and errors become chunks and causes.

models.py knows which model takes what, chat.py the messages, events.py the answers; there are no embeddings. What a
model does not take is refused or in the warnings. Written from platform.claude.com/docs and the types of the vendor's
own client. Path: wires.py -> AnthropicWire
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from freehold.errors import UnsupportedModel
from freehold.providers.anthropic.chat import MessagesWriter
from freehold.providers.anthropic.events import BODY, ERROR, MessageReader, cause_of
from freehold.providers.anthropic.models import Claude, claude_of
from freehold.providers.anthropic.schema import fitted
from freehold.providers.contract import Cause, Outgoing, RemoteModel, Secret, UpstreamFault, WholeAnswer
from freehold.providers.demands import Demands
from freehold.providers.faults import decoded, invalid, plain, retry_after_s
from freehold.serving import EmbedJob, Job, Vectors
from freehold.types import Format, Tool

VERSION = "2023-06-01"
UNKNOWN_OUTPUT = (
    8192  # max_tokens where neither the request nor gateway.toml says one; every Claude since 3.5 has it
)
LEAST_BUDGET = 1024  # of thinking
_BUDGETS = {"low": 1024, "medium": 4096, "high": 16384}
_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
_CAUSES: dict[int, Cause] = {
    401: "auth",
    402: "auth",
    403: "auth",
    408: "timeout",
    413: "context",
    429: "rate",
    504: "timeout",
    529: "rate",
}


class _ClaudeCount(msgspec.Struct):
    input_tokens: int


_COUNTED = msgspec.json.Decoder(_ClaudeCount)


class AnthropicWire:
    """Implements contract.Wire."""

    def authorized(self, key: Secret) -> Mapping[str, str]:
        """Return the headers that carry the key."""
        return {"x-api-key": key.value}

    def request(self, model: RemoteModel, job: Job, *, stream: bool) -> Outgoing:
        """Translate a job. Raises UsageError or UnsupportedModel."""
        demands, claude = Demands(model, job), claude_of(model.model)
        body, writer = _prompt(demands, claude)
        body["max_tokens"] = demands.max_tokens(UNKNOWN_OUTPUT)
        _think(body, demands, claude, writer)
        _sample(body, demands, claude)
        if job.stop:
            if not all(text.strip() for text in job.stop):
                demands.lacks("ends an answer at no blank text", "leave it out of the stop strings")
            body["stop_sequences"] = job.stop
        if stream:
            body["stream"] = True
        return _outgoing("/messages", body, demands)

    def reader(self, job: Job) -> MessageReader:
        """Return a reader of one stream."""
        return MessageReader()

    def whole(self, body: bytes, job: Job) -> WholeAnswer:
        """Read a whole message."""
        message = decoded(BODY, body, "an answer other than a message")
        if message.type != "message":
            raise invalid("an answer other than a message")
        reader = MessageReader()
        pieces = reader.whole(message)
        return WholeAnswer(reader.answer_id, tuple(pieces))

    def fault(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamFault:
        """Describe an answer that is not 200."""
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
        return UpstreamFault(
            cause, f"the provider answered {status}{detail}", status=status, retry_after_s=wait
        )

    def embed(self, model: RemoteModel, job: EmbedJob) -> NoReturn:
        """Refuse: Anthropic has no embeddings."""
        raise UnsupportedModel(f"{model.model} at {model.provider.name} makes no embeddings")

    def vectors(self, body: bytes, job: EmbedJob) -> Vectors:
        """Refuse: nothing was asked."""
        raise invalid("embeddings, which Anthropic does not make")

    def count(self, model: RemoteModel, job: Job) -> Outgoing:
        """Return the request that counts a chat's tokens, with its tools and pictures."""
        demands, claude = Demands(model, job), claude_of(model.model)
        body, _ = _prompt(demands, claude)
        return _outgoing("/messages/count_tokens", body, demands)

    def counted(self, body: bytes) -> int:
        """Read the count."""
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
            demands.lacks("constrains no begun answer to a format")
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
            demands.lacks("cannot be made to call a tool", "let tool_choice be auto")
        if job.tool_name:
            choice = {"type": "tool", "name": job.tool_name}
    if not job.parallel_tool_calls and job.tool_choice != "none":
        choice["disable_parallel_tool_use"] = True
    if choice != {"type": "auto"}:
        body["tool_choice"] = choice


def _schema(format: Format, demands: Demands) -> dict[str, Any]:
    def free() -> None:
        demands.lacks("constrains no object whose keys are free", "name its properties in the schema")

    if not isinstance(format.source, Mapping):
        demands.lacks("takes a JSON schema that is an object only")
    schema, loose = fitted(format.source, free)
    if loose:
        names = ", ".join(sorted(loose))
        demands.warn(
            f"{demands.model.model} does not enforce {names} of the schema; the model reads them as text"
        )
    return schema


def _think(body: dict[str, Any], demands: Demands, claude: Claude, writer: MessagesWriter) -> None:
    """Set thinking and effort. Calls that are forced, or that began without reasoning of this model, exclude it."""
    job = demands.job
    forced = body.get("tool_choice", {}).get("type") in ("any", "tool")
    thinks = bool(job.think or job.think_tokens or (job.effort and job.think is None))
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
        why = (
            "with thinking it has its own"
            if claude.sampling
            else f"{demands.model.model} chooses its tokens itself"
        )
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
