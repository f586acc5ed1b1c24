"""A search: BM25 and vectors joined by reciprocal ranks, a reranker if there is one, neighbours merged, a budget kept.

Knows a collection's store and vectors of queries; knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from freehold.base.errors import UsageError
from freehold.serve.documents.store import CollectionStore, DocumentRecord, StoredChunk
from freehold.serve.documents.types import (
    F32,
    MAX_QUERY,
    MAX_RESULTS,
    DocumentPassage,
    Reranks,
    SearchResult,
    tokens_of,
)

SearchMode = Literal["hybrid", "words", "vectors"]
POOL = 50  # chunks that each ranking brings
# Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): a chunk's score is the sum of 1 / (20 + rank).
# They use 60, for thousands of ranks; of two rankings of 50, the first places should count for more.
RRF = 20
_RERANKED = 20  # chunks that a reranker scores: each costs it a prefill
DEFAULT_LIMIT, DEFAULT_BUDGET = 8, 3_000  # passages; tokens, estimated
# Characters up to which a passage takes in the chunks around the one that matched, below the same heading. Of questions
# on texts that set nothing here, that brings 3 in 100 more to their answer (docs/log/documents.md); eight passages of
# this size are the default budget.
_PASSAGE = 1_000
_REACH = 4  # chunks on either side that are looked at


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What is searched. `vector`: the text's, None for a search by words alone; `documents`: those that count."""

    text: str
    vector: F32 | None = None
    mode: SearchMode = "hybrid"
    documents: tuple[int, ...] | None = None


def checked_query(text: str, limit: int) -> str:
    """Return a query's text. Raises UsageError beyond the limits."""
    if not text.strip():
        raise UsageError("the search is empty", "give some words, or a question")
    if len(text) > MAX_QUERY:
        raise UsageError(f"the search has {len(text):,} characters; the limit is {MAX_QUERY:,}", "shorten it")
    if not 1 <= limit <= MAX_RESULTS:
        raise UsageError(f"the limit of results is {limit}; expected 1 to {MAX_RESULTS}", "")
    return text


def ranked(
    store: CollectionStore, query: SearchQuery, reranker: Reranks | None = None
) -> list[tuple[int, float]]:
    """Return chunks with their scores, the best first."""
    rankings: list[list[int]] = []
    if query.mode != "vectors":
        rankings.append(store.by_words(query.text, POOL, query.documents))
    if query.mode != "words" and query.vector is not None:
        rankings.append(store.by_vector(query.vector, POOL, query.documents))
    fused = fuse_ranks(rankings)
    if reranker is None or len(fused) < 2:
        return fused
    head = store.chunks(id for id, _ in fused[:_RERANKED])
    scores = reranker.rank(query.text, [each.chunk.indexed for each in head])
    # The first ranking keeps a say: a small reranker is wrong often enough.
    by_model = sorted(range(len(head)), key=lambda i: -scores[i])
    return fuse_ranks([[head[i].id for i in by_model], [id for id, _ in fused]])


def fuse_ranks(rankings: Iterable[Sequence[int]]) -> list[tuple[int, float]]:
    """Return the items of several rankings by the sum of their reciprocal ranks."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            scores[id] = scores.get(id, 0.0) + 1 / (RRF + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def search_store(
    store: CollectionStore,
    query: SearchQuery,
    *,
    limit: int = DEFAULT_LIMIT,
    budget: int = DEFAULT_BUDGET,
    reranker: Reranks | None = None,
) -> SearchResult:
    """Return at most `limit` passages of together at most `budget` tokens, the best first.

    What matched among the best `limit` and did not fit is counted in `left_out`. Raises UsageError.
    """
    checked_query(query.text, limit)
    scores = dict(ranked(store, query, reranker))
    groups = _grown(store, scores, limit)
    documents = store.documents_by_id(group[0].document for group in groups)
    passages = [_passage(group, scores, documents) for group in groups if group[0].document in documents]
    passages.sort(key=lambda passage: -passage.score)
    return within(passages, budget)


def within(passages: Sequence[DocumentPassage], budget: int) -> SearchResult:
    """Return the passages that fit into `budget` tokens, and count the others; one that is too long is passed over."""
    kept: list[DocumentPassage] = []
    left = budget
    for passage in passages:
        size = tokens_of(passage.text) + tokens_of(passage.context)
        if size <= left:
            kept.append(passage)
            left -= size
    gone = len(passages) - len(kept)
    notes = (f"{gone} of {len(passages)} passages left out: the budget is {budget:,} tokens",) if gone else ()
    return SearchResult(tuple(kept), gone, notes)


def _grown(store: CollectionStore, ids: Iterable[int], limit: int) -> list[list[StoredChunk]]:
    """Return at most `limit` groups of chunks that follow each other, around those of `ids` in their order.

    A group is of one document, on one page and below one heading. A chunk that a group has taken in makes no other.
    """
    groups: list[list[StoredChunk]] = []
    taken: set[int] = set()
    for id in ids:
        if len(groups) == limit:
            break
        if id in taken:
            continue
        around = {each.id: each for each in store.chunks(range(id - _REACH, id + _REACH + 1))}
        if id in around:
            groups.append(_group(around, id, taken))
            taken.update(each.id for each in groups[-1])
    return groups


def _group(around: Mapping[int, StoredChunk], id: int, taken: set[int]) -> list[StoredChunk]:
    """Return a chunk with those after and before it in turns, while they belong to it and fit."""
    section = _section(around[id])
    first = last = id
    chars = len(around[id].chunk.text)
    after = True
    for _ in range(2 * _REACH):
        near = [last + 1, first - 1] if after else [first - 1, last + 1]
        fits = (
            each
            for each in near
            if each in around
            and each not in taken
            and _section(around[each]) == section
            and chars + len(around[each].chunk.text) <= _PASSAGE
        )
        chosen = next(fits, None)
        if chosen is None:
            break
        after = chosen < first
        first, last = min(first, chosen), max(last, chosen)
        chars += len(around[chosen].chunk.text)
    return [around[each] for each in range(first, last + 1)]


def _section(stored: StoredChunk) -> tuple[int, int, str]:
    return stored.document, stored.chunk.place.page, stored.chunk.context


def _passage(
    group: Sequence[StoredChunk], scores: Mapping[int, float], documents: Mapping[int, DocumentRecord]
) -> DocumentPassage:
    document, first, last = documents[group[0].document], group[0].chunk, group[-1].chunk
    return DocumentPassage(
        source=document.source,
        name=document.name,
        place=first.place.through(last.place),
        text="\n\n".join(each.chunk.text for each in group),
        score=max(scores.get(each.id, 0.0) for each in group),
        context=first.context,
        attributes=document.attributes,
    )


def joined_results(results: Iterable[SearchResult], limit: int, budget: int) -> SearchResult:
    """Return the best of several collections' results: by their ranks, which compare where scores do not."""
    lists = [list(result.passages) for result in results]
    order = sorted(
        ((rank, which) for which, passages in enumerate(lists) for rank in range(len(passages))),
        key=lambda each: each,
    )
    fused = [replace(lists[which][rank], score=1 / (RRF + rank + 1)) for rank, which in order]
    return within(fused[:limit], budget)
