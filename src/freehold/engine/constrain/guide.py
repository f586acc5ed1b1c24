"""Leads one answer along what was asked of it, token by token: a format, calls of tools, a budget of thinking.

Thinking is free, but for its budget: when that is used up, the tag that closes it must come. The text behind it is
held to a grammar from its beginning, or from openings on that the model writes if it likes. Knows grammars, the
tags around thinking and the ids that end an answer; knows no logits. All of it follows from the tokens.
Path: Engine.generate -> Constraint.guide -> Engine._emit -> Guide.allowed, sampler.choose, Guide.advance
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import numpy as np

from freehold.engine.constrain.grammar import Grammar, Mask, Matcher
from freehold.errors import UsageError
from freehold.tokenizer import Tokenizer

Phase = Literal["start", "thinking", "closing", "closed", "free", "text"]

LOOKBACK = 1024  # bytes of free text in which an opening is searched for
# What free text is taken to stand behind, so that an opening may ask for the beginning of a line.
_LINE = b"\n"


@dataclass(frozen=True, slots=True)
class Opening:
    """What free text may come to; each time that it does, the text behind is held to `grammar` until that is whole."""

    # Its match ends where the grammar begins; what it looked ahead at counts as written.
    pattern: re.Pattern[bytes]
    grammar: Grammar


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be, before there is any of it; the answers of one request share it."""

    grammar: Grammar | None  # of the text from its beginning; None: it is free, but for openings
    tokenizer: Tokenizer
    tags: tuple[str, str] | None = None  # around thinking; None where there is none to come
    inside: bool = False  # the prompt has opened it
    openings: tuple[Opening, ...] = ()  # where there is no grammar
    think_tokens: int | None = None  # most of them; then the thinking is closed

    def guide(self, ends: frozenset[int]) -> Guide:
        """Return a guide for one answer, at its beginning; `ends`: ids that end it. Raises UsageError for none."""
        if not ends and self.grammar is not None:
            raise UsageError("a format needs a token that ends the answer, and there is none", field="format")
        return Guide(self, ends)


class Guide:
    """Tells which tokens may come next in one answer. One thread at a time."""

    def __init__(self, constraint: Constraint, ends: frozenset[int]) -> None:
        self._constraint, self._tokenizer = constraint, constraint.tokenizer
        self._size = constraint.tokenizer.vocab_size
        self._ends = [id for id in ends if id < self._size]
        self._held = constraint.grammar is not None  # from the beginning
        self._matcher: Matcher | None = constraint.grammar.matcher() if constraint.grammar else None
        self._tail = _LINE  # of what was thought, or of free text
        self._close = constraint.tags[1].encode() if constraint.tags else b""
        self._opener = _opener(constraint)
        self._thought = 0
        self._closing: list[int] = []  # of the closing tag, what has still to come
        self._phase: Phase = "start"
        if constraint.inside:
            self._think()
        elif self._opener is None:  # tags of several tokens would have to begin as the text may not
            self._phase = self._behind

    @property
    def _behind(self) -> Phase:
        """How it goes on behind thinking."""
        return "text" if self._matcher is not None else "free"

    @property
    def free(self) -> bool:
        """Tell whether each token may come next."""
        led = self._phase == "closing" or (self._phase != "thinking" and self._matcher is not None)
        return not led and not self._held

    def allowed(self) -> Mask | None:
        """Tell for each token whether it may come next; None: each may. Raises UsageError where that costs too much."""
        if self.free:
            return None
        if self._phase == "closing":
            return self._only(self._closing[0])
        if self._phase == "thinking" or self._matcher is None:
            return self._endless()
        mask, tokens = self._matcher.allowed(), self._matcher.tokens
        whole = bool(mask[tokens.ends].any())
        mask[tokens.ends] = False
        mask[self._ends] = whole
        if self._phase == "start":
            mask[self._opener] = True
        elif self._phase == "closed":
            mask |= tokens.blanks
        return mask

    def advance(self, id: int) -> None:
        """Take in a token that is no end. Raises UsageError for one that may not come here."""
        if self._phase == "start" and id == self._opener:
            self._think()
        elif self._phase == "thinking":
            self._reason(id)
        elif self._phase == "closing":
            del self._closing[0]
            self._phase = "closing" if self._closing else self._behind
        elif self._phase == "closed" and self._written(id).isspace():  # the tag's own: no part of the text
            self._phase = self._behind
        else:
            self._phase = self._behind
            self._say(id)

    def forced(self) -> list[int]:
        """Return tokens that must come next, if some must."""
        if self._phase == "closing":
            return [*self._closing]
        return self._matcher.forced() if self._phase == "text" and self._matcher else []

    def fitting(self, ids: Sequence[int]) -> int:
        """Return how many of `ids`, from the first, could come next; an end among them may be counted wrongly."""
        if self._phase == "closing":
            pairs = zip(ids, self._closing, strict=False)
            return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return self._matcher.fitting(ids) if self._phase == "text" and self._matcher else len(ids)

    # --- masks ---------------------------------------------------------------------------------------

    def _only(self, id: int) -> Mask:
        mask = np.zeros(self._size, np.bool_)
        mask[id] = True
        return mask

    def _endless(self) -> Mask:
        mask = np.ones(self._size, np.bool_)
        mask[self._ends] = False
        return mask

    # --- thinking ------------------------------------------------------------------------------------

    def _think(self) -> None:
        self._phase, self._tail = "thinking", b""
        self._spend(0)

    def _spend(self, tokens: int) -> None:
        """Count thinking, and close it when its budget is used up."""
        self._thought += tokens
        limit = self._constraint.think_tokens
        if limit is not None and self._thought >= limit:
            close = f"\n{self._close.decode()}\n\n"
            self._closing = self._tokenizer.encode(close, special=True, bos=False)
            self._phase, self._tail = "closing", b""

    def _reason(self, id: int) -> None:
        self._tail += self._written(id)
        _, tag, rest = self._tail.partition(self._close)
        if not tag:
            self._tail = self._tail[-len(self._close) :]
            self._spend(1)
            return
        self._phase, self._tail = "closed", _LINE
        if text := rest.lstrip():  # one token wrote the tag's end and the text's beginning
            self._phase = self._behind
            self._feed(text)

    # --- text ----------------------------------------------------------------------------------------

    def _say(self, id: int) -> None:
        if self._matcher is not None:
            self._matcher.advance(id)
            self._release()
        else:
            self._tail = (self._tail + self._written(id))[-LOOKBACK:]
            for opening in self._constraint.openings:
                if found := opening.pattern.search(self._tail):
                    self._hold(opening, self._tail[found.end() :])
                    break

    def _hold(self, opening: Opening, rest: bytes) -> None:
        """Begin to lead behind an opening; `rest` was written behind it already."""
        self._matcher, self._phase, self._tail = opening.grammar.matcher(), "text", b""
        try:
            self._feed(rest)
        except UsageError:  # what stands there already is no call
            self._matcher, self._phase = None, "free"

    def _release(self) -> None:
        """Leave the text free again behind what an opening began."""
        if not self._held and self._matcher is not None and self._matcher.over:
            self._matcher, self._phase, self._tail = None, "free", _LINE

    def _feed(self, text: bytes) -> None:
        if text:
            for id in self._tokenizer.encode(text.decode("utf-8", "replace"), bos=False):
                self._say(id)

    def _written(self, id: int) -> bytes:
        return self._tokenizer.token_bytes(id, special=True)


def _opener(constraint: Constraint) -> int | None:
    """Return the token that opens thinking, or begins to."""
    if constraint.tags is None:
        return None
    tokenizer, tag = constraint.tokenizer, constraint.tags[0]
    whole = tokenizer.token_id(tag)
    begun = (token for token in tokenizer.control_tokens if token and tag.startswith(token))
    return whole if whole is not None else next((tokenizer.added_id(token) for token in begun), None)
