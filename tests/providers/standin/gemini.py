"""The stand-in's side of Gemini's native API, by ai.google.dev (generate-content, thought-signatures, embeddings).

Signatures are checked as from Gemini 3 on: the first call of each step of the current turn has one, and every one that
is sent is the stand-in's own for that very part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from tests.providers.standin.script import Answer, LoggedToken, Tokens
from tests.providers.standin.signing import signature
from tests.providers.standin.wire import Asked, Frame

REASONS = {
    "stop": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "content_filter": "SAFETY",
    "refusal": "PROHIBITED_CONTENT",
}
STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
FIELDS = {
    "contents",
    "systemInstruction",
    "tools",
    "toolConfig",
    "generationConfig",
    "safetySettings",
    "cachedContent",
}
CONFIG = {
    "temperature", "topP", "topK", "seed", "presencePenalty", "frequencyPenalty", "maxOutputTokens", "stopSequences",
    "candidateCount", "responseLogprobs", "logprobs", "responseMimeType", "responseSchema", "responseJsonSchema",
    "thinkingConfig",
}  # fmt: skip
PARTS = {"text", "thought", "thoughtSignature", "inlineData", "functionCall", "functionResponse"}
BYPASS = ("skip_thought_signature_validator", "context_engineering_is_the_way_to_go")


class GeminiStandIn:
    """All generations; a model of 2.x signs, and does not insist."""

    def matches(self, path: str) -> bool:
        return path.startswith("/gemini/")

    def check(self, path: str, headers: dict[str, str], body: bytes) -> str:
        if not headers.get("x-goog-api-key"):
            return "Method doesn't allow unregistered callers. Please use an API key."
        try:
            asked = json.loads(body)
        except ValueError:
            return "Invalid JSON payload received."
        if path.endswith(":batchEmbedContents"):
            return "" if len(asked["requests"]) <= 100 else "at most 100 requests can be in one batch"
        model = _model(path)
        if path.endswith(":countTokens"):
            asked = asked.get("generateContentRequest", asked)
            if asked.pop("model", "") != f"models/{model}":
                return "Invalid value at 'generate_content_request.model'"
        return self._wrong(asked, model)

    def _wrong(self, asked: dict[str, Any], model: str) -> str:
        config = asked.get("generationConfig", {})
        strange = (asked.keys() - FIELDS) | (config.keys() - CONFIG)
        if strange:
            return f'Invalid JSON payload received. Unknown name "{min(strange)}": Cannot find field.'
        thinking = config.get("thinkingConfig", {})
        if "thinkingLevel" in thinking and not _strict(model):
            return "Thinking level is not supported for this model."
        if "thinkingLevel" in thinking and "thinkingBudget" in thinking:
            return "You can only set one of thinking budget and thinking level."
        if asked.get("tools") and "responseMimeType" in config and not _strict(model):
            return "Function calling with a response mime type: 'application/json' is unsupported"
        contents = asked.get("contents") or []
        if not contents:
            return "contents is not specified"
        return next(_faults(contents, model), "")

    def read(self, path: str, body: bytes) -> Asked:
        asked = json.loads(body)
        model = _model(path.partition("?")[0])
        if ":batchEmbedContents" in path:
            texts = tuple(_texts(request["content"]) for request in asked["requests"])
            return Asked("embed", model, False, "".join(texts), "", asked, texts)
        asked = asked.get("generateContentRequest", asked)
        texts = [_texts(asked.get("systemInstruction")), *(_texts(content) for content in asked["contents"])]
        users = [_texts(content) for content in asked["contents"] if content["role"] == "user"]
        kind = "count" if ":countTokens" in path else "chat"
        stream = ":streamGenerateContent" in path and "alt=sse" in path
        return Asked(kind, model, stream, "".join(texts), users[-1] if users else "", asked)

    def whole(self, asked: Asked, answer: Answer, tokens: Tokens, answer_id: str) -> bytes:
        thought = [{"text": answer.thoughts, "thought": True}] if answer.thinking else []
        text = [{"text": answer.text}] if answer.text else []
        parts = [*thought, *text, *self._calls(asked.model, answer)]
        if answer.signature and not answer.calls:
            parts[-1]["thoughtSignature"] = signature(asked.model, parts[-1].get("text", ""))
        end = self._ended(answer)
        candidates = [
            {"content": {"role": "model", "parts": parts}, **end, "index": i} for i in range(answer.answers)
        ]
        if answer.logprobs:
            candidates[0]["logprobsResult"] = _scores(answer.logprobs)
        return json.dumps(self._body(asked, answer, tokens, answer_id, candidates, tokens.output)).encode()

    def _ended(self, answer: Answer) -> dict[str, Any]:
        said = {"finishMessage": answer.refusal} if answer.refusal else {}
        return {"finishReason": REASONS[answer.finish], **said}

    def _calls(self, model: str, answer: Answer) -> list[dict[str, Any]]:
        """The calls, of which the first one is signed; ids are not sent."""
        parts: list[dict[str, Any]] = []
        for call in answer.calls:
            made = {"name": call.name, "args": json.loads(call.arguments)}
            part: dict[str, Any] = {"functionCall": made}
            if not parts:
                part["thoughtSignature"] = _signed_call(model, made)
            parts.append(part)
        return parts

    def _body(
        self, asked: Asked, answer: Answer, t: Tokens, answer_id: str, candidates: list[Any], made: int
    ) -> dict[str, Any]:
        body = {"candidates": candidates, "modelVersion": asked.model, "responseId": answer_id}
        if answer.sends_usage:
            thought = min(t.thought, made)
            counts = {"promptTokenCount": t.prompt, "candidatesTokenCount": made - thought}
            counts |= {"thoughtsTokenCount": thought, "totalTokenCount": t.prompt + made}
            if t.cached:
                counts["cachedContentTokenCount"] = t.cached
            body["usageMetadata"] = counts
        return body

    def events(self, asked: Asked, answer: Answer, tokens: Tokens, answer_id: str) -> list[Frame]:
        frames: list[Frame] = []
        made = 0
        for index in range(answer.answers):
            last_of_all = index + 1 == answer.answers
            parts = [{"text": piece, "thought": True} for piece in answer.thinking]
            parts += [{"text": piece} for piece in answer.pieces if piece]
            parts += self._calls(asked.model, answer)
            end: dict[str, Any] = {"text": ""}
            if answer.signature and not answer.calls:
                end["thoughtSignature"] = signature(asked.model, "")
            for number, part in enumerate([*parts, end]):
                last = number == len(parts)
                made += not last
                candidate: dict[str, Any] = {"content": {"role": "model", "parts": [part]}, "index": index}
                at = number - len(answer.thinking)
                if 0 <= at < len(answer.logprobs):
                    candidate["logprobsResult"] = _scores(answer.logprobs[at : at + 1])
                if last:
                    candidate |= self._ended(answer)
                counted = tokens.output if last and last_of_all else min(made, tokens.output)
                body = self._body(asked, answer, tokens, answer_id, [candidate], counted)
                frames.append(Frame(_event(body), made))
        return frames

    def error(self, status: int, message: str, code: str) -> bytes:
        kind = code or STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")
        return json.dumps({"error": {"code": status, "message": message, "status": kind}}).encode()

    def error_event(self, message: str) -> bytes:
        return _event(json.loads(self.error(503, message, "")))

    def vectors(self, asked: Asked, tokens: Tokens) -> bytes:
        width = asked.body["requests"][0].get("outputDimensionality", 4)
        rows = [[float(1 + (len(text) + i) % 3) for i in range(width)] for text in asked.texts]
        usage = {"promptTokenCount": tokens.prompt, "totalTokenCount": tokens.prompt}
        return json.dumps({"embeddings": [{"values": row} for row in rows], "usageMetadata": usage}).encode()

    def count(self, asked: Asked, tokens: Tokens) -> bytes:
        return json.dumps({"totalTokens": tokens.prompt}).encode()


def _faults(contents: list[dict[str, Any]], model: str) -> Iterator[str]:
    """Yield what is wrong with a chat."""
    calls: list[str] = []
    for number, content in enumerate(contents):
        parts = content.get("parts") or []
        if content.get("role") not in ("user", "model") or not parts:
            yield f"contents[{number}]: a role of user or model, and parts, are required"
        for at, part in enumerate(parts):
            if part.keys() - PARTS or not part.keys() & (PARTS - {"thought", "thoughtSignature"}):
                yield f"contents[{number}].parts[{at}].data: required oneof field 'data' is not set"
            yield from _signed(part, model)
        results = [part["functionResponse"]["name"] for part in parts if "functionResponse" in part]
        if results and sorted(results) != sorted(calls):
            yield "the number of function response parts should be equal to number of function call parts of the turn"
        if calls and not results:
            yield "a function call turn comes immediately before a function response turn"
        calls = [part["functionCall"]["name"] for part in parts if "functionCall" in part]
    if contents and contents[0].get("role") != "user":
        yield "a chat begins with a user turn"
    if _strict(model):
        yield from _missing(contents)


def _signed(part: dict[str, Any], model: str) -> Iterator[str]:
    given = part.get("thoughtSignature")
    if given is None or given in BYPASS:
        return
    call = part.get("functionCall")
    right = _signed_call(model, call) if call is not None else signature(model, part.get("text", ""))
    if given != right:
        yield "Corrupted thought signature."


def _missing(contents: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a fault for each step of the current turn whose first call has no signature."""
    for content in reversed(contents):
        if content["role"] == "user" and any("functionResponse" not in part for part in content["parts"]):
            return
        first = next((part for part in content["parts"] if "functionCall" in part), None)
        if first is not None and "thoughtSignature" not in first:
            yield "Function call is missing a thought_signature in functionCall parts."


def _signed_call(model: str, call: dict[str, Any]) -> str:
    return signature(model, call["name"], json.dumps(call.get("args", {}), sort_keys=True))


def _strict(model: str) -> bool:
    return not model.startswith(("gemini-1", "gemini-2"))


def _model(path: str) -> str:
    return unquote(path.partition("/models/")[2].rpartition(":")[0])


def _texts(content: Any) -> str:
    texts = []
    for part in (content or {}).get("parts", []):
        answer = part.get("functionResponse", {}).get("response", {})
        texts.append(part.get("text") or "".join(map(str, answer.values())))
    return "".join(texts)


def _scores(logged: tuple[LoggedToken, ...]) -> dict[str, Any]:
    def one(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "tokenId": len(text), "logProbability": logprob}

    return {
        "chosenCandidates": [one(token.text, token.logprob) for token in logged],
        "topCandidates": [{"candidates": [one(*pair) for pair in token.top]} for token in logged],
    }


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\r\n\r\n"
