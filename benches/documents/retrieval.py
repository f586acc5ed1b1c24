"""Recall of the right passage among the first five, by part: words, vectors, both, and both with a reranker.

    python benches/documents/retrieval.py docs/guides --questions benches/documents/data/own_docs.jsonl

A question has a file and a phrase of its answer; a passage is right if it is of that file and contains the phrase.
The folder is indexed into a temporary home. Prints a table, what was missed, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import freehold
from benches.lib.machine import describe, resolve
from freehold.serve.documents.citing import LikelihoodReranker
from freehold.serve.documents.collection import DocumentCollection
from freehold.serve.documents.local import Collection
from freehold.serve.documents.searching import SearchMode
from freehold.serve.documents.types import DEFAULT_EMBEDDER

FIRST = 5


@dataclass(frozen=True)
class Question:
    """A question and where its answer is."""

    question: str
    file: str
    phrase: str

    def is_in(self, name: str, text: str) -> bool:
        """Return whether a passage is the right one."""
        return name.endswith(self.file) and " ".join(self.phrase.split()) in " ".join(text.split())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="+", help="what is indexed")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines: question, file, phrase")
    parser.add_argument("--embedder", default=DEFAULT_EMBEDDER)
    parser.add_argument("--rerank", metavar="MODEL", help="also with this model as reranker")
    parser.add_argument(
        "--missed", action="store_true", help="print the questions that the hybrid search misses"
    )
    options = parser.parse_args()
    lines = options.questions.read_text(encoding="utf-8").splitlines()
    questions = [Question(**json.loads(line)) for line in lines]
    with (
        tempfile.TemporaryDirectory() as home,
        Collection("bench", embedder=options.embedder, home=home) as docs,
    ):
        began = time.perf_counter()
        report = docs.add(*options.folder)
        facts, added_s = docs.facts, time.perf_counter() - began
        counts = f"{len(report.added)} documents, {facts.chunks:,} chunks in {added_s:.1f} s"
        print(f"{counts}; {len(report.skipped)} skipped")
        rows = {mode: measured(docs, questions, mode) for mode in ("words", "vectors", "hybrid")}
        if options.rerank:
            with freehold.load(options.rerank) as llm:
                docs.reranker = LikelihoodReranker(llm)
                rows[f"hybrid, {options.rerank}"] = measured(docs, questions, "hybrid")
                docs.reranker = None
        for name, (recall, first, ms, _) in rows.items():
            print(f"{name:<32} recall@5 {recall:.3f}  first {first:.3f}  {ms:7.1f} ms a search")
        for missed in rows["hybrid"][3] if options.missed else ():
            print(f"missed: {missed.question} ({missed.file}: {missed.phrase})")
    figures = {name: {"recall_at_5": row[0], "first": row[1], "ms": row[2]} for name, row in rows.items()}
    result = {
        "bench": "documents/retrieval",
        "questions": len(questions),
        "chunks": facts.chunks,
        "added_s": added_s,
    }
    print(
        json.dumps(
            {
                **result,
                "embedder": options.embedder,
                "rows": figures,
                "machine": describe(resolve(options.embedder)),
            }
        )
    )


def measured(
    docs: DocumentCollection, questions: Sequence[Question], mode: SearchMode
) -> tuple[float, float, float, list[Question]]:
    """Return recall among five, the share whose first passage is right, milliseconds a search, and what was missed."""
    docs.search("warm up", 1, mode=mode)
    hits = firsts = 0
    missed: list[Question] = []
    began = time.perf_counter()
    for each in questions:
        passages = docs.search(each.question, FIRST, budget=100_000, mode=mode).passages
        right = [each.is_in(passage.name, passage.text) for passage in passages]
        hits += any(right)
        firsts += bool(right and right[0])
        if not any(right):
            missed.append(each)
    ms = 1000 * (time.perf_counter() - began) / len(questions)
    return hits / len(questions), firsts / len(questions), ms, missed


if __name__ == "__main__":
    main()
