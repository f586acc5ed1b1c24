"""Leads one answer along its format, token by token: thinking is free, the text behind it is not.

Knows a grammar, the tags around thinking and the ids that end an answer; knows no logits.
An end may come only where the text is whole, never within thinking.
Path: Engine.generate -> Constraint.guide -> Engine._emit -> Guide.allowed, sampler.choose, Guide.advance
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from freehold.engine.grammar import Grammar, Mask, Matcher
from freehold.errors import UsageError
from freehold.tokenizer import Tokenizer

Phase = Literal["start", "thinking", "closed", "text"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be, before there is any of it; the answers of one request share it."""

    grammar: Grammar
    tokenizer: Tokenizer
    tags: tuple[str, str] | None = None  # around thinking; None where there is none to come
    inside: bool = False  # the prompt has opened it

    def guide(self, ends: frozenset[int]) -> Guide:
        """Return a guide for one answer, at its beginning; `ends`: ids that end it. Raises UsageError for none."""
        if not ends:
            raise UsageError("a format needs a token that ends the answer, and there is none")
        return Guide(self, ends)


class Guide:
    """Tells which tokens may come next in one answer. One thread at a time."""

    def __init__(self, constraint: Constraint, ends: frozenset[int]) -> None:
        self._constraint = constraint
        self._tokens = constraint.grammar.tokens
        self._matcher: Matcher = constraint.grammar.matcher()
        self._ends = [id for id in ends if id < self._tokens.size]
        self._tail = b""  # of what was thought
        self._open, self._close = (tag.encode() for tag in constraint.tags or ("", ""))
        self._opener = constraint.tokenizer.token_id(constraint.tags[0]) if constraint.tags else None
        self._phase: Phase = "start"
        if constraint.inside:
            self._phase = "thinking"
        elif self._opener is None:  # tags of several tokens would have to begin as the text may not
            self._phase = "text"

    def allowed(self) -> Mask:
        """Tell for each token whether it may come next. Raises UsageError where that costs too much."""
        if self._phase == "thinking":
            free = np.ones(self._tokens.size, np.bool_)
            free[self._ends] = False
            return free
        mask = self._matcher.allowed()
        whole = bool(mask[self._tokens.ends].any())
        mask[self._tokens.ends] = False
        mask[self._ends] = whole
        if self._phase == "start":
            mask[self._opener] = True
        elif self._phase == "closed":
            mask |= self._tokens.blanks
        return mask

    def advance(self, id: int) -> None:
        """Take in a token that is no end. Raises UsageError for one that may not come here."""
        if self._phase == "start" and id == self._opener:
            self._phase = "thinking"
        elif self._phase == "thinking":
            self._think(id)
        elif self._phase == "closed" and self._tokens.blanks[id]:  # the tag's own: no part of the text
            self._phase = "text"
        else:
            self._phase = "text"
            self._matcher.advance(id)

    def forced(self) -> list[int]:
        """Return tokens that must come next, if some must."""
        return self._matcher.forced() if self._phase == "text" else []

    def fitting(self, ids: Sequence[int]) -> int:
        """Return how many of `ids`, from the first, could come next; an end among them may be counted wrongly."""
        return self._matcher.fitting(ids) if self._phase == "text" else len(ids)

    def _think(self, id: int) -> None:
        self._tail += self._constraint.tokenizer.token_bytes(id)
        _, tag, rest = self._tail.partition(self._close)
        if not tag:
            self._tail = self._tail[-len(self._close) :]
            return
        self._phase, self._tail = "closed", b""
        text = rest.lstrip()
        if text:  # one token wrote the tag's end and the text's beginning
            self._phase = "text"
            for each in self._constraint.tokenizer.encode(text.decode("utf-8", "replace"), bos=False):
                self._matcher.advance(each)
