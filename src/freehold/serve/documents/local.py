"""Collections with an embedder in this process: `freehold.Collection`, and what the command line opens.

Knows homes and models by name. The HTTP process imports none of this: there, engine processes embed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from freehold.base.config import load_settings
from freehold.base.errors import UsageError
from freehold.base.serving import MAX_TEXTS
from freehold.base.types import ChatModel
from freehold.serve.documents.citing import CitedAnswer, LikelihoodReranker, answered, likelihood_scorer
from freehold.serve.documents.collection import (
    DocumentCollection,
    collection_names,
    collection_path,
    collections_folder,
)
from freehold.serve.documents.searching import DEFAULT_BUDGET, DEFAULT_LIMIT
from freehold.serve.documents.store import CollectionStore
from freehold.serve.documents.types import DEFAULT_EMBEDDER, F32, Embeds, Reranks

if TYPE_CHECKING:
    from freehold.run.local import LLM


class LocalEmbedder:
    """Implements Embeds by a model that is loaded in this process when it is first needed."""

    def __init__(self, name: str, *, threads: int | None = None, pull: bool = False) -> None:
        self.name, self._threads, self._pull = name, threads, pull
        self._llm: LLM | None = None
        self._lock = threading.Lock()
        self.cut = 0  # texts that were longer than the model's context

    def embed(self, texts: Sequence[str]) -> F32:
        """Return unit vectors, float32 [len(texts), width]. Raises ModelNotFound with the command that fetches it."""
        if not texts:
            return np.empty((0, 0), np.float32)
        parts: list[F32] = []
        for at in range(0, len(texts), MAX_TEXTS):  # a document may have more chunks than a job has texts
            embeddings = self._loaded().embed(list(texts[at : at + MAX_TEXTS]), truncate=True)
            self.cut += len(embeddings.cut)
            parts.append(np.asarray(embeddings.vectors, np.float32))
        return np.concatenate(parts)

    def close(self) -> None:
        """Release the model."""
        with self._lock:
            if self._llm is not None:
                self._llm.close()
                self._llm = None

    def _loaded(self) -> LLM:
        from freehold.run.local import load

        with self._lock:
            if self._llm is None:
                self._llm = load(self.name, threads=self._threads, pull=self._pull)
            return self._llm


class Collection(DocumentCollection):
    """A collection of documents by its name, made when it is first opened; search it, and ask it with citations.

        with freehold.Collection("notes") as notes:
            notes.add("~/notes")
            for passage in notes.search("When does the contract end?").passages:
                print(passage.where, passage.text)

    `embedder`: a model that makes embeddings, by its name; a collection keeps the one it was made with. `labels`:
    what a gateway knows the documents by, when the collection is made. `rerank`: a model that generates, which scores
    passages by how probable it finds the question after each. `create`: False raises UsageError where there is none.
    """

    def __init__(
        self,
        name: str,
        *,
        embedder: str | Embeds = "",
        labels: Iterable[str] = (),
        rerank: LLM | None = None,
        home: str | Path | None = None,
        create: bool = True,
        pull: bool = False,
    ) -> None:
        folder = collections_folder(Path(home).expanduser() if home else load_settings().home)
        path = collection_path(folder, name)
        if not path.exists() and create:
            chosen = embedder or DEFAULT_EMBEDDER
            known = chosen if isinstance(chosen, str) else chosen.name
            CollectionStore(path, create=name, embedder=known, labels=labels).close()
        store = CollectionStore(path)
        try:
            embeds = embedder or store.facts().embedder
            if isinstance(embeds, str):
                embeds = LocalEmbedder(embeds, pull=pull)
            reranker: Reranks | None = None if rerank is None else LikelihoodReranker(rerank)
            super().__init__(store, embeds, reranker)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Close the file, and release the embedder that was loaded for it."""
        super().close()
        if isinstance(self.embedder, LocalEmbedder):
            self.embedder.close()

    def ask(
        self,
        question: str,
        llm: ChatModel,
        *,
        limit: int = DEFAULT_LIMIT,
        budget: int = DEFAULT_BUDGET,
        max_tokens: int | None = 512,
        verify: bool = True,
    ) -> CitedAnswer:
        """Answer a question from the documents, with citations that are checked against their sources.

        `verify`: where words leave a doubt, also by the model's own log-likelihood of a sentence with and without its
        source, if it is a model of this process.
        """
        result = self.sources(question, limit, budget=budget)
        scorer = likelihood_scorer(llm) if verify else None
        return answered(llm, question, result, max_tokens=max_tokens, scorer=scorer)


def list_collections(home: Path | None = None) -> list[str]:
    """Return the names of the collections of this home."""
    return collection_names(collections_folder(home or load_settings().home))


def open_collection(home: Path, name: str, *, threads: int | None = None) -> Collection:
    """Open a collection that exists. Raises UsageError with the names of those that do."""
    if not collection_path(collections_folder(home), name).is_file():
        names = list_collections(home)
        known = (
            f"collections here: {', '.join(names)}" if names else "freehold docs add PATH --to NAME makes one"
        )
        raise UsageError(f"there is no collection {name[:80]!r}", known)
    collection = Collection(name, home=home, create=False)
    if threads and isinstance(collection.embedder, LocalEmbedder):
        collection.embedder = LocalEmbedder(collection.embedder.name, threads=threads)
    return collection


def remove_collection(home: Path, name: str) -> None:
    """Delete a collection. Raises UsageError where there is none."""
    open_collection(home, name).close()
    path = collection_path(collections_folder(home), name)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
