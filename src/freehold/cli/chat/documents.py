"""`freehold run --docs NAME`: a model whose answers come from a collection's passages and cite them.

Knows the terminal and the order: search, answer, check. serve/documents knows passages and citations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from freehold.base.config import Settings
from freehold.base.terminal import Ticking, printable
from freehold.base.types import Chunk, Message
from freehold.serve.documents.citing import (
    NOT_HERE,
    CitedAnswer,
    check_answer,
    has_answer,
    lacks_answer,
    likelihood_scorer,
    with_sources,
)
from freehold.serve.documents.collection import DocumentCollection
from freehold.serve.documents.local import open_collection
from freehold.serve.documents.searching import DEFAULT_BUDGET, DEFAULT_LIMIT, joined_results
from freehold.serve.documents.types import SearchResult, tokens_of

_SHARE = 2  # of the context that passages may fill: one part in this many


class TerminalDocuments:
    """The collections that --docs names, open while this is."""

    def __init__(self, settings: Settings, names: Sequence[str]) -> None:
        """Raises UsageError for a collection that does not exist."""
        self._stack = ExitStack()
        self.last: CitedAnswer | None = None
        try:
            self._collections: list[DocumentCollection] = [
                self._stack.enter_context(open_collection(settings.home, name))
                for name in dict.fromkeys(names)
            ]
        except BaseException:
            self._stack.close()
            raise

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of all collections: what is sent with their passages carries them."""
        return tuple(dict.fromkeys(label for each in self._collections for label in each.facts.labels))

    def search(self, question: str, context: int) -> SearchResult:
        """Return passages for a question that leave room in a context of this many tokens."""
        budget = max(256, min(DEFAULT_BUDGET, context // _SHARE - tokens_of(question)))
        with Ticking("searching the documents"):
            results = [each.sources(question, DEFAULT_LIMIT, budget=budget) for each in self._collections]
        return results[0] if len(results) == 1 else joined_results(results, DEFAULT_LIMIT, budget)

    def close(self) -> None:
        """Close the collections."""
        self._stack.close()


class Documented:
    """A ChatModel that gets passages with the last question; all that is not `stream` is the model's."""

    def __init__(self, model: Any, documents: TerminalDocuments) -> None:
        self._model, self._documents = model, documents
        if documents.labels and hasattr(model, "label"):
            model.label(documents.labels)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def stream(self, messages: Sequence[Message], **options: Any) -> Iterator[Chunk]:
        """Yield the answer's chunks, then print its sources and doubts on stderr; `last` of the documents has them."""
        documents = self._documents
        question = next(message.content for message in reversed(messages) if message.role == "user")
        result = documents.search(question, self._model.info.context)
        if sum(message.role == "user" for message in messages) > 1:
            # The words of a question that continues a chat say little by themselves.
            result = replace(result, evidence=None)
        if lacks_answer(result):
            documents.last = CitedAnswer(NOT_HERE, (), (), True, result.notes)
            yield Chunk(text=NOT_HERE)
            yield Chunk(finish_reason="stop")
            return
        text = ""
        for chunk in self._model.stream(
            with_sources(messages, result.passages, sure=has_answer(result)), **options
        ):
            text += chunk.text
            yield chunk
        with Ticking("checking the citations"):
            checked = check_answer(text, result.passages, likelihood_scorer(self._model))
        documents.last = replace(checked, notes=result.notes)
        for line in source_lines(documents.last):
            print(printable(line), file=sys.stderr)


def source_lines(answer: CitedAnswer) -> Iterable[str]:
    """Return what is printed below an answer: the sources that support it, and the sentences that none does."""
    if answer.refused:
        return
    yield ""
    for number in answer.cited:
        yield f"[{number}] {answer.sources[number - 1].where}"
    for sentence in answer.sentences:
        if sentence.added:
            cited = ", ".join(f"[{n}]" for n in sentence.cited)
            yield f"{cited} supports: {sentence.text}"
        elif sentence.support == "unsupported":
            yield f"not supported by the documents: {sentence.text}"
    for note in answer.notes:
        yield f"note: {note}"
