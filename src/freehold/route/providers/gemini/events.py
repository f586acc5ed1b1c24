"""Reads Gemini's answers: the events of a stream and whole answers have one form, and become the same chunks.

The wire has no end event of its own. A stream has ended with the event in which the last of the answers that were
asked for has its finishReason, or in which the prompt was blocked; one that stops before it was broken off. Thoughts
are billed as output and counted apart from the candidates' tokens; Usage has the sum. Knows no connection.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from freehold.base.types import Chunk, FinishReason, SignedThinking, TokenLogprob, ToolPiece, Usage
from freehold.route.providers.contract import Cause, EventReader, Piece, UpstreamFault
from freehold.route.providers.faults import check_counts, decoded, invalid, plain

OWN_ID = "gcall_"  # begins the ids of calls that Gemini sent without one
_FILTERED = (
    "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "ESCALATION", "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "MODEL_ARMOR", "PUP_LIMITED_DISABLED",
)  # fmt: skip
_REASONS: dict[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(_FILTERED, "content_filter"),
}
STATUSES: dict[str, Cause] = {
    "INVALID_ARGUMENT": "request",
    "OUT_OF_RANGE": "request",
    "NOT_FOUND": "request",
    "FAILED_PRECONDITION": "auth",  # billing, or a country: the account's, not the request's
    "UNAUTHENTICATED": "auth",
    "PERMISSION_DENIED": "auth",
    "RESOURCE_EXHAUSTED": "rate",
    "DEADLINE_EXCEEDED": "timeout",
    "INTERNAL": "server",
    "UNAVAILABLE": "server",
}


class _Camel(msgspec.Struct, rename="camel", gc=False):
    pass


class _CallPart(_Camel):
    name: str
    args: msgspec.Raw = msgspec.Raw(b"")
    id: str = ""


class _GeminiPart(_Camel):
    text: str | None = None
    thought: bool = False
    thought_signature: str = ""
    function_call: _CallPart | None = None


class _AnswerContent(_Camel):
    parts: list[_GeminiPart] = []


class _ChosenToken(_Camel):
    token: str = ""
    token_id: int = 0
    log_probability: float = 0.0


class _RankedTokens(_Camel):
    candidates: list[_ChosenToken] = []


class _TokenScores(_Camel):
    chosen_candidates: list[_ChosenToken] = []
    top_candidates: list[_RankedTokens] = []


class _AnswerCandidate(_Camel):
    index: int = 0
    content: _AnswerContent | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    logprobs_result: _TokenScores | None = None


class GeminiUsage(_Camel):
    """Counts so far."""

    prompt_token_count: int = 0
    cached_content_token_count: int = 0
    candidates_token_count: int = 0
    thoughts_token_count: int = 0
    tool_use_prompt_token_count: int = 0


class _PromptFeedback(_Camel):
    block_reason: str = ""


class _ErrorDetail(msgspec.Struct, rename={"kind": "@type", "retry_delay": "retryDelay", "reason": "reason"}):
    """google.rpc.RetryInfo, ErrorInfo and others."""

    kind: str = ""
    retry_delay: str = ""
    reason: str = ""


class GoogleError(msgspec.Struct):
    """google.rpc.Status."""

    code: int = 0
    message: str = ""
    status: str = ""
    details: list[_ErrorDetail] = []


class _GeminiAnswer(_Camel):
    """GenerateContentResponse, or an error in its place."""

    candidates: list[_AnswerCandidate] = []
    prompt_feedback: _PromptFeedback | None = None
    usage_metadata: GeminiUsage | None = None
    response_id: str = ""
    error: GoogleError | None = None


_ANSWER = msgspec.json.Decoder(_GeminiAnswer)


def cause_of(error: GoogleError, otherwise: Cause) -> Cause:
    """Return why an attempt failed. A prompt that is too long and a wrong key are both INVALID_ARGUMENT."""
    message = error.message.lower()
    if any(detail.reason == "API_KEY_INVALID" for detail in error.details) or "api key not valid" in message:
        return "auth"
    if error.status in ("INVALID_ARGUMENT", "OUT_OF_RANGE") and _too_long(message):
        return "context"
    return STATUSES.get(error.status, otherwise)


def _too_long(message: str) -> bool:
    return "exceed" in message and ("token" in message or "payload size" in message)


class _Answer:
    """What has come of one candidate."""

    __slots__ = ("calls", "chars", "id_prefix", "reason")

    def __init__(self) -> None:
        # Begins the ids of its calls that come without one.
        self.id_prefix = f"{OWN_ID}{secrets.token_hex(12)}_"
        self.chars = self.calls = 0
        self.reason: FinishReason | None = None


class ResponseReader(EventReader):
    """Reads `answers` answers; `answer_id` is the provider's."""

    def __init__(self, answers: int) -> None:
        super().__init__()
        self._answers = [_Answer() for _ in range(answers)]
        self._usage: GeminiUsage | None = None

    def _counts(self) -> Usage | None:
        return usage_of(self._usage)

    def push(self, event: str, data: bytes) -> Sequence[Piece]:
        """Return what an event adds."""
        came = decoded(_ANSWER, data, "an answer that cannot be read")
        if came.error is not None:
            message = plain(came.error.message)
            raise UpstreamFault(
                cause_of(came.error, "server"), f"{came.error.status}: {message}", status=came.error.code
            )
        self.answer_id = came.response_id or self.answer_id
        self._usage = came.usage_metadata or self._usage
        pieces: list[Piece] = []
        for candidate in came.candidates:
            if not 0 <= candidate.index < len(self._answers):
                raise invalid("an answer that was not asked for")
            self._read(candidate, pieces)
        if came.prompt_feedback is not None and came.prompt_feedback.block_reason:
            for answer in self._answers:
                answer.reason = "content_filter"
        if all(answer.reason for answer in self._answers):
            self._finish(pieces)
        return pieces

    def _read(self, candidate: _AnswerCandidate, pieces: list[Piece]) -> None:
        answer = self._answers[candidate.index]
        if answer.reason is not None:
            raise invalid("more of an answer that had ended")
        scores = candidate.logprobs_result
        for part in candidate.content.parts if candidate.content is not None else ():
            chunk = _chunk(part, answer)
            if chunk is not None:
                pieces.append((candidate.index, chunk))
        if scores is not None and scores.chosen_candidates:
            pieces.append((candidate.index, Chunk(logprobs=_scores(scores))))
        if candidate.finish_reason is not None:
            answer.reason = _reason(candidate, answer)

    def _finish(self, pieces: list[Piece]) -> None:
        """Add each answer's last chunk; of several, the last has what all of them made."""
        usage, last = usage_of(self._usage), len(self._answers) - 1
        parts = usage and replace(usage, completion_tokens=0, thought_tokens=0)
        self.ended = True
        for i, answer in enumerate(self._answers):
            pieces.append((i, Chunk(finish_reason=answer.reason, usage=usage if i == last else parts)))


def _chunk(part: _GeminiPart, answer: _Answer) -> Chunk | None:
    call, signature = part.function_call, part.thought_signature
    if call is not None:
        answer.calls += 1
        id = call.id or f"{answer.id_prefix}{answer.calls}"
        arguments = bytes(call.args).decode() or "{}"
        piece = ToolPiece(
            answer.calls - 1, id, call.name, "{}" if arguments == "null" else arguments, signature
        )
        return Chunk(tool_calls=(piece,))
    if part.text is None:
        return None
    at = answer.chars
    answer.chars += 0 if part.thought else len(part.text)
    if not part.text and not signature:
        return None
    chunk = Chunk(thinking=part.text) if part.thought else Chunk(part.text)
    if not signature:
        return chunk
    block = SignedThinking(part.text if part.thought else "", signature, "", at, answer.calls)
    return replace(chunk, signed=(block,))  # of the part that begins here


def _reason(candidate: _AnswerCandidate, answer: _Answer) -> FinishReason:
    finish_reason = candidate.finish_reason or ""
    reason = _REASONS.get(finish_reason)
    if reason is None:
        cause: Cause = "request" if finish_reason == "MISSING_THOUGHT_SIGNATURE" else "invalid"
        detail = f": {plain(candidate.finish_message)}" if candidate.finish_message else ""
        raise UpstreamFault(cause, f"the model gave its answer up with {plain(finish_reason)}{detail}")
    return "tool_calls" if reason == "stop" and answer.calls else reason


def _scores(scores: _TokenScores) -> tuple[TokenLogprob, ...]:
    ranked = [place.candidates for place in scores.top_candidates]
    ranked += [[] for _ in range(len(scores.chosen_candidates) - len(ranked))]
    return tuple(
        TokenLogprob(
            chosen.token_id,
            chosen.log_probability,
            tuple((each.token_id, each.log_probability) for each in top),
            chosen.token.encode(),
            tuple(each.token.encode() for each in top),
        )
        for chosen, top in zip(scores.chosen_candidates, ranked, strict=False)
    )


def usage_of(counts: GeminiUsage | None) -> Usage | None:
    """Return the counts: thoughts are output, and what tools put into the prompt is input."""
    if counts is None:
        return None
    check_counts(*(getattr(counts, name) for name in counts.__struct_fields__))
    return Usage(
        prompt_tokens=counts.prompt_token_count + counts.tool_use_prompt_token_count,
        completion_tokens=counts.candidates_token_count + counts.thoughts_token_count,
        cached_tokens=min(counts.cached_content_token_count, counts.prompt_token_count),
        thought_tokens=counts.thoughts_token_count,
    )
