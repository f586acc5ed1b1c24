"""What LangChain's and LlamaIndex's default pipelines find, and how fast sentence-transformers embeds, beside ours.

    python benches/documents/pipelines.py MODEL docs/guides --questions benches/documents/data/own_docs_unseen.jsonl
    python benches/documents/pipelines.py MODEL --texts TEXTS

MODEL is the folder of all-MiniLM-L6-v2 that `freehold pull all-minilm` keeps, so the embedder is the same. Runs in an
environment of its own: langchain-community, langchain-text-splitters, llama-index-core, sentence-transformers, pypdf,
beautifulsoup4. A passage is right as in retrieval.py. TEXTS is what speed.py --embed N --write-texts TEXTS writes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIRST = 5
SUFFIXES = (".md", ".html", ".pdf")
Passages = list[tuple[str, str]]  # file and text, the best first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path, nargs="*", help="what is indexed")
    parser.add_argument("--questions", type=Path, help="JSON lines: question, file, phrase")
    parser.add_argument("--texts", type=Path, help="JSON lines: texts to embed")
    options = parser.parse_args()
    if options.texts:
        embedded(options.model, options.texts)
    files = sorted(path for folder in options.folder for path in folder.rglob("*") if path.suffix in SUFFIXES)
    lines = options.questions.read_text(encoding="utf-8").splitlines() if options.questions else []
    questions = [json.loads(line) for line in lines]
    for name, build in {"LangChain": langchain, "LlamaIndex": llama_index}.items():
        if not questions:
            break
        began = time.perf_counter()
        search, count = build(options.model, files)
        added_s = time.perf_counter() - began
        hits = firsts = chars = 0
        for each in questions:
            passages = search(each["question"])
            right = [
                file.endswith(each["file"]) and plain(each["phrase"]) in plain(text)
                for file, text in passages
            ]
            hits, firsts = hits + any(right), firsts + bool(right and right[0])
            chars += sum(len(text) for _, text in passages)
        figures = {
            "recall_at_5": hits / len(questions),
            "first": firsts / len(questions),
            "chunks": count,
            "characters": chars // len(questions),
            "added_s": added_s,
        }
        shown = "  ".join(
            f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value:,}"
            for key, value in figures.items()
        )
        print(f"{name:<12} {shown}")
        print(
            json.dumps(
                {"bench": "documents/pipelines", "pipeline": name, "questions": len(questions), **figures}
            )
        )


def plain(text: str) -> str:
    return " ".join(text.split())


def embedder(model: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(model), device="cpu")


def langchain(model: Path, files: list[Path]) -> tuple[Callable[[str], Passages], int]:
    """Return a search in chunks of 1,000 characters with 200 of overlap, as LangChain's introduction to RAG cuts."""
    from langchain_community.document_loaders import BSHTMLLoader, PyPDFLoader, TextLoader
    from langchain_core.embeddings import Embeddings
    from langchain_core.vectorstores import InMemoryVectorStore
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    encoder = embedder(model)

    class Local(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return encoder.encode(texts, normalize_embeddings=True).tolist()

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    documents = []
    for path in files:
        if path.suffix == ".html":
            documents += BSHTMLLoader(
                path, open_encoding="utf-8", bs_kwargs={"features": "html.parser"}
            ).load()
        elif path.suffix == ".pdf":
            documents += PyPDFLoader(str(path)).load()
        else:
            documents += TextLoader(path, encoding="utf-8").load()
    chunks = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200).split_documents(documents)
    store = InMemoryVectorStore(Local())
    store.add_documents(chunks)

    def search(question: str) -> Passages:
        return [
            (str(each.metadata["source"]), each.page_content)
            for each in store.similarity_search(question, k=FIRST)
        ]

    return search, len(chunks)


def llama_index(model: Path, files: list[Path]) -> tuple[Callable[[str], Passages], int]:
    """Return a search in a VectorStoreIndex with its default splitter: 1,024 tokens, an overlap of 200."""
    from bs4 import BeautifulSoup
    from llama_index.core import Document, VectorStoreIndex
    from llama_index.core.embeddings import BaseEmbedding
    from pypdf import PdfReader

    encoder = embedder(model)

    class Local(BaseEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embeddings([text])[0]

        def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
            return encoder.encode(texts, normalize_embeddings=True).tolist()

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    documents = []
    for path in files:
        if path.suffix == ".pdf":
            texts = [page.extract_text() for page in PdfReader(path).pages]
        elif path.suffix == ".html":
            texts = [BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser").get_text()]
        else:
            texts = [path.read_text(encoding="utf-8")]
        documents += [Document(text=text, metadata={"file_path": str(path)}) for text in texts]
    index = VectorStoreIndex.from_documents(documents, embed_model=Local())
    retriever = index.as_retriever(similarity_top_k=FIRST)

    def search(question: str) -> Passages:
        return [
            (each.node.metadata["file_path"], each.node.get_content())
            for each in retriever.retrieve(question)
        ]

    return search, len(index.docstore.docs)


def embedded(model: Path, path: Path) -> None:
    """Print how many texts a second sentence-transformers embeds."""
    texts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    encoder = embedder(model)
    encoder.encode(texts[:32])
    began = time.perf_counter()
    encoder.encode(texts, normalize_embeddings=True)
    rate = len(texts) / (time.perf_counter() - began)
    print(f"sentence-transformers {len(texts):,} texts, {rate:.1f} a second")
    print(json.dumps({"bench": "documents/pipelines", "texts": len(texts), "texts_a_s": rate}))


if __name__ == "__main__":
    main()
