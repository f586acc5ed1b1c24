"""Ranks embedders and rerankers by published retrieval results and picks those that go beside a RAG model.

Results are on three scales that do not compare (MTEB multilingual, MTEB English, and multilingual after reranking), so
each names its own; a model without one comes after those with one. A reranker pays where its published result is
above what the embedder reached alone. Knows no text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from freehold.base.catalog.model import Model, Score
from freehold.choose.advisor import quality
from freehold.choose.advisor.engines import Line, finder_line
from freehold.choose.advisor.fit import Refuses

MANY, ENGLISH, RERANKED = "mmteb_retrieval", "mteb_en_retrieval", "mmteb_reranked"
_SHARE = 0.1  # of the memory of a place that an embedder may take, and a reranker
_CHUNK = 512  # tokens of a piece of a document


@dataclass(frozen=True, slots=True)
class FinderChoice:
    """An embedder or a reranker beside the model that answers, and why it is this one."""

    model: Model
    says: str
    line: Line


@dataclass(frozen=True, slots=True)
class Beside:
    """What finds the texts. `reranker` None: none pays, and `no_reranker` says why."""

    embedder: FinderChoice | None
    reranker: FinderChoice | None
    no_reranker: str = ""


def ranked(models: Iterable[Model], role: str, codes: Sequence[str]) -> list[Model]:
    """Return the embedders or rerankers that may know the languages, best evidence first."""
    of_role = [(m, quality.language_evidence(m, codes)) for m in models if m.role == role]
    able = [m for m, languages in of_role if all(t.level != quality.DENIED for t in languages)]
    return sorted(able, key=lambda m: order(m, codes))


def order(model: Model, codes: Sequence[str]) -> tuple[bool, int, float, float, str]:
    """Return a sort key: languages known, then the scale, then the result, then the longer context."""
    known = quality.language_evidence(model, codes)
    score = result(model)
    scale = (MANY, RERANKED, ENGLISH).index(score.benchmark) if score else 3
    return (
        not quality.languages_known(known),
        scale,
        -(score.value if score else 0.0),
        -model.context,
        model.id,
    )


def result(model: Model) -> Score | None:
    """Return its published result in finding texts, multilingual before English; None: there is none."""
    scores = {s.benchmark: s for s in model.scores if s.benchmark in (MANY, ENGLISH, RERANKED)}
    return next((scores[b] for b in (MANY, RERANKED, ENGLISH) if b in scores), None)


def beside(
    models: Iterable[Model], codes: Sequence[str], *, memory: int, refuses: Refuses | None = None
) -> Beside:
    """Choose what finds the texts for a RAG model: what vLLM serves; here, where `refuses` is given, what that lets by.

    Each takes a tenth of the place's `memory` at most, in bytes, at the 16 bits that it is published in.
    """
    here = refuses is not None
    small = [m for m in models if 2e9 * m.params_b <= _SHARE * memory]
    known = [m for m in small if refuses is None or not refuses(m.structure)]
    embedders = [m for m in ranked(known, "embedder", codes) if 0 < _CHUNK <= (m.context or _CHUNK)]
    embedder = _first(embedders, codes, here)
    reranker = _first(ranked(known, "reranker", codes), codes, here)
    if embedder is None or reranker is None:
        return Beside(embedder, None, "" if embedder is None else "no reranker of the catalogue runs there")
    alone, after = result(embedder.model), result(reranker.model)
    if after is None or (alone and alone.benchmark == MANY and alone.value >= after.value):
        why = "no reranker that runs there has a published result"
        if after and alone:
            why = f"the best reranker reaches {after.value:g}, the embedder {alone.value:g} alone"
        return Beside(embedder, None, why)
    return Beside(embedder, reranker)


def _first(ordered: Iterable[Model], codes: Sequence[str], here: bool) -> FinderChoice | None:
    for model in ordered:
        line = finder_line(model, here=here)
        if line.command:
            return FinderChoice(model, says(model, codes), line)
    return None


def says(model: Model, codes: Sequence[str]) -> str:
    """Word the evidence: the result, and the languages."""
    score = result(model)
    parts = [f"{score.benchmark} {score.value:g}" if score else "no published result in finding texts"]
    parts += [t.says for t in quality.language_evidence(model, codes)]
    return "; ".join(parts)
