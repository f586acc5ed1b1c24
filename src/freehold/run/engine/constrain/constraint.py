"""Constrains one answer token by token: to a format, to calls of tools, and to a budget of thinking.

Thinking is free but for its budget; when that is used up, the tag that closes it is forced. The text after it
follows a grammar from its beginning, or from triggers on that the model may write. Knows grammars, the tags around
thinking and the ids that end an answer; knows no logits. The state is a function of the tokens.

The engine asks the same of all rules, whatever they are made of: a format, or marks of time in a transcript
(`TokenRules`, `TokenMatcher`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from freehold.base.errors import UsageError
from freehold.run.engine.constrain.grammar import Grammar, GrammarMatcher, Mask, ParserTime
from freehold.run.tokenizer import Tokenizer

# --- what an engine asks of an answer's rules ------------------------------------------------------


class TokenMatcher(Protocol):
    """How far one answer has come in its rules. One thread at a time."""

    @property
    def is_free(self) -> bool:
        """Whether every token may come next."""
        ...

    @property
    def token_s(self) -> float:
        """Seconds of processor that the next token takes in a parser, about."""
        ...

    @property
    def untaken_s(self) -> float:
        """Seconds of a parser that `take_seconds` has not returned yet."""
        ...

    def mask_of(self, logits: NDArray[np.float32] | np.int64) -> Mask | None:
        """Return which tokens may come next, bool [tokens], by the row they are chosen from; None: every one may."""
        ...

    def forced(self) -> list[int]:
        """Return the tokens that must come next, as far as they are known."""
        ...

    def count_valid(self, ids: Sequence[int]) -> int:
        """Return how many of these tokens may come, one after another."""
        ...

    def advance(self, id: int) -> None:
        """Take the token that was chosen."""
        ...

    def take_seconds(self) -> float:
        """Return what a parser spent since the last call."""
        ...


class TokenRules(Protocol):
    """The rules of a request's answers."""

    def matcher(self, stop_ids: frozenset[int]) -> TokenMatcher:
        """Return the state before an answer's first token. Raises UsageError for rules that allow none."""
        ...


# --- the constraint of one answer ------------------------------------------------------------------

Phase = Literal["start", "thinking", "closing", "closed", "free", "text"]

LOOKBACK = 1024  # bytes of free text in which a trigger is searched for
# Free text is matched as if it came after this, so that a trigger may require the beginning of a line.
_LINE = b"\n"


@dataclass(frozen=True, slots=True)
class Trigger:
    """A pattern in free text; each time it matches, the text after follows `grammar` until that is complete."""

    # Its match ends where the grammar begins; what it looked ahead at counts as written.
    pattern: re.Pattern[bytes]
    grammar: Grammar


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be, before there is any of it; the answers of one request share it."""

    grammar: Grammar | None  # of the text from its beginning; None: it is free, but for triggers
    tokenizer: Tokenizer
    tags: tuple[str, str] | None = None  # around thinking; None where there is none to come
    inside: bool = False  # the prompt has opened it
    triggers: tuple[Trigger, ...] = ()  # where there is no grammar
    think_tokens: int | None = None  # most of them; then the thinking is closed

    def matcher(self, stop_ids: frozenset[int]) -> ConstraintMatcher:
        """Return the state before an answer's first token. Raises UsageError for a grammar without a stop token."""
        if not stop_ids and self.grammar is not None:
            raise UsageError("a format needs a token that ends the answer, and there is none", field="format")
        return ConstraintMatcher(self, stop_ids)


class ConstraintMatcher:
    """How far one answer has come in its constraint. One thread at a time."""

    def __init__(self, constraint: Constraint, stop_ids: frozenset[int]) -> None:
        self._constraint, self._tokenizer = constraint, constraint.tokenizer
        self._size = constraint.tokenizer.vocab_size
        self._stop_ids = [id for id in stop_ids if id < self._size]
        self._whole = constraint.grammar is not None  # the grammar is of the whole text
        self._spent = ParserTime()
        self._charged_s = 0.0
        self.token_s = (
            0.0  # of processor that the latest token took in the parser: about what the next one takes
        )
        self._grammar: GrammarMatcher | None = None
        if constraint.grammar:
            self._grammar = constraint.grammar.matcher(self._spent)
        self._tail = _LINE  # of the thinking, or of free text
        self._close = constraint.tags[1].encode() if constraint.tags else b""
        self._opener = _opener(constraint)
        self._thought = 0
        self._closing: list[int] = []  # of the closing tag, what has still to come
        self._phase: Phase = "start"
        if constraint.inside:
            self._begin_thinking()
        elif self._opener is None:  # tags of several tokens would have to begin as the text may not
            self._phase = self._after_thinking

    @property
    def _after_thinking(self) -> Phase:
        return "text" if self._grammar is not None else "free"

    @property
    def is_free(self) -> bool:
        """Tell whether every token may come next."""
        constrained = self._phase == "closing" or (self._phase != "thinking" and self._grammar is not None)
        return not constrained and not self._whole

    @property
    def untaken_s(self) -> float:
        """Seconds that the parser took, and that steps waited for it, since the last `take_seconds`."""
        return self._spent.seconds + self._spent.waited - self._charged_s

    def take_seconds(self) -> float:
        """Return the seconds that the parser took, and steps waited, since the last call, as the cost of a token."""
        self.token_s = self.untaken_s
        self._charged_s += self.token_s
        return self.token_s

    def mask_of(self, logits: NDArray[np.float32] | np.int64) -> Mask | None:
        """Return `mask`: which tokens a format allows does not depend on how likely they are."""
        return self.mask()

    def mask(self) -> Mask | None:
        """Return which tokens may come next; None: every one may.

        Raises UsageError where that costs too much, NotReady where it is still being computed.
        """
        if self.is_free:
            return None
        if self._phase == "closing":
            return self._only(self._closing[0])
        if self._phase == "thinking" or self._grammar is None:
            return self._all_but_stop_ids()
        mask, tokens = self._grammar.mask(), self._grammar.tokens
        if self._left_trigger():  # the thread apart found it out with this mask
            return None
        complete = bool(mask[tokens.ends].any())
        mask[tokens.ends] = False
        mask[self._stop_ids] = complete
        if self._phase == "start":
            mask[self._opener] = True
        elif self._phase == "closed":
            mask |= tokens.blanks
        return mask

    def advance(self, id: int) -> None:
        """Take in a token that does not end the answer. Raises UsageError for one that may not come here."""
        if self._phase == "start" and id == self._opener:
            self._begin_thinking()
        elif self._phase == "thinking":
            self._advance_thinking(id)
        elif self._phase == "closing":
            del self._closing[0]
            self._phase = "closing" if self._closing else self._after_thinking
        elif self._phase == "closed" and self._bytes(id).isspace():  # part of the tag, not of the text
            self._phase = self._after_thinking
        else:
            self._phase = self._after_thinking
            self._advance_text(id)

    def forced(self) -> list[int]:
        """Return tokens that must come next, if some must."""
        if self._phase == "closing":
            return [*self._closing]
        return self._grammar.forced() if self._phase == "text" and self._grammar else []

    def count_valid(self, ids: Sequence[int]) -> int:
        """Return how many of `ids`, from the first, could come next; a stop token among them may be counted wrongly."""
        if self._phase == "closing":
            pairs = zip(ids, self._closing, strict=False)
            return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return self._grammar.count_valid(ids) if self._phase == "text" and self._grammar else len(ids)

    # --- masks ---------------------------------------------------------------------------------------

    def _only(self, id: int) -> Mask:
        mask = np.zeros(self._size, np.bool_)
        mask[id] = True
        return mask

    def _all_but_stop_ids(self) -> Mask:
        mask = np.ones(self._size, np.bool_)
        mask[self._stop_ids] = False
        return mask

    # --- thinking ------------------------------------------------------------------------------------

    def _begin_thinking(self) -> None:
        self._phase, self._tail = "thinking", b""
        self._count_thinking(0)

    def _count_thinking(self, tokens: int) -> None:
        """Add to the thinking's tokens, and close it when its budget is used up."""
        self._thought += tokens
        limit = self._constraint.think_tokens
        if limit is not None and self._thought >= limit:
            close = f"\n{self._close.decode()}\n\n"
            self._closing = self._tokenizer.encode(close, special=True, bos=False)
            self._phase, self._tail = "closing", b""

    def _advance_thinking(self, id: int) -> None:
        self._tail += self._bytes(id)
        _, tag, rest = self._tail.partition(self._close)
        if not tag:
            self._tail = self._tail[-len(self._close) :]
            self._count_thinking(1)
            return
        self._phase, self._tail = "closed", _LINE
        if text := rest.lstrip():  # one token wrote the tag's end and the text's beginning
            self._phase = self._after_thinking
            self._advance_by(text)

    # --- text ----------------------------------------------------------------------------------------

    def _advance_text(self, id: int) -> None:
        if self._grammar is not None:
            self._grammar.advance(id)
            self._left_trigger()
            return
        self._tail = (self._tail + self._bytes(id))[-LOOKBACK:]
        for trigger in self._constraint.triggers:
            if match := trigger.pattern.search(self._tail):
                self._follow(trigger, self._tail[match.end() :])
                break

    def _left_trigger(self) -> bool:
        """Continue as free text where what a trigger began is over."""
        if self._whole or self._grammar is None or not self._grammar.is_complete:
            return False
        self._grammar, self._phase, self._tail = None, "free", _LINE
        return True

    def _follow(self, trigger: Trigger, rest: bytes) -> None:
        """Begin a trigger's grammar; `rest` was written after the trigger already."""
        self._grammar, self._phase, self._tail = trigger.grammar.matcher(self._spent), "text", b""
        try:
            self._advance_by(rest)
        except UsageError:  # the grammar does not allow what was written, so it stays free text
            self._grammar, self._phase = None, "free"

    def _advance_by(self, text: bytes) -> None:
        if text:
            for id in self._tokenizer.encode(text.decode("utf-8", "replace"), bos=False):
                self._advance_text(id)

    def _bytes(self, id: int) -> bytes:
        return self._tokenizer.token_bytes(id, special=True)


def _opener(constraint: Constraint) -> int | None:
    """Return the token that opens thinking, or begins to."""
    if constraint.tags is None:
        return None
    tokenizer, tag = constraint.tokenizer, constraint.tags[0]
    whole = tokenizer.token_id(tag)
    begun = (token for token in tokenizer.control_tokens if token and tag.startswith(token))
    return whole if whole is not None else next((tokenizer.added_id(token) for token in begun), None)
