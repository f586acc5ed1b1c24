"""A prompt and its answer as token ids, as the server renders them.

The prompt's ids are those that a server's request has, up to where the answer begins; the answer ends with the token
that ends its turn, which a model has to learn as well. Knows a template and a tokenizer; knows no loss.
Path: align, distil -> AnswerRows.row -> Trainee.log_probs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from freehold.errors import ContextOverflow, UnsupportedModel
from freehold.tokenizer import ChatTemplate, Tokenizer
from freehold.types import Message


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """Token ids of a prompt and the answer after it."""

    ids: tuple[int, ...]
    prompt: int  # tokens of the prompt

    @property
    def wanted(self) -> list[bool]:
        """For each token after the first whether it is of the answer, as Trainee.log_probs takes it."""
        return [i >= self.prompt for i in range(1, len(self.ids))]

    @property
    def answer(self) -> tuple[int, ...]:
        """The answer's tokens, with the one that ends its turn."""
        return self.ids[self.prompt :]


class AnswerRows:
    """Makes rows for one model. `most`: tokens a row may have."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, name: str, most: int) -> None:
        if template is None:
            raise UnsupportedModel(f"{name} has no chat template", "take a model that was trained to chat")
        self._tokenizer, self._template, self._name, self.most = tokenizer, template, name, most

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, up to where its answer begins."""
        return self._tokenizer.encode_rendered(self._template.render(messages))

    def row(self, messages: Sequence[Message], answer: str) -> AnswerRow:
        """Return a conversation with its answer. Raises ContextOverflow for one that is too long."""
        before = self.prompt(messages)
        ids = (*before, *self._answer(before, messages, answer))
        if len(ids) > self.most:
            raise ContextOverflow(
                f"{len(ids):,} tokens; a row may have {self.most:,}", "shorten it, or raise --max-length"
            )
        return AnswerRow(ids, len(before))

    def _answer(self, before: Sequence[int], messages: Sequence[Message], answer: str) -> list[int]:
        """Return the answer's ids, the end of its turn among them.

        Where a template renders an old answer otherwise than a new one (it leaves out thinking, or what opens it), the
        server's prompt counts, and the answer is encoded by itself.
        """
        conversation = (*messages, Message("assistant", answer))
        whole = self._tokenizer.encode_rendered(
            self._template.render(conversation, add_generation_prompt=False)
        )
        ends = self._tokenizer.eos_ids
        if whole[: len(before)] == list(before):
            rest = whole[len(before) :]
            end = next((i for i, id in enumerate(rest) if id in ends), None)
            if end is not None:
                return rest[: end + 1]
        last = next((id for id in reversed(whole) if id in ends), self._tokenizer.eos_id)
        if last is None:
            raise UnsupportedModel(f"{self._name} has no token that ends an answer")
        return [*self._tokenizer.encode(answer, bos=False), last]
