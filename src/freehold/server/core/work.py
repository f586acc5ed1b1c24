"""What one request had computed, as far as it has come: for its line in the log.

Knows tokens and seconds. Path: a handler -> HttpCall.work -> requestlog.log_request
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RequestWork:
    """What a request had done: handlers fill it in as they learn of it. Seconds run from its arrival."""

    model: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    answers: int = 0
    first_s: float | None = None  # of the first token
    last_s: float = 0.0

    def came(self, tokens: int, at_s: float) -> None:
        """Note tokens of an answer."""
        if self.first_s is None:
            self.first_s = at_s
        self.answer_tokens += tokens
        self.last_s = at_s

    @property
    def tok_s(self) -> float | None:
        """Tokens a second after the first of each answer, all answers together; None where there is none to count."""
        later, spent = self.answer_tokens - max(self.answers, 1), self.last_s - (self.first_s or 0.0)
        return later / spent if later > 0 and spent > 0 else None
