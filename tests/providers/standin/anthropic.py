"""The stand-in's side of Anthropic's Messages API, by platform.claude.com/docs (messages, streaming, thinking, errors).

Signatures are checked: a thinking block that is altered, or missing before the calls of a turn that a model with a
thinking budget is to continue, is a 400.
"""

from __future__ import annotations

import json
from typing import Any

from tests.providers.standin.script import Answer, Tokens
from tests.providers.standin.signing import signature
from tests.providers.standin.wire import Asked, Frame

REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "refusal": "refusal",
}
FIELDS = {
    "model", "messages", "max_tokens", "system", "tools", "tool_choice", "thinking", "output_config", "stop_sequences",
    "stream", "temperature", "top_p", "top_k", "metadata", "service_tier", "cache_control",
}  # fmt: skip
BLOCKS = {
    "text": {"text"},
    "image": {"source"},
    "tool_use": {"id", "name", "input"},
    "tool_result": {"tool_use_id", "content", "is_error"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
}
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicStandIn:
    """One wire for all of Claude's generations; the model's name says which rules hold."""

    def matches(self, path: str) -> bool:
        return path.startswith("/anthropic/")

    def check(self, path: str, headers: dict[str, str], body: bytes) -> str:
        if not headers.get("x-api-key"):
            return "x-api-key: an API key is required"
        if headers.get("anthropic-version") != "2023-06-01":
            return "anthropic-version: header is required"
        try:
            asked = json.loads(body)
        except ValueError:
            return "The request body is not valid JSON"
        counting = path.endswith("/count_tokens")
        if strange := asked.keys() - FIELDS:
            return f"{min(strange)}: Extra inputs are not permitted"
        if "max_tokens" not in asked and not counting:
            return "max_tokens: Field required"
        turns = asked.get("messages")
        if not turns or turns[0]["role"] != "user":
            return "messages: first message must use the user role"
        return self._content(asked) or self._tools(turns) or ("" if counting else self._thinking(asked))

    def _content(self, asked: dict[str, Any]) -> str:
        marks = sum("cache_control" in b for b in (*asked.get("tools", ()), *blocks_of(asked.get("system"))))
        for number, turn in enumerate(asked["messages"]):
            if turn["role"] not in ("user", "assistant"):
                return f"messages.{number}.role: Input should be 'user' or 'assistant'"
            if not blocks_of(turn["content"]):
                return f"messages.{number}: all messages must have non-empty content"
            for at, block in enumerate(blocks_of(turn["content"])):
                where = f"messages.{number}.content.{at}"
                if wrong := self._block(block, asked["model"]):
                    return f"{where}: {wrong}"
                marks += "cache_control" in block
        return (
            f"A maximum of 4 blocks with cache_control may be provided. Found {marks}." if marks > 4 else ""
        )

    def _block(self, block: dict[str, Any], model: str) -> str:
        kind = block.get("type", "")
        if kind not in BLOCKS:
            return f"Input tag '{kind}' found using 'type' does not match any of the expected tags"
        if block.keys() - BLOCKS[kind] - {"type", "cache_control"}:
            return "Extra inputs are not permitted"
        if kind == "text" and not block["text"].strip():
            return "text content blocks must be non-empty"
        if kind == "tool_use" and not isinstance(block["input"], dict):
            return "input: Input should be a valid dictionary"
        if kind == "thinking" and block.get("signature") != signature(model, block["thinking"]):
            return "Invalid `signature` in `thinking` block"
        if kind == "redacted_thinking" and not block["data"].endswith(
            signature(model, block["data"].partition(".")[0])
        ):
            return "Invalid `data` in `redacted_thinking` block"
        return ""

    def _tools(self, turns: list[dict[str, Any]]) -> str:
        """Each call has its result at the head of the next turn, and each result its call before it."""
        open_: set[str] = set()
        for number, turn in enumerate(turns):
            results: list[str] = []
            for at, block in enumerate(blocks_of(turn["content"])):
                if block["type"] == "tool_result":
                    if at != len(results):
                        return f"messages.{number}: tool_result blocks must come first"
                    results.append(block["tool_use_id"])
            if set(results) - open_:
                return f"messages.{number}.content.0: unexpected `tool_use_id` found in `tool_result` blocks"
            if open_ - set(results) or len(results) != len(set(results)):
                return f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after"
            open_ = {b["id"] for b in blocks_of(turn["content"]) if b["type"] == "tool_use"}
        return "messages: the chat ends with tool_use" if open_ else ""

    def _thinking(self, asked: dict[str, Any]) -> str:
        model, thinking = asked["model"], asked.get("thinking", {}).get("type", "disabled")
        adaptive = any(version in model for version in ("-4-6", "-4-7", "-4-8", "-5"))
        adaptive = adaptive and not any(version in model for version in ("-4-5", "-3-5"))
        newest = adaptive and "-4-6" not in model
        if thinking == "enabled":
            if newest:
                return '"thinking.type.enabled" is not supported for this model.'
            if not 1024 <= asked["thinking"]["budget_tokens"] < asked["max_tokens"]:
                return "thinking.budget_tokens: Input should be at least 1024 and less than max_tokens"
        if thinking == "adaptive" and not adaptive:
            return "adaptive thinking is not supported on this model"
        drawn = {name for name in ("temperature", "top_p", "top_k") if name in asked}
        if drawn and (newest or thinking != "disabled"):
            return f"`{min(drawn)}` may not be set here"
        if thinking in ("enabled", "adaptive") and asked.get("tool_choice", {}).get("type") in (
            "any",
            "tool",
        ):
            return "Thinking may not be enabled when tool_choice forces tool use."
        return self._begins_with_thinking(asked["messages"]) if thinking == "enabled" else ""

    def _begins_with_thinking(self, turns: list[dict[str, Any]]) -> str:
        if blocks_of(turns[-1]["content"])[0]["type"] != "tool_result":
            return ""
        number = len(turns) - 2
        first = blocks_of(turns[number]["content"])[0]["type"]
        if first in ("thinking", "redacted_thinking"):
            return ""
        return (
            f"messages.{number}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{first}`. When "
            "`thinking` is enabled, a final `assistant` message must start with a thinking block."
        )

    def read(self, path: str, body: bytes) -> Asked:
        asked = json.loads(body)
        turns = asked["messages"]
        texts = [_texts(asked.get("system")), *(_texts(turn["content"]) for turn in turns)]
        users = [_texts(turn["content"]) for turn in turns if turn["role"] == "user"]
        kind = "count" if path.partition("?")[0].endswith("/count_tokens") else "chat"
        return Asked(kind, asked["model"], bool(asked.get("stream")), "".join(texts), users[-1], asked)

    def whole(self, asked: Asked, answer: Answer, tokens: Tokens, answer_id: str) -> bytes:
        message = self._message(asked, answer_id, self._usage(tokens, tokens.output, answer))
        message["content"] = self._blocks(asked, answer)
        return json.dumps({**message, **self._end(answer)}).encode()

    def _message(self, asked: Asked, answer_id: str, usage: dict[str, Any]) -> dict[str, Any]:
        start = {"id": answer_id, "type": "message", "role": "assistant", "model": asked.model, "content": []}
        return {**start, "stop_reason": None, "stop_sequence": None, "usage": usage}

    def _end(self, answer: Answer) -> dict[str, Any]:
        reason = "stop_sequence" if answer.stop else REASONS[answer.finish]
        end: dict[str, Any] = {"stop_reason": reason, "stop_sequence": answer.stop or None}
        if answer.refusal:
            end["stop_details"] = {"type": "refusal", "category": None, "explanation": answer.refusal}
        return end

    def _blocks(self, asked: Asked, answer: Answer) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        if answer.thinking:
            thought = {"thinking": answer.thoughts, "signature": signature(asked.model, answer.thoughts)}
            blocks.append({"type": "thinking", **thought})
        if answer.redacted:
            data = f"{answer.redacted}.{signature(asked.model, answer.redacted)}"
            blocks.append({"type": "redacted_thinking", "data": data})
        if answer.text:
            blocks.append({"type": "text", "text": answer.text, "citations": None})
        for call in answer.calls:
            blocks.append(
                {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
            )
        return blocks

    def _usage(self, t: Tokens, output: int, answer: Answer) -> dict[str, Any]:
        if not answer.sends_usage:
            return {}
        created = t.written + t.written_hour
        return {
            "input_tokens": t.prompt - t.cached - created,
            "cache_creation_input_tokens": created,
            "cache_read_input_tokens": t.cached,
            "cache_creation": {
                "ephemeral_5m_input_tokens": t.written,
                "ephemeral_1h_input_tokens": t.written_hour,
            },
            "output_tokens": output,
            "output_tokens_details": {"thinking_tokens": min(t.thought, output)},
            "service_tier": "standard",
        }

    def events(self, asked: Asked, answer: Answer, tokens: Tokens, answer_id: str) -> list[Frame]:
        message = self._message(asked, answer_id, self._usage(tokens, 1, answer))
        frames = [
            Frame(_event({"type": "message_start", "message": message}), 0),
            Frame(_event({"type": "ping"}), 0),
        ]
        made = 0

        def add(event: dict[str, Any], tokens: int = 0) -> None:
            nonlocal made
            made += tokens
            frames.append(Frame(_event(event), made))

        for index, block in enumerate(self._blocks(asked, answer)):
            begun, deltas = self._pieces(block, answer)
            add({"type": "content_block_start", "index": index, "content_block": begun})
            for delta in deltas:
                counts = "signature" not in delta
                add({"type": "content_block_delta", "index": index, "delta": delta}, int(counts))
            add({"type": "content_block_stop", "index": index})
        usage = self._usage(tokens, tokens.output, answer)
        usage.pop("cache_creation", None)
        add({"type": "message_delta", "delta": self._end(answer), "usage": usage})
        add({"type": "message_stop"})
        return frames

    def _pieces(self, block: dict[str, Any], answer: Answer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return a block as it begins, and what it gains."""
        kind = block["type"]
        if kind == "thinking":
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in answer.thinking]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            return {"type": kind, "thinking": "", "signature": ""}, deltas
        if kind == "text":
            return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in answer.pieces]
        if kind == "tool_use":
            arguments = json.dumps(block["input"]) if block["input"] else ""
            middle = len(arguments) // 2
            parts = ["", arguments[:middle], arguments[middle:]]
            return {**block, "input": {}}, [
                {"type": "input_json_delta", "partial_json": part} for part in parts
            ]
        return block, []

    def error(self, status: int, message: str, code: str) -> bytes:
        kind = code or ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
        sent = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_standin"}
        return json.dumps(sent).encode()

    def error_event(self, message: str) -> bytes:
        return _event({"type": "error", "error": {"type": "overloaded_error", "message": message}})

    def vectors(self, asked: Asked, tokens: Tokens) -> bytes:
        return self.error(404, "no embeddings here", "")

    def count(self, asked: Asked, tokens: Tokens) -> bytes:
        return json.dumps({"input_tokens": tokens.prompt}).encode()


def blocks_of(content: Any) -> list[dict[str, Any]]:
    """The blocks of a content, of which a text is the short form."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def _texts(content: Any) -> str:
    texts = []
    for block in blocks_of(content):
        texts.append(block.get("text") or _texts(block.get("content")) or "")
    return "".join(texts)


def _event(event: dict[str, Any]) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()
