"""Answers of a model from documents: cited in the right place, refused where the documents have no answer.

    python benches/documents/citations.py docs/guides --model qwen2.5-coder:0.5b --limit 20

Answerable questions are those that retrieval.py takes. A citation is right if a source that a supported sentence cites
contains the phrase. Prints each answer, a table, and one JSON line. The questions of the default files set nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import freehold
from benches.documents.retrieval import Question
from benches.lib.machine import describe, resolve
from freehold.serve.documents.local import Collection

DATA = Path(__file__).parent / "data"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--model", default="qwen2.5-coder:1.5b")
    parser.add_argument("--questions", type=Path, default=DATA / "own_docs_unseen.jsonl")
    parser.add_argument("--unanswerable", type=Path, default=DATA / "unanswerable_unseen.jsonl")
    parser.add_argument("--limit", type=int, default=1000, help="questions of each kind")
    parser.add_argument("--passages", type=int, default=5)
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.questions.read_text(encoding="utf-8").splitlines()]
    step = max(1, len(rows) // options.limit)
    questions = [Question(**row) for row in rows[::step][: options.limit]]
    lines = options.unanswerable.read_text(encoding="utf-8").splitlines()
    others = [json.loads(line)["question"] for line in lines][: options.limit]
    cited = right = refused = supported = sentences = refused_others = 0
    unasked = [0, 0]  # questions with an answer and without that the search refused
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as home, Collection("bench", home=home) as docs:
        docs.add(*options.folder)
        with freehold.load(options.model) as llm:
            for question in questions:
                answer = docs.ask(question.question, llm, limit=options.passages, max_tokens=120)
                sources = [answer.sources[n - 1] for n in answer.cited]
                refused += answer.refused
                unasked[0] += answer.usage is None
                cited += bool(sources)
                right += any(question.is_in(source.name, source.text) for source in sources)
                sentences += len(answer.sentences)
                supported += sum(each.support == "supported" for each in answer.sentences)
                print(f"{question.question}\n    {' '.join(answer.marked.split())}", flush=True)
            for text in others:
                answer = docs.ask(text, llm, limit=options.passages, max_tokens=120)
                refused_others += answer.refused
                unasked[1] += answer.usage is None
                print(f"{text}\n    {' '.join(answer.marked.split())}", flush=True)
    figures = {
        "answered": len(questions) - refused,
        "cited": cited,
        "cited_right": right,
        "refused_answerable": refused / len(questions),
        "refused_unanswerable": refused_others / len(others),
        "refused_by_search": unasked[0] / len(questions),
        "refused_by_search_unanswerable": unasked[1] / len(others),
        "supported_sentences": supported / max(1, sentences),
        "seconds_each": (time.perf_counter() - began) / (len(questions) + len(others)),
    }
    for name, value in figures.items():
        print(f"{name:<31} {value:.3f}" if isinstance(value, float) else f"{name:<31} {value}")
    result = {"bench": "documents/citations", "model": options.model, "questions": len(questions), **figures}
    print(json.dumps({**result, "machine": describe(resolve(options.model))}))


if __name__ == "__main__":
    main()
