"""The stand-in's side of OpenAI's chat completions, and of those who speak it: Mistral, DeepSeek, vLLM and others.

The path's first part is the dialect: /openai/v1, /mistral/v1, /deepseek, /compatible/v1.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from typing import Any

from tests.providers.standin.script import Answer, LoggedToken, Tokens
from tests.providers.standin.wire import Asked, Frame

REASONS = {"refusal": "stop"}


class OpenAIStandIn:
    """One dialect: openai, mistral, deepseek or compatible."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect

    def matches(self, path: str) -> bool:
        return path.startswith(f"/{self.dialect}/")

    def check(self, path: str, headers: dict[str, str], body: bytes) -> str:
        if not headers.get("authorization", "").startswith("Bearer ") and self.dialect != "compatible":
            return "You didn't provide an API key."
        if path.endswith(SOUNDS):
            return _wrong_form(headers, body)
        try:
            asked = json.loads(body)
        except ValueError:
            return "We could not parse the JSON body of your request."
        return self._wrong(asked) if "messages" in asked else ""

    def _wrong(self, asked: dict[str, Any]) -> str:
        strange = asked.keys() - KNOWN[self.dialect]
        if strange:
            return f"Unrecognized request argument supplied: {', '.join(sorted(strange))}"
        for number, message in enumerate(asked["messages"]):
            if (
                self.dialect == "deepseek"
                and message.get("tool_calls")
                and "reasoning_content" not in message
                and asked.get("thinking", {}).get("type") != "disabled"
            ):
                return "The reasoning_content in the thinking mode must be passed back to the API."
            if self.dialect == "openai" and "reasoning_content" in message:
                return f"Unknown parameter: messages[{number}].reasoning_content"
            if message["role"] == "tool" and not message.get("tool_call_id"):
                return f"messages[{number}] has no tool_call_id"
            ids = [call["id"] for call in message.get("tool_calls") or ()]
            ids += [message["tool_call_id"]] if message["role"] == "tool" else []
            if self.dialect == "mistral" and any(len(i) != 9 or not i.isalnum() for i in ids):
                return f"Tool call id was {ids[0]} but must be a-z, A-Z, 0-9, with a length of 9."
        return ""

    def read(self, path: str, body: bytes) -> Asked:
        if path.endswith(SOUNDS):
            form = form_of(body)
            return Asked("sound", form["model"].decode(), False, "", form.get("prompt", b"").decode(), form)
        asked = json.loads(body)
        model, stream = asked.get("model", ""), bool(asked.get("stream"))
        if path.endswith("/embeddings"):
            given = asked["input"]
            texts = tuple(given) if isinstance(given, list) else (given,)
            return Asked("embed", model, False, "".join(map(str, texts)), "", asked, tuple(map(str, texts)))
        if "messages" not in asked:
            return Asked("chat", model, stream, str(asked.get("prompt")), str(asked.get("prompt")), asked)
        texts = [_text(m.get("content")) for m in asked["messages"]]
        users = [_text(m.get("content")) for m in asked["messages"] if m["role"] == "user"]
        said = (asked.get("stream_options") or {}).get("include_usage", False) or self.dialect == "mistral"
        return Asked("chat", model, stream, "".join(texts), users[-1] if users else "", asked, (), said)

    def whole(self, asked: Asked, answer: Answer, tokens: Tokens, answer_id: str) -> bytes:
        if asked.kind == "sound":
            return _transcript(asked, answer, tokens)
        text = "messages" not in asked.body
        message: dict[str, Any] = {"role": "assistant", "content": self._content(answer)}
        if answer.refusal:
            message["refusal"] = answer.refusal
        if answer.thoughts and self.dialect in ("deepseek", "compatible"):
            message["reasoning_content"] = answer.thoughts
        if answer.calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in answer.calls
            ]
        said = {"text": answer.text} if text else {"message": message}
        logprobs = {"content": [_logged(t) for t in answer.logprobs]} if answer.logprobs else None
        choices = [
            {
                "index": i,
                **said,
                "logprobs": logprobs,
                "finish_reason": REASONS.get(answer.finish, answer.finish),
            }
            for i in range(answer.answers)
        ]
        sent = {
            "id": answer_id,
            "object": "text_completion" if text else "chat.completion",
            "created": 1_764_000_000,
        }
        sent |= {"model": asked.model, "choices": choices}
        if answer.sends_usage:
            sent["usage"] = self.usage(tokens)
        return json.dumps(sent).encode()

    def _content(self, answer: Answer) -> Any:
        if self.dialect == "mistral" and answer.thinking:
            thought = {"type": "thinking", "thinking": [{"type": "text", "text": answer.thoughts}]}
            return [thought, {"type": "text", "text": answer.text}]
        return answer.text or None

    def events(self, asked: Asked, answer: Answer, tokens: Tokens, answer_id: str) -> list[Frame]:
        frames: list[Frame] = []
        made = 0
        text = "messages" not in asked.body

        def add(
            delta: dict[str, Any], index: int, made: int, reason: str | None = None, logged: Any = None
        ) -> None:
            choice = {"index": index, "finish_reason": reason}
            choice |= {"text": delta.get("content", "")} if text else {"delta": delta}
            if logged is not None:
                choice["logprobs"] = {"content": [_logged(logged)], "refusal": None}
            usage = self.usage(tokens) if self.dialect == "mistral" and reason else None
            frames.append(Frame(self._event(asked, answer_id, [choice], usage), made))

        for index in range(answer.answers):
            add({"role": "assistant", "content": ""}, index, made)
            for piece in answer.thinking:
                made += 1
                add(self._thought(piece), index, made)
            for number, piece in enumerate(answer.pieces):
                made += 1
                logged = answer.logprobs[number] if number < len(answer.logprobs) else None
                add({"content": piece}, index, made, logged=logged)
            if answer.refusal:
                made += 1
                add({"refusal": answer.refusal}, index, made)
            for number, call in enumerate(answer.calls):
                named = {"name": call.name, "arguments": ""}
                add(
                    {"tool_calls": [{"index": number, "id": call.id, "type": "function", "function": named}]},
                    index,
                    made,
                )
                middle = len(call.arguments) // 2
                for part in (call.arguments[:middle], call.arguments[middle:]):
                    made += 1
                    add({"tool_calls": [{"index": number, "function": {"arguments": part}}]}, index, made)
            add({}, index, made, REASONS.get(answer.finish, answer.finish))
        if asked.usage_in_stream and answer.sends_usage and self.dialect != "mistral":
            frames.append(Frame(self._event(asked, answer_id, [], self.usage(tokens)), made))
        frames.append(Frame(b"data: [DONE]\n\n", made))
        return frames

    def _thought(self, piece: str) -> dict[str, Any]:
        if self.dialect == "mistral":
            return {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": piece}]}]}
        return {"reasoning_content": piece} if self.dialect in ("deepseek", "compatible") else {"content": ""}

    def _event(self, asked: Asked, answer_id: str, choices: list[Any], usage: Any) -> bytes:
        sent = {
            "id": answer_id,
            "object": "chat.completion.chunk",
            "created": 1_764_000_000,
            "model": asked.model,
        }
        sent |= {"choices": choices}
        if usage is not None or asked.usage_in_stream:
            sent["usage"] = usage
        return b"data: " + json.dumps(sent).encode() + b"\n\n"

    def usage(self, t: Tokens) -> dict[str, Any]:
        counts: dict[str, Any] = {"prompt_tokens": t.prompt, "completion_tokens": t.output}
        counts["total_tokens"] = t.prompt + t.output
        if self.dialect == "deepseek":
            counts["prompt_cache_hit_tokens"] = t.cached
            counts["prompt_cache_miss_tokens"] = t.prompt - t.cached
        if self.dialect in ("openai", "deepseek", "compatible"):
            counts["prompt_tokens_details"] = {"cached_tokens": t.cached}
            if t.written:
                counts["prompt_tokens_details"]["cache_write_tokens"] = t.written
            counts["completion_tokens_details"] = {"reasoning_tokens": t.thought}
        elif t.cached:
            counts["prompt_tokens_details"] = {"cached_tokens": t.cached}
        return counts

    def error(self, status: int, message: str, code: str) -> bytes:
        if self.dialect == "mistral":
            return json.dumps(
                {"object": "error", "message": message, "type": "invalid_request_error", "code": code}
            ).encode()
        kind = "invalid_request_error" if status < 500 else "server_error"
        return json.dumps(
            {"error": {"message": message, "type": kind, "param": None, "code": code or None}}
        ).encode()

    def error_event(self, message: str) -> bytes:
        sent = {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
        return b"data: " + json.dumps(sent).encode() + b"\n\n"

    def vectors(self, asked: Asked, tokens: Tokens) -> bytes:
        width = asked.body.get("dimensions") or 4
        rows = []
        for number, text in enumerate(asked.texts):
            row = [float(1 + (len(text) + i) % 3) for i in range(width)]
            packed: Any = row
            if asked.body.get("encoding_format") == "base64":
                packed = b64encode(struct.pack(f"<{width}f", *row)).decode()
            rows.append({"object": "embedding", "index": number, "embedding": packed})
        usage = {"prompt_tokens": tokens.prompt, "total_tokens": tokens.prompt}
        return json.dumps({"object": "list", "data": rows, "model": asked.model, "usage": usage}).encode()

    def count(self, asked: Asked, tokens: Tokens) -> bytes:
        return json.dumps({"count": tokens.prompt}).encode()


# --- recordings: a form with a file, by platform.openai.com/docs/api-reference/audio --------------------

SOUNDS = ("/audio/transcriptions", "/audio/translations")
ENDS = ("flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm")


def form_of(body: bytes) -> dict[str, Any]:
    """Return a multipart form's fields; `file` is the recording, `filename` its name."""
    boundary = body.partition(b"\r\n")[0]
    fields: dict[str, Any] = {}
    for part in body.split(boundary)[1:-1]:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = head.split(b'name="')[1].partition(b'"')[0].decode()
        fields[name] = value.removesuffix(b"\r\n")
        if b'filename="' in head:
            fields["filename"] = head.split(b'filename="')[1].partition(b'"')[0].decode()
    return fields


def _wrong_form(headers: dict[str, str], body: bytes) -> str:
    if not headers.get("content-type", "").startswith("multipart/form-data; boundary="):
        return "expected multipart/form-data"
    form = form_of(body)
    if missing := {"model", "file"} - form.keys():
        return f"missing: {', '.join(sorted(missing))}"
    if form["filename"].rpartition(".")[2] not in ENDS:
        return f"Unrecognized file format: {form['filename']}"
    timeless = form["model"].startswith(b"gpt-")
    if timeless and form.get("response_format") not in (b"json", b"text"):
        return "response_format is not compatible with this model"
    return ""


def _transcript(asked: Asked, answer: Answer, tokens: Tokens) -> bytes:
    sent: dict[str, Any] = {"text": answer.text}
    if asked.model.startswith("gpt-"):
        kinds = {"text_tokens": tokens.written, "audio_tokens": tokens.prompt - tokens.written}
        usage = {"type": "tokens", "input_tokens": tokens.prompt, "input_token_details": kinds}
        return json.dumps({**sent, "usage": {**usage, "output_tokens": tokens.output}}).encode()
    segments = [
        {
            "id": i,
            "start": float(i),
            "end": i + 0.9,
            "text": f" {piece}",
            "tokens": [1, 2],
            "avg_logprob": -0.2,
        }
        for i, piece in enumerate(answer.pieces)
    ]
    more = {"task": "transcribe", "language": "english", "duration": "2.0", "segments": segments}
    usage = {"usage": {"type": "duration", "seconds": 2}} if answer.sends_usage else {}
    return json.dumps({**sent, **more, **usage}).encode()


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def _logged(token: LoggedToken) -> dict[str, Any]:
    def one(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": logprob, "bytes": [*text.encode()]}

    return one(token.text, token.logprob) | {"top_logprobs": [one(*pair) for pair in token.top]}


# Fields that each dialect's documentation has; others are refused, as OpenAI does.
_CHAT = """model messages stream temperature top_p max_tokens stop n presence_penalty frequency_penalty response_format
    tools tool_choice parallel_tool_calls stream_options"""
_SHARED = set(_CHAT.split())
_OPENAI = """max_completion_tokens seed logprobs top_logprobs logit_bias reasoning_effort verbosity store metadata user
    safety_identifier prompt_cache_key"""
_MISTRAL = "random_seed safe_prompt prompt_mode prediction reasoning_effort prompt_cache_key"
_DEEPSEEK = "logprobs top_logprobs thinking reasoning_effort"
_COMPATIBLE = """max_completion_tokens seed logprobs top_logprobs logit_bias reasoning_effort top_k min_p typical_p
    repetition_penalty repeat_penalty ignore_eos chat_template_kwargs chat_template structured_outputs
    continue_final_message add_generation_prompt think thinking_token_budget priority grammar"""
KNOWN = {
    "openai": _SHARED | set(_OPENAI.split()),
    "mistral": _SHARED - {"stream_options"} | set(_MISTRAL.split()),
    "deepseek": _SHARED - {"n", "parallel_tool_calls"} | set(_DEEPSEEK.split()),
    "compatible": _SHARED | set(_COMPATIBLE.split()),
}
