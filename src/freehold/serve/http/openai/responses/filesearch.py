"""`file_search` of a response: passages of vector stores beside the last question, and annotations of the answer.

The search runs once, with the last user turn as its query, before the model answers: small models call no tool
reliably. A sentence without a mark gets the annotation of the passage that supports it. Knows items and annotations;
vector_stores.py searches.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from msgspec import Meta, Struct

from freehold.base.serving import Job
from freehold.serve.documents.citing import CitationChecker, citations, with_sources
from freehold.serve.documents.searching import DEFAULT_BUDGET, DEFAULT_LIMIT, within
from freehold.serve.documents.types import MAX_QUERY, MAX_RESULTS, DocumentPassage
from freehold.serve.http.core.call import HttpCall
from freehold.serve.http.core.limits import typed
from freehold.serve.http.core.problems import Refused
from freehold.serve.http.openai.vector_desk import VectorDesk
from freehold.serve.http.openai.vector_stores import RankingOptions, StoreSearch, search_in

KIND = "file_search_call"
RESULTS = "file_search_call.results"
MAX_STORES = 8  # of a request
_SHARE = 2  # of the model's context that passages may fill: one part in this many
_SENTENCES = 60  # of an answer that are compared with passages


class FileSearchTool(Struct, kw_only=True):
    """The tool as a request offers it."""

    vector_store_ids: Annotated[list[str], Meta(min_length=1, max_length=MAX_STORES)]
    max_num_results: Annotated[int, Meta(ge=1, le=MAX_RESULTS)] | None = None
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None


@dataclass(slots=True)
class FileSearch:
    """The search of one response. `first`: its item, which comes before the model's own."""

    passages: tuple[DocumentPassage, ...] = ()
    first: list[dict[str, Any]] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    checker: CitationChecker | None = None

    @classmethod
    async def opened(
        cls,
        call: HttpCall,
        tools: Sequence[Any],
        choice: object,
        include: Sequence[str],
        model: str,
        items: list[Any],
    ) -> tuple[FileSearch, list[Any]]:
        """Search where a request offers the tool; return the search, and the items without those of earlier ones."""
        kept = [item for item in items if not (isinstance(item, dict) and item.get("type") == KIND)]
        offered = [
            (i, raw)
            for i, raw in enumerate(tools)
            if isinstance(raw, dict) and raw.get("type") == "file_search"
        ]
        if not offered:
            return cls(), kept
        if len(offered) > 1:
            raise Refused(400, "tools has file_search twice; name all stores in one", param="tools")
        (i, raw), query = offered[0], _question(kept)
        tool = typed(raw, FileSearchTool, f"tools[{i}]")
        searching = cls()
        stores = [await VectorDesk.of(call).find(call, id) for id in dict.fromkeys(tool.vector_store_ids)]
        if choice == "none" or not query:
            return searching, kept
        done: list[list[DocumentPassage]] = []

        async def work() -> None:
            wanted = StoreSearch(
                (query,),
                tool.filters,
                tool.max_num_results or DEFAULT_LIMIT,
                (tool.ranking_options or RankingOptions()).score_threshold or 0.0,
            )
            for store in stores:
                done.append(await search_in(call, store, wanted))
            context = (await call.models.use(model)).info.context
            hits = sorted((hit for hits in done for hit in hits), key=lambda hit: -hit.score)[: wanted.limit]
            result = within(hits, min(DEFAULT_BUDGET, context // _SHARE))
            searching.passages, searching.notes = result.passages, result.notes

        await call.while_here(work())
        searching.first = [_item(query, searching.passages, with_results=RESULTS in include)]
        searching.checker = await call.in_thread(CitationChecker, searching.passages)
        return searching, kept

    def with_passages(self, job: Job) -> Job:
        """Return a job whose last question has the passages and the rules of citing."""
        if self.checker is None:
            return job
        return replace(job, messages=with_sources(job.messages or (), self.passages))

    def annotations(self, text: str) -> list[dict[str, Any]]:
        """Return OpenAI's annotations of a text: where it cites, and where a passage supports it without a mark."""
        if self.checker is None:
            return []
        places = [
            (at, n) for at, _, numbers in citations(text) for n in numbers if 1 <= n <= len(self.passages)
        ]
        places += [
            (s.end, n)
            for s in self.checker.check(text, most=_SENTENCES).sentences
            if s.added
            for n in s.cited
        ]
        return [
            {
                "type": "file_citation",
                "index": at,
                "file_id": self.passages[n - 1].source,
                "filename": self.passages[n - 1].name,
            }
            for at, n in sorted(set(places))
        ]

    def checked(self, text: str) -> list[dict[str, Any]]:
        """Return each sentence with its sources and whether they support it, for the receipt."""
        if self.checker is None:
            return []
        return [
            {
                "start": s.start,
                "end": s.end,
                "support": s.support,
                "sources": [
                    shown_source(n, self.passages[n - 1]) for n in s.cited if 1 <= n <= len(self.passages)
                ],
            }
            for s in self.checker.check(text, most=_SENTENCES).sentences
        ]


def shown_source(number: int, passage: DocumentPassage) -> dict[str, Any]:
    """Return where a source lies: file, page and lines."""
    place = passage.place
    return {
        "number": number,
        "file_id": passage.source,
        "filename": passage.name,
        "page": place.page or None,
        "lines": [place.line, place.last_line],
        "characters": [place.start, place.end],
    }


def _item(query: str, passages: Sequence[DocumentPassage], *, with_results: bool) -> dict[str, Any]:
    results = [
        {
            "file_id": passage.source,
            "filename": passage.name,
            "score": round(passage.score, 6),
            "attributes": passage.attributes,
            "text": passage.text,
        }
        for passage in passages
    ]
    return {
        "type": KIND,
        "id": f"fs_{secrets.token_hex(12)}",
        "status": "completed",
        "queries": [query],
        "results": results if with_results else None,
    }


def _question(items: Sequence[Any]) -> str:
    """Return the text of the last user turn, as far as a search takes it."""
    for item in reversed(items):
        if isinstance(item, dict) and item.get("role") == "user":
            content = item.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts = [part.get("text") for part in parts if isinstance(part, dict)]
            return "\n".join(text for text in texts if isinstance(text, str)).strip()[:MAX_QUERY]
    return ""
